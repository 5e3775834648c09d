"""The program `crm`, and what of it runs on this machine."""

import os
import signal
import subprocess
import time

from clients import Api
from health import get
from limits import CALL_LIMIT, START_LIMIT, STOP_LIMIT, wait_until
from ports import HOST, OFFSETS, PORTS
from report import Broken


class Server:
    """The program `crm` with one data folder."""

    def __init__(self, program, folder, data=None, log="crm.log"):
        self.program = program
        self.folder = folder
        self.data = data or folder / "data"
        self.secrets = self.data / "secrets"
        self.log = folder / log
        self.env = {name: value for name, value in os.environ.items() if not is_setting(name)}
        self.env["CRM_DATA_DIR"] = str(self.data)
        self.env["CRM_PORT_BASE"] = str(PORTS.registry - OFFSETS[0])
        self.env["CRM_EDGE_PORT"] = str(PORTS.edge)
        self.process = None
        self.postgres = None

    def start(self, log=None):
        """Starts, with this log or its own, and waits until everything serves."""
        with (log or self.log).open("ab") as output:
            self.process = self.spawn({}, output)
        until = time.monotonic() + START_LIMIT
        health = [self.program, "health", "--timeout", "1"]
        while subprocess.run(health, env=self.env, capture_output=True).returncode != 0:
            if self.process.poll() is not None:
                raise Broken(f"`crm start` ended with {self.process.returncode}")
            if time.monotonic() > until:
                raise Broken(f"`crm start` does not serve after {START_LIMIT} s")
        self.postgres = self.postmaster()

    def postmaster(self):
        """The process id of its PostgreSQL, if there is one."""
        return read_postmaster(self.data / "postgres" / "data")

    def as_superuser(self, statement):
        """Runs a statement as far as PostgreSQL does."""
        password = {"PGPASSWORD": (self.secrets / "postgres.password").read_text().strip()}
        at = ["-h", HOST, "-p", str(PORTS.postgres), "-U", "postgres"]
        subprocess.run(["psql", *at, "-qc", statement], env=self.env | password, capture_output=True)

    def tell_that_postgres_is_away(self, report):
        """It says so, and why, and tries again and again."""
        wait_until("it is not ready", lambda: get(PORTS.admin, "/readyz")[0] == 503)
        ports = [port for port in PORTS.all if port != PORTS.postgres]
        seen = {port: Api(port).health() for port in ports}
        report.equal("away: no listener serves", seen, dict.fromkeys(ports, "NOT_SERVING"))
        again = "PostgreSQL does not start, and is tried again"
        wait_until("it is tried again", lambda: self.log_text().count(again) > 1)
        lines = [line for line in self.log_text().splitlines() if again in line]
        words = ("No space left on device", "left on its disk")
        silent = [line for line in lines if not any(word in line for word in words)]
        report.equal("away: the log says why", silent, [])

    def start_postgres_if_it_must(self):
        """It is started again without anybody."""

    def stop(self, by=signal.SIGINT):
        """Stops, and answers the exit code and the seconds it took; no code where it hangs."""
        asked = time.monotonic()
        self.process.send_signal(by)
        try:
            code = self.process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            code = None
        return code, time.monotonic() - asked

    def end(self):
        """Ends what still runs, however the story went."""
        if self.process and self.process.poll() is None:
            self.stop()
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.postgres and is_alive(self.postgres):
            os.kill(self.postgres, signal.SIGQUIT)
            time.sleep(1)

    def spawn(self, settings, output):
        """Runs `crm start` with some more settings."""
        return subprocess.Popen(
            [self.program, "start"],
            env=self.env | settings,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def refused_start(self, settings):
        """Starts once more, which must not succeed; answers the exit code and the words."""
        second = self.spawn(settings, subprocess.PIPE)
        try:
            output, _ = second.communicate(timeout=CALL_LIMIT)
        except subprocess.TimeoutExpired:
            second.send_signal(signal.SIGINT)
            output, _ = second.communicate(timeout=CALL_LIMIT)
            return 0, "it started, and was stopped: " + output.decode(errors="replace")
        return second.returncode, output.decode(errors="replace")

    def token(self, tenant=None):
        """What `crm token` prints."""
        command = [self.program, "token"] + (["--tenant", tenant] if tenant else [])
        done = subprocess.run(command, env=self.env, capture_output=True, text=True)
        if done.returncode != 0:
            raise Broken(f"{' '.join(command[1:])}: {done.stderr.strip()}")
        return done.stdout.strip()

    def log_text(self):
        """Everything it has said."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def postgres_log(self):
        """Everything its PostgreSQL has said."""
        return (self.data / "postgres" / "postgres.log").read_text(errors="replace")


def read_postmaster(cluster):
    """The process id of the server of a cluster, if there is one."""
    try:
        pid = int((cluster / "postmaster.pid").read_text().split()[0])
    except (FileNotFoundError, IndexError, ValueError):
        return None
    return pid if is_alive(pid) else None


def is_setting(name):
    """Whether a variable would change what `crm` does here; where PostgreSQL is may be told."""
    return name.startswith("CRM_") and name != "CRM_POSTGRES_BIN"


def is_alive(pid):
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def processes_of(folder):
    """The command lines of all processes that name the folder."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,args="], capture_output=True, text=True)
    return [line.strip() for line in listed.stdout.splitlines() if str(folder) in line]
