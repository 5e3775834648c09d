"""The services without the registry, and with it again."""

import signal
import threading
import time

import grpc

from clients import CONTACT_SERVICE, MESSAGES, TENANTS, Api, Refusal
from limits import START_LIMIT
from ports import PORTS, listens

# How long the registry hangs, and is dead, in seconds each.
OUTAGE = 30


def tell_outage(report, server, story):
    """The registry hangs, then is dead: who was served goes on to be."""
    request = {"tenant": {"slug": "late", "display_name": "Late Ltd"}}
    Api(PORTS.registry).call(TENANTS, "CreateTenant", request, story.operator)
    unknown = server.token("late")
    read = (CONTACT_SERVICE, "GetContact", {"name": story.contact})
    talk = {"parent": story.contact.replace("contacts/", "conversations/")}
    contacts, messaging = Api(PORTS.contacts), Api(PORTS.messaging)
    contacts.raw(*read, story.token)
    messaging.raw(MESSAGES, "ListMessages", talk, story.token)
    callers = Callers([
        lambda: contacts.raw(*read, story.token),
        lambda: messaging.raw(MESSAGES, "ListMessages", talk, story.token),
    ])
    for what, by in (("hangs", signal.SIGSTOP), ("is dead", signal.SIGKILL)):
        server.signal("tenant-registry", by)
        until = time.monotonic() + OUTAGE
        asked, waits = [], []
        while time.monotonic() < until:
            began = time.monotonic()
            asked.append(Refusal.of(contacts.raw, *read, unknown).code)
            waits.append(time.monotonic() - began)
            time.sleep(1)
        report.equal(f"outage: it {what}: who is unknown gets", set(asked), {"UNAVAILABLE"})
        worst = max(waits)
        report.check(f"outage: it {what}: and that within {worst:.2f} s", worst < 5, waits)
    done, failures = callers.stop()
    claim = f"outage: of {done} calls in {2 * OUTAGE} s, for who is known, none fails"
    report.check(claim, done > OUTAGE and not failures, failures[:3])

    server.signal("contacts", signal.SIGKILL)
    while listens(PORTS.contacts):
        time.sleep(0.01)
    server.start_one("contacts")
    health = wait_for_health(PORTS.contacts)
    report.equal("outage: contacts starts, and says", health, "NOT_SERVING")
    server.start_one("tenant-registry")
    until = time.monotonic() + START_LIMIT
    while (health := wait_for_health(PORTS.contacts)) != "SERVING" and time.monotonic() < until:
        time.sleep(0.1)
    report.equal("outage: the registry is back, and contacts says", health, "SERVING")
    # Its first lease may take too long on a busy machine.
    until = time.monotonic() + START_LIMIT
    while (code := Refusal.of(Api(PORTS.contacts).raw, *read, unknown).code) == "UNAVAILABLE":
        if time.monotonic() > until:
            break
    report.equal("outage: who was unknown is served", code, "NOT_FOUND")


class Callers:
    """Two who call again and again until they are told to stop."""

    def __init__(self, calls):
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.call, args=(call,)) for call in calls]
        self.done = 0
        self.failures = []
        for thread in self.threads:
            thread.start()

    def call(self, call):
        """Until the end, with a moment between two calls."""
        while not self.over.wait(0.01):
            try:
                call()
                self.done += 1
            except grpc.RpcError as error:
                self.failures.append(str(error))

    def stop(self):
        """Answers how many calls were answered, and the failures."""
        self.over.set()
        for thread in self.threads:
            thread.join()
        return self.done, self.failures


def wait_for_health(port):
    """What a listener says of itself, once there is one."""
    until = time.monotonic() + START_LIMIT
    while True:
        try:
            return Api(port).health()
        except grpc.RpcError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
