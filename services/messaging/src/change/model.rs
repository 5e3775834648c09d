//! What a change is.

use chrono::{DateTime, Utc};

/// The types of resources whose changes are in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResourceType {
    Contact,
    Conversation,
    Message,
}

/// One resource that was created, changed, deleted or restored.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// The tenant's revision that the write took.
    pub(crate) revision: i64,
    /// The place within the revision.
    pub(crate) ordinal: i16,
    pub(crate) resource_type: ResourceType,
    /// The resource's name.
    pub(crate) name: String,
    pub(crate) actor: String,
    /// The resource whose change brought this one about.
    pub(crate) cause: Option<String>,
    pub(crate) create_time: DateTime<Utc>,
    /// The resource's public message without revision and etag.
    pub(crate) after: Vec<u8>,
}

/// Which changes are listed, and how many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChangeFilter {
    pub(crate) after_revision: i64,
    pub(crate) resource_type: Option<ResourceType>,
    pub(crate) page_size: i64,
}

/// Some changes that follow a revision, and where to go on.
#[derive(Clone, Debug)]
pub(crate) struct ChangePage {
    pub(crate) changes: Vec<Change>,
    /// Everything that fits, up to this revision, is in the page.
    pub(crate) next_after_revision: i64,
    /// The tenant's revision that the page saw.
    pub(crate) revision: i64,
}

impl ResourceType {
    /// Each with its number in platform.resource_types, and its name.
    const ALL: [(Self, i16, &'static str); 3] = [
        (Self::Contact, 1, "crm.contacts.v1.Contact"),
        (Self::Conversation, 2, "crm.messaging.v1.Conversation"),
        (Self::Message, 3, "crm.messaging.v1.Message"),
    ];

    /// The names of all, for people.
    pub(crate) fn names() -> String {
        Self::ALL.map(|(_, _, name)| name).join(", ")
    }

    /// The type of this name.
    pub(crate) fn named(wanted: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, _, name)| *name == wanted).map(|(this, ..)| *this)
    }

    /// The type of this number.
    pub(super) fn of_kind(wanted: i16) -> Option<Self> {
        Self::ALL.iter().find(|(_, kind, _)| *kind == wanted).map(|(this, ..)| *this)
    }

    /// Its number in platform.resource_types.
    pub(super) fn kind(self) -> i16 {
        Self::ALL.iter().find(|(this, ..)| *this == self).map_or(0, |(_, kind, _)| *kind)
    }

    /// The full name of its message.
    pub(crate) fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(this, ..)| *this == self).map_or("", |(_, _, name)| *name)
    }
}
