//! What the generated field rules say of every hostile value, written down so
//! that protovalidate can be asked the same (`.ci/rules.py`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path as FilePath;

use crm_proto::validate::{Path, Validate, Violations};
use crm_proto::{changes, contacts, identity, messaging, registry};
use prost::Message;
use prost_reflect::DynamicMessage;
use serde_json::json;

use super::hostile;
use super::places::{places, rebuild};
use crate::methods::methods;

/// Longer ones say nothing more.
const MAX_BYTES: usize = 300_000;
/// How many bytes one length of text may take in all.
const SHORT: usize = 50_000;

type Faults = Vec<(String, &'static str)>;
type Judge = fn(&[u8]) -> Option<Faults>;

/// What is wrong with a message; `None`: it is no message.
fn judge<T: Message + Validate + Default>(bytes: &[u8]) -> Option<Faults> {
    let mut violations = Violations::default();
    T::decode(bytes).ok()?.validate(&Path::Root, &mut violations);
    Some(violations.into_vec().into_iter().map(|it| (it.field, it.reason)).collect())
}

/// The judges of these types, by their full names.
macro_rules! judges {
    ($($package:ident: $($name:ident)*;)*) => {
        BTreeMap::from([$($((
            format!("crm.{}.v1.{}", stringify!($package), stringify!($name)),
            judge::<$package::v1::$name> as Judge,
        )),*),*])
    };
}

fn judges() -> BTreeMap<String, Judge> {
    judges! {
        changes: ListChangesRequest;
        contacts: CreateContactRequest GetContactRequest ListContactsRequest UpdateContactRequest
            DeleteContactRequest UndeleteContactRequest;
        identity: IssueServiceTokenRequest GetJwksRequest;
        messaging: CreateConversationRequest GetConversationRequest ListConversationsRequest
            UpdateConversationRequest CreateMessageRequest GetMessageRequest ListMessagesRequest;
        registry: CreateClusterRequest GetClusterRequest ListClustersRequest UpdateClusterRequest CheckClustersRequest
            AcquireLeaseRequest ReportActivityRequest RegisterSchemaRequest WatchTenantsRequest
            ListTenantMigrationsRequest RetryTenantMigrationRequest SummarizeMigrationsRequest
            CreateTenantRequest GetTenantRequest ListTenantsRequest UpdateTenantRequest
            DeleteTenantRequest UndeleteTenantRequest SuspendTenantRequest ResumeTenantRequest
            GetTenantActivityRequest PurgeTenantRequest;
    }
}

#[test]
fn every_field_rule_is_written_down_for_another_judge() {
    let judges = judges();
    let mut written = Vec::new();
    let mut rules = BTreeSet::new();

    for method in methods() {
        let input = method.input();
        let judge = judges.get(input.full_name());
        let judge = judge.unwrap_or_else(|| panic!("name {} here", input.full_name()));
        let empty = DynamicMessage::new(input.clone());
        for place in places(&input) {
            for value in hostile::values(&place, &hostile::value_at(&empty, &place)) {
                let bytes = rebuild(&empty, &[(place.0.as_slice(), value.bytes.as_slice())]);
                let is_plain = bytes.iter().filter(|byte| **byte != b'a').count() < SHORT;
                if bytes.len() > MAX_BYTES || !is_plain {
                    continue;
                }
                let faults = judge(&bytes);
                rules.extend(faults.iter().flatten().map(|(_, rule)| *rule));
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                let line = json!({
                    "message": input.full_name(), "case": format!("{}: {}", place.path(), value.name),
                    "bytes": hex, "faults": faults,
                });
                written.push(line.to_string());
            }
        }
    }

    let file = FilePath::new(env!("CARGO_TARGET_TMPDIR")).join("field-rules.jsonl");
    fs::write(file, written.join("\n")).unwrap();
    println!("{} verdicts over the rules {rules:?}", written.len());
    for rule in ["ENUM_NOT_IN", "MAX_ITEMS", "NUMBER_LTE", "REQUIRED", "STRING_UUID", "TIMESTAMP"] {
        assert!(rules.contains(rule), "no value breaks {rule} any more");
    }
}
