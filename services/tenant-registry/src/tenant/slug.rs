//! The rules of slugs: what new tenants may be called in URLs, and are called by
//! default.

use uuid::Uuid;

/// The longest slug: a DNS label (RFC 1035, section 2.3.4).
const MAX_SLUG: usize = 63;
const MIN_SLUG: usize = 3;
/// Room for the suffix that makes a derived slug unique, and for the prefix of
/// one that would not begin with a letter.
const MAX_DERIVED: usize = MAX_SLUG - 15;
/// Hosts that a visitor would take for the platform's, that programs look up by
/// themselves (autodiscover, wpad, mta-sts), or whose mail proves who has the
/// domain (RFC 2142). A number may follow each.
const RESERVED: &str = "\
    abuse account accounts admin administrator api app apps assets auth autoconfig \
    autodiscover beta billing blog broadcasthost careers cdn changes chat checkout client \
    cms console contact contacts cpanel crm dashboard dev dns docs download downloads edge \
    email events files ftp gateway git grpc health help helpdesk home host hostmaster http \
    https id identity image images imap info internal intranet invoice invoices isatap ldap \
    legal local localdomain localhost login logout mail mailer mailer-daemon mailserver \
    marketing media messages messaging metrics mta-sts mx mysql news no-reply nobody noc \
    noreply ns ntp oauth oidc openid openpgpkey password pay payment payments platform pop \
    portal postgres postmaster preview privacy prod production proxy public register \
    registry relay root router sales saml sandbox secure security server service services \
    sftp shop signin signup sip site smtp ssl sso staging static status store support \
    sysadmin system tenant tenants terms test testing tls upload uploads usenet uucp vpn web \
    webdav webmail webmaster wpad www xmpp";

/// Whether a text can be the slug of a new tenant.
pub(crate) fn is_slug(text: &str) -> bool {
    is_label(text) && !shows_as_other_letters(text) && !is_reserved(text)
}

/// Whether a text has the form of a slug: what tenants have keeps naming them,
/// whatever new ones may not have any more.
pub(crate) fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    (MIN_SLUG..=MAX_SLUG).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.last() != Some(&b'-')
        && Uuid::try_parse(text).is_err()
}

/// Whether browsers may show a label as other letters, such as `xn--80ak6aa92e`
/// as `аррӏе`: `--` in this place is reserved for that (RFC 5890, 2.3.1).
fn shows_as_other_letters(label: &str) -> bool {
    label.get(2..4) == Some("--")
}

/// Whether a name, or one that differs in its number alone, is the platform's.
fn is_reserved(slug: &str) -> bool {
    let name = slug.trim_end_matches(|c: char| c.is_ascii_digit());
    RESERVED.split(' ').any(|reserved| reserved == name)
}

/// Slugs to try for a display name of any script and length: itself, then with
/// numbers, then with a part of the tenant's id, which is free.
pub(crate) fn derived_slugs(display_name: &str, id: Uuid, attempts: u32) -> Vec<String> {
    let base = slug_base(display_name);
    let hex = id.as_simple().to_string();
    let numbered = (2..=attempts).map(|n| format!("{base}-{n}"));
    let unique = format!("{base}-{}", &hex[20..]);
    std::iter::once(base.clone())
        .chain(numbered)
        .filter(|slug| is_slug(slug))
        .chain([unique])
        .collect()
}

fn slug_base(display_name: &str) -> String {
    let ascii = deunicode::deunicode(display_name).to_ascii_lowercase();
    let words: Vec<_> =
        ascii.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let mut slug = words.join("-");
    slug.truncate(MAX_DERIVED);
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() {
        "tenant".to_owned()
    } else if slug.len() < MIN_SLUG
        || !slug.starts_with(|c: char| c.is_ascii_lowercase())
        || Uuid::try_parse(slug).is_ok()
    {
        format!("t-{slug}")
    } else {
        slug.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn slugs_of_any_display_name_are_slugs(
            name in any::<String>(),
            plain in "[a-z0-9A-Z -]{0,80}",
            id: u128,
        ) {
            let reserved = RESERVED.split(' ').nth((id % 100) as usize).unwrap().to_owned();

            for name in [name, plain, reserved] {
                let slugs = derived_slugs(&name, Uuid::from_u128(id), 9);

                prop_assert!(slugs.len() >= 9);
                for slug in slugs {
                    prop_assert!(is_slug(&slug), "{:?} gave {:?}", name, slug);
                    prop_assert!((3..=63).contains(&slug.len()));
                    prop_assert!(Uuid::try_parse(&slug).is_err());
                    prop_assert!(!is_reserved(&slug));
                    prop_assert!(!shows_as_other_letters(&slug));
                }
            }
        }

        #[test]
        fn a_slug_is_a_label_of_dns(text in "[a-zA-Z0-9_. -]{0,70}") {
            let letters = text.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-'));
            let begins = text.starts_with(|c: char| c.is_ascii_lowercase());
            let is_label =
                letters && begins && !text.ends_with('-') && (3..64).contains(&text.len());

            // UUIDs and reserved names are labels, and no slugs.
            prop_assert!(!is_slug(&text) || is_label);
            let is_excluded = Uuid::try_parse(&text).is_ok()
                || is_reserved(&text)
                || shows_as_other_letters(&text);
            prop_assert_eq!(is_slug(&text), is_label && !is_excluded);
        }
    }

    #[test]
    fn every_display_name_has_slugs_that_are_slugs() {
        let names = [
            "Acme Corp",
            "Public",
            "pg_catalog",
            "北京科技",
            "Ελληνικά",
            "شركة",
            "🚀",
            "\u{200b}",
            "'; DROP--",
            "42",
            "x",
            "API",
            "Ünïcode Ümlaut GmbH & Co. KG",
            "-----",
            "deadbeef-dead-beef-dead-beefdeadbeef",
            "abcdefabcdefabcdefabcdefabcdefab",
        ];
        let long = "长".repeat(255);

        for name in names.into_iter().chain([long.as_str()]) {
            let slugs = derived_slugs(name, Uuid::from_u128(7), 9);
            assert!(!slugs.is_empty(), "{name:?}");
            for slug in slugs {
                assert!(is_slug(&slug), "{name:?} gave {slug:?}");
            }
        }
    }

    #[test]
    fn a_slug_never_looks_like_a_uuid_or_the_platform() {
        for slug in [
            "",
            "ab",
            "Acme",
            "1acme",
            "acme-",
            "-acme",
            "a_b_c",
            "acme corp",
            "api",
            "www2",
            "ns1",
            "autodiscover",
            "mta-sts",
            "xn--80ak6aa92e",
            "ab--c",
            "abcdefab-cdef-abcd-efab-cdefabcdefab",
            "abcdefabcdefabcdefabcdefabcdefab",
        ] {
            assert!(!is_slug(slug), "{slug:?}");
        }
        assert!(is_slug("acme-corp-2"));
        assert!(is_slug("abc--d") && is_slug("a-b-c") && is_slug("apis") && is_slug("www-2"));
        assert!(is_slug(&"a".repeat(63)));
        assert!(!is_slug(&"a".repeat(64)));
    }
    #[test]
    fn reserved_names_are_in_order_and_could_be_slugs() {
        assert!(RESERVED.split(' ').is_sorted());
        for name in RESERVED.split(' ') {
            // One of two letters is there for the numbers that may follow.
            assert!(is_label(name) || is_label(&format!("{name}1")), "{name:?}");
        }
    }
}
