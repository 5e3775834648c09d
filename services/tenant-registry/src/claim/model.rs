//! What a cluster and the registry say of the same database, and how that may
//! differ.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use crm_proto::registry::v1::tenant::State;
use uuid::Uuid;

/// To whom a database was given, as its cluster says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The tenant's id, and the database's.
    pub(crate) tenant_id: Uuid,
    pub(crate) claim_id: Uuid,
    pub(crate) slug: String,
    /// The state that is enforced.
    pub(crate) state: State,
    pub(crate) state_id: Uuid,
    pub(crate) claim_time: DateTime<Utc>,
    /// Whether the registry had committed the tenant.
    pub(crate) is_confirmed: bool,
    /// When the database was removed for good.
    pub(crate) purge_time: Option<DateTime<Utc>>,
}

/// A tenant, as the registry knows it.
#[derive(Clone, Debug)]
pub(crate) struct Holder {
    pub(crate) tenant_id: Uuid,
    pub(crate) slug: String,
    pub(crate) claim_id: Uuid,
    /// Whether its cluster is known to have the claim.
    pub(crate) is_claimed: bool,
    pub(crate) state: State,
    pub(crate) state_id: Uuid,
    /// States that were wanted before, one of which may be enforced still.
    pub(crate) known_state_ids: Vec<Uuid>,
}

/// How a cluster and the registry differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum DifferenceKind {
    /// The cluster gave a database to a tenant that the registry does not know.
    Forgotten,
    /// The registry knows a tenant, and the cluster has no claim of it.
    Missing,
    /// The claims are not the same.
    OtherClaim,
    /// The cluster enforces a state that the registry never wanted.
    OtherState,
    /// The cluster removed the database for good, and the registry has the
    /// tenant.
    Removed,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) tenant_id: Uuid,
    pub(crate) kind: DifferenceKind,
    /// `None`: the cluster has none.
    pub(crate) claim: Option<Claim>,
}

impl Difference {
    /// What it is, for an operator.
    pub(crate) fn detail(&self) -> String {
        let claim = self.claim.as_ref();
        let since = claim.map(|claim| claim.claim_time.to_rfc3339()).unwrap_or_default();
        let state = claim.map_or("", |claim| state_name(claim.state));
        match self.kind {
            DifferenceKind::Forgotten => {
                let slug = claim.map_or("", |claim| claim.slug.as_str());
                format!("the registry does not know it: `{slug}`, {state}, since {since}")
            }
            DifferenceKind::Missing => "the cluster does not know it".to_owned(),
            DifferenceKind::OtherClaim => "the cluster has another claim of it".to_owned(),
            DifferenceKind::OtherState => {
                format!("the cluster has it {state}, which the registry never wanted")
            }
            DifferenceKind::Removed => {
                let at = claim.and_then(|claim| claim.purge_time);
                let at = at.map(|at| at.to_rfc3339()).unwrap_or_default();
                format!("its database was removed for good on {at}")
            }
        }
    }
}

fn state_name(state: State) -> &'static str {
    let name = state.as_str_name();
    name.strip_prefix("STATE_").unwrap_or(name)
}

/// How the claims of a cluster differ from the registry's tenants there. The
/// two are not read at once: what is known before and after the claims were
/// read must both differ from them.
pub(crate) fn differences(
    before: &[Holder],
    claims: &[Claim],
    after: &[Holder],
) -> Vec<Difference> {
    let earlier = between(before, claims);
    let mut found = between(after, claims);
    found.retain(|difference| earlier.contains(difference));
    found.sort_by_key(|difference| (difference.tenant_id, difference.kind));
    found
}

fn between(holders: &[Holder], claims: &[Claim]) -> Vec<Difference> {
    let holders: HashMap<_, _> = holders.iter().map(|holder| (holder.tenant_id, holder)).collect();
    let claimed: HashSet<_> = claims.iter().map(|claim| claim.tenant_id).collect();
    let of_claims = claims.iter().filter_map(|claim| {
        let kind = match holders.get(&claim.tenant_id) {
            // Nobody was told of it.
            None if !claim.is_confirmed || claim.purge_time.is_some() => None,
            None => Some(DifferenceKind::Forgotten),
            Some(_) if claim.purge_time.is_some() => Some(DifferenceKind::Removed),
            Some(holder) if holder.claim_id != claim.claim_id => Some(DifferenceKind::OtherClaim),
            Some(holder) if !holder.knows(claim.state_id) => Some(DifferenceKind::OtherState),
            Some(_) => None,
        };
        let (tenant_id, claim) = (claim.tenant_id, Some(claim.clone()));
        kind.map(|kind| Difference { tenant_id, kind, claim })
    });
    let missing = holders.values().filter(|holder| {
        // One that is being purged may be gone already.
        holder.is_claimed && !claimed.contains(&holder.tenant_id)
    });
    let missing = missing.map(|holder| Difference {
        tenant_id: holder.tenant_id,
        kind: DifferenceKind::Missing,
        claim: None,
    });
    of_claims.chain(missing).collect()
}

impl Holder {
    fn knows(&self, state_id: Uuid) -> bool {
        self.state_id == state_id || self.known_state_ids.contains(&state_id)
    }
}

#[cfg(test)]
mod tests {
    use super::DifferenceKind::{Forgotten, Missing, OtherClaim, OtherState, Removed};
    use super::*;

    fn id(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    fn claim(tenant: u128) -> Claim {
        Claim {
            tenant_id: id(tenant),
            claim_id: id(100 + tenant),
            slug: "acme".to_owned(),
            state: State::Active,
            state_id: id(200 + tenant),
            claim_time: DateTime::UNIX_EPOCH,
            is_confirmed: true,
            purge_time: None,
        }
    }

    fn holder(tenant: u128) -> Holder {
        Holder {
            tenant_id: id(tenant),
            slug: "acme".to_owned(),
            claim_id: id(100 + tenant),
            is_claimed: true,
            state: State::Active,
            state_id: id(200 + tenant),
            known_state_ids: Vec::new(),
        }
    }

    fn kinds(before: &[Holder], claims: &[Claim], after: &[Holder]) -> Vec<(u128, DifferenceKind)> {
        let found = differences(before, claims, after);
        found.iter().map(|found| (found.tenant_id.as_u128(), found.kind)).collect()
    }

    #[test]
    fn every_difference_is_told_as_what_it_is() {
        let removed = Claim { purge_time: Some(DateTime::UNIX_EPOCH), ..claim(5) };
        let claims = [
            claim(1),
            claim(2),
            Claim { claim_id: id(7), ..claim(3) },
            Claim { state_id: id(8), ..claim(4) },
            removed,
        ];
        let holders = [holder(1), holder(3), holder(4), holder(5), holder(6)];

        let found = kinds(&holders, &claims, &holders);

        let expected =
            [(2, Forgotten), (3, OtherClaim), (4, OtherState), (5, Removed), (6, Missing)];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_goes_on_is_no_difference() {
        // A claim whose tenant is not committed, or was after the first look.
        let open = Claim { is_confirmed: false, ..claim(1) };
        assert_eq!(kinds(&[], &[open], &[]), []);
        assert_eq!(kinds(&[], &[claim(1)], &[holder(1)]), []);
        // A tenant that came after the claims were read, or has no claim yet.
        assert_eq!(kinds(&[], &[], &[holder(1)]), []);
        let unclaimed = [Holder { is_claimed: false, ..holder(1) }];
        assert_eq!(kinds(&unclaimed, &[], &unclaimed), []);
        // A state that is wanted, and not enforced yet; or is by now.
        let wanted = [Holder { state_id: id(9), known_state_ids: vec![id(201)], ..holder(1) }];
        assert_eq!(kinds(&wanted, &[claim(1)], &wanted), []);
        let enforced = Claim { state_id: id(9), ..claim(1) };
        assert_eq!(kinds(&[holder(1)], &[enforced], &wanted), []);
        // A database that was removed, and whose tenant is forgotten.
        let removed = Claim { purge_time: Some(DateTime::UNIX_EPOCH), ..claim(1) };
        assert_eq!(kinds(&[], &[removed], &[]), []);
    }
}
