//! The contract: messages, clients, servers, descriptors and field rules, all
//! generated from `proto/`.

pub mod rules;
pub mod validate;

use std::fmt;

macro_rules! package {
    ($name:ident, $package:tt) => {
        #[expect(missing_docs, reason = "generated")]
        #[allow(clippy::disallowed_methods, reason = "generated clients make statuses")]
        pub mod $name {
            pub mod v1 {
                tonic::include_proto!($package);
            }
        }
    };
}

package!(changes, "crm.changes.v1");
package!(common, "crm.common.v1");
package!(contacts, "crm.contacts.v1");
package!(identity, "crm.identity.v1");
package!(messaging, "crm.messaging.v1");
package!(options, "crm.options.v1");
package!(registry, "crm.registry.v1");

/// The raw descriptors of `proto/`, with imports, source information and
/// custom options.
pub const FILE_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.binpb"));

impl fmt::Debug for registry::v1::AcquireLeaseResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcquireLeaseResponse")
            .field("database", &self.database)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for registry::v1::CreateClusterRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateClusterRequest")
            .field("cluster_id", &self.cluster_id)
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for identity::v1::IssueServiceTokenRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssueServiceTokenRequest")
            .field("client_id", &self.client_id)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for identity::v1::IssueServiceTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssueServiceTokenResponse")
            .field("expire_time", &self.expire_time)
            .finish_non_exhaustive()
    }
}
