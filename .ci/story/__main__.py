"""Proves the whole story from outside, with real clients, on a `crm start` of its own.

The README's tour runs as it stands, with grpcurl, and so does every `sh` block
of the papers in docs. Then Python tells the same story with what the servers
say of themselves, without generated code, and looks at what a tour does not
show: repeats at the same moment, what the edge must not answer, browsers,
stopping, starting again, and what is left. `tell` and `tell_processes` are the
tables of contents.

    pip install -r .ci/requirements.txt
    python3 .ci/story --crm target/debug/crm
    python3 .ci/story --processes

With `--processes` the same is told of the three programs that stand beside
`crm`, as `As processes` in docs/running.md starts them; they have no edge.

It uses the default ports, because the README does, and a temporary folder.
Where one of them is taken, it uses others, and so do the README's blocks.
The last line says how many checks passed and failed.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path

# The first of ours, since it says what Python lacks.
from clients import HOW_TO_INSTALL

from browsers import tell_browsers
from disk import tell_full_disk, tell_small_disk, tell_whole
from health import tell_admin, tell_health
from isolation import tell_canary, tell_leases
from outage import tell_outage
from papers import ROOT, RUNNING, tell_papers
from ports import PORTS, choose_ports
from processes import Processes
from report import Broken, Report
from server import Server
from services import Story, tell_contacts, tell_refusals, tell_repeats, tell_tenants
from stops import tell_end, tell_restart, tell_second_start
from tour import tell_tour


def tell(report, server, readme):
    """The story of `crm`, in order."""
    story = Story()
    server.start()
    tell_health(report)
    tell_tour(report, server, readme)
    tell_papers(report, server)
    tell_services(report, server, story)
    tell_browsers(report, story)
    tell_admin(report, [PORTS.admin])
    tell_restart(report, server, story)
    tell_second_start(report, server)
    tell_end(report, server, story)
    tell_small_disk(report, server.program, server.folder)


def tell_processes(report, server):
    """The same of three processes, as far as it is the same."""
    story = Story()
    server.start()
    report.check("start: a tenant is made", '"slug": "initech"' in server.log_text())
    tell_health(report)
    tell_services(report, server, story)
    tell_admin(report, [port + 10 for port in (PORTS.registry, PORTS.contacts, PORTS.messaging)])
    tell_restart(report, server, story)
    tell_outage(report, server, story)
    tell_full_disk(report, server, server.disk, server.token("story"))
    tell_whole(report, server.token())
    tell_end(report, server, story)


def tell_services(report, server, story):
    """What the services do, whoever runs them."""
    tell_tenants(report, server, story)
    tell_contacts(report, story)
    tell_canary(report, story)
    tell_refusals(report, story)
    tell_repeats(report, story)
    tell_leases(report, server, story)


def prepare(arguments):
    """Finds what the story needs, or says what is missing."""
    # A virtual environment's programs count, activated or not.
    beside = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([beside, os.environ.get("PATH", "")])
    if not shutil.which("grpcurl"):
        raise Broken(f"there is no grpcurl: {HOW_TO_INSTALL}")
    for program in ("bash", "curl", "ps", "psql"):
        if not shutil.which(program):
            raise Broken(f"there is no {program}: the system's packages have it")
    if not os.access(arguments.crm, os.X_OK):
        raise Broken(f"there is no {arguments.crm}: `cargo build --workspace` makes it")
    choose_ports(with_edge=not arguments.processes)


def run(report, arguments):
    """Tells the story in a folder of its own, and leaves nothing behind."""
    prepare(arguments)
    folder = Path(tempfile.mkdtemp(prefix="crm-story-", dir="/tmp")).resolve()
    folder.chmod(0o755)  # PostgreSQL runs as another user where this is root.
    program = arguments.crm.resolve()
    if arguments.processes:
        server = Processes(program, folder, RUNNING, PORTS.all)
    else:
        server = Server(program, folder)
    try:
        if arguments.processes:
            tell_processes(report, server)
        else:
            tell(report, server, arguments.readme)
    except Broken as error:
        report.check("the story goes on", False, error)
    except Exception:  # What is left is ended and counted, whatever happened.
        report.check("the story goes on", False, traceback.format_exc())
    finally:
        server.end()
        if report.failed:
            print("", "The end of the log:", *server.log_text().splitlines()[-40:], "", sep="\n")
        shutil.rmtree(folder, ignore_errors=True)
    report.check("end: the temporary folder is removed", not folder.exists(), folder)


def main():
    """Reads the command line; exits with 1 if a check failed."""
    parser = argparse.ArgumentParser(prog=".ci/story", description=__doc__.splitlines()[0])
    parser.add_argument("--crm", type=Path, default=ROOT / "target/debug/crm", help="the program")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="the README to run")
    parser.add_argument("--processes", action="store_true", help="the programs beside it instead")
    arguments = parser.parse_args()
    # Whoever stops the story stops what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    report = Report()
    try:
        run(report, arguments)
    except Broken as error:
        report.check("the story begins", False, error)
    print(f"{report.passed} passed, {report.failed} failed", flush=True)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
