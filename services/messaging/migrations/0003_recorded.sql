-- What a login writes stands in the log, or its transaction does not commit;
-- and what was written once is never taken away.

-- The platform has them first, from its third version on.
SELECT 'platform.refuse_unrecorded(bigint, text)'::regprocedure
     , 'platform.record_messaging_effect(bigint, text, smallint, text, bytea)'::regprocedure;

CREATE FUNCTION messaging.refuse_unrecorded_conversation() RETURNS trigger
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    PERFORM platform.refuse_unrecorded(new.revision, 'conversations/' || new.conversation_id);
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER conversations_refuse_unrecorded
    AFTER INSERT OR UPDATE ON messaging.conversations
    DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (current_user <> 'crm_messaging_owner')
    EXECUTE FUNCTION messaging.refuse_unrecorded_conversation();

CREATE FUNCTION messaging.refuse_unrecorded_message() RETURNS trigger
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    PERFORM platform.refuse_unrecorded(
        new.revision, 'conversations/' || new.conversation_id || '/messages/' || new.message_id
    );
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER messages_refuse_unrecorded
    AFTER INSERT OR UPDATE ON messaging.messages
    DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (current_user <> 'crm_messaging_owner')
    EXECUTE FUNCTION messaging.refuse_unrecorded_message();

REVOKE UPDATE, DELETE ON messaging.conversations, messaging.messages FROM crm_messaging;
GRANT UPDATE (display_name, state, last_message_time, update_time, revision, recorded)
    ON messaging.conversations TO crm_messaging;

-- As before, but that whoever calls it has recorded the contact in this very
-- write; what it brings about is recorded by the function that is messaging's,
-- with the actor of the write. `actor` is what the write says, too.
CREATE OR REPLACE FUNCTION messaging.contact_changed(
    revision bigint, is_new boolean, contact_id uuid, actor text,
    create_time timestamptz, delete_time timestamptz, conversation bytea, deletion bytea
) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    contact text := 'contacts/' || contact_changed.contact_id;
    before timestamptz;
    touched record;
BEGIN
    IF is_new IS NOT TRUE THEN
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
        PERFORM platform.record_messaging_effect(
            contact_changed.revision,
            'conversations/' || contact_changed.contact_id,
            2::smallint,
            contact,
            contact_changed.conversation
        );
        RETURN;
    END IF;
    IF before IS NOT DISTINCT FROM contact_changed.delete_time THEN
        RETURN;
    END IF;
    -- It may have no conversation that is touched.
    PERFORM platform.refuse_unrecorded(contact_changed.revision, contact);
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
        PERFORM platform.record_messaging_effect(
            contact_changed.revision,
            'conversations/' || touched.conversation_id,
            2::smallint,
            contact,
            touched.recorded || contact_changed.deletion
        );
    END LOOP;
END
$$;
