//! No tenant sees, names or changes what is another's: every field of every
//! request that names something, every token that one tenant got and another
//! sends, every answer, every line of the log.

mod canaries;
mod fields;
mod filters;
mod names;
mod tokens;

use crm_testing::{Planted, Tenant, server};
use http::HeaderMap;
use prost::Message as _;
use prost::bytes::Bytes;
use prost_reflect::DynamicMessage;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::methods::Method;
use crate::world::Inhabited;

/// A tenant whose texts are all canaries.
struct World {
    inhabited: Inhabited,
    planted: Planted,
}

impl World {
    async fn create() -> Self {
        let tenant = Tenant::create().await;
        let planted = tenant.plant().await;
        let inhabited = Inhabited {
            tenant,
            contact: planted.contact.name.clone(),
            deleted_contact: planted.deleted_contact.name.clone(),
            conversation: planted.conversation.name.clone(),
            message: planted.message.name.clone(),
        };
        Self { inhabited, planted }
    }

    fn id(&self) -> Uuid {
        self.inhabited.tenant.id
    }

    /// Calls a method as its right caller.
    async fn call(&self, method: &Method, request: &DynamicMessage) -> Result<Bytes, Status> {
        let caller = self.inhabited.right_caller(method);
        method.call(caller, request.encode_to_vec().into()).await
    }
}

/// All that a caller sees of an answer, but for what is new in each: its id and
/// its date. Two that are the same cannot be told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    code: Code,
    message: String,
    details: Vec<u8>,
    metadata: Vec<(String, Vec<u8>)>,
    answer: Bytes,
}

impl Seen {
    fn of(answer: &Result<Bytes, Status>) -> Self {
        let (answer, status) = match answer {
            Ok(answer) => (answer.clone(), None),
            Err(status) => (Bytes::new(), Some(status)),
        };
        let metadata = status.map(|status| status.metadata().clone().into_headers());
        Self {
            code: status.map_or(Code::Ok, Status::code),
            message: status.map(Status::message).unwrap_or_default().to_owned(),
            details: status.map(Status::details).unwrap_or_default().to_vec(),
            metadata: metadata.as_ref().map(told).unwrap_or_default(),
            answer,
        }
    }

    /// As it would be had the caller sent the text `to` instead of `from`, which
    /// is as long: errors name what was asked for.
    fn renamed(mut self, from: &str, to: &str) -> Self {
        assert_eq!(from.len(), to.len());
        self.message = self.message.replace(from, to);
        let (from, to) = (from.as_bytes(), to.as_bytes());
        let mut at = 0;
        while at + from.len() <= self.details.len() {
            if self.details[at..].starts_with(from) {
                self.details[at..at + from.len()].copy_from_slice(to);
            }
            at += 1;
        }
        self
    }
}

/// Every key, and its value where that is not new in each answer.
fn told(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let mut told: Vec<_> = headers
        .iter()
        .map(|(name, value)| {
            let is_new = ["date", "x-request-id"].contains(&name.as_str());
            let value = if is_new { Vec::new() } else { value.as_bytes().to_vec() };
            (name.to_string(), value)
        })
        .collect();
    told.sort();
    told
}

/// An id that nothing has.
fn unknown() -> Uuid {
    server().clock.new_id()
}

#[expect(clippy::print_stdout, reason = "what a proof covers is to be read")]
fn report(what: &str, count: usize) {
    println!("{what}: {count}");
}
