//! P5: CreateTenant, beside the bare clone and beside one transaction of the
//! registry.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::client::{Login, Operator};
use crate::measure::{Bench, Reading, Readings};
use crate::pgbench::Script;
use crate::report::Row;
use crate::{Failure, say};

/// The registry's database, and its login.
const REGISTRY: &str = "crm_registry";
/// How long one measurement of the registry's transaction takes.
const SECONDS: u64 = 1;

/// The peers of one tenant: what making it cannot do without.
struct Peers<'a> {
    bench: &'a Bench,
    /// In the database postgres.
    cluster: PgConnection,
    /// In the registry's database.
    registry: PgConnection,
    login: Login,
    template: String,
}

/// A line for each peer.
pub(crate) async fn read(bench: &Bench) -> Result<Vec<Row>, Failure> {
    say("CreateTenant");
    let mut peers = Peers::connect(bench).await?;
    let mut operator = Operator::connect(&bench.suite).await?;
    let (mut crm, mut cloned, mut planned) = (Vec::new(), Vec::new(), Vec::new());
    let tenants_a_round = bench.options.tenants.div_ceil(bench.options.rounds);
    for index in 0..bench.options.tenants {
        crm.push(bench.one(operator.create_tenant(&format!("bench-{index}"))).await?);
        cloned.push(peers.clone_template(index).await?);
        if index % tenants_a_round == 0 {
            planned.push(peers.plan().await?);
        }
    }
    let what = "CreateTenant; CREATE DATABASE of the same template";
    let beside_clone = Row::of_times(what, &Readings { crm: crm.clone(), peer: cloned }, 99);
    let what = "CreateTenant; the registry's transaction, means of pgbench, 1 client";
    let beside_plan = Row::of_times(what, &Readings { crm, peer: planned }, 99);
    Ok(vec![beside_clone, beside_plan])
}

impl<'a> Peers<'a> {
    async fn connect(bench: &'a Bench) -> Result<Self, Failure> {
        let mut registry = bench.suite.superuser(REGISTRY).await?;
        let template = "SELECT d.name
                        FROM clusters AS c
                        JOIN databases AS d ON d.database_id = c.template_id";
        let template = sqlx::query_scalar(template).fetch_one(&mut registry).await?;
        let login = Login {
            port: bench.suite.postgres_port(),
            database: REGISTRY.to_owned(),
            user: REGISTRY.to_owned(),
            password: bench.suite.secret("registry.password")?,
            session_cap: 1,
        };
        let cluster = bench.suite.superuser("postgres").await?;
        Ok(Self { bench, cluster, registry, login, template })
    }

    /// The statement that makes a tenant's database.
    async fn clone_template(&mut self, index: u32) -> Result<Reading, Failure> {
        let template = &self.template;
        let statement = format!(
            r#"CREATE DATABASE "clone_{index}" TEMPLATE "{template}" ALLOW_CONNECTIONS false"#
        );
        let cluster = &mut self.cluster;
        let cloning = async {
            sqlx::raw_sql(AssertSqlSafe(statement)).execute(cluster).await?;
            Ok(())
        };
        self.bench.one(cloning).await
    }

    /// The transaction that plans a tenant, without what is made of the plan.
    async fn plan(&mut self) -> Result<Reading, Failure> {
        let script = Script {
            login: &self.login,
            sql: include_str!("../../sql/plan_tenant.sql"),
            variables: Vec::new(),
            clients: 1,
            seconds: SECONDS,
        };
        let reading = self.bench.pgbench(&script).await?;
        let forget = include_str!("../../sql/forget_planned.sql");
        sqlx::raw_sql(forget).execute(&mut self.registry).await?;
        Ok(reading)
    }
}
