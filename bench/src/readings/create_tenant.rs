//! P5: CreateTenant, beside the bare clone and beside one transaction of the
//! registry.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection};
use tokio::time::sleep;

use crate::client::{Login, Operator};
use crate::measure::{Bench, Reading, Readings};
use crate::pgbench::Script;
use crate::report::Row;
use crate::{Failure, say};

/// The registry's database, and its login.
const REGISTRY: &str = "crm_registry";
/// How long one measurement of the registry's transaction takes.
const SECONDS: u64 = 1;
/// How often the spares are counted while they are made.
const LOOK_EVERY: Duration = Duration::from_millis(100);

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

/// A line without spares, and one with them.
pub(crate) async fn read(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let tenants = bench.options.tenants;
    let mut peers = Peers::connect(bench).await?;
    let mut operator = Operator::connect(&bench.suite).await?;

    say("CreateTenant without spares");
    peers.target_spares(0).await?;
    for index in 0..peers.spares(true).await? {
        operator.create_tenant(&format!("first-{index}")).await?;
    }
    let mut inline = Readings::default();
    for index in 0..tenants {
        let slug = format!("inline-{index}");
        inline.crm.push(bench.one(operator.create_tenant(&slug)).await?);
        inline.peer.push(peers.clone_template(index).await?);
    }

    say("CreateTenant from spares, which are made first");
    peers.target_spares(tenants).await?;
    // Those that are taken are not replaced: that is work of its own.
    peers.target_spares(0).await?;
    bench.suite.checkpoint().await?;
    let mut spare = Readings::default();
    let tenants_a_round = tenants.div_ceil(bench.options.rounds);
    for index in 0..tenants {
        let slug = format!("spare-{index}");
        spare.crm.push(bench.one(operator.create_tenant(&slug)).await?);
        if index % tenants_a_round == 0 {
            spare.peer.push(peers.plan().await?);
        }
    }

    let beside_clone = "CreateTenant without a spare; CREATE DATABASE of the same template";
    let beside_plan =
        "CreateTenant from a spare; the registry's transaction, means of pgbench, 1 client";
    Ok(vec![Row::of_times(beside_clone, &inline, 99), Row::of_times(beside_plan, &spare, 99)])
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

    /// Has the registry keep this many spares, and waits until none is in the
    /// making.
    async fn target_spares(&mut self, target: u32) -> Result<(), Failure> {
        let update = sqlx::query("UPDATE clusters SET spare_target = $1");
        update.bind(i32::try_from(target)?).execute(&mut self.registry).await?;
        while self.spares(false).await? > 0 || self.spares(true).await? < i64::from(target) {
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// How many spares are ready, or in the making.
    async fn spares(&mut self, ready: bool) -> Result<i64, Failure> {
        let count = sqlx::query_scalar(
            "SELECT count(*) FROM databases WHERE purpose = 'spare' AND (step = 'ready') = $1",
        );
        Ok(count.bind(ready).fetch_one(&mut self.registry).await?)
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
