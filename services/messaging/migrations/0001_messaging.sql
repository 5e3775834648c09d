-- What messaging knows of contacts: that they exist.
CREATE TABLE messaging.contacts (
    contact_id uuid PRIMARY KEY,
    delete_time timestamptz,
    revision bigint NOT NULL
);

CREATE TABLE messaging.conversations (
    conversation_id uuid PRIMARY KEY,
    contact_id uuid NOT NULL REFERENCES messaging.contacts,
    -- crm.messaging.v1.Conversation.State
    state smallint NOT NULL,
    last_message_time timestamptz,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    delete_time timestamptz,
    revision bigint NOT NULL
);
CREATE INDEX conversations_contact_idx
    ON messaging.conversations (contact_id, create_time DESC, conversation_id DESC);
CREATE INDEX conversations_create_time_idx
    ON messaging.conversations (create_time DESC, conversation_id DESC);

CREATE TABLE messaging.messages (
    message_id uuid PRIMARY KEY,
    conversation_id uuid NOT NULL REFERENCES messaging.conversations,
    -- crm.messaging.v1.Message.SenderType
    sender_type smallint NOT NULL,
    sender_id text NOT NULL,
    content text NOT NULL,
    create_time timestamptz NOT NULL,
    -- The order of messages: revisions are in the order of commits.
    revision bigint NOT NULL,
    UNIQUE (conversation_id, revision)
);

GRANT USAGE ON SCHEMA messaging TO crm_messaging;
GRANT SELECT ON messaging.contacts TO crm_messaging;
GRANT SELECT, INSERT, UPDATE, DELETE ON messaging.conversations, messaging.messages TO crm_messaging;

-- Published to contacts: a contact was created. It makes the initial
-- conversation, whose id is the contact's own, so that there is exactly one.
CREATE FUNCTION messaging.contact_changed(
    revision bigint, is_new boolean, contact_id uuid, actor text, at timestamptz,
    conversation bytea
) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT is_new THEN
        RETURN;
    END IF;
    INSERT INTO messaging.contacts (contact_id, revision)
    VALUES (contact_changed.contact_id, contact_changed.revision);
    INSERT INTO messaging.conversations
        (conversation_id, contact_id, state, create_time, update_time, revision)
    VALUES (contact_changed.contact_id, contact_changed.contact_id, 1,
        contact_changed.at, contact_changed.at, contact_changed.revision);
    PERFORM platform.record_effect(
        contact_changed.revision,
        'conversations/' || contact_changed.contact_id,
        2::smallint,
        contact_changed.actor,
        'contacts/' || contact_changed.contact_id,
        contact_changed.conversation
    );
END
$$;

GRANT USAGE ON SCHEMA messaging TO crm_contacts;
GRANT EXECUTE ON FUNCTION
    messaging.contact_changed(bigint, boolean, uuid, text, timestamptz, bytea)
TO crm_contacts;
