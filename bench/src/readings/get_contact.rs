//! P1: GetContact on a warm tenant, beside the same SQL.

use std::sync::Arc;

use crm_proto::contacts::v1::GetContactRequest;
use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use sqlx::PgConnection;
use tonic::Status;
use tonic::transport::Channel;
use uuid::Uuid;

use crate::client::{Bearer, Login, contact_clients};
use crate::measure::{Bench, Caller, Reading};
use crate::pgbench::Script;
use crate::report::Row;
use crate::{Failure, say};

const TENANT: &str = "bench-read";
/// The statement of the contacts service.
pub(super) const SQL: &str = include_str!("../../sql/get_contact.sql");

/// Reads contacts, one after the other in no order.
#[derive(Clone)]
struct GetContact {
    client: ContactServiceClient<Channel>,
    bearer: Bearer,
    names: Arc<Vec<String>>,
    next: usize,
}

impl Caller for GetContact {
    async fn call(&mut self) -> Result<(), Status> {
        let name = self.names[self.next % self.names.len()].clone();
        self.next += 1;
        self.client.get_contact(self.bearer.request(GetContactRequest { name })).await?;
        Ok(())
    }
}

/// A line for each number of calls in flight.
pub(crate) async fn read(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let login = bench.tenant(TENANT).await?;
    let mut session = bench.suite.superuser(&login.database).await?;
    let names = Arc::new(fill(&mut session, bench.options.contacts).await?);
    let mut rows = Vec::new();
    for &in_flight in &bench.options.in_flight {
        let clients = in_flight.min(login.session_cap);
        say(&format!("GetContact, {in_flight} in flight"));
        let readings = bench
            .alternate(
                async || crm(bench, &names, in_flight).await,
                async || peer(bench, &login, clients).await,
            )
            .await?;
        let what = format!("GetContact, {in_flight} in flight; pgbench, {clients} clients");
        rows.push(Row::of_rates(what, &readings));
    }
    Ok(rows)
}

/// Makes the contacts, and answers their names in no order.
pub(super) async fn fill(
    session: &mut PgConnection,
    contacts: i32,
) -> Result<Vec<String>, Failure> {
    let filling = sqlx::query(include_str!("../../sql/contacts.sql")).bind(contacts);
    filling.execute(&mut *session).await?;
    // Otherwise the first side that reads would pay for the hint bits.
    sqlx::query("VACUUM ANALYZE contacts.contacts").execute(&mut *session).await?;
    let ids = "SELECT contact_id FROM contacts.contacts ORDER BY random()";
    let ids: Vec<Uuid> = sqlx::query_scalar(ids).fetch_all(session).await?;
    Ok(ids.iter().map(|id| format!("contacts/{id}")).collect())
}

async fn crm(bench: &Bench, names: &Arc<Vec<String>>, in_flight: u32) -> Result<Reading, Failure> {
    let suite = &bench.suite;
    let bearer = suite.token(Some(TENANT)).await?;
    let clients = contact_clients(suite.contacts(), in_flight, bench.options.channels).await?;
    // Each begins elsewhere in the list.
    let apart = names.len() / clients.len();
    let callers = clients.into_iter().enumerate().map(|(index, client)| GetContact {
        client,
        bearer: bearer.clone(),
        names: names.clone(),
        next: index * apart,
    });
    bench.load(callers.collect()).await
}

async fn peer(bench: &Bench, login: &Login, clients: u32) -> Result<Reading, Failure> {
    let read = SQL.replace("{contact_id}", "md5(:n)::uuid");
    let script = Script {
        login,
        sql: &format!("\\set n random(1, :contacts)\n{read}"),
        variables: vec![("contacts", bench.options.contacts.to_string())],
        clients,
        seconds: bench.options.seconds,
    };
    bench.pgbench(&script).await
}
