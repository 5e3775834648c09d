-- Who may do what in a tenant database, line by line; $1 is the tenant's id.
WITH granted (object, owner, acl) AS (
    SELECT 'database', datdba, coalesce(datacl, acldefault('d', datdba))
    FROM pg_database WHERE datname = current_database()
    UNION ALL
    SELECT 'schema ' || nspname, nspowner, coalesce(nspacl, acldefault('n', nspowner))
    FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema)'
    UNION ALL
    SELECT CASE relkind WHEN 'S' THEN 'sequence ' ELSE 'table ' END || c.oid::regclass,
        relowner,
        coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner))
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace
    WHERE nspname !~ '^(pg_|information_schema)' AND relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
    UNION ALL
    SELECT 'column ' || c.oid::regclass || '.' || attname, relowner, attacl
    FROM pg_attribute AS a
    JOIN pg_class AS c ON c.oid = attrelid
    JOIN pg_namespace AS n ON n.oid = relnamespace
    WHERE nspname !~ '^(pg_|information_schema)' AND attacl IS NOT NULL AND NOT attisdropped
    UNION ALL
    SELECT 'function ' || p.oid::regprocedure, proowner,
        coalesce(proacl, acldefault('f', proowner))
    FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = pronamespace
    WHERE nspname !~ '^(pg_|information_schema)'
    UNION ALL
    SELECT 'defaults of ' || defaclrole::regrole || ' for ' || defaclobjtype::text, defaclrole, defaclacl
    FROM pg_default_acl
), line AS (
    SELECT object || ': '
        || coalesce(nullif(grantee, 0)::regrole::text, 'PUBLIC') || ' may '
        || string_agg(privilege_type, ', ' ORDER BY privilege_type)
        || CASE WHEN grantee = owner THEN ' (owner)' ELSE '' END AS text
    FROM granted, LATERAL aclexplode(acl)
    GROUP BY object, owner, grantee
    UNION ALL
    SELECT 'role ' || m.rolname || ': ' || concat_ws(', ',
        CASE WHEN m.rolcanlogin THEN 'login' END,
        CASE WHEN m.rolsuper THEN 'superuser' END,
        CASE WHEN m.rolcreatedb THEN 'createdb' END,
        CASE WHEN m.rolcreaterole THEN 'createrole' END,
        CASE WHEN m.rolreplication THEN 'replication' END,
        CASE WHEN m.rolbypassrls THEN 'bypassrls' END,
        (SELECT string_agg('member of ' || roleid::regrole
            || CASE WHEN admin_option THEN ' with admin option' ELSE '' END, ', ' ORDER BY roleid::regrole::text)
         FROM pg_auth_members WHERE member = m.oid))
    FROM pg_roles AS m
    WHERE m.rolname ~ '^crm_' OR m.rolname ~ ('^t_' || $1)
)
SELECT replace(text, $1, '<tenant>') AS text FROM line
