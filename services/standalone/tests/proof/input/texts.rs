//! Hostile texts, and what is no text.

/// Texts that are valid UTF-8: a word for people, and the text. Those of
/// SQL and of templates have no word in them that errors are searched for.
pub(super) fn texts(limit: Option<usize>) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = [
        ("empty", ""),
        ("blank", "   "),
        ("padded", " a b \t"),
        ("white space", "\t\r\n\u{2003}\u{a0}"),
        ("no width", "\u{200b}\u{200d}\u{2060}\u{feff}"),
        ("NUL", "a\0b"),
        ("control", "a\u{1}b"),
        ("escape", "\u{1b}[2J\u{1b}]0;x\u{7}"),
        ("delete", "a\u{7f}b"),
        ("C1 control", "a\u{85}b\u{9b}"),
        ("bidi override", "a\u{202e}txt.exe\u{2066}"),
        ("zero width", "a\u{200b}b\u{200d}c"),
        ("byte order mark", "\u{feff}a"),
        ("noncharacters", "a\u{fffe}\u{ffff}\u{10ffff}\u{fdd0}"),
        ("replacement", "a\u{fffd}b"),
        ("quote", "a'b\"c`d"),
        ("statement", "x'); DROP TABLE students; --"),
        ("always", "x' OR '1'='1"),
        ("parameter", "$1 :name ? @p"),
        ("wildcards", "%_\\%"),
        ("backslashes", "\\0\\x00\\u0000\\'\\"),
        ("format", "%s%n%p%x{}{0}{x!r}"),
        ("path", "../../../etc/passwd"),
        ("Windows path", "..\\..\\c:\\boot.ini"),
        ("template", "{{7*7}}${7*7}<%=7%>#{7}{%x%}"),
        ("lookup", "${jndi:ldap://127.0.0.1/x}"),
        ("markup", "<script>alert(1)</script>&amp;"),
        ("emoji", "👩‍👩‍👧‍👦🏳️‍🌈🇺🇳"),
        ("right to left", "مرحبا שלום"),
        ("decomposed", "e\u{301}A\u{30a}"),
        ("composed", "\u{e9}\u{c5}"),
        ("compatibility", "ﬁ\u{212b}①Ⅷ"),
        ("header", "a\r\nx-evil: 1\r\n\r\nb"),
        ("null", "null"),
        ("number", "NaN"),
        ("negative", "-1"),
        ("wildcard name", "contacts/-"),
        ("slash", "/"),
        ("comma", ",;,"),
    ]
    .map(|(name, text)| (name.to_owned(), text.to_owned()))
    .into();
    all.push(("combining flood".to_owned(), format!("Z{}", "\u{335}".repeat(200))));
    all.push(("100 KiB".to_owned(), "x".repeat(100 * 1024)));
    if let Some(limit) = limit {
        for letter in ["a", "é", "\u{1f600}"] {
            for length in [limit, limit + 1] {
                all.push((format!("{length} times {letter}"), letter.repeat(length)));
            }
            // As many bytes as there may be characters, and one more.
            let many = limit / letter.len() + 1;
            all.push((format!("{many} times {letter}"), letter.repeat(many)));
        }
    }
    all
}

/// What is no UTF-8.
pub(super) fn no_texts() -> Vec<(&'static str, &'static [u8])> {
    vec![
        ("high surrogate", b"a\xed\xa0\x80b"),
        ("low surrogate", b"\xed\xb0\x80"),
        ("surrogate pair", b"\xed\xa0\xbd\xed\xb8\x80"),
        ("overlong NUL", b"a\xc0\x80b"),
        ("overlong slash", b"..\xc0\xaf"),
        ("overlong quote", b"\xe0\x80\xa7"),
        ("lone continuation", b"\x80"),
        ("cut off", b"\xf0\x9f\x98"),
        ("too large", b"\xf4\x90\x80\x80"),
        ("five bytes", b"\xf8\x88\x80\x80\x80"),
        ("no byte of UTF-8", b"\xff\xfe"),
        ("Latin-1", b"caf\xe9"),
    ]
}

/// What is nearly right, for fields that mean something.
pub(super) fn almost(field: &str, valid: &str) -> Vec<String> {
    match field {
        "etag" => [
            "\"+7\"",
            "\"07\"",
            "W/\"1\"",
            "*",
            "\"-1\"",
            "\"9223372036854775808\"",
            "\"\"",
            "\"",
            "1",
            "\"1",
            "1\"",
            "\"1\"\"2\"",
            "\" 1\"",
            "\"1e0\"",
            "\"१\"",
            "\"0\"",
            "\"-0\"",
        ]
        .map(str::to_owned)
        .into(),
        "filter" => filters(),
        "page_token" => tokens(),
        "request_id" => ids(),
        "name" | "parent" | "contact" | "tenant" | "client_id" | "cluster_id" | "slug" => {
            names(valid)
        }
        _ => vec![],
    }
}

fn ids() -> Vec<String> {
    let id = "0192f0c1-2345-7abc-8def-0123456789ab";
    vec![
        id.replace('-', ""),
        format!("{{{id}}}"),
        format!("urn:uuid:{id}"),
        format!("{id} "),
        format!(" {id}"),
        id[1..].to_owned(),
        format!("{id}0"),
        id.replace('0', "g"),
        id.replace('0', "०"),
        id.replace('-', "_"),
        "------------------------------------".to_owned(),
        format!("{id}\n"),
        "00000000-0000-0000-0000-000000000000".to_owned(),
    ]
}

fn names(valid: &str) -> Vec<String> {
    let id = valid.rsplit('/').next().unwrap_or(valid);
    vec![
        valid.to_uppercase(),
        valid.replace('-', ""),
        valid.replace(id, &format!("{{{id}}}")),
        valid.replace(id, &id.to_uppercase()),
        format!("{valid}/"),
        format!("/{valid}"),
        format!("//crm.example.com/{valid}"),
        format!("{valid}/x/../.."),
        valid.replace('/', "//"),
        valid.replace('/', "%2F"),
        format!("{valid}\0"),
        format!("{valid}\n"),
        format!(" {valid}"),
        format!("{valid}#"),
        valid.replace(id, "-"),
        valid.replace(id, "*"),
        valid.replace(id, "0192f0c1-2345-7abc-8def-0123456789ab"),
        valid.replace(id, "00000000-0000-0000-0000-000000000000"),
        valid.replace('a', "\u{430}"),
        format!("{valid}{valid}"),
    ]
}

fn tokens() -> Vec<String> {
    [
        "e30",
        "bnVsbA",
        "W10",
        "!!!!",
        "eyJiIjoiIiwiciI6MCwiYSI6bnVsbH0",
        "AAAA",
        "=",
        "e30=",
        "eyJiIjoiIiwiciI6LTEsImEiOjF9",
        "////",
        "____",
        "MQ",
    ]
    .map(str::to_owned)
    .into()
}

/// Filters, and what is none.
const FILTERS: &[&str] = &[
    "\"",
    "'",
    "email",
    "email =",
    "email = \"",
    "email = \"a",
    "email = \"a\\\"",
    "email = \"a\\x\"",
    "= 1",
    "AND",
    "email = a AND",
    "AND email = a",
    "email = a OR email = b",
    "NOT email = a",
    "-email = a",
    "email != a",
    "email > a",
    "email : a",
    "email:*",
    "email=*",
    "email = a email = b",
    "email = a AND email = a",
    "(email = a)",
    "((((",
    "))))",
    "[]",
    "{}",
    "email = (a)",
    "f(email)",
    "timestamp(\"x\") = 1",
    "email = f()",
    "unknown = 1",
    "a.b.c = 1",
    "metadata",
    "metadata = 1",
    "metadata. = 1",
    "metadata..a = 1",
    "metadata.a.b.c = \"x\"",
    "metadata.a = 1e400",
    "metadata.a = -0",
    "metadata.a = 1E5",
    "metadata.a = 0x10",
    "metadata.a = nan",
    "metadata.a = \"\u{0}\"",
    "metadata.a = \"\\u0000\"",
    "metadata.a = 00",
    "metadata.a = true",
    "metadata.a = null",
    "metadata.A_9.b-c = 1",
    "state = STATE_UNSPECIFIED",
    "state = 2",
    "state = \"STATE_ACTIVE\"",
    "state = state_active",
    "state = STATE_ACTIVE AND state = STATE_ACTIVE",
    "slug = \"' OR 1=1 --\"",
    "contact = \"contacts/-\"",
    "contact = contacts/x",
    "service = \"%\"",
    "phone = \"\"",
    "phone = \"+\"",
    "email = \"%\"",
    "email = \"' OR '1'='1\"",
    "resource_type = \"x\"",
    "resource_type = crm.contacts.v1.Contact AND resource_type = x",
    "\u{feff}email = a",
    "email\u{a0}=\u{a0}a",
    "email = a\u{2003}AND\u{2003}phone = 1",
    "EMAIL = a",
    "email==a",
    "email = a;",
    "email = a -- b",
    "email = $1",
    "email /* x */ = a",
    "%00",
    "\\",
    "é",
    "🚀",
    "email = \u{202e}a",
    "email = a,b",
    "email = \"a\" \"b\"",
    "email IN (a, b)",
];

fn filters() -> Vec<String> {
    let mut all: Vec<_> = FILTERS.iter().map(|text| (*text).to_owned()).collect();
    all.push("(".repeat(10_000));
    all.push(format!("{}email = a{}", "(".repeat(500), ")".repeat(500)));
    all.push(format!("metadata{} = 1", ".a".repeat(500)));
    all.push("email = a AND ".repeat(70));
    all.push(format!("email = \"{}\"", "\\\"".repeat(500)));
    all.push(format!("{} = 1", "x".repeat(1000)));
    all
}
