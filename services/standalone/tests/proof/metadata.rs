//! Every call of `metadata.json` at every listener, and requests that no HTTP/2
//! library would send: what is wrong with them is seen, and nothing is done.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crm_testing::server;
use futures_util::future::join_all;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::authorization::tell;
use crate::door::{Call, Door, Kind, Writes};
use crate::forge::{Forge, Mutation, bytes};

/// One line of the corpus.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    why: String,
    method: Option<String>,
    #[serde(default)]
    query: String,
    /// All lines of a header; none takes it away.
    #[serde(default)]
    headers: BTreeMap<String, Vec<String>>,
    /// So many small headers more.
    #[serde(default)]
    more: usize,
    /// How long `$letters` is.
    #[serde(default)]
    letters: usize,
    /// Whom it is for; everyone, unless it says so.
    #[serde(default)]
    only: Vec<Kind>,
    answer: String,
    /// What gRPC-web over HTTP/1.1 answers, where that differs.
    web: Option<String>,
}

/// What stands for the places that the corpus leaves.
struct Values {
    token: String,
    tenant: String,
    other: String,
}

impl Case {
    fn answer(&self, door: &Door) -> &str {
        self.web.as_deref().filter(|_| door.is_web()).unwrap_or(&self.answer)
    }

    fn call(&self, door: &Door, values: &Values) -> Call {
        let fill = |text: &str| {
            text.replace("$token", &values.token)
                .replace("$tid", &values.tenant)
                .replace("$TID", &values.tenant.to_uppercase())
                .replace("$simple", &values.tenant.replace('-', ""))
                .replace("$other", &values.other)
                .replace("$letters", &"x".repeat(self.letters))
        };
        let mut call = door.call();
        call.set("authorization", [format!("Bearer {}", values.token).into_bytes()]);
        for (name, lines) in &self.headers {
            call.set(&fill(name), lines.iter().map(|line| bytes(&fill(line))));
        }
        for i in 0..self.more {
            call.set(&format!("x-{i}"), [b"1".to_vec()]);
        }
        call.query = fill(&self.query);
        if let Some(method) = &self.method {
            call.method.clone_from(method);
        }
        call
    }
}

fn corpus() -> Vec<Case> {
    let corpus: Vec<Case> = serde_json::from_str(include_str!("metadata.json")).unwrap();
    let names: BTreeSet<_> = corpus.iter().map(|case| &case.name).collect();
    assert_eq!(names.len(), corpus.len(), "a name stands twice");
    assert!(corpus.iter().all(|case| !case.why.is_empty()), "a line does not say why");
    corpus
}

fn right_token(forge: &Forge, kind: Kind) -> String {
    let plain: Mutation =
        serde_json::from_str(r#"{"name": "", "why": "", "answer": "OK"}"#).unwrap();
    forge.tokens(&plain, kind).0
}

/// Tries every case at a door: the faults, and how many were tried.
async fn try_door(
    door: &Door,
    corpus: &[Case],
    values: &Values,
    writes: &Writes,
) -> (Vec<String>, usize) {
    let (mut faults, mut tried) = (Vec::new(), 0);
    for case in corpus.iter().filter(|case| case.only.is_empty() || case.only.contains(&door.kind))
    {
        let expected = case.answer(door);
        // What is right is only pretended, so that what is written is wrong.
        let request = writes.request(door, expected == "OK");
        let answer = door.answer(&case.call(door, values), &request).await;
        let right = door.answer(&corpus[0].call(door, values), &writes.request(door, true)).await;
        tried += 1;
        if answer != expected {
            faults.push(format!("{}: {}: {answer}, not {expected}", door.name, case.name));
        }
        if right != "OK" {
            faults.push(format!("{}: after {}: {right}", door.name, case.name));
        }
    }
    (faults, tried)
}

#[tokio::test]
async fn metadata_is_taken_as_it_was_agreed_or_not_at_all() {
    let writes = Writes::prepare().await;
    let other = server().clock.new_id().to_string();
    let forge = Forge::new(&writes.home).await;
    let corpus = corpus();
    let doors = Door::all().await;
    let log = writes.log().await;

    let tries = doors.iter().map(async |door| {
        let token = right_token(&forge, door.kind);
        let values =
            Values { token, tenant: writes.home.tenant.id.to_string(), other: other.clone() };
        try_door(door, &corpus, &values, &writes).await
    });
    let found = join_all(tries).await;

    let faults: Vec<_> = found.iter().flat_map(|(faults, _)| faults.clone()).collect();
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    assert_eq!(writes.log().await, log, "something was written");
    for door in &doors {
        assert_eq!(writes.count(door).await, 0, "{}", door.name);
    }
    let wrong = corpus.iter().filter(|case| case.answer != "OK").count();
    let tried: usize = found.iter().map(|(_, tried)| tried).sum();
    tell(&format!(
        "{} kinds of metadata, {wrong} of them wrong, at {} listeners: {tried} calls",
        corpus.len(),
        doors.len()
    ));
}

/// A header as HPACK writes one that it does not remember (RFC 7541, 6.2.2).
fn header(name: &[u8], value: &[u8]) -> Vec<u8> {
    [vec![0], text(name), text(value)].concat()
}

fn text(bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    let mut rest = bytes.len();
    if rest < 127 {
        text.push(u8::try_from(rest).unwrap());
    } else {
        text.push(127);
        rest -= 127;
        while rest >= 128 {
            text.push(u8::try_from(rest % 128).unwrap() | 128);
            rest /= 128;
        }
        text.push(u8::try_from(rest).unwrap());
    }
    text.extend_from_slice(bytes);
    text
}

/// A frame (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const GO_AWAY: u8 = 7;
const CONTINUATION: u8 = 9;

/// Sends one request, of whatever header lines, and tells how it is answered:
/// by its HTTP status, or by the end of its stream or of the connection.
async fn raw(door: &Door, lines: &[(Vec<u8>, Vec<u8>)], message: &[u8]) -> String {
    let block: Vec<u8> = lines.iter().flat_map(|(name, value)| header(name, value)).collect();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let body = [&[0], &length[..], message].concat();
    let mut parts = block.chunks(16_000);
    let first = parts.next().unwrap_or_default();
    let mut request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    request.extend(frame(SETTINGS, 0, 0, &[]));
    let count = parts.len();
    request.extend(frame(HEADERS, if count == 0 { 4 } else { 0 }, 1, first));
    for (i, part) in parts.enumerate() {
        request.extend(frame(CONTINUATION, if i + 1 == count { 4 } else { 0 }, 1, part));
    }
    request.extend(frame(DATA, 1, 1, &body));
    let mut connection = TcpStream::connect(door.address()).await.unwrap();
    // The server may hang up before it has everything.
    let _sent = connection.write_all(&request).await;
    let answered = timeout(Duration::from_secs(60), answer(&mut connection));
    answered.await.unwrap_or_else(|_| "no answer".to_owned())
}

async fn answer(connection: &mut TcpStream) -> String {
    loop {
        let mut head = [0; 9];
        if connection.read_exact(&mut head).await.is_err() {
            return "closed".to_owned();
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        if connection.read_exact(&mut payload).await.is_err() {
            return "closed".to_owned();
        }
        match (head[3], payload.first()) {
            // The status comes first, from the static table (RFC 7541, A), or
            // as text, where the table has it not.
            (HEADERS, Some(0x88)) => return "200".to_owned(),
            (HEADERS, Some(0x8c)) => return "400".to_owned(),
            (HEADERS, Some(_)) => return "another status".to_owned(),
            (RESET, _) => return "reset".to_owned(),
            (GO_AWAY, _) => return "gone".to_owned(),
            _ => {}
        }
    }
}

/// The header lines of a right call, with `change` done to them.
fn lines(door: &Door, token: &str, change: &Change) -> Vec<(Vec<u8>, Vec<u8>)> {
    let right: [(&str, &str); 7] = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", door.path()),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("authorization", token),
    ];
    let mut lines: Vec<_> = right
        .iter()
        .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()))
        .collect();
    lines.retain(|(name, _)| name != change.without.as_bytes());
    let value = change.value.replace("$token", token).replace("$x", &"x".repeat(1 << 20));
    if !change.name.is_empty() || !value.is_empty() {
        let line = (change.name.as_bytes().to_vec(), bytes(&value));
        if change.first { lines.insert(0, line) } else { lines.push(line) }
    }
    lines
}

#[derive(Default)]
struct Change {
    without: &'static str,
    name: &'static str,
    value: &'static str,
    first: bool,
}

const fn add(name: &'static str, value: &'static str) -> Change {
    Change { without: "", name, value, first: false }
}

const fn replace(name: &'static str, value: &'static str) -> Change {
    Change { without: name, name, value, first: false }
}

/// What makes a request malformed (RFC 9113, 8.2, 8.3), each by itself.
const MALFORMED: [Change; 25] = [
    add("x-note", "a\r\nauthorization: $token"),
    add("x-note", "a\nb"),
    add("x-note", "a\rb"),
    add("x-note", "a\0b"),
    add("x-note\r\nauthorization", "$token"),
    add("x note", "a"),
    add("x:note", "a"),
    add("", "a"),
    add("X-Note", "a"),
    replace("authorization", "$token\r\n"),
    replace("authorization", "$token\0"),
    Change { without: "authorization", name: "Authorization", value: "$token", first: false },
    add(":tenant", "a"),
    add(":path", "/"),
    add(":method", "GET"),
    add(":status", "200"),
    Change { without: "", name: "x-note", value: "a", first: true },
    Change { without: ":method", name: "", value: "", first: false },
    Change { without: ":path", name: "", value: "", first: false },
    Change { without: ":scheme", name: "", value: "", first: false },
    add("connection", "authorization"),
    add("transfer-encoding", "chunked"),
    replace("te", "gzip"),
    add("content-length", "1"),
    add("x-long", "$x"),
];

#[tokio::test]
async fn malformed_requests_end_alone() {
    let writes = Writes::prepare().await;
    let forge = Forge::new(&writes.home).await;
    let doors = Door::all().await;
    let log = writes.log().await;
    let mut faults = Vec::new();
    let mut tried = 0;

    for door in doors.iter().filter(|door| !door.is_web()) {
        let token = format!("Bearer {}", right_token(&forge, door.kind));
        for change in &MALFORMED {
            let lines = lines(door, &token, change);
            let answer = raw(door, &lines, &writes.request(door, false)).await;
            tried += 1;
            if !["reset", "gone", "closed", "400", "another status"].contains(&answer.as_str()) {
                faults
                    .push(format!("{}: {:?} {:?}: {answer}", door.name, change.name, change.value));
            }
        }
        let right = lines(door, &token, &Change::default());
        let answer = raw(door, &right, &writes.request(door, true)).await;
        assert_eq!(answer, "200", "{}: a right request", door.name);
    }

    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    assert_eq!(writes.log().await, log, "something was written");
    for door in &doors {
        assert_eq!(writes.count(door).await, 0, "{}", door.name);
    }
    tell(&format!("{} malformed requests at 5 listeners: {tried}", MALFORMED.len()));
}
