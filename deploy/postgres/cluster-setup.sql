-- Sets up a PostgreSQL cluster (15 or newer) for tenant databases. Run it once
-- as a superuser in the database postgres; running it again changes nothing:
--
--   psql -d postgres -v ON_ERROR_STOP=1 -f cluster-setup.sql
--   psql -d postgres -c '\password crm_registry'
--
-- The tenant-registry's login gets no CREATEROLE, which on PostgreSQL 15 is as
-- good as a shell. What it may do with roles stands in the functions below.

BEGIN;

SELECT pg_advisory_xact_lock(hashtextextended('crm cluster setup', 0));

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'crm_registry') THEN
        CREATE ROLE crm_registry LOGIN CREATEDB NOCREATEROLE NOSUPERUSER NOREPLICATION NOBYPASSRLS;
    END IF;
END
$$;

-- Templates are cloned by files, after a checkpoint.
GRANT pg_checkpoint TO crm_registry;

-- Nobody but the registry reaches the shared databases.
REVOKE ALL ON DATABASE postgres FROM PUBLIC;
REVOKE ALL ON DATABASE template1 FROM PUBLIC;
GRANT CONNECT ON DATABASE postgres TO crm_registry;

CREATE SCHEMA IF NOT EXISTS crm_cluster;
REVOKE ALL ON SCHEMA crm_cluster FROM PUBLIC;
GRANT USAGE ON SCHEMA crm_cluster TO crm_registry;

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

-- Makes the login of one service in one tenant database, and lets it in
-- there and nowhere else.
CREATE OR REPLACE FUNCTION crm_cluster.ensure_login(
    tenant uuid, service text, generation integer, verifier text
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    hex text := replace(tenant::text, '-', '');
    login text := format('t_%s_%s_g%s', hex, service, generation);
BEGIN
    IF service !~ '^[a-z]{1,20}$' OR generation NOT BETWEEN 1 AND 999999 OR login IS NULL THEN
        RAISE EXCEPTION 'not a tenant login' USING ERRCODE = '22023';
    END IF;
    PERFORM crm_cluster.check_verifier(verifier);
    -- One at a time for a database: two GRANTs at once on it fail.
    PERFORM pg_advisory_xact_lock(hashtextextended('crm database ' || hex, 0));
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = login) THEN
        EXECUTE format('CREATE ROLE %I LOGIN IN ROLE %I PASSWORD %L',
            login, format('crm_%s', service), verifier);
    ELSE
        EXECUTE format('ALTER ROLE %I PASSWORD %L', login, verifier);
    END IF;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', 'tenant_' || hex, login);
    RETURN login;
END
$$;

-- Shuts all logins of a tenant. Sessions that are open go on: once this is
-- committed, end_sessions ends them.
CREATE OR REPLACE FUNCTION crm_cluster.fence_tenant(tenant uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM crm_cluster.set_login(tenant, 'NOLOGIN');
END
$$;

-- Opens them again.
CREATE OR REPLACE FUNCTION crm_cluster.unfence_tenant(tenant uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM crm_cluster.set_login(tenant, 'LOGIN');
END
$$;

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
        SELECT rolname FROM pg_roles
        WHERE rolname ~ format('^t_%s_[a-z]{1,20}_g[0-9]{1,6}$', hex)
            AND rolcanlogin <> (setting = 'LOGIN')
    LOOP
        EXECUTE format('ALTER ROLE %I %s', login, setting);
    END LOOP;
END
$$;

-- Ends the sessions of tenant logins that are shut, those of one tenant or of
-- all, and answers how many it found. They need a moment: none is left when
-- it finds none.
CREATE OR REPLACE FUNCTION crm_cluster.end_sessions(tenant uuid DEFAULT NULL) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT count(pg_terminate_backend(a.pid))
    FROM pg_stat_activity AS a
    JOIN pg_roles AS r ON r.oid = a.usesysid
    WHERE NOT r.rolcanlogin
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
GRANT EXECUTE ON FUNCTION crm_cluster.fence_tenant(uuid) TO crm_registry;
GRANT EXECUTE ON FUNCTION crm_cluster.unfence_tenant(uuid) TO crm_registry;
GRANT EXECUTE ON FUNCTION crm_cluster.end_sessions(uuid) TO crm_registry;

COMMIT;
