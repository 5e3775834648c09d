//! A way to PostgreSQL that a test cuts at a statement of its choice.
//!
//! It knows just so much of the protocol (PostgreSQL, chapter 55) as tells one
//! statement from the next: which text a client executes, and when the server
//! is done with it.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// A statement that a client is about to have executed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Statement {
    /// The login.
    pub user: String,
    /// Its text, with `<id>` for ids and `<n>` for numbers of templates. A
    /// COMMIT is that of the statement before it.
    pub text: String,
}

/// When a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Right before the server gets the statement.
    Before,
    /// When the server has executed it, right before its answer.
    After,
}

/// What is done at a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Pass,
    /// The connection ends.
    Cut(Side),
    /// Nothing moves on the connection any more: neither the statement nor its
    /// end reaches the server.
    Hang,
    /// The process with this id is killed (SIGKILL).
    Kill(Side, u32),
}

type Judge = Box<dyn FnMut(&Statement) -> Verdict + Send>;

/// The way to a PostgreSQL server.
#[derive(Clone)]
pub struct PostgresLink {
    address: SocketAddr,
    judge: Arc<Mutex<Judge>>,
}

impl fmt::Debug for PostgresLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresLink").field("address", &self.address).finish_non_exhaustive()
    }
}

impl PostgresLink {
    /// A way to the server with this port, until the runtime ends.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let judge: Arc<Mutex<Judge>> = Arc::new(Mutex::new(Box::new(|_| Verdict::Pass)));
        let this = Self { address, judge };
        let link = this.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let link = link.clone();
                // Which side ends it is of no interest.
                tokio::spawn(async move { link.carry(near, port).await.ok() });
            }
        });
        this
    }

    /// The port on 127.0.0.1 that leads to the server.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Has every statement judged from now on, in the order in which clients
    /// send them.
    pub fn judge(&self, judge: impl FnMut(&Statement) -> Verdict + Send + 'static) {
        *self.judge.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(judge);
    }

    /// Lets everything pass again.
    pub fn pass(&self) {
        self.judge(|_| Verdict::Pass);
    }

    fn verdict(&self, statement: &Statement) -> Verdict {
        (self.judge.lock().unwrap_or_else(PoisonError::into_inner))(statement)
    }

    async fn carry(&self, near: TcpStream, port: u16) -> io::Result<()> {
        let far = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        let (near, to_near) = near.into_split();
        let (far, mut to_far) = far.into_split();
        let (mut near, mut far) = (Messages::of(near), Messages::of(far));
        let Some(startup) = near.next(false).await? else { return Ok(()) };
        to_far.write_all(&startup).await?;
        let mut carried = Carried {
            user: parameter(&startup, "user").unwrap_or_default(),
            to_near,
            to_far,
            statements: HashMap::new(),
            portals: HashMap::new(),
            last: String::new(),
            // The server says that it is ready once the client is let in.
            unready: 1,
        };
        loop {
            tokio::select! {
                message = near.next(true) => {
                    let Some(message) = message? else { return Ok(()) };
                    let verdict = carried.statement(&message).map(|statement| self.verdict(&statement));
                    let (side, kill) = match verdict {
                        None | Some(Verdict::Pass) => {
                            carried.send_on(&message).await?;
                            continue;
                        }
                        Some(Verdict::Cut(side)) => (side, None),
                        Some(Verdict::Hang) => return std::future::pending().await,
                        Some(Verdict::Kill(side, pid)) => (side, Some(pid)),
                    };
                    if side == Side::After {
                        carried.execute(message, &mut near, &mut far).await?;
                    }
                    if let Some(pid) = kill {
                        kill_process(pid);
                    }
                    return Ok(());
                }
                message = far.next(true) => {
                    let Some(message) = message? else { return Ok(()) };
                    carried.send_back(&message).await?;
                }
            }
        }
    }
}

fn kill_process(pid: u32) {
    let pid = pid.to_string();
    let status = std::process::Command::new("kill").args(["-s", "KILL", &pid]).status();
    assert!(status.unwrap().success(), "process {pid} is not there");
}

/// One connection.
struct Carried {
    user: String,
    to_near: OwnedWriteHalf,
    to_far: OwnedWriteHalf,
    /// The texts of prepared statements, by their names.
    statements: HashMap<Vec<u8>, String>,
    /// And of portals.
    portals: HashMap<Vec<u8>, String>,
    /// The last statement.
    last: String,
    /// How often the server has yet to say that it is ready.
    unready: usize,
}

impl Carried {
    /// What a client's message has executed, if it does.
    fn statement(&mut self, message: &[u8]) -> Option<Statement> {
        let (kind, body) = (message[0], &message[5..]);
        let mut words = body.split(|byte| *byte == 0).map(<[u8]>::to_vec);
        let mut word = || words.next().unwrap_or_default();
        let text = match kind {
            b'P' => {
                let (name, text) = (word(), word());
                self.statements.insert(name, String::from_utf8_lossy(&text).into_owned());
                return None;
            }
            b'B' => {
                let (portal, name) = (word(), word());
                let text = self.statements.get(&name).cloned().unwrap_or_default();
                self.portals.insert(portal, text);
                return None;
            }
            b'E' => self.portals.get(&word()).cloned().unwrap_or_default(),
            b'Q' => String::from_utf8_lossy(&word()).into_owned(),
            _ => return None,
        };
        let mut text = shape(&text);
        if text == "COMMIT" {
            text = format!("COMMIT after {}", self.last);
        } else {
            self.last.clone_from(&text);
        }
        Some(Statement { user: self.user.clone(), text })
    }

    async fn send_on(&mut self, message: &[u8]) -> io::Result<()> {
        if matches!(message[0], b'Q' | b'S') {
            self.unready += 1;
        }
        self.to_far.write_all(message).await
    }

    async fn send_back(&mut self, message: &[u8]) -> io::Result<()> {
        if message[0] == b'Z' {
            self.unready -= 1;
        }
        self.to_near.write_all(message).await
    }

    /// Has the server execute what this message begins, and keeps its answer.
    async fn execute(
        &mut self,
        mut message: Vec<u8>,
        near: &mut Messages,
        far: &mut Messages,
    ) -> io::Result<()> {
        loop {
            self.send_on(&message).await?;
            if matches!(message[0], b'Q' | b'S') {
                break;
            }
            let Some(next) = near.next(true).await? else { return Ok(()) };
            message = next;
        }
        while self.unready > 0 {
            let Some(answer) = far.next(true).await? else { return Ok(()) };
            if answer[0] == b'Z' {
                self.unready -= 1;
            }
        }
        Ok(())
    }
}

/// The messages that come over one half of a connection.
struct Messages {
    from: OwnedReadHalf,
    buffer: Vec<u8>,
}

impl Messages {
    fn of(from: OwnedReadHalf) -> Self {
        Self { from, buffer: Vec::new() }
    }

    /// The next one, whole. It may be cancelled. The first of a client has no
    /// kind.
    async fn next(&mut self, has_kind: bool) -> io::Result<Option<Vec<u8>>> {
        let head = usize::from(has_kind);
        loop {
            if let Some(length) = self.buffer.get(head..head + 4) {
                let length = u32::from_be_bytes(length.try_into().unwrap());
                let end = head + usize::try_from(length).unwrap();
                if self.buffer.len() >= end {
                    let rest = self.buffer.split_off(end);
                    return Ok(Some(std::mem::replace(&mut self.buffer, rest)));
                }
            }
            if self.from.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

/// A parameter of a startup message.
fn parameter(startup: &[u8], name: &str) -> Option<String> {
    let mut words = startup[8..].split(|byte| *byte == 0);
    while let Some(word) = words.next() {
        let value = words.next()?;
        if word == name.as_bytes() {
            return Some(String::from_utf8_lossy(value).into_owned());
        }
    }
    None
}

/// A statement's text without what differs from one tenant, or one template,
/// to the next.
fn shape(text: &str) -> String {
    let mut shape = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let digits = |digit: fn(&u8) -> bool| rest.bytes().take_while(digit).count();
        let hex = digits(u8::is_ascii_hexdigit);
        let number = digits(u8::is_ascii_digit);
        let taken = if hex == 32 {
            shape.push_str("<id>");
            hex
        } else if number > 0 && shape.ends_with("crm_template_") {
            shape.push_str("<n>");
            number
        } else {
            shape.push(if first.is_whitespace() { ' ' } else { first });
            first.len_utf8()
        };
        rest = &rest[taken..];
        if taken == 1 && first.is_whitespace() {
            rest = rest.trim_start();
        }
    }
    shape
}
