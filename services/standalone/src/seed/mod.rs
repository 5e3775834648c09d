//! `crm seed`: a sample tenant, by the calls that anyone would make.
//!
//! What is there already is left alone, so that a run that was cut off is
//! finished by the next, and a larger one adds to a smaller.

mod sample;

use std::error::Error;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crm_proto::contacts::v1 as contacts_pb;
use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use crm_proto::messaging::v1 as pb;
use crm_proto::messaging::v1::conversation_service_client::ConversationServiceClient;
use crm_proto::messaging::v1::message_service_client::MessageServiceClient;
use crm_proto::registry::v1 as registry_pb;
use crm_proto::registry::v1::tenant_service_client::TenantServiceClient;
use futures_util::stream::{self, TryStreamExt as _};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::cli::Options;
use crate::token;

/// How many contacts are made at once.
const AT_ONCE: usize = 8;
/// How many contacts are made with one token, which lasts 15 minutes.
const CONTACTS_PER_TOKEN: usize = 1000;
/// How often the progress is shown.
const SHOW_EVERY: Duration = Duration::from_millis(500);

type Failure = Box<dyn Error + Send + Sync>;

/// Makes a sample tenant with contacts, conversations and messages: the same
/// each time.
///
/// # Errors
///
/// When nothing runs with this data folder, or a call is refused.
pub(crate) async fn seed(options: Options, tenant: &str, contacts: u32) -> Result<(), Failure> {
    let addresses = options.addresses();
    let connect = async |address| -> Result<Channel, Failure> {
        Ok(Endpoint::from_shared(format!("http://{address}"))?.connect().await?)
    };
    ensure_tenant(connect(addresses.registry).await?, &options, tenant).await?;

    let (contact_channel, message_channel) =
        (connect(addresses.contacts).await?, connect(addresses.messaging).await?);
    let progress = Progress::new(contacts);
    let numbers: Vec<u32> = (0..contacts).collect();
    for part in numbers.chunks(CONTACTS_PER_TOKEN) {
        let seeder = Seeder {
            bearer: bearer(&options, Some(tenant)).await?,
            contacts: ContactServiceClient::new(contact_channel.clone()),
            conversations: ConversationServiceClient::new(message_channel.clone()),
            messages: MessageServiceClient::new(message_channel.clone()),
        };
        let seed_one = |n| {
            let (mut seeder, progress) = (seeder.clone(), &progress);
            async move {
                seeder.seed(n).await?;
                progress.done();
                Ok::<_, Failure>(())
            }
        };
        let all = stream::iter(part.iter().copied().map(Ok));
        all.try_for_each_concurrent(AT_ONCE, seed_one).await?;
    }
    writeln!(io::stdout(), "the tenant {tenant} has {contacts} sample contacts")?;
    Ok(())
}

async fn bearer(options: &Options, tenant: Option<&str>) -> Result<AsciiMetadataValue, Failure> {
    Ok(format!("Bearer {}", token::issue(options, tenant).await?).parse()?)
}

async fn ensure_tenant(channel: Channel, options: &Options, slug: &str) -> Result<(), Failure> {
    let tenant = registry_pb::Tenant {
        slug: slug.to_owned(),
        display_name: "Sample".to_owned(),
        ..registry_pb::Tenant::default()
    };
    let request = registry_pb::CreateTenantRequest {
        tenant: Some(tenant),
        ..registry_pb::CreateTenantRequest::default()
    };
    let request = authorized(&bearer(options, None).await?, request);
    match TenantServiceClient::new(channel).create_tenant(request).await {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::AlreadyExists => Ok(()),
        Err(status) => Err(status.into()),
    }
}

fn authorized<T>(bearer: &AsciiMetadataValue, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", bearer.clone());
    request
}

/// Makes what is not there yet.
#[derive(Clone)]
struct Seeder {
    bearer: AsciiMetadataValue,
    contacts: ContactServiceClient<Channel>,
    conversations: ConversationServiceClient<Channel>,
    messages: MessageServiceClient<Channel>,
}

impl Seeder {
    async fn seed(&mut self, n: u32) -> Result<(), Status> {
        let contact = self.ensure_contact(n).await?;
        self.ensure_messages(n, contact.initial_conversation).await?;
        if let Some(display_name) = sample::second_conversation(n) {
            self.ensure_conversation(contact.name, display_name).await?;
        }
        Ok(())
    }

    async fn ensure_contact(&mut self, n: u32) -> Result<contacts_pb::Contact, Status> {
        let contact = sample::contact(n);
        let list = contacts_pb::ListContactsRequest {
            filter: format!("email = \"{}\"", contact.email),
            ..contacts_pb::ListContactsRequest::default()
        };
        let found = self.contacts.list_contacts(authorized(&self.bearer, list)).await?;
        if let Some(found) = found.into_inner().contacts.into_iter().next() {
            return Ok(found);
        }
        let create = contacts_pb::CreateContactRequest {
            contact: Some(contact),
            ..contacts_pb::CreateContactRequest::default()
        };
        let created = self.contacts.create_contact(authorized(&self.bearer, create)).await?;
        Ok(created.into_inner())
    }

    async fn ensure_messages(&mut self, n: u32, conversation: String) -> Result<(), Status> {
        let list = pb::ListMessagesRequest {
            parent: conversation.clone(),
            ..pb::ListMessagesRequest::default()
        };
        let said = self.messages.list_messages(authorized(&self.bearer, list)).await?;
        for message in sample::messages(n).skip(said.into_inner().messages.len()) {
            let create = pb::CreateMessageRequest {
                parent: conversation.clone(),
                message: Some(message),
                ..pb::CreateMessageRequest::default()
            };
            self.messages.create_message(authorized(&self.bearer, create)).await?;
        }
        Ok(())
    }

    async fn ensure_conversation(
        &mut self,
        contact: String,
        display_name: &str,
    ) -> Result<(), Status> {
        let list = pb::ListConversationsRequest {
            contact: contact.clone(),
            ..pb::ListConversationsRequest::default()
        };
        let found = self.conversations.list_conversations(authorized(&self.bearer, list)).await?;
        let found = found.into_inner().conversations;
        if found.iter().any(|conversation| conversation.display_name == display_name) {
            return Ok(());
        }
        let conversation = pb::Conversation {
            contact,
            display_name: display_name.to_owned(),
            ..pb::Conversation::default()
        };
        let create = pb::CreateConversationRequest {
            conversation: Some(conversation),
            ..pb::CreateConversationRequest::default()
        };
        self.conversations.create_conversation(authorized(&self.bearer, create)).await?;
        Ok(())
    }
}

/// Shows how far it is: on a terminal in one line, elsewhere in many.
struct Progress {
    all: u32,
    done: AtomicU32,
    shown: std::sync::Mutex<Instant>,
}

impl Progress {
    fn new(all: u32) -> Self {
        Self { all, done: AtomicU32::new(0), shown: Instant::now().into() }
    }

    fn done(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        let Ok(mut shown) = self.shown.lock() else { return };
        if shown.elapsed() < SHOW_EVERY && done < self.all {
            return;
        }
        *shown = Instant::now();
        let mut stderr = io::stderr().lock();
        let is_line_open = stderr.is_terminal() && done < self.all;
        let end = if is_line_open { "\r" } else { "\n" };
        // Where standard error is closed there is nobody to tell.
        let _told = write!(stderr, "{done} of {} contacts{end}", self.all);
    }
}
