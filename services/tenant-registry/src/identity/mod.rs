//! Service accounts, the keys that sign tokens, and the tokens.

mod store;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use crm_auth::{Audience, Claims, ISSUER, LIFETIME, SigningKey, TENANT_ADMIN, TenantClaims};
use crm_clock::Clock;
use crm_error::{ApiError, ErrorReason};
use crm_proto::identity::v1::Jwk;
use crm_tenancy::{SessionError, StoreError};
use sqlx::postgres::PgAdvisoryLock;

use crate::config::Account;
use crate::database::{Database, owned};
use crate::seal::{MasterKey, SealError, fingerprint};

use secrecy::ExposeSecret as _;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Client id and secret do not fit.
    #[error("client id and secret do not fit")]
    CredentialsInvalid,
    /// There is no such tenant, or it is not active.
    #[error("there is no active tenant with the slug {0}")]
    NoSuchTenant(String),
    /// There is no such account.
    #[error("there is no account {0}")]
    NoSuchAccount(String),
    /// There is no key yet: the registry has not been started.
    #[error("there is no signing key yet")]
    NoKey,
    /// A signing key cannot be used.
    #[error("a signing key cannot be used")]
    Key(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A key could not be sealed or opened.
    #[error("a signing key could not be sealed or opened")]
    Seal(#[from] SealError),
    /// The registry's database failed.
    #[error("the registry's database failed")]
    Store(#[from] StoreError),
    /// The work did not end.
    #[error("the work did not end")]
    Task(#[from] SessionError),
}

impl From<IdentityError> for ApiError {
    fn from(error: IdentityError) -> Self {
        match error {
            IdentityError::CredentialsInvalid => {
                Self::new(ErrorReason::CredentialsInvalid, "client id and secret do not fit")
            }
            IdentityError::NoSuchTenant(_) => Self::not_found("tenant", ""),
            IdentityError::NoSuchAccount(_)
            | IdentityError::NoKey
            | IdentityError::Key(_)
            | IdentityError::Seal(_) => Self::internal(error),
            IdentityError::Store(error) => error.into(),
            IdentityError::Task(error) => error.into(),
        }
    }
}

/// A token and when it expires.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "a token never shows")]
pub struct AccessToken {
    /// The token.
    pub token: String,
    /// When it expires.
    pub expire_time: DateTime<Utc>,
}

/// Issues tokens.
#[derive(Clone, Debug)]
pub struct Identity {
    database: Database,
    keys: Arc<Vec<SigningKey>>,
    clock: Clock,
}

impl Identity {
    /// Loads the signing keys, and makes the first.
    pub(crate) async fn start(
        database: Database,
        master_key: &MasterKey,
        accounts: &[Account],
        clock: Clock,
    ) -> Result<Self, IdentityError> {
        // Of several replicas that start at once, one makes the key.
        let lock = PgAdvisoryLock::new("crm signing keys");
        let connection = database.registry.acquire().await.map_err(StoreError::from)?;
        let mut connection = lock.acquire(connection).await.map_err(StoreError::from)?;
        if store::keys(&mut connection).await?.is_empty() {
            let kid = clock.new_id().to_string();
            let pkcs8 = SigningKey::generate().map_err(|error| IdentityError::Key(error.into()))?;
            let sealed = master_key.seal(&purpose(&kid), &pkcs8)?;
            store::insert_key(&mut connection, &kid, &sealed, clock.now()).await?;
        }
        for account in accounts {
            let hash = fingerprint(account.secret.expose_secret());
            store::put_account(&mut connection, account, &hash, clock.now()).await?;
        }
        connection.release_now().await.map_err(StoreError::from)?;
        Self::load(database, master_key, clock).await
    }

    /// Loads the signing keys that there are.
    pub(crate) async fn load(
        database: Database,
        master_key: &MasterKey,
        clock: Clock,
    ) -> Result<Self, IdentityError> {
        let mut connection = database.registry.acquire().await.map_err(StoreError::from)?;
        let mut keys = Vec::new();
        for (kid, sealed) in store::keys(&mut connection).await? {
            let pkcs8 = master_key.open(&purpose(&kid), &sealed)?;
            let key = SigningKey::from_pkcs8(kid, &pkcs8);
            keys.push(key.map_err(|error| IdentityError::Key(error.into()))?);
        }
        drop(connection);
        Ok(Self { database, keys: Arc::new(keys), clock })
    }

    /// The public keys.
    pub(crate) fn jwks(&self) -> Vec<Jwk> {
        self.keys.iter().map(SigningKey::jwk).collect()
    }

    /// Exchanges the credentials of an account for a token.
    pub(crate) async fn exchange(
        &self,
        client_id: String,
        client_secret: &str,
    ) -> Result<AccessToken, IdentityError> {
        let given = fingerprint(client_secret);
        let this = self.clone();
        owned(async move {
            let mut connection =
                this.database.registry.acquire().await.map_err(StoreError::from)?;
            let account = store::account(&mut connection, &client_id).await?;
            // Hashes of random secrets: what their comparison takes tells
            // nothing that could be used.
            let account = account
                .filter(|account| account.secret_hash == given)
                .ok_or(IdentityError::CredentialsInvalid)?;
            this.issue(account.name, account.roles, None)
        })
        .await
    }

    /// A token of an account of the platform, for whoever holds the master
    /// key.
    ///
    /// # Errors
    ///
    /// When there is no such account, or no key.
    pub async fn account_token(&self, name: &str) -> Result<AccessToken, IdentityError> {
        let mut connection = self.database.registry.acquire().await.map_err(StoreError::from)?;
        let account = store::account(&mut connection, name).await?;
        let account = account.ok_or_else(|| IdentityError::NoSuchAccount(name.to_owned()))?;
        self.issue(account.name, account.roles, None)
    }

    /// A token of an administrator of a tenant, for whoever holds the master
    /// key: it acts as the account `name`.
    ///
    /// # Errors
    ///
    /// When there is no such tenant, or no key.
    pub async fn tenant_token(&self, name: &str, slug: &str) -> Result<AccessToken, IdentityError> {
        let mut connection = self.database.registry.acquire().await.map_err(StoreError::from)?;
        let tenant = store::tenant_claims(&mut connection, slug).await?;
        let tenant = tenant.ok_or_else(|| IdentityError::NoSuchTenant(slug.to_owned()))?;
        self.issue(name.to_owned(), vec![TENANT_ADMIN.to_owned()], Some(tenant))
    }

    /// A token, for whoever holds the master key.
    ///
    /// # Errors
    ///
    /// When there is no key.
    pub fn issue(
        &self,
        sub: String,
        roles: Vec<String>,
        tenant: Option<TenantClaims>,
    ) -> Result<AccessToken, IdentityError> {
        let now = self.clock.now();
        let expire_time = now + LIFETIME;
        let internal = sub.starts_with("services/");
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: if internal { Audience::Internal } else { Audience::Public },
            sub,
            iat: now.timestamp(),
            nbf: now.timestamp(),
            exp: expire_time.timestamp(),
            jti: self.clock.new_id(),
            roles,
            tid: tenant.map(|tenant| tenant.tid),
            generation: tenant.map(|tenant| tenant.generation),
            ver: tenant.map(|tenant| tenant.ver),
            sid: None,
        };
        let key = self.keys.last().ok_or(IdentityError::NoKey)?;
        let token = key.sign(&claims).map_err(|error| IdentityError::Key(error.into()))?;
        Ok(AccessToken { token, expire_time })
    }
}

/// What a signing key is sealed for.
fn purpose(kid: &str) -> String {
    format!("signing key {kid}")
}
