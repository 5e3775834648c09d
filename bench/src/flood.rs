//! A tenant that asks for large pages without a pause, as a process of its own:
//! this program again, which is told its token on its standard input, and ends
//! when that does.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use crm_proto::contacts::v1::ListContactsRequest;
use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::Failure;
use crate::client::{Bearer, contact_clients};

/// How many pages are asked for at a time.
pub(crate) const IN_FLIGHT: u32 = 40;
/// The largest page.
pub(crate) const PAGE_SIZE: i32 = 1000;
/// Over how many connections.
const CHANNELS: u32 = 4;
/// How long a caller waits that was refused, as RetryInfo says.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// What became of its calls.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pages {
    pub(crate) served: u64,
    pub(crate) refused: u64,
}

/// A flood that goes on.
#[derive(Debug)]
pub(crate) struct Flood(Child);

impl Flood {
    /// Starts one at this address.
    pub(crate) async fn spawn(address: SocketAddr, token: &str) -> Result<Self, Failure> {
        let mut flood = Command::new(std::env::current_exe()?);
        flood.arg("--flood").arg(address.to_string()).kill_on_drop(true);
        let mut process = flood.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let told = process.stdin.as_mut().ok_or("the flood has no standard input")?;
        told.write_all(format!("{token}\n").as_bytes()).await?;
        Ok(Self(process))
    }

    /// Ends it, and answers what became of its calls.
    pub(crate) async fn stop(mut self) -> Result<Pages, Failure> {
        drop(self.0.stdin.take());
        let output = self.0.wait_with_output().await?;
        let said = String::from_utf8(output.stdout)?;
        let counts: Result<Vec<u64>, _> = said.split_whitespace().map(str::parse).collect();
        match counts?.as_slice() {
            [served, refused] => Ok(Pages { served: *served, refused: *refused }),
            _ => Err("the flood failed".into()),
        }
    }
}

/// Is the flood, until standard input ends.
pub(crate) async fn run(address: SocketAddr) -> Result<(), Failure> {
    let token = io::stdin().lines().next().ok_or("there is no token")??;
    let bearer = Bearer::new(&token)?;
    let mut end = spawn_blocking(|| io::copy(&mut io::stdin().lock(), &mut io::sink()));
    let mut callers = JoinSet::new();
    for client in contact_clients(address, IN_FLIGHT, CHANNELS).await? {
        callers.spawn(call(client, bearer.clone()));
    }
    let mut pages = Pages::default();
    loop {
        tokio::select! {
            ended = &mut end => { ended??; break }
            Some(page) = callers.join_next() => {
                let (client, outcome) = page?;
                match outcome {
                    Ok(()) => pages.served += 1,
                    Err(status) if status.code() == Code::ResourceExhausted => pages.refused += 1,
                    Err(status) => return Err(status.into()),
                }
                callers.spawn(call(client, bearer.clone()));
            }
        }
    }
    writeln!(io::stdout().lock(), "{} {}", pages.served, pages.refused)?;
    Ok(())
}

/// Asks for a page; a refusal is answered after the pause.
async fn call(
    mut client: ContactServiceClient<Channel>,
    bearer: Bearer,
) -> (ContactServiceClient<Channel>, Result<(), Status>) {
    let page = ListContactsRequest { page_size: PAGE_SIZE, ..ListContactsRequest::default() };
    let outcome = client.list_contacts(bearer.request(page)).await.map(drop);
    if outcome.is_err() {
        sleep(REFUSED_PAUSE).await;
    }
    (client, outcome)
}
