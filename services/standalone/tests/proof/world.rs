//! Two tenants with something in them, and for every method a request that
//! its right caller may send.

use crm_auth::{PLATFORM_OPERATOR, TenantClaims};
use crm_proto::contacts::v1 as contacts;
use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::messaging::v1 as messaging;
use crm_proto::messaging::v1::message_service_client::MessageServiceClient;
use crm_proto::options::v1::Scope;
use crm_standalone::app::LOCAL_OPERATOR;
use crm_testing::{Client, Tenant, reason, server};
use prost_reflect::DynamicMessage;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::methods::Method;

/// A request of each method. `$` begins what differs from tenant to tenant.
const EXAMPLES: &str = include_str!("examples.json");

/// A tenant, and the names of what it has.
#[derive(Debug)]
pub(crate) struct Inhabited {
    pub(crate) tenant: Tenant,
    pub(crate) contact: String,
    pub(crate) deleted_contact: String,
    pub(crate) conversation: String,
    pub(crate) message: String,
}

impl Inhabited {
    /// A tenant with a contact, a deleted one, and a message to the first.
    pub(crate) async fn create() -> Self {
        let tenant = Tenant::create().await;
        let first = create_contact(&tenant, "Ada").await;
        let second = create_contact(&tenant, "Charles").await;
        let admin = tenant.admin();
        let mut client = ContactServiceClient::new(admin.channel(server().addresses.contacts));
        let name = second.name.clone();
        let request = contacts::DeleteContactRequest { name, ..Default::default() };
        client.delete_contact(admin.request(request)).await.unwrap();
        let mut client = MessageServiceClient::new(admin.channel(server().addresses.messaging));
        let request = messaging::CreateMessageRequest {
            parent: first.initial_conversation.clone(),
            message: Some(messaging::Message {
                sender_type: messaging::message::SenderType::User.into(),
                content: "Welcome".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let message = client.create_message(admin.request(request)).await.unwrap().into_inner();
        Self {
            tenant,
            contact: first.name,
            deleted_contact: second.name,
            conversation: first.initial_conversation,
            message: message.name,
        }
    }

    /// A request of this method that this tenant's administrator, an operator or
    /// a service may send, whichever its rule asks for. It may be sent again and
    /// again: what would change something says `validate_only`.
    pub(crate) fn example(&self, method: &Method) -> DynamicMessage {
        let mut value = self.example_json(&method.short_name());
        if method.input().get_field_by_name("validate_only").is_some() {
            value["validate_only"] = json!(true);
        }
        let parsed = DynamicMessage::deserialize(method.input(), value);
        parsed.unwrap_or_else(|error| panic!("the example of {}: {error}", method.short_name()))
    }

    /// The line of `examples.json`, with the names of what is in this tenant.
    fn example_json(&self, method: &str) -> Value {
        let migrations = crm_contacts::app::SERVICE.migrations.iter().map(|migration| {
            json!({"version": migration.version, "description": migration.description,
                   "sql": migration.sql})
        });
        let migrations = Value::from_iter(migrations).to_string();
        let id = self.tenant.id.to_string();
        let names = [
            ("$uid", id.as_str()),
            ("$tenant", self.tenant.tenant.name.as_str()),
            ("$contact", &self.contact),
            ("$deleted_contact", &self.deleted_contact),
            ("$conversation", &self.conversation),
            ("$message", &self.message),
            ("$secret", server().secrets().contacts.expose_secret()),
            // The whole value, not a part of a text.
            ("\"$migrations\"", migrations.as_str()),
        ];
        filled(&example_text(method), &names)
    }

    /// The metadata of the caller that a method is for: with every permission
    /// that its scope can have.
    pub(crate) fn right_caller(&self, method: &Method) -> MetadataMap {
        match method.guard() {
            None => MetadataMap::new(),
            Some((Scope::Tenant, _)) => bearer(&self.token("roles/owner")),
            Some((Scope::Platform, _)) => bearer(&operator_token(PLATFORM_OPERATOR)),
            Some((Scope::Internal, _)) => bearer(&service_token("contacts")),
            Some((Scope::Unspecified, _)) => panic!("{} has no scope", method.short_name()),
        }
    }

    /// A token of this tenant with a role.
    pub(crate) fn token(&self, role: &str) -> String {
        let claims = TenantClaims { tid: self.tenant.id, generation: 1, ver: 1 };
        issue(LOCAL_OPERATOR, role, Some(claims))
    }
}

/// The line of `examples.json`, as it stands there.
pub(crate) fn example_text(method: &str) -> String {
    let mut examples: serde_json::Map<String, Value> = serde_json::from_str(EXAMPLES).unwrap();
    let example = examples.remove(method);
    let example =
        example.unwrap_or_else(|| panic!("{method} has no example: give it one in examples.json"));
    example.to_string()
}

/// An example with these names.
pub(crate) fn filled(example: &str, names: &[(&str, &str)]) -> Value {
    let filled = names.iter().fold(example.to_owned(), |text, (key, name)| text.replace(key, name));
    serde_json::from_str(&filled).unwrap()
}

/// A platform token with a role.
pub(crate) fn operator_token(role: &str) -> String {
    issue(LOCAL_OPERATOR, role, None)
}

/// A token of a service of the suite.
pub(crate) fn service_token(service: &str) -> String {
    issue(&format!("services/{service}"), crm_auth::INTERNAL_SERVICE, None)
}

fn issue(subject: &str, role: &str, tenant: Option<TenantClaims>) -> String {
    server().identity.issue(subject.to_owned(), vec![role.to_owned()], tenant).unwrap().token
}

/// The metadata of a caller with a token.
pub(crate) fn bearer(token: &str) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    metadata.insert("authorization", format!("Bearer {token}").parse().unwrap());
    metadata
}

/// `OK`, or the reason of the refusal.
pub(crate) fn outcome<T>(answer: &Result<T, Status>) -> String {
    answer.as_ref().map_or_else(reason, |_| "OK".to_owned())
}

async fn create_contact(tenant: &Tenant, display_name: &str) -> contacts::Contact {
    let admin: Client = tenant.admin();
    let mut client = ContactServiceClient::new(admin.channel(server().addresses.contacts));
    let contact = Some(contacts::Contact {
        display_name: display_name.to_owned(),
        email: format!("{}@example.com", display_name.to_lowercase()),
        ..Default::default()
    });
    let request = contacts::CreateContactRequest { contact, ..Default::default() };
    client.create_contact(admin.request(request)).await.unwrap().into_inner()
}
