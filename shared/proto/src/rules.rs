//! The access rule of every method, read from the descriptors at start.
//!
//! To guard a new method, give it `option (crm.options.v1.rule)` in the proto;
//! nothing else is needed. A method without a rule is refused.

use std::collections::HashMap;

use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage};

use crate::options::v1::{Permission, Rule, Scope, rule};

/// Public services of other packages, which cannot carry our option.
const PUBLIC_SERVICES: [&str; 3] = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// Who may call a method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anyone, without a token.
    Public,
    /// Callers with a token of this scope that grants all these permissions.
    Guarded {
        /// The kind of token.
        scope: Scope,
        /// At least one.
        permissions: Vec<Permission>,
    },
}

/// The methods whose rule cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("methods without a usable rule (crm.options.v1.rule): {}", .0.join(", "))]
pub struct RuleError(Vec<String>);

/// The rules of all methods, by path (`/package.Service/Method`).
#[derive(Debug)]
pub struct Rules(HashMap<String, Access>);

impl Rules {
    /// Reads the rules from descriptors.
    ///
    /// # Errors
    ///
    /// Names every method of this project that has no rule, or one that names
    /// no scope or no permission.
    pub fn from_descriptors(bytes: &[u8]) -> Result<Self, RuleError> {
        let unreadable = |error: &dyn std::fmt::Display| RuleError(vec![error.to_string()]);
        let pool = DescriptorPool::decode(bytes).map_err(|error| unreadable(&error))?;
        let extension = pool
            .get_extension_by_name("crm.options.v1.rule")
            .ok_or_else(|| unreadable(&"the option is not defined"))?;
        let mut rules = HashMap::new();
        let mut faults = Vec::new();
        for service in pool.services() {
            for method in service.methods() {
                let path = format!("/{}/{}", service.full_name(), method.name());
                let options = method.options();
                let access = options
                    .has_extension(&extension)
                    .then(|| options.get_extension(&extension).as_message().and_then(access))
                    .flatten();
                match access {
                    Some(access) => drop(rules.insert(path, access)),
                    None if cfg!(bug_rule_missing) => drop(rules.insert(path, Access::Public)),
                    None => faults.push(path),
                }
            }
        }
        if faults.is_empty() { Ok(Self(rules)) } else { Err(RuleError(faults)) }
    }

    /// The rules of this project's own `proto/`.
    ///
    /// # Errors
    ///
    /// As [`Rules::from_descriptors`].
    pub fn load() -> Result<Self, RuleError> {
        Self::from_descriptors(crate::FILE_DESCRIPTOR_SET)
    }

    /// Only the rules of these services: the others' methods are unknown.
    #[must_use]
    pub fn of_services(mut self, names: &[&str]) -> Self {
        self.0.retain(|path, _| {
            path.strip_prefix('/')
                .and_then(|path| path.split_once('/'))
                .is_some_and(|(service, _)| names.contains(&service))
        });
        self
    }

    /// The rule for the method at a path. `None`: there is no such method, or
    /// it has no rule; both are refused.
    pub fn get(&self, path: &str) -> Option<&Access> {
        if let Some(access) = self.0.get(path) {
            return Some(access);
        }
        let service = path.strip_prefix('/')?.split('/').next()?;
        PUBLIC_SERVICES.contains(&service).then_some(&Access::Public)
    }

    /// All methods with their rules.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Access)> {
        self.0.iter().map(|(path, access)| (path.as_str(), access))
    }
}

fn access(option: &DynamicMessage) -> Option<Access> {
    let option = Rule::decode(option.encode_to_vec().as_slice()).ok()?;
    match option.access? {
        rule::Access::Public(_) => Some(Access::Public),
        rule::Access::Guarded(guarded) => {
            let scope = guarded.scope();
            let permissions: Vec<_> = guarded.permissions().collect();
            let usable = scope != Scope::Unspecified
                && !permissions.is_empty()
                && permissions.len() == guarded.permissions.len()
                && !permissions.contains(&Permission::Unspecified);
            usable.then_some(Access::Guarded { scope, permissions })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_this_project_has_a_rule() {
        let rules = Rules::load().unwrap();

        assert!(rules.iter().count() >= 10);
    }

    #[test]
    fn a_method_without_a_rule_is_named() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");
        let bytes = protox::Compiler::new([folder])
            .unwrap()
            .include_imports(true)
            .open_files(["bare.proto"])
            .unwrap()
            .encode_file_descriptor_set();
        let mut merged = crate::FILE_DESCRIPTOR_SET.to_vec();
        merged.extend(bytes);

        let error = Rules::from_descriptors(&merged).unwrap_err();

        assert!(error.to_string().ends_with("/bare.v1.BareService/Bare"), "{error}");
    }

    #[test]
    fn what_is_not_declared_has_no_rule() {
        let rules = Rules::load().unwrap();

        assert_eq!(rules.get("/crm.contacts.v1.ContactService/Nothing"), None);
        assert_eq!(rules.get("/grpc.channelz.v1.Channelz/GetServers"), None);
        assert_eq!(rules.get(""), None);
    }

    #[test]
    fn health_and_reflection_are_public() {
        let rules = Rules::load().unwrap();

        assert_eq!(rules.get("/grpc.health.v1.Health/Check"), Some(&Access::Public));
    }
}
