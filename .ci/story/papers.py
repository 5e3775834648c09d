"""The papers in docs: their blocks, their links, and what they name."""

import re
from pathlib import Path

from blocks import run_blocks, shell_blocks
from clients import Api
from ports import PORTS

ROOT = Path(__file__).resolve().parent.parent.parent
RUNNING = ROOT / "docs/running.md"


def tell_papers(report, server):
    """Every block of the papers runs, and every public method is in one of operations.md.

    Those of the README and of docs/running.md run elsewhere: as the tour, and
    as the start of the processes.
    """
    for paper in sorted(ROOT.glob("docs/*.md")):
        blocks = shell_blocks(paper.read_text())
        if not blocks or paper.name == RUNNING.name:
            continue
        shown = run_blocks(server, paper.stem, blocks)
        report.equal(f"papers: every block of {paper.name} runs", len(shown), len(blocks))
    blocks = shell_blocks((ROOT / "docs/operations.md").read_text())
    listed = [f"{service.split('.')[-1]}/{method}" for service, method in public_methods()]
    report.check("papers: there are public methods", len(listed) > 30, listed)
    missing = [method for method in listed if not any(method in block for block in blocks)]
    report.equal("papers: every public method is in operations.md", missing, [])
    report.equal("papers: every link leads somewhere", list(dead_links()), [])
    readme = (ROOT / "README.md").read_text()
    papers = [f"docs/{paper.name}" for paper in ROOT.glob("docs/*.md")]
    unlinked = [paper for paper in papers if f"({paper})" not in readme]
    report.equal("papers: the README leads to each", unlinked, [])
    report.equal("papers: every test in ARCHITECTURE.md is there", list(unknown_tests()), [])


def dead_links():
    """The links to files of this repository that are not there."""
    for paper in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "bench/README.md"]:
        for link in re.findall(r"\]\(([^)\s]+)\)", paper.read_text()):
            path = link.split("#")[0]
            if path and ":" not in path and not (paper.parent / path).exists():
                yield f"{paper.relative_to(ROOT)}: {link}"


def unknown_tests():
    """The tests that the invariants name and that are not where they say."""
    _, invariants = (ROOT / "ARCHITECTURE.md").read_text().split("\n## Invariants\n")
    unplaced = set(re.findall(r"`([a-z]+(?:_[a-z0-9]+){3,})`", invariants))
    for place, names in re.findall(r"`([a-z-]+/[\w/.-]+)`: ((?:`\w+`(?:, )?)+)", invariants):
        places = [each / place for each in (ROOT / "services", ROOT / "shared")]
        paths = [path for each in places for path in (each, *each.rglob("*.rs")) if path.is_file()]
        source = "".join(path.read_text() for path in paths)
        for name in re.findall(r"`(\w+)`", names):
            unplaced.discard(name)
            if f"fn {name}(" not in source:
                yield f"{place}: {name}"
    yield from sorted(unplaced)


def public_methods():
    """The methods that the edge lists of itself."""
    api = Api(PORTS.edge)
    for service in api.database.get_services():
        if not service.startswith("grpc."):
            for method in api.pool.FindServiceByName(service).methods:
                yield service, method.name
