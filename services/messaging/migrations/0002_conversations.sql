ALTER TABLE messaging.conversations ADD COLUMN display_name text;

-- Lists of conversations in one state show the newest first, too.
CREATE INDEX conversations_state_idx
    ON messaging.conversations (state, create_time DESC, conversation_id DESC);
