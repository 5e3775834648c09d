"""The `sh` blocks of the papers: finding them, and running them as they stand."""

import re
import subprocess

from limits import START_LIMIT
from ports import ADMIN_OFFSETS, DEFAULT_BASE, DEFAULT_EDGE, OFFSETS, PORTS
from report import Broken


def shell_blocks(text):
    """The blocks of a paper that are to be run, as they stand."""
    return re.findall(r"^```sh\n(.*?)^```$", text, re.S | re.M)


def section_blocks(paper, title):
    """The shell blocks of one section of a paper, as they stand."""
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", paper.read_text(), re.S | re.M)
    if not section:
        raise Broken(f"{paper} has no section `{title}`")
    return shell_blocks(section[1])


def run_blocks(server, name, blocks):
    """Runs the blocks in one bash, and answers what each shows.

    The history is on, as it is for those who paste: it gives `!` a meaning.
    """
    place = server.folder / name
    (place / "target" / "debug").mkdir(parents=True)
    (place / "target" / "debug" / "crm").symlink_to(server.program)
    outputs = [place / f"{number}.out" for number in range(len(blocks))]
    ports = {DEFAULT_BASE + offset: port for offset, port in zip(OFFSETS, PORTS.all)}
    ports |= {DEFAULT_BASE + ADMIN_OFFSETS[0]: PORTS.admin, DEFAULT_EDGE: PORTS.edge}
    script = ["set -euo pipefail\nset -o history -o histexpand\n"]
    for block, output in zip(blocks, outputs):
        block = re.sub(r"\b(500[567]\d|8080)\b", lambda at: str(ports[int(at[0])]), block)
        script.append(f"exec >'{output}' 2>&1\n{block}")
    (place / "blocks.sh").write_text("".join(script))
    done = subprocess.run(["bash", "blocks.sh"], cwd=place, env=server.env, timeout=START_LIMIT)
    shown = [output.read_text() for output in outputs if output.exists()]
    if done.returncode != 0:
        raise Broken(f"block {len(shown)} of the {name} ends with {done.returncode}:\n{shown[-1]}")
    return shown
