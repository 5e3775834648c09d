//! What `Cargo.lock` must hold to: one version of what shares types or state,
//! floors below which there are known faults, and one crypto backend.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

const LOCK: &str = include_str!("../../../Cargo.lock");

/// Every locked version of a package, as numbers.
fn versions(package: &str) -> Vec<Vec<u64>> {
    let name = format!("name = \"{package}\"");
    let lines: Vec<_> = LOCK.lines().collect();
    lines
        .windows(2)
        .filter(|pair| pair[0] == name)
        .map(|pair| {
            let version = pair[1].strip_prefix("version = \"").unwrap().trim_end_matches('"');
            let numbers = version.split(['.', '-', '+']).map_while(|part| part.parse().ok());
            numbers.collect()
        })
        .collect()
}

#[test]
fn what_shares_types_or_state_has_one_version() {
    for package in ["tonic", "prost", "hyper", "h2", "rustls", "tokio", "sqlx", "tower", "http"] {
        assert_eq!(versions(package).len(), 1, "{package}: {:?}", versions(package));
    }
}

#[test]
fn versions_are_above_their_known_faults() {
    let floors = [
        ("h2", vec![0, 4, 16]),
        ("jsonwebtoken", vec![10, 3, 0]),       // CVE-2026-25537
        ("tracing-subscriber", vec![0, 3, 20]), // CVE-2025-58160
    ];

    for (package, floor) in floors {
        let locked = versions(package);
        assert!(!locked.is_empty(), "{package} is not locked");
        assert!(
            locked.iter().all(|version| *version >= floor),
            "{package}: {locked:?} < {floor:?}"
        );
    }
}

#[test]
fn there_is_one_crypto_backend() {
    assert_eq!(versions("aws-lc-rs").len(), 1);
    // `ring` is locked as an option that nobody takes; deny.toml holds it out.
    for package in ["openssl", "openssl-sys", "native-tls"] {
        assert_eq!(versions(package), Vec::<Vec<u64>>::new(), "{package}");
    }
}
