//! What a cluster is, and its rules.

use chrono::{DateTime, Utc};
use crm_error::Violations;
use crm_proto::registry::v1::cluster::{State, TlsMode};
use secrecy::SecretString;

use super::store::ClusterAddressRow;

/// The longest id: a DNS label (RFC 1035, section 2.3.4).
const MAX_ID: usize = 63;
/// How many tenants a cluster takes unless an operator says otherwise.
pub(crate) const DEFAULT_CAPACITY: i32 = 1000;
/// How many spares it keeps unless an operator says otherwise.
pub(crate) const DEFAULT_SPARES: i32 = 4;

/// Input to add a cluster.
#[derive(Clone, Debug)]
pub(crate) struct NewCluster {
    pub(crate) id: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls_mode: TlsMode,
    /// Of the registry's login there.
    pub(crate) password: SecretString,
    pub(crate) settings: Settings,
}

/// What an operator may choose at any time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) display_name: String,
    pub(crate) tenant_capacity: i32,
    pub(crate) spare_target: i32,
    pub(crate) state: State,
}

/// What an update changes.
#[derive(Clone, Debug)]
pub(crate) struct ClusterPatch {
    pub(crate) fields: Vec<Field>,
    pub(crate) settings: Settings,
}

/// A field that an update can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    DisplayName,
    TenantCapacity,
    SpareTarget,
    State,
}

/// Which cluster a change is for, and the revision that it must have.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) id: String,
    pub(crate) revision: Option<i64>,
}

/// A cluster, as the registry knows it.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pub(crate) id: String,
    pub(crate) host: String,
    pub(crate) port: i32,
    pub(crate) tls_mode: TlsMode,
    pub(crate) settings: Settings,
    pub(crate) tenant_count: i64,
    pub(crate) spare_count: i64,
    /// The name of its template.
    pub(crate) template: Option<String>,
    pub(crate) create_time: DateTime<Utc>,
    pub(crate) update_time: DateTime<Utc>,
    /// 0 in a preview.
    pub(crate) revision: i64,
}

/// What a cluster says of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) version: String,
    pub(crate) session_count: i64,
    /// 0: it took too long to find out.
    pub(crate) size_bytes: i64,
}

impl NewCluster {
    /// Adds what the rules of a cluster find wrong; fields are those of the
    /// request.
    pub(crate) fn check(&self, violations: &mut Violations) {
        if !self.id.is_empty() && !is_id(&self.id) {
            let text = "A letter, then at most 62 of a-z, 0-9 and `-`.";
            violations.add("cluster_id", "RESOURCE_ID", text);
        }
        if !self.host.is_empty() && !is_host(&self.host) {
            violations.add("cluster.host", "HOST", "A host name or an IP address.");
        }
    }

    /// How the registry would reach it.
    pub(super) fn address(&self) -> ClusterAddressRow {
        ClusterAddressRow {
            host: self.host.clone(),
            port: self.port.into(),
            tls_mode: self.tls_mode as i16,
            secret: None,
        }
    }

    /// What the cluster would be.
    pub(crate) fn preview(self, now: DateTime<Utc>) -> Cluster {
        Cluster {
            id: self.id,
            host: self.host,
            port: self.port.into(),
            tls_mode: self.tls_mode,
            settings: self.settings,
            tenant_count: 0,
            spare_count: 0,
            template: None,
            create_time: now,
            update_time: now,
            revision: 0,
        }
    }
}

impl Cluster {
    /// Changes the fields that the patch names.
    pub(crate) fn apply(&mut self, patch: &ClusterPatch, now: DateTime<Utc>) {
        let new = &patch.settings;
        for field in &patch.fields {
            match field {
                Field::DisplayName => self.settings.display_name.clone_from(&new.display_name),
                Field::TenantCapacity => self.settings.tenant_capacity = new.tenant_capacity,
                Field::SpareTarget => self.settings.spare_target = new.spare_target,
                Field::State => self.settings.state = new.state,
            }
        }
        self.update_time = now;
        self.revision += 1;
    }
}

/// Whether a text can be a cluster's id.
pub(crate) fn is_id(text: &str) -> bool {
    text.len() <= MAX_ID
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// No path of a socket: services on other machines are sent here, too.
fn is_host(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == ':')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_:".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_label_and_a_host_no_path() {
        assert!(is_id("a") && is_id("eu-west-1") && is_id(&"a".repeat(63)));
        for id in ["", "1a", "-a", "A", "a_b", "a/b", "local ", "\u{e9}"] {
            assert!(!is_id(id), "{id:?}");
        }
        assert!(!is_id(&"a".repeat(64)));
        assert!(is_host("127.0.0.1") && is_host("::1") && is_host("db-1.example.com"));
        for host in ["/run/postgresql", "@abstract", "a b", "a,b", "-h", "host/x"] {
            assert!(!is_host(host), "{host:?}");
        }
    }
}
