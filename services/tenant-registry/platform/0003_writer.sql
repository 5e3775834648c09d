-- The head says who writes its revision: the transaction that took it, and the
-- caller it was taken for. So a login can neither leave a revision out nor add
-- to one that is past, and no change has another actor than its write.

ALTER TABLE platform.head
    -- The transaction that took the revision; NULL: none did, or a repeated
    -- request gave it back. A restored head has one of another cluster, whose
    -- number may come again here: its time does not.
    ADD COLUMN writer xid8,
    ADD COLUMN write_time timestamptz,
    ADD COLUMN actor text;

-- As before, but by an expression, which costs no call: it is asked often.
CREATE OR REPLACE FUNCTION platform.session_service() RETURNS text
LANGUAGE sql STABLE
RETURN substring(session_user::text FROM '^t_[0-9a-f]{32}_([a-z]+)_g[0-9]+$');

-- Takes the next revision for a write, once in a transaction. A request_id
-- that was used before by this caller for this method answers the revision it
-- got then.
-- CR001: it was used for a different request.
CREATE OR REPLACE FUNCTION platform.begin_write(
    request_id uuid, method text, caller text, hash bytea,
    OUT revision bigint, OUT is_new boolean
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    own_service text := platform.session_service();
    known record;
BEGIN
    UPDATE platform.head AS h
    SET revision = h.revision + 1, writer = pg_current_xact_id(),
        write_time = transaction_timestamp(), actor = begin_write.caller
    WHERE (h.writer, h.write_time)
        IS DISTINCT FROM (pg_current_xact_id(), transaction_timestamp())
    RETURNING h.revision INTO revision;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'this transaction has a revision' USING ERRCODE = '42501';
    END IF;
    is_new := true;
    IF begin_write.request_id IS NULL THEN
        RETURN;
    END IF;
    -- Writes stand in line behind the head, so that a few expired rows can go
    -- here without ever waiting.
    DELETE FROM platform.requests AS r
    WHERE (r.service, r.caller, r.method, r.request_id) IN (
        SELECT e.service, e.caller, e.method, e.request_id
        FROM platform.requests AS e
        WHERE e.expire_time <= statement_timestamp()
        ORDER BY e.expire_time
        LIMIT 4
    );
    SELECT r.hash, r.revision, r.expire_time > statement_timestamp() AS alive INTO known
    FROM platform.requests AS r
    WHERE r.service = own_service
        AND r.caller = begin_write.caller
        AND r.method = begin_write.method
        AND r.request_id = begin_write.request_id;
    IF known.alive THEN
        IF known.hash <> begin_write.hash THEN
            RAISE EXCEPTION 'request_id reused' USING ERRCODE = 'CR001';
        END IF;
        UPDATE platform.head AS h SET revision = h.revision - 1, writer = NULL;
        revision := known.revision;
        is_new := false;
        RETURN;
    END IF;
    INSERT INTO platform.requests AS r
        (service, caller, method, request_id, hash, revision, expire_time)
    VALUES (own_service, begin_write.caller, begin_write.method, begin_write.request_id, begin_write.hash,
        begin_write.revision, statement_timestamp() + interval '24 hours')
    ON CONFLICT ON CONSTRAINT requests_pkey DO UPDATE
    SET hash = excluded.hash, revision = excluded.revision, expire_time = excluded.expire_time;
END
$$;

-- Records a change and answers the resource: that of the first call where
-- this is a repeated one. The revision is the one that this transaction took,
-- in a savepoint or not; others are past, and past revisions never change. Its
-- ordinals are 0, 1, 2 and so on, and its actor is whoever it was begun for.
-- CR002: there is nothing to record, because the row changed meanwhile.
CREATE OR REPLACE FUNCTION platform.end_write(
    revision bigint, is_new boolean, ordinal smallint, name text, kind smallint, actor text,
    after bytea
) RETURNS bytea
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    stored bytea;
BEGIN
    IF is_new IS NOT TRUE THEN
        SELECT c.after INTO STRICT stored
        FROM platform.changes AS c
        JOIN platform.resource_types AS t ON t.kind = c.kind
        WHERE c.revision = end_write.revision
            AND c.ordinal = end_write.ordinal
            AND c.kind = end_write.kind
            AND t.service = platform.session_service();
        RETURN stored;
    END IF;
    IF after IS NULL OR name IS NULL THEN
        RAISE EXCEPTION 'the resource changed meanwhile' USING ERRCODE = 'CR002';
    END IF;
    IF ordinal > 0 AND NOT EXISTS (
        SELECT FROM platform.changes AS c
        WHERE c.revision = end_write.revision AND c.ordinal = end_write.ordinal - 1
    ) THEN
        RAISE EXCEPTION 'not the next ordinal' USING ERRCODE = '42501';
    END IF;
    INSERT INTO platform.changes (revision, ordinal, kind, name, actor, after)
    SELECT h.revision, end_write.ordinal, t.kind, end_write.name, h.actor, end_write.after
    FROM platform.head AS h, platform.resource_types AS t
    WHERE h.revision = end_write.revision
        AND h.writer = pg_current_xact_id()
        AND h.write_time = transaction_timestamp()
        AND h.actor = end_write.actor
        AND t.kind = end_write.kind
        AND t.service = platform.session_service()
        AND end_write.name ~ ('^' || replace(t.pattern, '%', '[^/]+') || '$');
    IF NOT FOUND THEN
        RAISE EXCEPTION 'not a change of this write' USING ERRCODE = '42501';
    END IF;
    RETURN after;
END
$$;

-- Record what a write of one service brought about in another, from functions
-- that the other publishes. One for the owner of each schema, which nobody
-- else may call: a function cannot see which owner's function called it.
DO $$
DECLARE
    service text;
BEGIN
    FOR service IN SELECT DISTINCT t.service FROM platform.resource_types AS t LOOP
        EXECUTE format($format$
            CREATE FUNCTION platform.record_%1$s_effect(
                revision bigint, name text, kind smallint, cause text, after bytea
            ) RETURNS void
            LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
            AS $effect$
            #variable_conflict use_column
            BEGIN
                -- What brought it about comes first, in the same revision.
                INSERT INTO platform.changes (revision, ordinal, kind, name, actor, cause, after)
                SELECT h.revision, (
                        SELECT max(c.ordinal) + 1 FROM platform.changes AS c
                        WHERE c.revision = h.revision
                    ), t.kind, $2, h.actor, $4, $5
                FROM platform.head AS h, platform.resource_types AS t
                WHERE h.revision = $1
                    AND h.writer = pg_current_xact_id()
                    AND h.write_time = transaction_timestamp()
                    AND t.kind = $3
                    AND t.service = %1$L
                    AND $2 ~ ('^' || replace(t.pattern, '%%', '[^/]+') || '$')
                    AND EXISTS (
                        SELECT FROM platform.changes AS c
                        WHERE c.revision = h.revision AND c.name = $4
                    );
                IF NOT FOUND THEN
                    RAISE EXCEPTION 'not an effect of this write' USING ERRCODE = '42501';
                END IF;
            END
            $effect$
        $format$, service);
        EXECUTE format('GRANT USAGE ON SCHEMA platform TO crm_%s_owner', service);
        EXECUTE format(
            'GRANT EXECUTE ON FUNCTION
                platform.record_%1$s_effect(bigint, text, smallint, text, bytea)
            TO crm_%1$s_owner', service);
    END LOOP;
END
$$;

-- For messaging's versions 1 and 2, and its owner alone: as the one above.
CREATE OR REPLACE FUNCTION platform.record_effect(
    revision bigint, name text, kind smallint, actor text, cause text, after bytea
) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM platform.record_messaging_effect(revision, name, kind, cause, after);
END
$$;

-- Nothing calls it any more.
DROP FUNCTION platform.is_own_revision(bigint);

-- Refuses a row that a tenant's login wrote and did not record: its revision is
-- this transaction's, and has a change with its name. For triggers of the
-- owners of schemas, at the end of a transaction.
CREATE FUNCTION platform.refuse_unrecorded(revision bigint, name text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF platform.session_service() IS NOT NULL AND NOT EXISTS (
        SELECT FROM platform.head AS h
        JOIN platform.changes AS c ON c.revision = h.revision
        WHERE h.revision = refuse_unrecorded.revision
            AND h.writer = pg_current_xact_id()
            AND h.write_time = transaction_timestamp()
            AND c.name = refuse_unrecorded.name
    ) THEN
        RAISE EXCEPTION 'a row without a change' USING ERRCODE = '23514';
    END IF;
END
$$;
GRANT EXECUTE ON FUNCTION platform.refuse_unrecorded(bigint, text)
TO crm_contacts, crm_messaging, crm_messaging_owner;
