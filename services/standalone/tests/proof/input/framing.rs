//! Broken encodings and frames: what no library would send.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::StreamExt as _;
use futures_util::stream;
use http::HeaderMap;

use super::Tally;
use super::catalogue::Catalogue;
use super::judge::{self, Outcome};
use super::send::Answer;
use super::subject::{Subject, subjects_in_one_tenant};
use super::wire;

/// Methods that are tried at the same time.
const AT_ONCE: usize = 8;
/// A field that no message has.
const UNKNOWN: u32 = 9999;
/// Cuts of one message, where it has more bytes.
const MAX_CUTS: usize = 300;

/// What a broken request may be answered.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    /// What the example is answered.
    TheSame,
    Malformed,
    TooLarge,
    UnknownCompression,
    /// Anything but a fault of the server.
    Anything,
}

#[tokio::test]
async fn broken_encodings_are_refused_and_unknown_fields_are_not() {
    let subjects = subjects_in_one_tenant().await;
    let catalogue = Catalogue::read(&subjects[0].world.tenant.tenant.database).await;
    let tally = Tally::new();

    stream::iter(&subjects)
        .for_each_concurrent(AT_ONCE, |subject| try_encodings(subject, &catalogue, &tally))
        .await;

    tally.finish("broken encodings");
}

#[tokio::test]
async fn broken_frames_are_refused() {
    let subjects = subjects_in_one_tenant().await;
    let catalogue = Catalogue::read(&subjects[0].world.tenant.tenant.database).await;
    let tally = Tally::new();

    stream::iter(&subjects)
        .for_each_concurrent(AT_ONCE, |subject| try_frames(subject, &catalogue, &tally))
        .await;

    tally.finish("broken frames");
}

async fn try_encodings(subject: &Subject, catalogue: &Catalogue, tally: &Tally) {
    let example = subject.encode(&subject.example, &[]);
    let usual = subject.send(&example).await.map(|answer| judge::outcome(&answer, catalogue));
    let usual = usual.unwrap().unwrap();
    for (name, message, wanted) in encodings(&example) {
        let answer = subject.send(&message).await;
        let verdict = check(answer, wanted, &usual, catalogue);
        note(verdict, subject, &name, tally);
    }
}

/// The example, broken in every way in which bytes can be.
fn encodings(example: &[u8]) -> Vec<(String, Vec<u8>, Wanted)> {
    let mut all = Vec::new();
    let mut add = |name: String, tail: &[u8], wanted| {
        all.push((name, [example, tail].concat(), wanted));
    };
    for wire_type in [0, 1, 2, 3, 5] {
        let unknown = wire::of_wire_type(UNKNOWN, wire_type);
        add(format!("an unknown field of wire type {wire_type}"), &unknown, Wanted::TheSame);
    }
    let unknown = wire::bytes(UNKNOWN, &[0xff; 1000]).repeat(100);
    add("many unknown fields".to_owned(), &unknown, Wanted::TheSame);
    let group =
        [wire::tag(UNKNOWN, 3), wire::number(1, 1), wire::bytes(2, b"\xff"), wire::tag(UNKNOWN, 4)];
    add("an unknown group".to_owned(), &group.concat(), Wanted::TheSame);
    let broken: [(&str, Vec<u8>); 12] = [
        ("a group without an end", wire::tag(UNKNOWN, 3)),
        ("an end without a group", wire::tag(UNKNOWN, 4)),
        ("a group with another's end", [wire::tag(UNKNOWN, 3), wire::tag(8888, 4)].concat()),
        ("groups in each other", wire::tag(UNKNOWN, 3).repeat(100_000)),
        ("wire type 6", wire::tag(UNKNOWN, 6)),
        ("wire type 7", wire::tag(UNKNOWN, 7)),
        ("field 0", wire::number(0, 1)),
        ("a tag of 11 bytes", [vec![0xff; 10], vec![1]].concat()),
        ("a tag that is cut off", vec![0x80]),
        ("a length beyond the end", [wire::tag(UNKNOWN, 2), wire::varint(1000)].concat()),
        ("a length of 2^64 - 1", [wire::tag(UNKNOWN, 2), wire::varint(u64::MAX)].concat()),
        ("garbage", vec![0xde, 0xad, 0xbe, 0xef, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
    ];
    for (name, tail) in broken {
        add(name.to_owned(), &tail, Wanted::Malformed);
    }
    let step = example.len().div_ceil(MAX_CUTS).max(1);
    for end in (0..example.len()).step_by(step) {
        all.push((format!("cut at byte {end}"), example[..end].to_vec(), Wanted::Anything));
    }
    all
}

async fn try_frames(subject: &Subject, catalogue: &Catalogue, tally: &Tally) {
    let example = subject.encode(&subject.example, &[]);
    let usual = subject.send(&example).await.map(|answer| judge::outcome(&answer, catalogue));
    let usual = usual.unwrap().unwrap();
    for (name, headers, body, wanted) in frames(&example, subject.max_bytes()) {
        let answer = subject.send_body(&headers, body).await;
        let verdict = check(answer, wanted, &usual, catalogue);
        note(verdict, subject, name, tally);
    }
}

type Frame = (&'static str, HeaderMap, Vec<u8>, Wanted);

/// The example in frames that lie about it.
fn frames(example: &[u8], limit: usize) -> Vec<Frame> {
    let plain = HeaderMap::new;
    let compressed = |by: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-encoding", by.parse().unwrap());
        headers
    };
    let whole = wire::frame(0, example.len(), example);
    let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
    bomb.write_all(&vec![0; 10 * 1024 * 1024]).unwrap();
    let bomb = bomb.finish().unwrap();
    let long = wire::bytes(UNKNOWN, &vec![b'x'; limit]);
    let items = wire::bytes(UNKNOWN, b"").repeat(limit.min(5_000_000) / 4);
    vec![
        ("no message", plain(), vec![], Wanted::Malformed),
        ("half a head", plain(), vec![0, 0, 0], Wanted::Malformed),
        ("half a frame", plain(), whole[..whole.len() - 1].to_vec(), Wanted::Malformed),
        ("a length beyond the end", plain(), wire::frame(0, 1000, example), Wanted::Malformed),
        ("a length of 4 GiB", plain(), wire::frame(0, 0xffff_ffff, b""), Wanted::TooLarge),
        ("more than its length", plain(), [&*whole, &[0xff; 3]].concat(), Wanted::Malformed),
        ("two messages", plain(), whole.repeat(2), Wanted::Anything),
        (
            "a flag without encoding",
            plain(),
            wire::frame(1, example.len(), example),
            Wanted::Malformed,
        ),
        ("an unknown flag", plain(), wire::frame(2, example.len(), example), Wanted::Malformed),
        ("the last flag", plain(), wire::frame(255, example.len(), example), Wanted::Malformed),
        ("a length just too large", plain(), wire::frame(0, limit + 1, b""), Wanted::TooLarge),
        ("a text that is too long", plain(), wire::frame(0, long.len(), &long), Wanted::TooLarge),
        ("a million items", plain(), wire::frame(0, items.len(), &items), Wanted::Anything),
        (
            "a gzip bomb",
            compressed("gzip"),
            wire::frame(1, bomb.len(), &bomb),
            Wanted::UnknownCompression,
        ),
        (
            "an unknown encoding",
            compressed(&"brotli".repeat(1000)),
            wire::frame(1, example.len(), example),
            Wanted::UnknownCompression,
        ),
        ("a plain frame of gzip", compressed("gzip"), whole, Wanted::UnknownCompression),
    ]
}

fn check(
    answer: Result<Answer, String>,
    wanted: Wanted,
    usual: &Outcome,
    catalogue: &Catalogue,
) -> Result<Outcome, String> {
    let outcome = judge::outcome(&answer?, catalogue)?;
    let named = |name: &str| outcome == Outcome::Other(name.to_owned());
    let is_fine = match wanted {
        Wanted::TheSame => outcome == *usual,
        Wanted::Malformed => outcome == Outcome::Malformed,
        Wanted::TooLarge => named("REQUEST_TOO_LARGE"),
        Wanted::UnknownCompression => named("COMPRESSION_UNKNOWN"),
        Wanted::Anything => true,
    };
    if is_fine { Ok(outcome) } else { Err(format!("{wanted:?} is wanted, and it is {outcome:?}")) }
}

fn note(verdict: Result<Outcome, String>, subject: &Subject, name: &str, tally: &Tally) {
    match verdict {
        Ok(outcome) => tally.count(&outcome),
        Err(fault) => tally.fault(format!("{}, {name}: {fault}", subject.name())),
    }
}
