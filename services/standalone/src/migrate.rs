//! `crm migrate`: how far the schemas of tenants are raised.

use std::error::Error;
use std::io::Write as _;
use std::time::{Duration, Instant};

use clap::Subcommand;
use crm_clock::Clock;
use crm_proto::registry::v1 as pb;
use crm_proto::registry::v1::migration_service_client::MigrationServiceClient;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::cli::Options;
use crate::token;

/// How often progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How many tenants with an error are shown.
const SHOWN: usize = 20;
/// A token lasts for 15 minutes.
const RECONNECT_AFTER: Duration = Duration::from_secs(10 * 60);
const PAGE_SIZE: i32 = 1000;

/// What to do with migrations.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Command {
    /// Show how far each service's schema is, and what holds it up
    Status {
        /// Go on until nothing is left to do; exit with 1 if something failed
        #[arg(long)]
        watch: bool,
    },
    /// Take up again what failed: everything, or one tenant's
    Retry {
        /// The slug or the id of the tenant
        tenant: Option<String>,
    },
}

type Failure = Box<dyn Error + Send + Sync>;

/// Shows or retries migrations, as the local operator.
///
/// # Errors
///
/// When nothing runs with this data folder, there is no such tenant, or what
/// was watched failed.
pub(crate) async fn run(options: Options, command: Command) -> Result<(), Failure> {
    let operator = Operator::connect(&options).await?;
    match command {
        Command::Status { watch: false } => operator.show().await.map(drop),
        Command::Status { watch: true } => operator.watch(&options).await,
        Command::Retry { tenant } => operator.retry(tenant.as_deref().unwrap_or("-")).await,
    }
}

/// The local operator's client.
struct Operator {
    client: MigrationServiceClient<Channel>,
    bearer: AsciiMetadataValue,
}

impl Operator {
    async fn connect(options: &Options) -> Result<Self, Failure> {
        let token = token::issue(options, None).await?;
        let address = options.addresses().registry;
        let channel = Endpoint::from_shared(format!("http://{address}"))?.connect().await?;
        let bearer = format!("Bearer {token}").parse()?;
        Ok(Self { client: MigrationServiceClient::new(channel), bearer })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.bearer.clone());
        request
    }

    async fn summary(&self) -> Result<Vec<pb::ServiceMigrations>, Status> {
        let request = self.request(pb::SummarizeMigrationsRequest {});
        let answer = self.client.clone().summarize_migrations(request).await?;
        Ok(answer.into_inner().services)
    }

    async fn list(&self, parent: &str, state: &str) -> Result<Vec<pb::TenantMigration>, Status> {
        let mut request = pb::ListTenantMigrationsRequest {
            parent: parent.to_owned(),
            page_size: PAGE_SIZE,
            page_token: String::new(),
            filter: format!("state = {state}"),
        };
        let mut found = Vec::new();
        loop {
            let page = self.request(request.clone());
            let page = self.client.clone().list_tenant_migrations(page).await?.into_inner();
            found.extend(page.tenant_migrations);
            if page.next_page_token.is_empty() {
                return Ok(found);
            }
            request.page_token = page.next_page_token;
        }
    }

    /// Prints the table, and answers what it shows.
    async fn show(&self) -> Result<Vec<pb::ServiceMigrations>, Failure> {
        let summary = self.summary().await?;
        let mut errors = self.list("tenants/-", "STATE_FAILED").await?;
        errors.extend(self.list("tenants/-", "STATE_PENDING").await?);
        errors.retain(|migration| !migration.last_error.is_empty());
        write!(std::io::stdout(), "{}{}", table(&summary), causes(&errors))?;
        Ok(summary)
    }

    async fn watch(mut self, options: &Options) -> Result<(), Failure> {
        let mut shown = None;
        let mut connected = Instant::now();
        loop {
            if connected.elapsed() > RECONNECT_AFTER {
                self = Self::connect(options).await?;
                connected = Instant::now();
            }
            let summary = self.summary().await?;
            let is_over = |wave: &pb::ServiceMigrations| {
                wave.running == 0 && (wave.pending == 0 || wave.stopped)
            };
            if summary.iter().all(is_over) {
                break;
            }
            if shown.as_ref() != Some(&summary) {
                writeln!(std::io::stdout(), "{}", table(&summary))?;
                shown = Some(summary);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let summary = self.show().await?;
        let failed: u32 = summary.iter().map(|wave| wave.failed).sum();
        if failed == 0 {
            return Ok(());
        }
        Err(format!("{failed} failed; `crm migrate retry` takes them up again").into())
    }

    async fn retry(&self, tenant: &str) -> Result<(), Failure> {
        let failed = self.list(&format!("tenants/{tenant}"), "STATE_FAILED").await?;
        let mut taken_up = 0;
        for migration in &failed {
            let request = pb::RetryTenantMigrationRequest {
                name: migration.name.clone(),
                request_id: Clock::default().new_id().to_string(),
            };
            match self.client.clone().retry_tenant_migration(self.request(request)).await {
                Ok(_) => taken_up += 1,
                // Another operator was first.
                Err(status) if status.code() == Code::FailedPrecondition => continue,
                Err(status) => return Err(status.into()),
            }
            writeln!(std::io::stdout(), "{}", migration.name)?;
        }
        writeln!(std::io::stdout(), "{taken_up} taken up again")?;
        Ok(())
    }
}

/// The services, a line for each.
fn table(summary: &[pb::ServiceMigrations]) -> String {
    let mut text = format!(
        "{:<12} {:>7} {:>8} {:>8} {:>8} {:>8}\n",
        "SERVICE", "TARGET", "CURRENT", "PENDING", "RUNNING", "FAILED"
    );
    for wave in summary {
        let stopped = if wave.stopped { "  stopped: too many failed" } else { "" };
        text.push_str(&format!(
            "{:<12} {:>7} {:>8} {:>8} {:>8} {:>8}{stopped}\n",
            wave.service,
            wave.target_version,
            wave.current,
            wave.pending,
            wave.running,
            wave.failed
        ));
    }
    text
}

/// The tenants with an error, each with its own.
fn causes(errors: &[pb::TenantMigration]) -> String {
    let mut text = String::new();
    for migration in errors.iter().take(SHOWN) {
        let state = migration.state().as_str_name().trim_start_matches("STATE_");
        text.push_str(&format!(
            "\n{}\n  {state} at version {} after {} attempts: {}\n",
            migration.name, migration.current_version, migration.attempts, migration.last_error
        ));
    }
    if errors.len() > SHOWN {
        text.push_str(&format!("\nand {} more\n", errors.len() - SHOWN));
    }
    text
}
