"""A disk that fills up and gets room again: nothing that was acknowledged is lost, and nobody has to do anything."""

import errno
import os
import subprocess
import threading
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import grpc

from clients import CLUSTERS, CONTACT_SERVICE, TENANTS, Api, Refusal
from limits import START_LIMIT, wait_until
from ports import PORTS
from report import Broken
from server import Server

# Room for a cluster with its templates and spares, and for some more of its log.
SMALL_MIB = 320
WRITERS = 4
# What callers may see of it, as of any fault of PostgreSQL.
EXPECTED = {"UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
BY_NAME = ("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE", "crm")


class SmallDisk:
    """A file system of its own, in memory: it is full when it says so, and nobody else is harmed."""

    def __init__(self, folder, mebibytes=SMALL_MIB):
        self.folder = folder
        self.ballast = folder / "ballast"
        folder.mkdir()
        size = f"size={mebibytes}m,mode=0755,uid={os.getuid()},gid={os.getgid()}"
        done = as_root("mount", "-t", "tmpfs", "-o", size, "crm-story", folder)
        if done.returncode != 0:
            raise Broken(
                "there is no small disk to fill: the story needs root, or sudo without a "
                f"password, and leave to mount a tmpfs: {done.stderr.strip()}"
            )

    def fill(self):
        """Takes all the room there is, to the last block."""
        with self.ballast.open("ab", buffering=0) as ballast:
            for piece in (1 << 20, 1 << 12):
                try:
                    while True:
                        ballast.write(bytes(piece))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self):
        """Gives it back."""
        self.ballast.unlink()

    def end(self):
        """Takes the disk away, with all that is on it, if it is there."""
        if not self.folder.is_mount():
            return
        done = as_root("umount", self.folder)
        if done.returncode != 0:
            raise Broken(f"the small disk stays at {self.folder}: {done.stderr.strip()}")


def as_root(*command):
    """Runs a command as root."""
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    try:
        return subprocess.run([*sudo, *command], capture_output=True, text=True)
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(command, 1, stderr=str(error))


class Writers:
    """Some who create contacts without end, each until it is acknowledged."""

    def __init__(self, token):
        self.token = token
        self.api = Api(PORTS.contacts)
        # What the server says of itself, before all ask at once.
        self.api.types(CONTACT_SERVICE, "CreateContact")
        self.over = threading.Event()
        self.acknowledged = []
        self.unanswered = []
        self.refusals = []
        self.threads = [threading.Thread(target=self.write, args=(each,)) for each in range(WRITERS)]
        for thread in self.threads:
            thread.start()

    def write(self, writer):
        """One after the other, each with a request_id of its own."""
        number = 0
        while not self.over.is_set():
            name = f"disk-{writer}-{number}"
            person = {"display_name": name, "email": f"{name}@example.com"}
            request = {"contact": person, "request_id": str(uuid.uuid4())}
            while not (is_done := self.is_acknowledged(request)) and not self.over.wait(0.05):
                pass
            (self.acknowledged if is_done else self.unanswered).append(name)
            number += 1

    def is_acknowledged(self, request):
        """Whether a call is answered; a refusal is noted."""
        try:
            self.api.raw(CONTACT_SERVICE, "CreateContact", request, self.token)
        except grpc.RpcError as error:
            self.refusals.append(Refusal.from_error(error))
            return False
        return True

    def go_on(self, count=20):
        """Waits until so many more were acknowledged, and answers the seconds until the first."""
        began, before = time.monotonic(), len(self.acknowledged)
        wait_until("writes are acknowledged", lambda: len(self.acknowledged) > before)
        first = time.monotonic() - began
        wait_until("more are", lambda: len(self.acknowledged) >= before + count)
        return first

    def end(self):
        """Waits for what is under way."""
        self.over.set()
        for thread in self.threads:
            thread.join()

    def there(self):
        """The names of all contacts that the writers made."""
        names, page = [], {"page_size": 1000}
        while True:
            listed = self.api.call(CONTACT_SERVICE, "ListContacts", page, self.token)
            names += [contact.display_name for contact in listed.contacts]
            if not listed.next_page_token:
                return [name for name in names if name.startswith("disk-")]
            page = page | {"page_token": listed.next_page_token}


@contextmanager
def writing(token):
    """Writers, who end however it goes on."""
    writers = Writers(token)
    try:
        yield writers
    finally:
        writers.end()


def tell_small_disk(report, program, folder):
    """`crm` on a small disk, from its first start to its last."""
    disk = SmallDisk(folder / "disk")
    server = Server(program, folder, data=disk.folder / "data", log="small-disk.log")
    try:
        disk.fill()
        code, output = server.refused_start({})
        told = (code, "No space left on device" in output and str(server.data) in output)
        report.equal("full disk: a first start ends, and says why", told, (1, True))
        disk.free()
        server.start()
        operator, token = server.token(), server.token("demo")
        tell_full_disk(report, server, disk, token)
        tell_whole(report, operator)

        disk.fill()
        code, seconds = server.stop()
        report.equal(f"full disk: it stops cleanly, after {seconds:.1f} s", code, 0)
        disk.free()
        server.start(log=Path("/dev/full"))
        after = Api(PORTS.contacts).call(CONTACT_SERVICE, "ListContacts", {}, token)
        report.check("full disk: it starts with all its data", len(after.contacts) > 0)
        code, _ = server.stop()
        report.equal("full disk: and stops, though its log had no room all the time", code, 0)
    finally:
        server.end()
        if report.failed:
            print("", "The end of its log:", *server.log_text().splitlines()[-40:], "", sep="\n")
        disk.end()


def tell_full_disk(report, server, disk, token):
    """The disk fills up while many write."""
    with writing(token) as writers:
        writers.go_on()
        # The log of PostgreSQL has room ahead: it is tables that lack it first.
        server.as_superuser("SELECT pg_switch_wal()")
        disk.fill()
        wait_until("a write is refused", lambda: writers.refusals)
        first = writers.refusals[0]
        report.equal("full disk: a write is refused by name", name_of(first), BY_NAME)
        read = Refusal.of(writers.api.raw, CONTACT_SERVICE, "ListContacts", {"page_size": 1}, token)
        report.equal("full disk: what is there is read", read.code, "OK")

        # Now its log has no room, either.
        postmaster = server.postmaster()
        while server.postmaster() == postmaster:
            server.as_superuser("SELECT pg_switch_wal()")
            disk.fill()
        disk.fill()
        server.tell_that_postgres_is_away(report)
        seen = Refusal.of(writers.api.raw, CONTACT_SERVICE, "ListContacts", {"page_size": 1}, token)
        report.equal("full disk: PostgreSQL ended, and a read is refused by name", name_of(seen), BY_NAME)

        disk.free()
        server.start_postgres_if_it_must()
        took = writers.go_on()
        report.check(f"full disk: with room, it is written again after {took:.1f} s", took < START_LIMIT)
    codes = {refusal.code for refusal in writers.refusals}
    report.check(f"full disk: {len(writers.refusals)} writes were refused by code", codes <= EXPECTED, codes)
    unnamed = [refusal for refusal in writers.refusals if refusal.domain != "crm"]
    report.equal("full disk: and by reason", unnamed, [])
    claim = f"full disk: of {len(writers.acknowledged)} acknowledged writes none is lost or doubled"
    there = writers.there()
    wrong = set(writers.acknowledged).difference(there), set(there).difference(writers.acknowledged, writers.unanswered)
    report.equal(claim, (*map(len, wrong), len(set(there))), (0, 0, len(there)))


def tell_whole(report, operator):
    """What was cut off is finished, and tenants are made."""
    registry = Api(PORTS.registry)

    def findings():
        try:
            return list(registry.call(CLUSTERS, "CheckClusters", {}, operator).findings)
        except grpc.RpcError as error:
            return [error.code()]

    wait_until("the clusters are as the registry says", lambda: not findings())
    report.equal("full disk: the clusters are as the registry says", findings(), [])
    tenant = {"tenant": {"slug": "after-the-flood", "display_name": "After the Flood"}}
    made = registry.call(TENANTS, "CreateTenant", tenant, operator)
    report.equal("full disk: a tenant is made", made.slug, "after-the-flood")


def name_of(refusal):
    """What a program goes by."""
    return (refusal.code, refusal.reason, refusal.domain)
