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
    use super::*;

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
}
