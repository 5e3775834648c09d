//! Every text in every request, and what it is: the one table.

use prost_reflect::{DynamicMessage, Kind as Type, MessageDescriptor, ReflectMessage as _, Value};

use crate::methods::methods;

/// What a text field of a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The name of something that must exist.
    Name(Collection),
    /// The name of something that may be gone.
    Mentioned(Collection),
    /// A name that only answers have: whatever is sent is not looked at.
    Unread(Collection),
    /// The name of an account, whose secret stands beside it.
    Account,
    Filter,
    PageToken,
    RequestId,
    Etag,
    Mask,
    /// Names nothing.
    Text,
}

/// What names are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Collection {
    Contacts,
    Conversations,
    Messages,
    Tenants,
    Activities,
    Migrations,
    Clusters,
}

use Collection::{Activities, Clusters, Contacts, Conversations, Messages, Migrations, Tenants};
use Kind::{Account, Etag, Filter, Mask, Mentioned, Name, PageToken, RequestId, Text, Unread};

/// By request and path. `*` stands for any request, and comes after those that
/// are named.
const FIELDS: &[(&str, Kind)] = &[
    ("CreateContactRequest.contact.name", Unread(Contacts)),
    ("UpdateContactRequest.contact.name", Name(Contacts)),
    ("GetContactRequest.name", Name(Contacts)),
    ("DeleteContactRequest.name", Name(Contacts)),
    ("UndeleteContactRequest.name", Name(Contacts)),
    ("*.contact.initial_conversation", Unread(Conversations)),
    ("*.contact.display_name", Text),
    ("*.contact.email", Text),
    ("*.contact.phone", Text),
    ("*.contact.company", Text),
    ("*.contact.position", Text),
    ("*.contact.source", Text),
    ("*.contact.metadata", Text),
    ("CreateConversationRequest.conversation.name", Unread(Conversations)),
    ("CreateConversationRequest.conversation.contact", Name(Contacts)),
    ("UpdateConversationRequest.conversation.name", Name(Conversations)),
    ("UpdateConversationRequest.conversation.contact", Unread(Contacts)),
    ("GetConversationRequest.name", Name(Conversations)),
    ("ListConversationsRequest.contact", Name(Contacts)),
    ("*.conversation.display_name", Text),
    ("*.conversation.messages.name", Unread(Messages)),
    ("*.conversation.messages.sender_id", Text),
    ("*.conversation.messages.content", Text),
    ("CreateMessageRequest.parent", Name(Conversations)),
    ("CreateMessageRequest.message.name", Unread(Messages)),
    ("CreateMessageRequest.message.sender_id", Text),
    ("CreateMessageRequest.message.content", Text),
    ("GetMessageRequest.name", Name(Messages)),
    ("ListMessagesRequest.parent", Name(Conversations)),
    ("CreateTenantRequest.tenant.name", Unread(Tenants)),
    ("UpdateTenantRequest.tenant.name", Name(Tenants)),
    ("GetTenantRequest.name", Name(Tenants)),
    ("DeleteTenantRequest.name", Name(Tenants)),
    ("UndeleteTenantRequest.name", Name(Tenants)),
    ("SuspendTenantRequest.name", Name(Tenants)),
    ("ResumeTenantRequest.name", Name(Tenants)),
    ("PurgeTenantRequest.name", Name(Tenants)),
    ("PurgeTenantRequest.uid", Text),
    ("GetTenantActivityRequest.name", Name(Activities)),
    ("*.tenant.cluster", Unread(Clusters)),
    ("*.tenant.slug", Text),
    ("*.tenant.display_name", Text),
    ("*.tenant.database", Text),
    ("*.tenant.labels", Text),
    ("AcquireLeaseRequest.tenant", Name(Tenants)),
    ("ReportActivityRequest.instance", Text),
    ("ReportActivityRequest.tenants.tenant", Mentioned(Tenants)),
    ("RegisterSchemaRequest.migrations.description", Text),
    ("RegisterSchemaRequest.migrations.sql", Text),
    ("ListTenantMigrationsRequest.parent", Name(Tenants)),
    ("RetryTenantMigrationRequest.name", Name(Migrations)),
    ("CreateClusterRequest.cluster_id", Text),
    ("CreateClusterRequest.password", Text),
    ("CreateClusterRequest.cluster.name", Unread(Clusters)),
    ("UpdateClusterRequest.cluster.name", Name(Clusters)),
    ("GetClusterRequest.name", Name(Clusters)),
    ("*.cluster.display_name", Text),
    ("*.cluster.host", Text),
    ("*.cluster.postgresql_version", Text),
    ("IssueServiceTokenRequest.client_id", Account),
    ("IssueServiceTokenRequest.client_secret", Text),
    ("*.etag", Etag),
    ("*.filter", Filter),
    ("*.page_token", PageToken),
    ("*.request_id", RequestId),
    ("*.update_mask", Mask),
];

/// The row that a field is in.
fn row(request: &str, path: &str) -> Option<usize> {
    FIELDS.iter().position(|(row, _)| {
        let (of, to) = row.split_once('.').unwrap();
        let is_anywhere = of == "*" && !to.contains('.') && path.ends_with(&format!(".{to}"));
        (of == request || of == "*") && (path == to || is_anywhere)
    })
}

/// The paths of all texts in a message, those of repeated and nested ones
/// included. Well-known types are one text.
pub(super) fn texts(message: &MessageDescriptor) -> Vec<String> {
    let mut found = Vec::new();
    for field in message.fields() {
        match field.kind() {
            Type::String | Type::Bytes => found.push(field.name().to_owned()),
            Type::Message(_) if field.is_map() => found.push(field.name().to_owned()),
            Type::Message(inner) => match inner.full_name() {
                "google.protobuf.Struct" | "google.protobuf.FieldMask" => {
                    found.push(field.name().to_owned());
                }
                name if name.starts_with("google.protobuf.") => {}
                _ => {
                    let inner = texts(&inner);
                    found.extend(inner.iter().map(|path| format!("{}.{path}", field.name())));
                }
            },
            Type::Double
            | Type::Float
            | Type::Int32
            | Type::Int64
            | Type::Uint32
            | Type::Uint64
            | Type::Sint32
            | Type::Sint64
            | Type::Fixed32
            | Type::Fixed64
            | Type::Sfixed32
            | Type::Sfixed64
            | Type::Bool
            | Type::Enum(_) => {}
        }
    }
    found
}

/// The texts of a request, each with what it is.
pub(super) fn fields(request: &MessageDescriptor) -> Vec<(String, Kind)> {
    let known = |path: String| {
        let row = row(request.name(), &path);
        let row = row.unwrap_or_else(|| panic!("what is {}.{path}? say so here", request.name()));
        (path, FIELDS[row].1)
    };
    texts(request).into_iter().map(known).collect()
}

/// Puts a text where a path leads, in one element of what is repeated.
pub(super) fn set(message: &mut DynamicMessage, path: &str, text: &str) {
    let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
    let field = message.descriptor().get_field_by_name(name).unwrap();
    let Some(rest) = rest else {
        return message.set_field(&field, Value::String(text.to_owned()));
    };
    let value = message.get_field_mut(&field);
    if let Value::List(list) = value {
        let Type::Message(inner) = field.kind() else { panic!("{path} leads nowhere") };
        if list.is_empty() {
            list.push(Value::Message(DynamicMessage::new(inner)));
        }
        return set(list[0].as_message_mut().unwrap(), rest, text);
    }
    set(value.as_message_mut().unwrap(), rest, text);
}

#[test]
fn every_text_of_every_request_is_known_and_every_row_is_of_one() {
    let mut used = Vec::new();

    for method in methods() {
        let request = method.input();
        let paths = fields(&request).into_iter().map(|(path, _)| path);
        used.extend(paths.map(|path| row(request.name(), &path).unwrap()));
    }

    let unused = (0..FIELDS.len()).filter(|row| !used.contains(row));
    let unused: Vec<_> = unused.map(|row| FIELDS[row].0).collect();
    assert!(unused.is_empty(), "of no request: {unused:?}");
}
