"""How long the story waits, in seconds."""

START_LIMIT = 120
STOP_LIMIT = 10
CALL_LIMIT = 30
