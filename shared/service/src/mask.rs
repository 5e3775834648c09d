//! Update masks (AIP-134): the fields that a request names.

use crm_error::Violations;

/// The fields that a mask names, in their own order: those of its paths, or all
/// for `*`. A path that is none of them makes the mask a violation.
pub fn masked<F: Copy, const N: usize>(
    fields: &[(&'static str, F); N],
    paths: &[String],
    violations: &mut Violations,
) -> Vec<(&'static str, F)> {
    if paths == ["*"] {
        return fields.to_vec();
    }
    // However many paths are wrong, the mask is wrong once.
    if paths.iter().any(|path| !fields.iter().any(|(name, _)| name == path)) {
        let names = fields.map(|(name, _)| name).join(", ");
        let text = format!("Each path is one of {names}; or the only one is `*`.");
        violations.add("update_mask", "FIELD_MASK", text);
    }
    let named = |name: &str| paths.iter().any(|path| path == name);
    fields.iter().filter(|(name, _)| named(name)).copied().collect()
}
