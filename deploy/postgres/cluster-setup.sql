-- Sets up a PostgreSQL cluster (15 or newer) for tenant databases. Run it once
-- as a superuser in the database postgres; running it again changes nothing:
--
--   psql -d postgres -v ON_ERROR_STOP=1 -f cluster-setup.sql
--   psql -d postgres -c '\password crm_registry'
--
-- The tenant-registry's login gets no CREATEROLE, which on PostgreSQL 15 is as
-- good as a shell. What it may do with roles stands in the functions below.
--
-- A newer registry may need a newer version of this file: it says so, and the
-- file is run again before the registry is started.

BEGIN;

SELECT pg_advisory_xact_lock(hashtextextended('crm cluster setup', 0));

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'crm_registry') THEN
        CREATE ROLE crm_registry LOGIN CREATEDB NOCREATEROLE NOSUPERUSER NOREPLICATION NOBYPASSRLS;
    END IF;
END
$$;

-- Nothing of what the registry says gets into the server's log, whatever that is
-- told to keep and however a statement ends: there are verifiers of passwords
-- among it. It is no superuser, and cannot see to that itself.
ALTER ROLE crm_registry SET log_statement = 'none';
ALTER ROLE crm_registry SET log_min_duration_statement = -1;
ALTER ROLE crm_registry SET log_min_duration_sample = -1;
ALTER ROLE crm_registry SET log_transaction_sample_rate = 0;
ALTER ROLE crm_registry SET log_min_error_statement = 'panic';
ALTER ROLE crm_registry SET log_error_verbosity = 'terse';
ALTER ROLE crm_registry SET log_parameter_max_length = 0;
ALTER ROLE crm_registry SET log_parameter_max_length_on_error = 0;

-- Templates are cloned by files, after a checkpoint.
GRANT pg_checkpoint TO crm_registry;

-- Nobody but the registry reaches the shared databases.
REVOKE ALL ON DATABASE postgres FROM PUBLIC;
REVOKE ALL ON DATABASE template1 FROM PUBLIC;
GRANT CONNECT ON DATABASE postgres TO crm_registry;

CREATE SCHEMA IF NOT EXISTS crm_cluster;
REVOKE ALL ON SCHEMA crm_cluster FROM PUBLIC;
GRANT USAGE ON SCHEMA crm_cluster TO crm_registry;

-- What the registry compares with what it needs.
COMMENT ON SCHEMA crm_cluster IS 'version 2 of cluster-setup.sql';

-- Whose a tenant database is, whatever the registry's own database says: that
-- may be restored from a backup, or lose its last transactions in a failover.
-- A database is given away once: its row is never removed.
CREATE TABLE IF NOT EXISTS crm_cluster.claims (
    -- The tenant's id, too.
    database_id uuid PRIMARY KEY,
    -- The database carries it as its comment, and leases name it.
    claim_id uuid NOT NULL UNIQUE,
    -- The slug of the tenant, which never changes.
    slug text NOT NULL,
    -- The state that is enforced, by crm.registry.v1.Tenant.State, and an id of
    -- its own for each time that it was wanted. Numbers would come again after
    -- a restore.
    state smallint NOT NULL,
    state_id uuid NOT NULL,
    claim_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Whether the registry has committed the tenant: until then nobody was told
    -- of it, and nobody had a lease.
    is_confirmed boolean NOT NULL DEFAULT false,
    -- When the database was removed for good.
    purge_time timestamptz
);
GRANT SELECT ON crm_cluster.claims TO crm_registry;

-- Makes the roles of a service: the owner of its schema, the group of its
-- writers, and the login that migrates. Only the last has a password.
CREATE OR REPLACE FUNCTION crm_cluster.ensure_service(service text, verifier text)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF service IS NULL OR service !~ '^[a-z]{1,20}$' OR service IN ('registry', 'cluster') THEN
        RAISE EXCEPTION 'not a service name' USING ERRCODE = '22023';
    END IF;
    PERFORM crm_cluster.check_verifier(verifier);
    PERFORM pg_advisory_xact_lock(hashtextextended('crm role ' || service, 0));
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = format('crm_%s_owner', service)) THEN
        EXECUTE format('CREATE ROLE %I NOLOGIN', format('crm_%s_owner', service));
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = format('crm_%s', service)) THEN
        EXECUTE format('CREATE ROLE %I NOLOGIN', format('crm_%s', service));
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = format('crm_%s_migrator', service)) THEN
        EXECUTE format('CREATE ROLE %I LOGIN IN ROLE %I',
            format('crm_%s_migrator', service), format('crm_%s_owner', service));
    END IF;
    EXECUTE format('ALTER ROLE %I PASSWORD %L', format('crm_%s_migrator', service), verifier);
END
$$;

-- Gives a database to a tenant, once. Answers whether it is this claim's: false
-- where another was first.
CREATE OR REPLACE FUNCTION crm_cluster.claim_database(
    tenant uuid, claim uuid, tenant_slug text, new_state_id uuid, new_state smallint
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO crm_cluster.claims (database_id, claim_id, slug, state_id, state)
    VALUES (tenant, claim, tenant_slug, new_state_id, new_state)
    ON CONFLICT DO NOTHING;
    IF FOUND THEN
        PERFORM crm_cluster.mark_database(tenant, claim);
    END IF;
    RETURN EXISTS (
        SELECT FROM crm_cluster.claims AS c
        WHERE c.database_id = tenant AND c.claim_id = claim AND c.purge_time IS NULL
    );
END
$$;

-- Notes that the registry has committed the tenant. Where the cluster forgets it
-- in a crash, the registry says it again.
CREATE OR REPLACE FUNCTION crm_cluster.confirm_claim(tenant uuid, claim uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET synchronous_commit = off
AS $$
BEGIN
    UPDATE crm_cluster.claims AS c SET is_confirmed = true
    WHERE c.database_id = tenant AND c.claim_id = claim AND NOT c.is_confirmed;
END
$$;

-- Gives a database that was restored the claim anew. Answers whether it did.
CREATE OR REPLACE FUNCTION crm_cluster.reclaim_database(
    tenant uuid, old_claim uuid, new_claim uuid
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE crm_cluster.claims AS c SET claim_id = new_claim
    WHERE c.database_id = tenant AND c.claim_id IN (old_claim, new_claim) AND c.purge_time IS NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM crm_cluster.mark_database(tenant, new_claim);
    RETURN true;
END
$$;

-- Has a database that no tenant was told of be given to nobody any more. Answers
-- whether it is so: false where it is a tenant's.
CREATE OR REPLACE FUNCTION crm_cluster.discard_database(database uuid) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO crm_cluster.claims (database_id, claim_id, slug, state, state_id)
    VALUES (database, gen_random_uuid(), '', 5, gen_random_uuid())
    ON CONFLICT (database_id) DO UPDATE SET state = 5 WHERE NOT claims.is_confirmed;
    RETURN FOUND;
END
$$;

-- Removes the logins of a database that was removed, and notes when. Its claim
-- stays, so that nothing revives it. Answers how many logins there were.
-- CR011: it was not to be removed, or is there still.
CREATE OR REPLACE FUNCTION crm_cluster.bury_database(database uuid) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    hex text := replace(database::text, '-', '');
    login name;
    removed integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('crm database ' || hex, 0));
    UPDATE crm_cluster.claims AS c SET purge_time = coalesce(c.purge_time, clock_timestamp())
    WHERE c.database_id = database AND c.state = 5;
    IF NOT FOUND OR EXISTS (SELECT FROM pg_database WHERE datname = 'tenant_' || hex) THEN
        RAISE EXCEPTION 'not a removed database' USING ERRCODE = 'CR011';
    END IF;
    FOR login IN
        SELECT rolname FROM pg_roles WHERE rolname ~ format('^t_%s_[a-z]{1,20}_g[0-9]{1,6}$', hex)
    LOOP
        EXECUTE format('DROP ROLE %I', login);
        removed := removed + 1;
    END LOOP;
    RETURN removed;
END
$$;

-- A bare comment overwrites silently: only the row says who was first.
CREATE OR REPLACE FUNCTION crm_cluster.mark_database(tenant uuid, claim uuid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('COMMENT ON DATABASE %I IS %L', 'tenant_' || replace(tenant::text, '-', ''), claim);
END
$$;

-- Makes the login of one service in one tenant database, and lets it in
-- there and nowhere else. It is shut where the tenant's others are. One that is
-- there gets another password, and loses the settings that it made itself.
CREATE OR REPLACE FUNCTION crm_cluster.ensure_login(
    tenant uuid, service text, generation integer, verifier text
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    hex text := replace(tenant::text, '-', '');
    login text := format('t_%s_%s_g%s', hex, service, generation);
    claim record;
BEGIN
    IF service !~ '^[a-z]{1,20}$' OR generation NOT BETWEEN 1 AND 999999 OR login IS NULL THEN
        RAISE EXCEPTION 'not a tenant login' USING ERRCODE = '22023';
    END IF;
    PERFORM crm_cluster.check_verifier(verifier);
    -- One at a time for a database: two GRANTs at once on it fail.
    PERFORM pg_advisory_xact_lock(hashtextextended('crm database ' || hex, 0));
    SELECT c.state, c.purge_time INTO claim
    FROM crm_cluster.claims AS c WHERE c.database_id = tenant FOR SHARE;
    IF claim.purge_time IS NOT NULL THEN
        RAISE EXCEPTION 'the database was removed for good' USING ERRCODE = 'CR011';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = login) THEN
        EXECUTE format('CREATE ROLE %I %s IN ROLE %I PASSWORD %L', login,
            CASE WHEN claim.state <> 2 THEN 'NOLOGIN' ELSE 'LOGIN' END,
            format('crm_%s', service), verifier);
    ELSE
        PERFORM crm_cluster.reset_settings(login);
        EXECUTE format('ALTER ROLE %I PASSWORD %L', login, verifier);
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', 'tenant_' || hex, login);
    RETURN login;
END
$$;

-- A role may set what its sessions begin with, in one database or in all.
CREATE OR REPLACE FUNCTION crm_cluster.reset_settings(login name) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    place text;
BEGIN
    FOR place IN
        SELECT CASE WHEN s.setdatabase <> 0 THEN format('IN DATABASE %I', d.datname) END
        FROM pg_db_role_setting AS s
        JOIN pg_roles AS r ON r.oid = s.setrole
        LEFT JOIN pg_database AS d ON d.oid = s.setdatabase
        WHERE r.rolname = login
    LOOP
        EXECUTE format('ALTER ROLE %I %s RESET ALL', login, place);
    END LOOP;
END
$$;

-- Takes the password of a login that was changed. Nobody opens a session with
-- it before ensure_login gives it another; end_sessions ends those that are open.
CREATE OR REPLACE FUNCTION crm_cluster.void_login(tenant uuid, service text, generation integer)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    hex text := replace(tenant::text, '-', '');
    login text := format('t_%s_%s_g%s', hex, service, generation);
BEGIN
    IF service !~ '^[a-z]{1,20}$' OR generation NOT BETWEEN 1 AND 999999 OR login IS NULL THEN
        RAISE EXCEPTION 'not a tenant login' USING ERRCODE = '22023';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('crm database ' || hex, 0));
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = login) THEN
        PERFORM crm_cluster.alter_login(login, '');
    END IF;
END
$$;

-- What a login may change of itself: how it is let in, told so that the right
-- password is recognized and none can be found, and what its sessions begin
-- with. Those of one tenant, or of all.
CREATE OR REPLACE FUNCTION crm_cluster.logins(tenant uuid DEFAULT NULL)
RETURNS TABLE (login text, salt text, verifier_digest bytea, settings text[])
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT a.rolname::text,
        substring(a.rolpassword FROM '^SCRAM-SHA-256\$[0-9]+:([A-Za-z0-9+/=]+)\$'),
        sha256(convert_to(a.rolpassword, 'UTF8')),
        ARRAY(
            SELECT DISTINCT split_part(setting, '=', 1)
            FROM pg_db_role_setting AS s, unnest(s.setconfig) AS setting
            WHERE s.setrole = a.oid
            ORDER BY 1
        )
    FROM pg_authid AS a
    WHERE a.rolname ~ format('^t_%s_[a-z]{1,20}_g[0-9]{1,6}$',
        coalesce(replace(tenant::text, '-', ''), '[0-9a-f]{32}'))
$$;

-- Enforces a state of a tenant, by crm.registry.v1.Tenant.State: all its logins
-- are open if it is active (2), and shut if it is not; either way they lose
-- their passwords, which ensure_login gives them anew. Sessions that are open go
-- on: once this is committed, end_sessions ends them.
-- CR011: the state that is enforced is none of those that the registry knows of,
-- as after a restore. Nothing is changed then.
CREATE OR REPLACE FUNCTION crm_cluster.enforce_state(
    tenant uuid, known_states uuid[], new_state_id uuid, new_state smallint
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF new_state_id IS NULL OR new_state NOT BETWEEN 2 AND 9 THEN
        RAISE EXCEPTION 'not a state' USING ERRCODE = '22023';
    END IF;
    PERFORM crm_cluster.set_login(tenant, CASE WHEN new_state = 2 THEN 'LOGIN' ELSE 'NOLOGIN' END);
    UPDATE crm_cluster.claims AS c SET state_id = new_state_id, state = new_state
    WHERE c.database_id = tenant AND c.purge_time IS NULL
        AND (c.state_id = new_state_id OR c.state_id = ANY (known_states));
    IF NOT FOUND THEN
        RAISE EXCEPTION 'another state is enforced' USING ERRCODE = 'CR011';
    END IF;
END
$$;
DROP FUNCTION IF EXISTS crm_cluster.fence_tenant(uuid);
DROP FUNCTION IF EXISTS crm_cluster.unfence_tenant(uuid);

CREATE OR REPLACE FUNCTION crm_cluster.set_login(tenant uuid, setting text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    hex text := replace(tenant::text, '-', '');
    login name;
BEGIN
    IF tenant IS NULL OR setting NOT IN ('LOGIN', 'NOLOGIN') THEN
        RAISE EXCEPTION 'not a tenant' USING ERRCODE = '22023';
    END IF;
    -- The lock of ensure_login: two ALTERs of a role at once fail.
    PERFORM pg_advisory_xact_lock(hashtextextended('crm database ' || hex, 0));
    FOR login IN
        SELECT rolname FROM pg_authid
        WHERE rolname ~ format('^t_%s_[a-z]{1,20}_g[0-9]{1,6}$', hex)
            AND (rolcanlogin <> (setting = 'LOGIN')
                OR setting = 'NOLOGIN' AND rolpassword IS NOT NULL)
    LOOP
        PERFORM crm_cluster.alter_login(login, setting);
    END LOOP;
END
$$;

-- Changes a login, and takes its password: whoever changed that has lost it.
CREATE OR REPLACE FUNCTION crm_cluster.alter_login(login name, setting text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- A session that changes its role in a transaction would keep us waiting.
    PERFORM pg_terminate_backend(a.pid) FROM pg_stat_activity AS a WHERE a.usename = login;
    EXECUTE format('ALTER ROLE %I %s PASSWORD NULL', login, setting);
END
$$;

-- Ends the sessions of tenant logins that are shut or have no password, those of
-- one tenant or of all, and answers how many it found. They need a moment: none
-- is left when it finds none.
CREATE OR REPLACE FUNCTION crm_cluster.end_sessions(tenant uuid DEFAULT NULL) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT count(pg_terminate_backend(a.pid))
    FROM pg_stat_activity AS a
    JOIN pg_authid AS r ON r.oid = a.usesysid
    WHERE (NOT r.rolcanlogin OR r.rolpassword IS NULL)
        AND r.rolname ~ format('^t_%s_[a-z]{1,20}_g[0-9]{1,6}$',
            coalesce(replace(tenant::text, '-', ''), '[0-9a-f]{32}'))
$$;

-- A password never crosses the wire: only its SCRAM verifier does (RFC 5803).
CREATE OR REPLACE FUNCTION crm_cluster.check_verifier(verifier text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF verifier IS NULL
        OR verifier !~ '^SCRAM-SHA-256\$[0-9]+:[A-Za-z0-9+/=]+\$[A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+$'
    THEN
        RAISE EXCEPTION 'not a SCRAM-SHA-256 verifier' USING ERRCODE = '22023';
    END IF;
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA crm_cluster FROM PUBLIC;
GRANT EXECUTE ON FUNCTION crm_cluster.ensure_service(text, text) TO crm_registry;
GRANT EXECUTE ON FUNCTION crm_cluster.ensure_login(uuid, text, integer, text) TO crm_registry;
GRANT EXECUTE ON FUNCTION crm_cluster.void_login(uuid, text, integer) TO crm_registry;
GRANT EXECUTE ON FUNCTION crm_cluster.logins(uuid) TO crm_registry;
GRANT EXECUTE ON FUNCTION crm_cluster.claim_database(uuid, uuid, text, uuid, smallint) TO crm_registry;
GRANT EXECUTE ON FUNCTION crm_cluster.confirm_claim(uuid, uuid) TO crm_registry;
GRANT EXECUTE ON FUNCTION crm_cluster.reclaim_database(uuid, uuid, uuid) TO crm_registry;
GRANT EXECUTE ON FUNCTION crm_cluster.discard_database(uuid) TO crm_registry;
GRANT EXECUTE ON FUNCTION crm_cluster.bury_database(uuid) TO crm_registry;
GRANT EXECUTE ON FUNCTION crm_cluster.enforce_state(uuid, uuid[], uuid, smallint) TO crm_registry;
GRANT EXECUTE ON FUNCTION crm_cluster.end_sessions(uuid) TO crm_registry;

COMMIT;
