//! What a login tries in a tenant's database: what PostgreSQL has is read from
//! its catalogues, so that a new table, role or setting is tried, too.

use crm_testing::Server;
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};

use crate::logins::{Login, Whose};

/// PostgreSQL's word for a right that is not there.
const INSUFFICIENT_PRIVILEGE: &str = "42501";
/// What services may do beyond calling functions. Everything else is refused.
const ALLOWED: [(&str, &str, &str); 5] = [
    (
        "contacts",
        "contacts.contacts",
        "SELECT INSERT LOCK UPDATE(display_name) UPDATE(email) UPDATE(phone) UPDATE(company) \
         UPDATE(\"position\") UPDATE(source) UPDATE(metadata) UPDATE(update_time) \
         UPDATE(delete_time) UPDATE(revision)",
    ),
    ("messaging", "messaging.contacts", "SELECT LOCK"),
    (
        "messaging",
        "messaging.conversations",
        "SELECT INSERT LOCK UPDATE(display_name) UPDATE(state) UPDATE(last_message_time) \
         UPDATE(update_time) UPDATE(revision) UPDATE(recorded)",
    ),
    ("messaging", "messaging.messages", "SELECT INSERT LOCK"),
    // The change feed.
    ("messaging", "platform.changes", "SELECT LOCK"),
];
/// What no one but a superuser does with the server, its files and its roles.
const SERVER: &str = include_str!("server.sql");
/// What nobody defines but the owner of a database or a schema.
const DEFINITIONS: &str = include_str!("definitions.sql");

/// A table of a tenant's database.
struct Table {
    name: String,
    schema: String,
    columns: Vec<String>,
}

/// What was tried, and what came of it.
pub(crate) struct Attempts {
    roles: Vec<String>,
    databases: Vec<String>,
    settings: Vec<String>,
    extensions: Vec<String>,
    pub(crate) refused: usize,
    pub(crate) allowed: usize,
    /// What was not refused, and should have been; or the other way.
    pub(crate) broken: Vec<String>,
}

impl Attempts {
    pub(crate) async fn new(server: &Server) -> Self {
        let mut postgres = server.superuser("postgres").await;
        let mut names = async |of: &'static str| -> Vec<String> {
            sqlx::query_scalar(of).fetch_all(&mut postgres).await.unwrap()
        };
        Self {
            roles: names("SELECT quote_ident(rolname) FROM pg_roles").await,
            databases: names("SELECT quote_ident(datname) FROM pg_database").await,
            settings: names("SELECT name FROM pg_settings WHERE context = 'superuser'").await,
            // A trusted one may be made by who may create in the database.
            extensions: names(
                "SELECT DISTINCT quote_ident(name) || CASE WHEN trusted THEN ' ' ELSE '' END
                 FROM pg_available_extension_versions
                 WHERE name <> 'plpgsql' AND requires IS NULL",
            )
            .await,
            refused: 0,
            allowed: 0,
            broken: Vec::new(),
        }
    }

    /// Tries everything over a session of this login.
    pub(crate) async fn make(&mut self, session: &mut PgConnection, login: &Login, own: &str) {
        let others = others(session).await;
        for table in tables(session).await {
            self.touch(session, login, &table).await;
        }
        for (call, is_granted) in functions(session).await {
            if !is_granted {
                self.refuse(session, login, &call).await;
            }
        }
        for statement in statements(SERVER) {
            self.refuse(session, login, statement).await;
        }
        if login.whose != Whose::Registry {
            for statement in statements(DEFINITIONS) {
                // A migrator is there to define things, in its own schema.
                let is_its = |schema| statement.contains(schema);
                if !matches!(login.whose, Whose::Migrator(schema) if is_its(schema)) {
                    self.refuse(session, login, statement).await;
                }
            }
        }
        for statement in self.of_roles(login).into_iter().chain(self.of_databases(login, own)) {
            self.refuse(session, login, &statement).await;
        }
        for setting in self.settings.clone() {
            self.refuse(session, login, &format!("SET {setting} TO DEFAULT")).await;
        }
        for pid in others {
            for verb in ["terminate", "cancel"] {
                let statement = format!("SELECT pg_{verb}_backend({pid})");
                self.refuse(session, login, &statement).await;
            }
        }
        self.read_activity(session, login).await;
    }

    async fn touch(&mut self, session: &mut PgConnection, login: &Login, table: &Table) {
        let Table { name, schema, columns } = table;
        let column = &columns[0];
        let tries = [
            ("SELECT", format!("SELECT 1 FROM {name} LIMIT 0")),
            ("INSERT", format!("INSERT INTO {name} ({column}) SELECT NULL WHERE false")),
            ("DELETE", format!("DELETE FROM {name} WHERE false")),
            ("TRUNCATE", format!("TRUNCATE {name}")),
            ("LOCK", format!("LOCK TABLE {name} IN ACCESS SHARE MODE")),
            ("ALTER", format!("ALTER TABLE {name} SET (fillfactor = 90)")),
            ("DROP", format!("DROP TABLE {name}")),
            ("OWNER", format!("ALTER TABLE {name} OWNER TO CURRENT_USER")),
            ("POLICY", format!("CREATE POLICY mine ON {name}")),
            ("INDEX", format!("CREATE INDEX mine ON {name} ({column})")),
            ("COMMENT", format!("COMMENT ON TABLE {name} IS 'mine'")),
            ("TRIGGER", format!("ALTER TABLE {name} DISABLE TRIGGER ALL")),
        ];
        let tries = tries.map(|(verb, statement)| (verb.to_owned(), statement));
        let updates = columns.iter().map(|column| {
            let update = format!("UPDATE {name} SET {column} = DEFAULT WHERE false");
            (format!("UPDATE({column})"), update)
        });
        let allowed = |verb: &str| match login.whose {
            Whose::Service(service) => ALLOWED.iter().any(|(of, table, verbs)| {
                *of == service && table == name && verbs.split(' ').any(|known| known == verb)
            }),
            // It is the owner; whose privileges its tables have is in the
            // golden file.
            Whose::Migrator(own) => own == schema.as_str(),
            Whose::Registry => false,
        };
        for way in ["TO PROGRAM 'true'", "FROM PROGRAM 'true'", "TO '/tmp/x'", "FROM '/etc/passwd'"]
        {
            self.refuse(session, login, &format!("COPY {name} {way}")).await;
        }
        for (verb, statement) in tries.into_iter().chain(updates) {
            match (allowed(&verb), login.whose) {
                (true, Whose::Service(_)) => self.allow(session, login, &statement).await,
                (true, _) => {}
                (false, _) => self.refuse(session, login, &statement).await,
            }
        }
    }

    fn of_roles(&self, login: &Login) -> Vec<String> {
        let own = match login.whose {
            Whose::Service(service) => vec![format!("crm_{service}")],
            Whose::Migrator(schema) => vec![format!("crm_{schema}_owner")],
            Whose::Registry => ["pg_checkpoint", "pg_database_owner"].map(str::to_owned).to_vec(),
        };
        let mut tries = Vec::new();
        for role in self.roles.iter().filter(|role| **role != login.user) {
            if !own.contains(role) {
                tries.push(format!("SET ROLE {role}"));
                tries.push(format!("REASSIGN OWNED BY {role} TO CURRENT_USER"));
                tries.push(format!(
                    "ALTER DEFAULT PRIVILEGES FOR ROLE {role} GRANT SELECT ON TABLES TO PUBLIC"
                ));
            }
            tries.push(format!("SET SESSION AUTHORIZATION {role}"));
            tries.push(format!("GRANT {role} TO CURRENT_USER"));
            if !role.starts_with("pg_") {
                tries.push(format!("ALTER ROLE {role} PASSWORD 'mine'"));
                tries.push(format!("ALTER ROLE {role} SET search_path = public"));
                tries.push(format!("DROP ROLE {role}"));
            }
        }
        tries.push(format!("ALTER ROLE {} SUPERUSER", login.user));
        tries.push(format!("ALTER ROLE {} CREATEROLE", login.user));
        tries.push(format!("ALTER ROLE {} REPLICATION", login.user));
        tries.push(format!("ALTER ROLE {} BYPASSRLS", login.user));
        tries
    }

    fn of_databases(&self, login: &Login, own: &str) -> Vec<String> {
        let mut tries = Vec::new();
        for extension in &self.extensions {
            // The owner of a database may make those that are trusted.
            if login.whose != Whose::Registry || !extension.ends_with(' ') {
                tries.push(format!("CREATE EXTENSION {extension} SCHEMA pg_catalog"));
            }
        }
        for database in &self.databases {
            let is_registrys = login.whose == Whose::Registry
                && !["postgres", "template0", "template1"].contains(&database.as_str());
            if is_registrys {
                continue;
            }
            tries.push(format!("ALTER DATABASE {database} SET search_path = public"));
            tries.push(format!("ALTER DATABASE {database} CONNECTION LIMIT 1"));
            tries.push(format!("ALTER DATABASE {database} ALLOW_CONNECTIONS true"));
            tries.push(format!("ALTER DATABASE {database} OWNER TO CURRENT_USER"));
            tries.push(format!("ALTER DATABASE {database} RENAME TO mine"));
            tries.push(format!("DROP DATABASE {database}"));
            tries.push(format!("CREATE DATABASE mine TEMPLATE {database}"));
            // Who has a right without the option to grant it is only warned.
            // PUBLIC has that of the one that takes no connections.
            if database != own && database != "template0" && login.whose != Whose::Registry {
                tries.push(format!("GRANT CONNECT ON DATABASE {database} TO CURRENT_USER"));
            }
        }
        if login.whose == Whose::Registry {
            tries.retain(|statement| !statement.starts_with("CREATE DATABASE"));
        }
        tries
    }

    /// Of others' sessions one sees that they are there, and never what they do.
    async fn read_activity(&mut self, session: &mut PgConnection, login: &Login) {
        let seen: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity
             WHERE usename <> current_user
                 AND (query <> '<insufficient privilege>' OR client_addr IS NOT NULL)",
        )
        .fetch_one(session)
        .await
        .unwrap();
        match seen {
            0 => self.refused += 1,
            _ => self.broken.push(format!("{} sees what {seen} others do", login.user)),
        }
    }

    async fn refuse(&mut self, session: &mut PgConnection, login: &Login, statement: &str) {
        match attempt(session, statement).await {
            Err(code) if code == INSUFFICIENT_PRIVILEGE => self.refused += 1,
            other => self.broken.push(format!("{}: {statement}: {other:?}", login.user)),
        }
    }

    async fn allow(&mut self, session: &mut PgConnection, login: &Login, statement: &str) {
        match attempt(session, statement).await {
            Ok(()) => self.allowed += 1,
            Err(code) => self.broken.push(format!("{}: {statement}: {code}", login.user)),
        }
    }
}

/// Runs a statement whose effects are undone; or by itself where it must be.
async fn attempt(session: &mut PgConnection, statement: &str) -> Result<(), String> {
    let alone = ["DATABASE", "TABLESPACE", "SYSTEM", "SUBSCRIPTION"];
    let is_alone = alone.iter().any(|word| statement.contains(&format!(" {word} ")));
    let run = if is_alone { statement.to_owned() } else { format!("BEGIN; {statement}") };
    let outcome = session.execute(AssertSqlSafe(run)).await;
    session.execute("ROLLBACK").await.unwrap();
    session.execute("RESET ALL").await.unwrap();
    let code = |error: sqlx::Error| match error.as_database_error().and_then(|e| e.code()) {
        Some(code) => code.into_owned(),
        None => format!("{error:?}"),
    };
    outcome.map(drop).map_err(code)
}

fn statements(file: &'static str) -> impl Iterator<Item = &'static str> {
    file.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("--"))
}

/// The tables of all schemas, each with its columns.
async fn tables(session: &mut PgConnection) -> Vec<Table> {
    let rows: Vec<(String, String, Vec<String>)> = sqlx::query_as(
        "SELECT format('%I.%I', n.nspname, c.relname), n.nspname::text
             , ARRAY(SELECT quote_ident(attname) FROM pg_attribute
                WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum)
         FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
             AND n.nspname !~ '^(pg_|information_schema)'
         ORDER BY 1",
    )
    .fetch_all(session)
    .await
    .unwrap();
    assert!(rows.len() >= 9, "{rows:?}");
    rows.into_iter().map(|(name, schema, columns)| Table { name, schema, columns }).collect()
}

/// A call of every function of all schemas, and whether this login may make it.
async fn functions(session: &mut PgConnection) -> Vec<(String, bool)> {
    sqlx::query_as(
        "SELECT format('SELECT %I.%I(%s)', n.nspname, p.proname, (
                 SELECT string_agg(format('NULL::%s', format_type(type, NULL)), ', ' ORDER BY number)
                 FROM unnest(p.proargtypes) WITH ORDINALITY AS a (type, number)
             ))
             , has_schema_privilege(n.oid, 'USAGE') AND has_function_privilege(p.oid, 'EXECUTE')
         FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
         WHERE n.nspname !~ '^(pg_|information_schema)' AND p.prorettype <> 'trigger'::regtype
         ORDER BY 1",
    )
    .fetch_all(session)
    .await
    .unwrap()
}

/// The sessions of other roles.
async fn others(session: &mut PgConnection) -> Vec<i32> {
    let pids = "SELECT pid FROM pg_stat_activity WHERE usename <> current_user";
    sqlx::query_scalar(pids).fetch_all(session).await.unwrap()
}

/// Rights, roles, settings and extensions, as far as a login could change them.
pub(crate) async fn catalogue(server: &Server) -> Vec<String> {
    let mut postgres = server.superuser("postgres").await;
    sqlx::query_scalar(
        "SELECT format('database %s %s %s %s', datname, datdba::regrole, datacl, datallowconn)
         FROM pg_database
         UNION ALL
         SELECT format('role %s', to_jsonb(r) - 'rolpassword') FROM pg_roles AS r
         UNION ALL
         SELECT format('member %s %s %s', roleid::regrole, member::regrole, admin_option)
         FROM pg_auth_members
         UNION ALL
         SELECT format('setting %s %s %s', setdatabase, setrole, setconfig) FROM pg_db_role_setting
         ORDER BY 1",
    )
    .fetch_all(&mut postgres)
    .await
    .unwrap()
}
