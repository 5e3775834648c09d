"""How long the story waits, in seconds."""

START_LIMIT = 120
STOP_LIMIT = 60
CALL_LIMIT = 30
