"""Builds the suite with each seeded bug of docs/testing.md, and looks that the
test that is named there catches it.

    python3 .ci/bugs.py [BUG ...]    all of them where none is named
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROW = re.compile(r"\| `(bug_\w+)` \|.*\| `(\w+)`: `([\w:]+)` \|")
SEED = re.compile(r"cfg!?\((?:not\()?(bug_\w+)")
# The longest that a build and its test may take.
PATIENCE_SECONDS = 900


def main(wanted):
    lines = (ROOT / "docs/testing.md").read_text().splitlines()
    bugs = {row[1]: (row[2], row[3]) for row in map(ROW.fullmatch, lines) if row}
    sources = seeded_sources()
    if set(sources) != set(bugs):
        sys.exit(f"in the code or in docs/testing.md, not in both: {set(sources) ^ set(bugs)}")
    if unknown := set(wanted) - set(bugs):
        sys.exit(f"no such bugs: {unknown}")
    missed = []
    for bug in wanted or sorted(bugs):
        program, test = bugs[bug]
        # The wrapper is the same for all bugs, so cargo is told what changed.
        with touched(set().union(*sources.values())):
            caught, output = catches(bug, program, test)
        print(f"{bug}: {'caught' if caught else 'NOT CAUGHT'} by {program}: {test}", flush=True)
        if not caught:
            missed.append(bug)
            print(output)
    if missed:
        sys.exit(f"not caught: {', '.join(missed)}")


def seeded_sources():
    """The source files of each bug."""
    sources = {}
    for path in ROOT.glob("*/*/src/**/*.rs"):
        for bug in SEED.findall(path.read_text()):
            sources.setdefault(bug, set()).add(path)
    return sources


class touched:
    """Files that are newer than what was built of them, for a while."""

    def __init__(self, paths):
        self.times = {path: path.stat().st_mtime_ns for path in paths}

    def __enter__(self):
        for path in self.times:
            path.touch()

    def __exit__(self, *_):
        for path, time in self.times.items():
            os.utime(path, ns=(time, time))


def catches(bug, program, test):
    """Whether the test fails with the bug, and what was said. Without the bug
    it passes, as all tests do."""
    kind = ["--lib"] if program == "lib" else ["--test", program]
    command = ["cargo", "test", "--workspace", "--no-fail-fast", *kind, "--", "--exact", test]
    environment = os.environ | {
        "RUSTC_WORKSPACE_WRAPPER": str(ROOT / ".ci/with-bug"),
        "CRM_BUG": bug,
    }
    ran = subprocess.run(
        command, cwd=ROOT, env=environment, text=True, timeout=PATIENCE_SECONDS,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    return f"test {test} ... FAILED" in ran.stdout, ran.stdout


if __name__ == "__main__":
    main(sys.argv[1:])
