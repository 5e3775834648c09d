//! P6: the first call of a tenant, beside a bare connect and the same read.

use crm_proto::contacts::v1::GetContactRequest;
use crm_proto::contacts::v1::contact_service_client::ContactServiceClient;
use sqlx::{Connection as _, PgConnection};
use tonic::Code;
use tonic::transport::Channel;
use uuid::Uuid;

use super::get_contact::SQL;
use crate::client::{Bearer, Leases, Login, Operator, connect};
use crate::measure::{Bench, Readings};
use crate::report::Row;
use crate::{Failure, say};

/// A tenant for each side, since the first session ever in a database costs
/// PostgreSQL more than the next.
struct Pair {
    /// For the suite.
    bearer: Bearer,
    /// For the peer.
    login: Login,
}

/// One line.
pub(crate) async fn read(bench: &Bench) -> Result<Vec<Row>, Failure> {
    say("first calls on cold tenants");
    let pairs = make_tenants(bench).await?;
    bench.suite.checkpoint().await?;
    let mut client = ContactServiceClient::new(connect(bench.suite.contacts()).await?);
    let mut readings = Readings::default();
    for Pair { bearer, login } in &pairs {
        readings.crm.push(bench.one(call(&mut client, bearer)).await?);
        readings.peer.push(bench.one(connect_and_read(login)).await?);
    }
    let what = "first call of a cold tenant; a bare connect and the same read";
    Ok(vec![Row::of_times(what, &readings, 95)])
}

async fn make_tenants(bench: &Bench) -> Result<Vec<Pair>, Failure> {
    let mut operator = Operator::connect(&bench.suite).await?;
    let mut leases = Leases::connect(&bench.suite).await?;
    let mut pairs = Vec::new();
    for index in 0..bench.options.tenants {
        let cold = format!("cold-{index}");
        operator.create_tenant(&cold).await?;
        let bearer = bench.suite.token(Some(&cold)).await?;
        let bare = operator.create_tenant(&format!("bare-{index}")).await?;
        pairs.push(Pair { bearer, login: leases.login(&bare).await? });
    }
    Ok(pairs)
}

/// Reads a contact that there is not.
async fn call(client: &mut ContactServiceClient<Channel>, bearer: &Bearer) -> Result<(), Failure> {
    let message = GetContactRequest { name: format!("contacts/{}", Uuid::nil()) };
    match client.get_contact(bearer.request(message)).await {
        Err(status) if status.code() == Code::NotFound => Ok(()),
        Err(status) => Err(status.into()),
        Ok(_) => Err("a new tenant has a contact".into()),
    }
}

async fn connect_and_read(login: &Login) -> Result<PgConnection, Failure> {
    let mut session = PgConnection::connect_with(&login.options()).await?;
    let sql = SQL.replace("{contact_id}", "$1");
    let read = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(Uuid::nil());
    read.fetch_optional(&mut session).await?;
    Ok(session)
}
