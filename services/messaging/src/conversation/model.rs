//! What a conversation is, and its rules.

use chrono::{DateTime, Utc};
pub(crate) use crm_proto::messaging::v1::conversation::State;
use uuid::Uuid;

use super::error::ConversationError;
use crate::message::Message;

/// The most conversations of one contact, so that the revision that deletes
/// them all stays small.
pub(crate) const MAX_CONVERSATIONS: i64 = 1000;

/// Input to create a conversation. A blank display name is absent.
#[derive(Clone, Debug)]
pub(crate) struct NewConversation {
    pub(crate) contact_id: Uuid,
    pub(crate) display_name: Option<String>,
    pub(crate) state: State,
}

/// A conversation.
#[derive(Clone, Debug)]
pub(crate) struct Conversation {
    pub(crate) id: Uuid,
    pub(crate) contact_id: Uuid,
    pub(crate) display_name: Option<String>,
    pub(crate) state: State,
    pub(crate) last_message_time: Option<DateTime<Utc>>,
    pub(crate) create_time: DateTime<Utc>,
    pub(crate) update_time: DateTime<Utc>,
    pub(crate) delete_time: Option<DateTime<Utc>>,
    /// The tenant's revision at which it was last changed.
    pub(crate) revision: i64,
    /// Its latest messages, where they were asked for.
    pub(crate) messages: Vec<Message>,
}

/// What an update changes. `None`: the field stays as it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConversationPatch {
    pub(crate) state: Option<State>,
    pub(crate) display_name: Option<Option<String>>,
}

/// Which conversation an update is for, and the revision that it must have, if
/// any.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) id: Uuid,
    pub(crate) revision: Option<i64>,
}

/// Which conversations are read, and how much of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ConversationFilter {
    /// Only this one.
    pub(crate) id: Option<Uuid>,
    /// Only those with this contact, which must be known.
    pub(crate) of_contact: Option<Uuid>,
    pub(crate) contact_id: Option<Uuid>,
    pub(crate) state: Option<State>,
    pub(crate) show_deleted: bool,
    pub(crate) page_size: i64,
    /// How many messages of each; 0 for none.
    pub(crate) messages: i64,
}

impl Conversation {
    /// A new conversation. The caller has checked the input.
    pub(crate) fn create(new: NewConversation, id: Uuid, now: DateTime<Utc>) -> Self {
        Self {
            id,
            contact_id: new.contact_id,
            display_name: new.display_name,
            state: new.state,
            last_message_time: None,
            create_time: now,
            update_time: now,
            delete_time: None,
            revision: 0,
            messages: Vec::new(),
        }
    }

    /// Applies an update.
    ///
    /// # Errors
    ///
    /// When the conversation is deleted, is no longer what the caller read, or
    /// its state does not lead to the new one.
    pub(crate) fn apply(
        &mut self,
        target: &Target,
        patch: ConversationPatch,
        now: DateTime<Utc>,
    ) -> Result<(), ConversationError> {
        if target.revision.is_some_and(|revision| revision != self.revision) {
            return Err(ConversationError::Changed(self.id));
        }
        if self.delete_time.is_some() {
            return Err(ConversationError::Deleted(self.id));
        }
        if let Some(state) = patch.state {
            if !leads_to(self.state, state) {
                return Err(ConversationError::Transition { from: self.state, to: state });
            }
            self.state = state;
        }
        if let Some(display_name) = patch.display_name {
            self.display_name = display_name;
        }
        self.update_time = self.update_time.max(now);
        Ok(())
    }
}

/// Whether a conversation may go from one state to the other.
fn leads_to(from: State, to: State) -> bool {
    let to_rest = matches!(to, State::Snoozed | State::Archived);
    from == to
        || matches!(to, State::Active | State::Closed)
        || (to_rest && matches!(from, State::Active | State::Snoozed))
}

/// A stored state.
pub(super) fn state(stored: i16) -> State {
    State::try_from(i32::from(stored)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_leads_to_those_that_the_contract_names() {
        use State::{Active, Archived, Closed, Snoozed};

        let leads: Vec<_> = [Active, Snoozed, Archived, Closed]
            .map(|from| [Active, Snoozed, Archived, Closed].map(|to| leads_to(from, to)))
            .into();

        let (yes, no) = (true, false);
        assert_eq!(
            leads,
            [[yes, yes, yes, yes], [yes, yes, yes, yes], [yes, no, yes, yes], [yes, no, no, yes],]
        );
    }
}
