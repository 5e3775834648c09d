//! Requests that each change something of their own, from `examples.json`.

use crm_proto::contacts::v1 as contacts;
use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::registry::v1 as registry;
use crm_proto::registry::v1::tenant_service_client::TenantServiceClient;
use crm_testing::{Channel, Client, OtherCluster, Tenant};
use futures_util::future::join_all;
use prost::Message as _;
use prost::bytes::Bytes;
use prost_reflect::{DynamicMessage, MessageDescriptor, Value as Field};
use serde_json::{Value, json};

use super::suite::Suite;
use crate::methods::Method;
use crate::world::{example_text, filled};

impl Suite {
    /// So many requests of a method. What they name is there, and is as the
    /// method wants it.
    pub(super) async fn requests(&self, method: &Method, count: u32) -> Vec<Value> {
        join_all((0..count).map(|number| self.request(method, number))).await
    }

    async fn request(&self, method: &Method, number: u32) -> Value {
        let name = method.short_name();
        let example = example_text(&name);
        let (names, tenant) = self.fresh(&example).await;
        let names: Vec<_> = names.iter().map(|(key, name)| (*key, name.as_str())).collect();
        let mut value = filled(&example, &names);
        assert!(!value.to_string().contains("\"$"), "{name}: what is {value}, and who makes it?");
        match name.as_str() {
            "TenantService.UndeleteTenant" => self.delete(&value["name"]).await,
            "TenantService.ResumeTenant" => self.suspend(&value["name"]).await,
            "MigrationService.RetryTenantMigration" => self.fail(&tenant.unwrap()).await,
            "ClusterService.CreateCluster" => self.address(&mut value, number).await,
            _ => {}
        }
        value["request_id"] = json!(self.server.clock.new_id().to_string());
        value
    }

    /// A request as it is sent, with the etag of what it names if it can have
    /// one: when the call is repeated, that is stale.
    pub(super) async fn encode(&self, method: &Method, mut value: Value, has_etag: bool) -> Bytes {
        if has_etag {
            self.add_etag(method, &mut value).await;
        }
        let request = DynamicMessage::deserialize(method.input(), value).unwrap();
        request.encode_to_vec().into()
    }

    /// Makes what an example names.
    async fn fresh(&self, example: &str) -> (Vec<(&'static str, String)>, Option<Tenant>) {
        let mut names = Vec::new();
        if example.contains("$contact") || example.contains("$conversation") {
            let contact = self.create_contact().await;
            names.push(("$contact", contact.name));
            names.push(("$conversation", contact.initial_conversation));
        }
        if example.contains("$deleted_contact") {
            let contact = self.create_contact().await;
            let (owner, mut client) = self.contacts();
            let name = contact.name.clone();
            let request = contacts::DeleteContactRequest { name, ..Default::default() };
            client.delete_contact(owner.request(request)).await.unwrap();
            names.push(("$deleted_contact", contact.name));
        }
        if !example.contains("$tenant") {
            return (names, None);
        }
        let tenant = Tenant::create_in(&self.server).await;
        names.push(("$tenant", tenant.tenant.name.clone()));
        self.others.lock().unwrap().push(tenant.clone());
        (names, Some(tenant))
    }

    fn contacts(&self) -> (Client, ContactServiceClient<Channel>) {
        let owner = self.owner();
        let client = ContactServiceClient::new(owner.channel(self.server.addresses.contacts));
        (owner, client)
    }

    async fn create_contact(&self) -> contacts::Contact {
        let (owner, mut client) = self.contacts();
        let contact = Some(contacts::Contact {
            display_name: "Ada".to_owned(),
            email: "ada@example.com".to_owned(),
            ..Default::default()
        });
        let request = contacts::CreateContactRequest { contact, ..Default::default() };
        client.create_contact(owner.request(request)).await.unwrap().into_inner()
    }

    fn tenants(&self) -> (Client, TenantServiceClient<Channel>) {
        let operator = Client::operator(&self.server);
        let client = TenantServiceClient::new(operator.channel(self.server.addresses.registry));
        (operator, client)
    }

    async fn delete(&self, name: &Value) {
        let (operator, mut client) = self.tenants();
        let name = name.as_str().unwrap().to_owned();
        let request = registry::DeleteTenantRequest { name, ..Default::default() };
        client.delete_tenant(operator.request(request)).await.unwrap();
    }

    async fn suspend(&self, name: &Value) {
        let (operator, mut client) = self.tenants();
        let name = name.as_str().unwrap().to_owned();
        let request = registry::SuspendTenantRequest { name, ..Default::default() };
        client.suspend_tenant(operator.request(request)).await.unwrap();
    }

    /// Leaves a migration as one that failed and whose cause is gone.
    async fn fail(&self, tenant: &Tenant) {
        let mut registry = self.server.superuser("crm_registry").await;
        let failed = sqlx::query(
            "UPDATE schema_versions SET version = version - 1, state = 4, attempts = 1
             WHERE database_id = $1 AND service = 'contacts'",
        );
        let failed = failed.bind(tenant.id).execute(&mut registry).await.unwrap();
        assert_eq!(failed.rows_affected(), 1);
    }

    /// Names a server that is no cluster yet, and that no tenant will be in.
    async fn address(&self, value: &mut Value, number: u32) {
        let other = OtherCluster::start().await;
        other.set_up().await;
        value["cluster_id"] = json!(format!("added-{number}"));
        value["password"] = json!(other.password());
        value["cluster"]["port"] = json!(other.port());
        value["cluster"]["tls_mode"] = json!("TLS_MODE_DISABLED");
        value["cluster"]["tenant_capacity"] = json!(0);
        value["cluster"]["spare_target"] = json!(0);
        self.clusters.lock().unwrap().push(other);
    }

    /// Adds the etag of what a request names, where it can have one: its own, or
    /// that of the resource in it.
    async fn add_etag(&self, method: &Method, value: &mut Value) {
        let input = method.input();
        let Some((name, holder)) = named(&input, value) else { return };
        let service = method.descriptor.parent_service();
        let getter = service.methods().find(|other| {
            other.name().starts_with("Get") && other.output() == method.descriptor.output()
        });
        let getter = getter.unwrap_or_else(|| panic!("who reads what {name} names?"));
        let getter = Method { descriptor: getter, access: method.access.clone() };
        let request = DynamicMessage::deserialize(getter.input(), json!({"name": name})).unwrap();
        let (here, _) = self.channels(&getter);
        let answer =
            getter.call_on(here, self.caller(&getter), request.encode_to_vec().into()).await;
        let read = DynamicMessage::decode(getter.descriptor.output(), answer.unwrap()).unwrap();
        let etag = read.get_field_by_name("etag").unwrap();
        let Field::String(etag) = etag.as_ref() else { panic!("{etag:?} is no etag") };
        holder["etag"] = json!(etag);
    }
}

/// The name in a request, and the message that it stands in, if that can have an
/// etag.
fn named<'v>(input: &MessageDescriptor, value: &'v mut Value) -> Option<(String, &'v mut Value)> {
    let has_etag = |message: &MessageDescriptor| message.get_field_by_name("etag").is_some();
    if let Some(name) = value["name"].as_str() {
        let name = name.to_owned();
        return has_etag(input).then_some((name, value));
    }
    let fields = value.as_object_mut().unwrap().iter_mut();
    fields.into_iter().find_map(|(field, inner)| {
        let message = input.get_field_by_name(field)?.kind().as_message()?.clone();
        let name = inner.get("name")?.as_str()?.to_owned();
        has_etag(&message).then_some((name, inner))
    })
}
