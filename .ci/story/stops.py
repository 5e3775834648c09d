"""Stopping, starting again, and what is left."""

import signal

from canary import Canary
from clients import CONTACT_SERVICE, Api
from health import tell_health
from limits import STOP_LIMIT
from ports import PORTS, free_base, listens
from report import Broken
from server import is_alive, processes_of


def tell_stop(report, server, by):
    """A stop is clean and quick."""
    code, seconds = server.stop(by)
    took = f"{by.name}, after {seconds:.1f} s"
    report.equal(f"stop: exit code 0 by {took}", code, 0)
    if code is None:
        raise Broken(f"it does not stop within {STOP_LIMIT} s")
    ours = [port for port in PORTS.all if PORTS.edge or port != PORTS.postgres]
    report.equal("stop: its ports are free", [port for port in ours if listens(port)], [])
    if server.postgres:
        gone = not is_alive(server.postgres)
        report.check("stop: PostgreSQL has gone with it", gone, server.postgres)


def tell_restart(report, server, story):
    """The data is there after a stop, and repeats are still repeats."""
    before = story.read()
    tell_stop(report, server, signal.SIGINT)
    server.start()
    after = story.read()
    for call, reply in before.items():
        report.equal(f"restart: {call.split('.')[-1]} has the same bytes", after[call], reply)
    fresh = server.token("story")
    contact = {"name": story.contact}
    got = Api(PORTS.contacts).raw(CONTACT_SERVICE, "GetContact", contact, fresh)
    report.equal("restart: and for a new token", got, before[f"{CONTACT_SERVICE}/GetContact"])


def tell_second_start(report, server):
    """One server per folder, and one per port."""
    elsewhere = {"CRM_DATA_DIR": str(server.folder / "second")}
    another_base = {"CRM_PORT_BASE": str(free_base())}
    starts = [
        ("the folder", another_base, str(server.data)),
        ("a port", elsewhere, str(PORTS.registry)),
        ("the edge's port", elsewhere | another_base, str(PORTS.edge)),
    ]
    for what, settings, named in starts:
        code, output = server.refused_start(settings)
        tail = output.strip().splitlines()[-1:]
        report.check(f"second start: refused, since {what} is in use", code != 0, output)
        report.check(f"second start: it names {what}", named in str(tail), tail)
    left = processes_of(elsewhere["CRM_DATA_DIR"])
    report.equal("second start: nothing of it is left", left, [])
    tell_health(report)


def tell_end(report, server, story):
    """What is left of it."""
    tell_stop(report, server, signal.SIGTERM)
    server.end()
    report.equal("end: no process of it is left", processes_of(server.folder), [])
    log = server.log_text()
    report.check("end: nothing in it panicked", "panicked" not in log)
    secrets = [file.read_text().strip() for file in server.secrets.iterdir()]
    secrets += [story.operator, story.token, story.foreign_token]
    report.check("end: no secret and no token is in its log", not any(s in log for s in secrets))
    lines = log + server.postgres_log()
    told = [line for line in lines.splitlines() if Canary.text in line]
    report.check(
        f"end: no canary is in {len(lines.splitlines())} lines of logs", lines and not told, told[:3]
    )
    report.check(
        f"end: no canary is in {Canary.replies} replies to others",
        Canary.replies and not Canary.leaks, Canary.leaks,
    )
