//! The demo tenant that a first start makes.

use std::error::Error;

use crm_clock::Clock;
use crm_proto::registry::v1 as pb;
use crm_proto::registry::v1::tenant_service_client::TenantServiceClient;
use crm_tenant_registry::app::identity;
use tonic::transport::Endpoint;
use tonic::{Code, Request};

use crate::app::{Addresses, Config, LOCAL_OPERATOR, registry_config};

/// The slug of the demo tenant.
pub(crate) const DEMO: &str = "demo";
/// The same in every start: a start that was cut off is taken up by the next.
const REQUEST_ID: &str = "00000000-0000-7000-8000-00000000de30";

/// Makes the demo tenant where there is none, by the same call that anyone
/// would make.
///
/// # Errors
///
/// When the registry refuses.
pub(crate) async fn ensure(
    config: &Config,
    addresses: &Addresses,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let registry = registry_config(&config.superuser, &config.secrets);
    let identity = identity(&registry, Clock::default()).await?;
    let token = identity.account_token(LOCAL_OPERATOR).await?.token;
    let channel =
        Endpoint::from_shared(format!("http://{}", addresses.registry))?.connect().await?;
    let mut request = Request::new(pb::CreateTenantRequest {
        tenant: Some(pb::Tenant {
            slug: DEMO.to_owned(),
            display_name: "Demo".to_owned(),
            ..pb::Tenant::default()
        }),
        request_id: REQUEST_ID.to_owned(),
        validate_only: false,
    });
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    match TenantServiceClient::new(channel).create_tenant(request).await {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::AlreadyExists => Ok(()),
        Err(status) => Err(status.into()),
    }
}
