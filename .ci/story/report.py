"""What was checked, and what came of it."""


class Broken(Exception):
    """Something without which the story cannot go on."""


class Report:
    """Counts checks, and says each as it is made."""

    def __init__(self):
        self.passed = 0
        self.failed = 0

    def check(self, claim, holds, saw=""):
        """Counts one check; `saw` helps where it fails."""
        if holds:
            self.passed += 1
            print(f"ok    {claim}", flush=True)
        else:
            self.failed += 1
            print(f"FAIL  {claim}" + (f"\n      saw: {saw}" if saw != "" else ""), flush=True)

    def equal(self, claim, actual, expected):
        """Counts a check that two values are equal."""
        self.check(claim, actual == expected, f"{actual!r} instead of {expected!r}")
