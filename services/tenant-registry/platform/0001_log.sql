-- The change log of one tenant, and how writes enter it.
--
-- Every write is begun with begin_write, which takes the next revision, and
-- ended with end_write, which records the change, all in one statement.

CREATE TABLE platform.head (
    -- One row. It is the first lock of every write, so that revisions are
    -- gap-free and in the order of commits.
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    revision bigint NOT NULL CHECK (revision >= 0)
) WITH (
    -- Each write updates this row: room for its versions on its own page, and
    -- a vacuum as soon as a few are dead.
    fillfactor = 10,
    autovacuum_vacuum_threshold = 50,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_cost_delay = 0
);
INSERT INTO platform.head (revision) VALUES (0);

CREATE TABLE platform.changes (
    revision bigint NOT NULL,
    ordinal smallint NOT NULL CHECK (ordinal >= 0),
    -- The type of the resource: a row of resource_types.
    kind smallint NOT NULL,
    name text NOT NULL,
    -- Who did it, as in tokens: users/{uuid} or serviceAccounts/{uuid}.
    actor text NOT NULL,
    -- The resource whose change brought this one about.
    cause text,
    -- The resource as it then was: its public message in protobuf, without
    -- revision and etag.
    after bytea NOT NULL,
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (revision, ordinal)
);

-- Which service may record changes of which resources, and their names.
CREATE TABLE platform.resource_types (
    kind smallint PRIMARY KEY,
    service text NOT NULL,
    pattern text NOT NULL UNIQUE
);
INSERT INTO platform.resource_types (kind, service, pattern)
VALUES (1, 'contacts', 'contacts/%'),
    (2, 'messaging', 'conversations/%'),
    (3, 'messaging', 'conversations/%/messages/%');

CREATE TABLE platform.requests (
    service text NOT NULL,
    caller text NOT NULL,
    method text NOT NULL,
    request_id uuid NOT NULL,
    -- SHA-256 of the request without its request_id.
    hash bytea NOT NULL,
    revision bigint NOT NULL,
    expire_time timestamptz NOT NULL,
    PRIMARY KEY (service, caller, method, request_id)
);
CREATE INDEX requests_expire_time_idx ON platform.requests (expire_time);

-- The service that a session belongs to, by its login
-- (t_<tenant>_<service>_g<n>). NULL: it is no tenant login.
CREATE FUNCTION platform.session_service() RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN substring(session_user FROM '^t_[0-9a-f]{32}_([a-z]+)_g[0-9]+$');
END
$$;

-- Whether a revision is the one that this transaction took. Others are past,
-- and past revisions never change.
CREATE FUNCTION platform.is_own_revision(revision bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM platform.head AS h
        WHERE h.revision = is_own_revision.revision AND h.xmin = pg_current_xact_id()::xid
    );
END
$$;

-- Takes the next revision for a write. A request_id that was used before by
-- this caller for this method answers the revision it got then.
-- CR001: it was used for a different request.
CREATE FUNCTION platform.begin_write(
    request_id uuid, method text, caller text, hash bytea,
    OUT revision bigint, OUT is_new boolean
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    own_service text := platform.session_service();
    known record;
BEGIN
    UPDATE platform.head AS h SET revision = h.revision + 1 RETURNING h.revision INTO revision;
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
        UPDATE platform.head AS h SET revision = h.revision - 1;
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

-- What a request with this id did before: its revision and the resource as it
-- then was. NULL: nothing, or too long ago.
-- CR001: the id was used for a different request.
CREATE FUNCTION platform.find_write(
    request_id uuid, method text, caller text, hash bytea,
    OUT revision bigint, OUT after bytea
)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    known record;
BEGIN
    SELECT r.hash, c.revision, c.after INTO known
    FROM platform.requests AS r
    JOIN platform.changes AS c ON c.revision = r.revision AND c.ordinal = 0
    WHERE r.service = platform.session_service()
        AND r.caller = find_write.caller
        AND r.method = find_write.method
        AND r.request_id = find_write.request_id
        AND r.expire_time > statement_timestamp();
    IF known.hash <> find_write.hash THEN
        RAISE EXCEPTION 'request_id reused' USING ERRCODE = 'CR001';
    END IF;
    revision := known.revision;
    after := known.after;
END
$$;

-- Records a change and answers the resource: that of the first call where
-- this is a repeated one.
-- CR002: there is nothing to record, because the row changed meanwhile.
CREATE FUNCTION platform.end_write(
    revision bigint, is_new boolean, ordinal smallint, name text, kind smallint, actor text,
    after bytea
) RETURNS bytea
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    stored bytea;
BEGIN
    -- A login records and reads back what is its own service's.
    IF NOT EXISTS (
        SELECT FROM platform.resource_types AS t
        WHERE t.kind = end_write.kind
            AND t.service = platform.session_service()
            AND (NOT is_new OR coalesce(name LIKE t.pattern, true))
    ) THEN
        RAISE EXCEPTION 'not a resource of this service' USING ERRCODE = '42501';
    END IF;
    IF NOT is_new THEN
        SELECT c.after INTO STRICT stored
        FROM platform.changes AS c
        WHERE c.revision = end_write.revision
            AND c.ordinal = end_write.ordinal
            AND c.kind = end_write.kind;
        RETURN stored;
    END IF;
    IF after IS NULL OR name IS NULL THEN
        RAISE EXCEPTION 'the resource changed meanwhile' USING ERRCODE = 'CR002';
    END IF;
    IF NOT platform.is_own_revision(revision) THEN
        RAISE EXCEPTION 'not the revision of this write' USING ERRCODE = '42501';
    END IF;
    INSERT INTO platform.changes (revision, ordinal, kind, name, actor, after)
    VALUES (end_write.revision, end_write.ordinal, end_write.kind, end_write.name,
        end_write.actor, end_write.after);
    RETURN after;
END
$$;

-- Records what a write of one service brought about in another. Only the
-- owners of schemas may call it, from the functions that they publish.
CREATE FUNCTION platform.record_effect(
    revision bigint, name text, kind smallint, actor text, cause text, after bytea
) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT platform.is_own_revision(revision) THEN
        RAISE EXCEPTION 'not the revision of this write' USING ERRCODE = '42501';
    END IF;
    INSERT INTO platform.changes (revision, ordinal, kind, name, actor, cause, after)
    SELECT record_effect.revision, coalesce(max(c.ordinal) + 1, 1), record_effect.kind,
        record_effect.name, record_effect.actor, record_effect.cause, record_effect.after
    FROM platform.changes AS c
    WHERE c.revision = record_effect.revision;
END
$$;

-- A revision without a change would be a gap in the log: a transaction that
-- leaves one does not commit.
CREATE FUNCTION platform.refuse_gap() RETURNS trigger
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (
        SELECT FROM platform.head AS h
        WHERE h.revision > 0
            AND NOT EXISTS (SELECT FROM platform.changes AS c WHERE c.revision = h.revision)
    ) THEN
        RAISE EXCEPTION 'a revision without a change' USING ERRCODE = '23514';
    END IF;
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER head_refuse_gap AFTER UPDATE ON platform.head
    DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION platform.refuse_gap();

-- The tenant's revision. STABLE: within a statement that reads rows it is the
-- revision of just those rows.
CREATE FUNCTION platform.revision() RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT h.revision FROM platform.head AS h $$;

GRANT USAGE ON SCHEMA platform TO crm_contacts, crm_messaging;
GRANT EXECUTE ON FUNCTION
    platform.begin_write(uuid, text, text, bytea),
    platform.find_write(uuid, text, text, bytea),
    platform.end_write(bigint, boolean, smallint, text, smallint, text, bytea),
    platform.revision()
TO crm_contacts, crm_messaging;

GRANT USAGE ON SCHEMA platform TO crm_messaging_owner;
GRANT EXECUTE ON FUNCTION
    platform.record_effect(bigint, text, smallint, text, text, bytea)
TO crm_messaging_owner;
