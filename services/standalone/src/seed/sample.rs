//! The sample data: what number `n` is, is the same each time.

use crm_proto::contacts::v1::Contact;
use crm_proto::messaging::v1::Message;
use crm_proto::messaging::v1::message::SenderType;

const GIVEN_NAMES: [&str; 16] = [
    "Ada",
    "Grace",
    "Alan",
    "Katherine",
    "Edsger",
    "Barbara",
    "Donald",
    "Frances",
    "Dennis",
    "Radia",
    "Niklaus",
    "Shafi",
    "Leslie",
    "Hedy",
    "Tim",
    "Margaret",
];
const FAMILY_NAMES: [&str; 15] = [
    "Lovelace",
    "Hopper",
    "Turing",
    "Johnson",
    "Dijkstra",
    "Liskov",
    "Knuth",
    "Allen",
    "Ritchie",
    "Perlman",
    "Wirth",
    "Goldwasser",
    "Lamport",
    "Lamarr",
    "Hamilton",
];
const COMPANIES: [&str; 7] = [
    "Acme Corp",
    "Globex",
    "Initech",
    "Umbrella",
    "Hooli",
    "Stark Industries",
    "Wayne Enterprises",
];
const POSITIONS: [&str; 5] = ["Buyer", "Engineer", "Head of Sales", "Founder", "Accountant"];
const SOURCES: [&str; 5] = ["website", "referral", "social-media", "conference", "cold-outreach"];
const TALK: [(SenderType, &str); 4] = [
    (SenderType::Contact, "Hello, I would like to know more about your offer."),
    (SenderType::User, "Thank you for asking. When would a call suit you?"),
    (SenderType::Contact, "Tomorrow at ten would be fine."),
    (SenderType::User, "Noted. Until tomorrow."),
];

/// Contact number `n`. Its address is its own, and so tells whether it is
/// there already.
pub(super) fn contact(n: u32) -> Contact {
    let (given, family) = (pick(&GIVEN_NAMES, n), pick(&FAMILY_NAMES, n));
    Contact {
        display_name: format!("{given} {family}"),
        email: format!("{}.{}.{n}@example.com", given.to_lowercase(), family.to_lowercase()),
        phone: format!("+1 555 {:03} {:04}", n / 10_000 % 1000, n % 10_000),
        company: pick(&COMPANIES, n).to_owned(),
        position: pick(&POSITIONS, n).to_owned(),
        source: pick(&SOURCES, n).to_owned(),
        ..Contact::default()
    }
}

/// What is said in the first conversation of contact number `n`.
pub(super) fn messages(n: u32) -> impl ExactSizeIterator<Item = Message> {
    let said = 1 + n as usize % TALK.len();
    TALK.into_iter().take(said).collect::<Vec<_>>().into_iter().map(|(sender_type, content)| {
        Message {
            sender_type: sender_type.into(),
            content: content.to_owned(),
            ..Message::default()
        }
    })
}

/// The subject of the second conversation of contact number `n`, if it has one.
pub(super) fn second_conversation(n: u32) -> Option<&'static str> {
    n.is_multiple_of(5).then_some("Renewal")
}

fn pick<'a, const N: usize>(of: &[&'a str; N], n: u32) -> &'a str {
    of.iter().cycle().nth(n as usize % N).copied().unwrap_or_default()
}
