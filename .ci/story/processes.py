"""Three processes with a PostgreSQL of their own, as docs/running.md says.

It is what an operator sets up: PostgreSQL, which runs already, and the blocks
of the section `As processes` as they stand.
"""

import glob
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

from blocks import section_blocks
from disk import SmallDisk
from limits import START_LIMIT, STOP_LIMIT
from ports import HOST
from server import read_postmaster

PROGRAMS = ("tenant-registry", "contacts", "messaging")
# Two data services with their 60 sessions, and what the registry needs.
MAX_CONNECTIONS = 160
# The room that PostgreSQL has: enough for the story, and soon filled.
POSTGRES_MIB = 768


class Postgres:
    """A PostgreSQL that an operator has: its superuser comes by the socket alone."""

    def __init__(self, disk, port):
        self.data = disk.folder / "postgres"
        self.log = disk.folder.with_name("postgres.log")
        self.port = port
        self.bin = self.find()
        # Where this is root, PostgreSQL is another user: it refuses root.
        self.user = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
        self.runs = False

    @staticmethod
    def find():
        """The folder of its programs."""
        told = os.environ.get("CRM_POSTGRES_BIN")
        beside = shutil.which("initdb")
        installed = sorted(
            glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[4])
        )
        places = [told, *reversed(installed), beside and Path(beside).resolve().parent]
        return Path(next(place for place in places if place))

    def start(self):
        """Makes it, and waits until it takes connections."""
        self.data.mkdir(mode=0o700)
        self.log.touch(mode=0o600)
        if self.user:
            shutil.chown(self.data, **self.user)
            shutil.chown(self.log, **self.user)
        self.run("initdb", "-U", "postgres", "--no-sync", "--auth-local=trust", "--auth-host=scram-sha-256")
        with (self.data / "postgresql.conf").open("a") as settings:
            settings.write(
                f"port = {self.port}\nlisten_addresses = '{HOST}'\nfsync = off\n"
                f"unix_socket_directories = '{self.data}'\nmax_connections = {MAX_CONNECTIONS}\n"
            )
        self.launch()

    def launch(self):
        """Starts it, as its operator's service manager does."""
        self.run("pg_ctl", "start", "--wait", "--silent", "--log", self.log)
        self.runs = True

    def run(self, program, *arguments):
        """Runs one of its programs on its data."""
        command = [self.bin / program, "-D", self.data, *arguments]
        done = subprocess.run(
            command, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **self.user
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program}: {done.stderr.decode(errors='replace')}")

    def environment(self):
        """How psql finds its superuser, and the registry its port."""
        return {
            "PATH": os.pathsep.join([str(self.bin), os.environ["PATH"]]),
            "PGHOST": str(self.data),
            "PGPORT": str(self.port),
            "PGUSER": "postgres",
            "CRM_DATABASE_PORT": str(self.port),
        }

    def end(self):
        """Stops it."""
        if self.runs and read_postmaster(self.data):
            self.run("pg_ctl", "stop", "--wait", "--mode=fast")
        self.runs = False


class Processes:
    """The three programs, started by the paper's blocks in one shell.

    It has what the story asks of a server.
    """

    def __init__(self, program, folder, paper, ports):
        registry, contacts, messaging, postgres, leases = ports
        self.folder = folder
        self.disk = SmallDisk(folder / "disk", POSTGRES_MIB)
        self.postgres_server = Postgres(self.disk, postgres)
        self.log = folder / "processes.log"
        self.place = folder / "place"
        (self.place / "target" / "debug").mkdir(parents=True)
        for name in PROGRAMS:
            link = self.place / "target" / "debug" / name
            link.symlink_to(program.with_name(name))
        (self.place / "deploy").symlink_to(paper.resolve().parent.parent / "deploy")
        self.blocks = section_blocks(paper, "As processes")
        self.ports = dict(zip(("50051", "50052", "50053"), map(str, ports)))
        self.secrets = self.place / "secrets"
        self.shell = None
        # Those that were started again, by their names.
        self.started = {}
        # It stays when these stop: it is not theirs.
        self.postgres = None
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CRM_")}
        self.env = kept | {
            "CRM_REGISTRY_LISTEN": f"{HOST}:{registry}",
            "CRM_REGISTRY_INTERNAL_LISTEN": f"{HOST}:{leases}",
            "CRM_CONTACTS_LISTEN": f"{HOST}:{contacts}",
            "CRM_MESSAGING_LISTEN": f"{HOST}:{messaging}",
            "CRM_REGISTRY_ADMIN_LISTEN": f"{HOST}:{registry + 10}",
            "CRM_CONTACTS_ADMIN_LISTEN": f"{HOST}:{contacts + 10}",
            "CRM_MESSAGING_ADMIN_LISTEN": f"{HOST}:{messaging + 10}",
            "CRM_REGISTRY_ENDPOINT": f"http://{HOST}:{leases}",
        }

    def start(self):
        """Starts PostgreSQL the first time; then runs the blocks, until all serve."""
        set_up, start, use = self.blocks
        blocks = [start, use]
        if not self.postgres_server.runs:
            self.postgres_server.start()
            self.env |= self.postgres_server.environment()
            blocks = [set_up, start, use]
        served, ended = self.place / "served", self.place / "ended"
        served.unlink(missing_ok=True)
        script = [
            "set -euo pipefail",
            *(re.sub(r"\b5005[123]\b", lambda at: self.ports[at[0]], block) for block in blocks),
            f"jobs -p >'{served}.part'; mv '{served}.part' '{served}'",
            f"for job in $(jobs -p); do code=0; wait $job || code=$?; echo $code; done >'{ended}'",
        ]
        with self.log.open("ab") as log:
            self.shell = subprocess.Popen(
                ["bash", "-c", "\n".join(script)], cwd=self.place, env=self.env, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )
        until = time.monotonic() + START_LIMIT
        while not served.exists():
            if self.shell.poll() is not None or time.monotonic() > until:
                raise RuntimeError("the processes do not serve")
            time.sleep(0.05)

    def postmaster(self):
        """The process id of their PostgreSQL, if there is one."""
        return read_postmaster(self.postgres_server.data)

    def as_superuser(self, statement):
        """Runs a statement as far as PostgreSQL does."""
        subprocess.run(["psql", "-qc", statement, "postgres"], env=self.env, capture_output=True)

    def tell_that_postgres_is_away(self, report):
        """They go on, and wait for it."""
        for program in PROGRAMS:
            self.signal(program, 0)
        report.check("away: every process goes on", True)

    def start_postgres_if_it_must(self):
        """Its operator sees to it, or has it seen to."""
        self.postgres_server.launch()

    def stop(self, by=signal.SIGTERM):
        """Stops all at once; answers the worst exit code and the seconds it took.

        Those that were killed before do not count.
        """
        asked = time.monotonic()
        for program in PROGRAMS:
            self.signal(program, by)
        try:
            self.shell.wait(STOP_LIMIT)
            codes = [process.wait(STOP_LIMIT) for process in self.started.values()]
        except subprocess.TimeoutExpired:
            return None, time.monotonic() - asked
        ended = [int(code) for code in (self.place / "ended").read_text().split()]
        of_first = [code for program, code in zip(PROGRAMS, ended) if program not in self.started]
        self.started.clear()
        return max(of_first + codes) if len(ended) == len(PROGRAMS) else -1, time.monotonic() - asked

    def signal(self, program, by):
        """Sends a signal to one of the programs."""
        first = (self.place / "served").read_text().split()[PROGRAMS.index(program)]
        again = self.started.get(program)
        os.kill(again.pid if again else int(first), by)

    def start_one(self, program):
        """Starts one again that was killed, as the blocks do."""
        with self.log.open("ab") as log:
            self.started[program] = subprocess.Popen(
                [self.place / "target" / "debug" / program], cwd=self.place,
                env=self.env | self.told(), stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT,
            )

    def told(self):
        """The variables that the blocks set."""
        return dict(re.findall(r"(CRM_\w+)=(\S+)", self.blocks[1]))

    def token(self, tenant=None):
        """What `tenant-registry token` prints."""
        words = ["target/debug/tenant-registry", "token"] + (["--tenant", tenant] if tenant else [])
        done = subprocess.run(
            words, cwd=self.place, env=self.env | self.told(), capture_output=True, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def end(self):
        """Ends what still runs, however the story went."""
        for process in self.started.values():
            process.kill()
            process.wait()
        if self.shell and self.shell.poll() is None:
            os.killpg(self.shell.pid, signal.SIGKILL)
            self.shell.wait()
        self.postgres_server.end()
        self.disk.end()

    def log_text(self):
        """Everything they have said."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def postgres_log(self):
        """Everything their PostgreSQL has said."""
        return self.postgres_server.log.read_text(errors="replace")
