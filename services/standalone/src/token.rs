//! `crm token`.

use std::error::Error;
use std::io::Write as _;

use crm_clock::Clock;
use crm_tenant_registry::Config;
use crm_tenant_registry::app::identity;
use sqlx::postgres::PgConnectOptions;

use crate::app::{LOCAL_OPERATOR, registry_config};
use crate::cli::Options;
use crate::data::DataDir;
use crate::start::superuser;

/// Prints one access token and nothing else.
///
/// # Errors
///
/// As [`issue`].
pub(crate) async fn print(
    options: Options,
    tenant: Option<&str>,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    writeln!(std::io::stdout(), "{}", issue(&options, tenant).await?)?;
    Ok(())
}

/// The local operator's token, or that of an administrator of a tenant. It
/// needs no permission but the keys in the data folder.
///
/// # Errors
///
/// When nothing runs with this data folder, or there is no such tenant.
pub(crate) async fn issue(
    options: &Options,
    tenant: Option<&str>,
) -> Result<String, Box<dyn Error + Send + Sync>> {
    let identity = identity(&registry(options)?, Clock::default()).await?;
    let issued = match tenant {
        Some(slug) => identity.tenant_token(LOCAL_OPERATOR, slug).await?,
        None => identity.account_token(LOCAL_OPERATOR).await?,
    };
    Ok(issued.token)
}

/// What the registry of this data folder was told.
///
/// # Errors
///
/// When nothing runs with it.
pub(crate) fn registry(options: &Options) -> Result<Config, Box<dyn Error + Send + Sync>> {
    let data = DataDir::open(&options.data_dir)?;
    if !data.is_in_use() {
        let folder = options.data_dir.display();
        return Err(format!("nothing runs with the data folder {folder}; `crm start` does").into());
    }
    let secrets = data.secrets()?;
    let private =
        || PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(options.postgres_port());
    let cluster = superuser(options)?.unwrap_or_else(private);
    Ok(registry_config(&cluster, &secrets))
}
