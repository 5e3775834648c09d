//! Built-in roles and what they grant: the one table.

use crm_proto::options::v1::Permission;

/// The role of a tenant's administrators.
pub const TENANT_ADMIN: &str = "roles/admin";
/// The role of the platform's operators.
pub const PLATFORM_OPERATOR: &str = "roles/platform.operator";
/// The role of the services of this suite.
pub const INTERNAL_SERVICE: &str = "roles/internal.service";

const READ: &[Permission] = &[Permission::ContactsRead, Permission::ConversationsRead];
const WORK: &[Permission] = &[
    Permission::ContactsRead,
    Permission::ContactsWrite,
    Permission::ConversationsRead,
    Permission::ConversationsWrite,
];
const ADMINISTER: &[Permission] = &[
    Permission::ContactsRead,
    Permission::ContactsWrite,
    Permission::ConversationsRead,
    Permission::ConversationsWrite,
    Permission::SystemMessagesSend,
    Permission::ChangesRead,
];
const OPERATE: &[Permission] = &[
    Permission::TenantsRead,
    Permission::TenantsWrite,
    Permission::ClustersRead,
    Permission::ClustersWrite,
    Permission::MigrationsRead,
    Permission::MigrationsWrite,
];

/// Every built-in role. An unknown role grants nothing.
const ROLES: &[(&str, &[Permission])] = &[
    ("roles/owner", ADMINISTER),
    (TENANT_ADMIN, ADMINISTER),
    ("roles/manager", WORK),
    ("roles/user", WORK),
    ("roles/viewer", READ),
    (PLATFORM_OPERATOR, OPERATE),
    (
        INTERNAL_SERVICE,
        &[
            Permission::LeasesAcquire,
            Permission::SchemasRegister,
            Permission::ActivityReport,
            Permission::TenantsWatch,
        ],
    ),
];

/// The names of all built-in roles.
pub fn built_in_roles() -> impl Iterator<Item = &'static str> {
    ROLES.iter().map(|(name, _)| *name)
}

/// A set of permissions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Permissions(u64);

impl Permissions {
    /// What a list of roles grants together.
    pub(crate) fn of(roles: &[String]) -> Self {
        let granted = ROLES
            .iter()
            .filter(|(name, _)| roles.iter().any(|role| role == name))
            .flat_map(|(_, permissions)| *permissions);
        Self(granted.fold(0, |set, permission| set | bit(*permission)))
    }

    /// Whether the set has a permission.
    pub(crate) fn has(self, permission: Permission) -> bool {
        self.0 & bit(permission) != 0
    }
}

/// No role grants PERMISSION_UNSPECIFIED: its bit is never set.
fn bit(permission: Permission) -> u64 {
    1 << (permission as i32 as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_add_up_and_unknown_ones_grant_nothing() {
        let roles = ["roles/viewer", "roles/made-up"].map(str::to_owned);

        let granted = Permissions::of(&roles);

        assert!(granted.has(Permission::ContactsRead));
        assert!(!granted.has(Permission::ContactsWrite));
        assert!(!granted.has(Permission::TenantsRead));
    }

    #[test]
    fn the_paper_has_every_role_with_its_permissions() {
        let paper = include_str!("../../../docs/auth.md");
        let rows: Vec<_> = paper.lines().filter(|line| line.starts_with("| `roles/")).collect();

        let expected = ROLES.iter().map(|(role, permissions)| {
            let names = permissions.iter().map(|permission| permission.as_str_name());
            let names: Vec<_> = names.map(|name| name.replace("PERMISSION_", "")).collect();
            format!("| `{role}` | {} |", names.join(", "))
        });

        assert_eq!(rows, expected.collect::<Vec<_>>());
    }

    #[test]
    fn no_role_grants_the_unspecified_permission() {
        let all: Vec<_> = ROLES.iter().map(|(name, _)| (*name).to_owned()).collect();

        assert!(!Permissions::of(&all).has(Permission::Unspecified));
    }
}
