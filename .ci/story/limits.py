"""How long the story waits, in seconds."""

import time

from report import Broken

START_LIMIT = 120
STOP_LIMIT = 60
CALL_LIMIT = 30


def wait_until(what, holds):
    """Waits for something that must come."""
    until = time.monotonic() + START_LIMIT
    while not holds():
        if time.monotonic() > until:
            raise Broken(f"it does not come: {what}")
        time.sleep(0.05)
