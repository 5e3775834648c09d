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
    revision bigint NOT NULL,
    -- As the change log recorded it last, without delete_time.
    recorded bytea NOT NULL
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

-- Published to contacts: a contact was created, changed, deleted or restored.
--
-- A new contact gets its initial conversation, whose id is the contact's own,
-- so that there is exactly one; `conversation` is how the log records it. When
-- a contact is deleted or restored, its conversations go and come with it;
-- those that were deleted on their own before stay deleted. `deletion` is what
-- deletion adds to a recorded conversation: its delete_time, encoded, or
-- nothing. (In protobuf, messages are merged by joining their bytes.)
CREATE FUNCTION messaging.contact_changed(
    revision bigint, is_new boolean, contact_id uuid, actor text,
    create_time timestamptz, delete_time timestamptz, conversation bytea, deletion bytea
) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    before timestamptz;
    touched record;
BEGIN
    IF NOT is_new THEN
        RETURN;
    END IF;
    SELECT k.delete_time INTO before
    FROM messaging.contacts AS k
    WHERE k.contact_id = contact_changed.contact_id;
    IF NOT FOUND THEN
        INSERT INTO messaging.contacts (contact_id, revision)
        VALUES (contact_changed.contact_id, contact_changed.revision);
        INSERT INTO messaging.conversations
            (conversation_id, contact_id, state, create_time, update_time, revision, recorded)
        VALUES (contact_changed.contact_id, contact_changed.contact_id, 1,
            contact_changed.create_time, contact_changed.create_time, contact_changed.revision,
            contact_changed.conversation);
        PERFORM platform.record_effect(
            contact_changed.revision,
            'conversations/' || contact_changed.contact_id,
            2::smallint,
            contact_changed.actor,
            'contacts/' || contact_changed.contact_id,
            contact_changed.conversation
        );
        RETURN;
    END IF;
    IF before IS NOT DISTINCT FROM contact_changed.delete_time THEN
        RETURN;
    END IF;
    UPDATE messaging.contacts AS k
    SET delete_time = contact_changed.delete_time, revision = contact_changed.revision
    WHERE k.contact_id = contact_changed.contact_id;
    FOR touched IN
        UPDATE messaging.conversations AS c
        SET delete_time = contact_changed.delete_time, revision = contact_changed.revision
        WHERE c.contact_id = contact_changed.contact_id
            AND c.delete_time IS NOT DISTINCT FROM before
        RETURNING c.conversation_id, c.recorded
    LOOP
        PERFORM platform.record_effect(
            contact_changed.revision,
            'conversations/' || touched.conversation_id,
            2::smallint,
            contact_changed.actor,
            'contacts/' || contact_changed.contact_id,
            touched.recorded || contact_changed.deletion
        );
    END LOOP;
END
$$;

GRANT USAGE ON SCHEMA messaging TO crm_contacts;
GRANT EXECUTE ON FUNCTION messaging.contact_changed(
    bigint, boolean, uuid, text, timestamptz, timestamptz, bytea, bytea
) TO crm_contacts;
