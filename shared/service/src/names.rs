//! Resource names (AIP-122): `collection/{uuid}`, relative to the tenant.

use crm_error::Violations;
use uuid::Uuid;

/// The id in a name of one collection, such as `contacts/{uuid}`. `None`: the
/// name is malformed. Ids have one form, the lower-case one with hyphens.
pub fn parse(collection: &str, name: &str) -> Option<Uuid> {
    let id = name.strip_prefix(collection)?.strip_prefix('/')?;
    let parsed = Uuid::try_parse(id).ok()?;
    (parsed.as_hyphenated().to_string() == id).then_some(parsed)
}

/// The ids in a name of a collection within another one, such as
/// `conversations/{uuid}/messages/{uuid}`: the parent's and its own.
pub fn parse_child(parents: &str, collection: &str, name: &str) -> Option<(Uuid, Uuid)> {
    let (parent, _) = name.split_once(&format!("/{collection}/"))?;
    let child = name.strip_prefix(parent)?.strip_prefix('/')?;
    Some((parse(parents, parent)?, parse(collection, child)?))
}

/// As [`parse`], but adds a violation for a name that is malformed. An empty
/// one is left to the field's own rules.
pub fn parse_field(
    collection: &str,
    name: &str,
    field: &str,
    violations: &mut Violations,
) -> Option<Uuid> {
    let id = parse(collection, name);
    if id.is_none() && !name.is_empty() {
        violations.add(field, "RESOURCE_NAME", format!("`{collection}/` and a UUID."));
    }
    id
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_id_is_read_back_from_its_name(id: u128, parent: u128) {
            let (id, parent) = (Uuid::from_u128(id), Uuid::from_u128(parent));

            prop_assert_eq!(parse("contacts", &format!("contacts/{id}")), Some(id));
            let child = format!("conversations/{parent}/messages/{id}");
            let both = parse_child("conversations", "messages", &child);
            prop_assert_eq!(both, Some((parent, id)));
        }

        #[test]
        fn what_is_no_name_to_the_letter_is_none(
            id: u128, at in 0_usize..46, letter in r"[0-9A-Fa-f{}/ -]|\PC", text in r"\PC{0,60}",
        ) {
            let id = Uuid::from_u128(id);
            let mut changed: Vec<_> = format!("contacts/{id}").chars().collect();
            changed.splice(at.min(45)..(at + 1).min(45), letter.chars());

            for id in [
                changed.iter().skip(9).collect(),
                id.to_string().to_uppercase(),
                id.as_simple().to_string(),
                id.as_braced().to_string(),
                id.as_urn().to_string(),
                text,
            ] {
                for text in [format!("contacts/{id}"), changed.iter().collect(), id] {
                    if let Some(id) = parse("contacts", &text) {
                        prop_assert_eq!(format!("contacts/{id}"), text);
                    }
                }
            }
        }
    }

    #[test]
    fn a_name_has_exactly_one_form() {
        let id = "0192f0c1-2345-7abc-8def-0123456789ab";

        assert!(parse("contacts", &format!("contacts/{id}")).is_some());
        for name in [
            id.to_owned(),
            format!("contact/{id}"),
            format!("contacts/{}", id.to_uppercase()),
            format!("contacts/{}", id.replace('-', "")),
            format!("contacts/{{{id}}}"),
            format!("contacts//{id}"),
            format!("contacts/{id}/"),
            format!(" contacts/{id}"),
            "contacts/".to_owned(),
            "contacts/-".to_owned(),
        ] {
            assert_eq!(parse("contacts", &name), None, "{name}");
        }
    }

    #[test]
    fn a_childs_name_has_its_parents_before_it() {
        let id = "0192f0c1-2345-7abc-8def-0123456789ab";
        let read = |name: &str| parse_child("conversations", "messages", name);

        let both = read(&format!("conversations/{id}/messages/{id}"));

        assert_eq!(both, Some((id.parse().unwrap(), id.parse().unwrap())));
        for name in [
            format!("messages/{id}"),
            format!("conversations/{id}"),
            format!("conversations/{id}/messages/"),
            format!("conversations/{id}/messages/{id}/messages/{id}"),
            format!("conversations/{id}/{id}"),
            format!("contacts/{id}/messages/{id}"),
            format!("conversations//messages/{id}"),
        ] {
            assert_eq!(read(&name), None, "{name}");
        }
    }
}
