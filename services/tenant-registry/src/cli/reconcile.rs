//! What an operator does after a restore.

use std::error::Error;
use std::io::Write as _;

use clap::{Args, ValueEnum};
use crm_clock::Clock;

use crate::app;
use crate::claim;
use crate::config::Config;

type Failure = Box<dyn Error + Send + Sync>;

/// `reconcile`: how a cluster and the registry differ on tenants.
#[derive(Args, Clone, Debug)]
pub struct Reconcile {
    /// The id of the cluster
    cluster: String,
    /// What was restored, or lost its last transactions: it follows the other
    #[arg(long, value_name = "WHAT")]
    restored: Restored,
    /// Settle it. Without this, it is only shown
    #[arg(long)]
    apply: bool,
}

/// What was restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Restored {
    /// The registry's own database.
    Registry,
    /// The cluster.
    Cluster,
}

/// `reclaim`: a tenant's database that was restored.
#[derive(Args, Clone, Debug)]
pub struct Reclaim {
    /// The slug or the id of the tenant
    tenant: String,
}

impl Reconcile {
    /// Shows the differences, or settles them.
    ///
    /// # Errors
    ///
    /// When there is no such cluster, or it or the registry does not answer.
    pub async fn run(self, config: &Config) -> Result<(), Failure> {
        let restored = match self.restored {
            Restored::Registry => claim::Restored::Registry,
            Restored::Cluster => claim::Restored::Cluster,
        };
        let settled =
            app::reconcile(config, Clock::default(), &self.cluster, restored, self.apply).await?;
        let mut out = std::io::stdout();
        for difference in &settled {
            writeln!(out, "{}: {}; {}", difference.tenant, difference.found, difference.done)?;
        }
        match (settled.len(), self.apply) {
            (0, _) => writeln!(out, "the registry and clusters/{} agree", self.cluster)?,
            (count, false) => writeln!(out, "{count} to settle; --apply settles them")?,
            (count, true) => writeln!(out, "{count} settled")?,
        }
        Ok(())
    }
}

impl Reclaim {
    /// Gives the database its claim back.
    ///
    /// # Errors
    ///
    /// When there is no such tenant or database, or the cluster does not answer.
    pub async fn run(self, config: &Config) -> Result<(), Failure> {
        app::reclaim(config, Clock::default(), &self.tenant).await?;
        writeln!(std::io::stdout(), "the database is the tenant's again")?;
        Ok(())
    }
}
