//! A method under trial: its example, and what may be done for real.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use prost_reflect::{DynamicMessage, FieldDescriptor, Value};
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;

use super::places::{Place, rebuild};
use super::send::{self, Answer};
use super::wire;
use crate::methods::{Method, methods};
use crate::world::Inhabited;

/// What these do again and again harms nobody: their writes are real. Others
/// say `validate_only`.
const REAL: [&str; 6] = [
    "ContactService.CreateContact",
    "ContactService.UpdateContact",
    "ConversationService.CreateConversation",
    "ConversationService.UpdateConversation",
    "MessageService.CreateMessage",
    "TenantService.UpdateTenant",
];

/// The number of the next report.
static REPORTS: AtomicI64 = AtomicI64::new(1);

/// A method, in a tenant of its own.
pub(super) struct Subject {
    pub(super) method: Method,
    pub(super) example: DynamicMessage,
    caller: MetadataMap,
    pub(super) channel: Channel,
    /// The encoded `validate_only`, which stands before everything else, so
    /// that what is cut off still says it.
    head: Vec<u8>,
    pub(super) world: Arc<Inhabited>,
    /// The method that reads what this one answers.
    pub(super) getter: Option<Method>,
}

/// Every method, in one tenant.
pub(super) async fn subjects_in_one_tenant() -> Vec<Subject> {
    let world = Arc::new(Inhabited::create().await);
    let methods = methods();
    methods.into_iter().map(|method| Subject::new(method, None, world.clone())).collect()
}

/// Every method. Those that write have a tenant for themselves, and so what
/// they wrote is what they find.
pub(super) async fn subjects() -> Vec<Subject> {
    let shared = Arc::new(Inhabited::create().await);
    let mut all = Vec::new();
    let methods = methods();
    for method in &methods {
        let world = if REAL.contains(&&*method.short_name()) {
            Arc::new(Inhabited::create().await)
        } else {
            shared.clone()
        };
        let output = method.descriptor.output();
        let getter = methods.iter().find(|getter| {
            getter.descriptor.output() == output
                && getter.descriptor.name() == format!("Get{}", output.name())
        });
        all.push(Subject::new(method.clone(), getter.cloned(), world));
    }
    all
}

impl Subject {
    pub(super) fn new(method: Method, getter: Option<Method>, world: Arc<Inhabited>) -> Self {
        let mut example = world.example(&method);
        let mut head = Vec::new();
        if let Some(flag) = method.input().get_field_by_name("validate_only") {
            example.clear_field(&flag);
            if !REAL.contains(&&*method.short_name()) {
                head = wire::number(flag.number(), 1);
            }
        }
        if method.short_name() == "LeaseService.ReportActivity" {
            // The process ends: it takes no room from those of other tests.
            example.clear_field_by_name("session_budget");
        }
        let caller = world.right_caller(&method);
        let channel = send::connect(&method);
        Self { method, example, caller, channel, head, world, getter }
    }

    pub(super) fn name(&self) -> String {
        self.method.short_name()
    }

    pub(super) fn is_real(&self) -> bool {
        self.head.is_empty()
    }

    pub(super) fn is_update(&self) -> bool {
        self.method.input().get_field_by_name("update_mask").is_some()
    }

    /// The largest message that its listener takes: a schema set is larger than
    /// an ordinary request.
    pub(super) fn max_bytes(&self) -> usize {
        let megabytes = if self.name().starts_with("LeaseService.") { 16 } else { 1 };
        megabytes * 1024 * 1024
    }

    /// Whether the method looks at the field at all.
    pub(super) fn looks_at(&self, place: &Place) -> bool {
        if place.0.len() == 1 {
            return true;
        }
        if self.is_update() {
            let is_name = place.0.len() == 2 && place.field().name() == "name";
            return is_name || place.is_maskable();
        }
        let is_of_resource =
            place.0[0].kind().as_message() == Some(&self.method.descriptor.output());
        !(place.is_output_only() || is_of_resource && place.field().name() == "name")
    }

    /// The request with nothing at a place but this. An update names the field.
    pub(super) fn request(&self, place: &Place, hostile: &[u8]) -> Vec<u8> {
        let mut base = self.example.clone();
        if self.is_update() && place.is_maskable() {
            let field = place.resource_field().unwrap().name().to_owned();
            self.mask(&mut base, [field]);
        }
        self.encode(&base, &[(place.0.as_slice(), hostile)])
    }

    /// A request with these values, which makes no mistake of its own.
    pub(super) fn encode(
        &self,
        base: &DynamicMessage,
        hostile: &[(&[FieldDescriptor], &[u8])],
    ) -> Vec<u8> {
        let mut base = base.clone();
        if base.get_field_by_name("report_number").is_some() {
            // A report that was heard before is not looked at.
            let number = REPORTS.fetch_add(1, Ordering::Relaxed);
            base.set_field_by_name("report_number", Value::I64(number));
        }
        [self.head.clone(), rebuild(&base, hostile)].concat()
    }

    /// Names these fields in the update's mask.
    pub(super) fn mask(
        &self,
        message: &mut DynamicMessage,
        fields: impl IntoIterator<Item = String>,
    ) {
        let field = self.method.input().get_field_by_name("update_mask").unwrap();
        let mut mask = DynamicMessage::new(field.kind().as_message().cloned().unwrap());
        let paths = fields.into_iter().map(Value::String).collect();
        mask.set_field_by_name("paths", Value::List(paths));
        message.set_field(&field, Value::Message(mask));
    }

    pub(super) async fn send(&self, message: &[u8]) -> Result<Answer, String> {
        send::send(&self.channel, &self.method, &self.caller, message).await
    }

    pub(super) async fn send_body(
        &self,
        headers: &http::HeaderMap,
        body: Vec<u8>,
    ) -> Result<Answer, String> {
        send::send_body(&self.channel, &self.method, &self.caller, headers, body).await
    }
}
