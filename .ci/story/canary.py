"""Looks for one tenant's text in what others are told."""

import uuid


class Canary:
    """A text that one tenant has everywhere, and nobody else may ever read."""

    text = f"canary-{uuid.uuid4().hex}"
    # Whose it is.
    token = None
    # How many replies to others were looked at, and those that have it.
    replies = 0
    leaks = []

    @classmethod
    def look(cls, call, told, token):
        """Looks at what a call told someone."""
        if cls.token and token != cls.token:
            cls.replies += 1
            if cls.text in told:
                cls.leaks.append(call)
