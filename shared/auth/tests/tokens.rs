//! What a verifier does with time, keys and its cache, and the layer with what it
//! does not know; and the two checks that bugs are seeded in. All other tokens and
//! metadata are tried at the listeners: see `services/standalone/tests/proof`.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::convert::Infallible;
use std::sync::Arc;

use chrono::TimeDelta;
use crm_auth::{Audience, AuthLayer, Claims, ISSUER, SigningKey, TenantContext, Verifier};
use crm_clock::Clock;
use crm_proto::rules::Rules;
use http::{Request, Response};
use tonic::body::Body;
use tonic_types::StatusExt as _;
use tower::{Layer as _, ServiceExt as _, service_fn};

const GET_CONTACT: &str = "/crm.contacts.v1.ContactService/GetContact";
const CREATE_CONTACT: &str = "/crm.contacts.v1.ContactService/CreateContact";

struct Gate {
    clock: Clock,
    key: SigningKey,
    verifier: Verifier,
    layer: AuthLayer,
}

fn gate() -> Gate {
    let clock = Clock::default();
    let pkcs8 = SigningKey::generate().unwrap();
    let key = SigningKey::from_pkcs8("k1", &pkcs8).unwrap();
    let verifier = Verifier::new(Audience::Public, clock.clone());
    verifier.set_keys(&[key.jwk()]).unwrap();
    let rules = Arc::new(Rules::load().unwrap());
    Gate { layer: AuthLayer::new(rules, verifier.clone()), clock, key, verifier }
}

impl Gate {
    fn claims(&self, role: &str) -> Claims {
        let now = self.clock.now().timestamp();
        Claims {
            iss: ISSUER.to_owned(),
            aud: Audience::Public,
            sub: format!("serviceAccounts/{}", self.clock.new_id()),
            iat: now,
            nbf: now,
            exp: now + 900,
            jti: self.clock.new_id(),
            roles: vec![role.to_owned()],
            tid: Some(self.clock.new_id()),
            generation: Some(1),
            ver: Some(1),
            sid: None,
        }
    }

    fn token(&self, claims: &Claims) -> String {
        self.key.sign(claims).unwrap()
    }

    /// What the layer says: `None` when the call reaches the handler.
    async fn call(&self, path: &str, headers: &[(&str, &str)]) -> Option<String> {
        let mut request = Request::builder().uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let handler = service_fn(|request: Request<Body>| async move {
            assert!(request.extensions().get::<TenantContext>().is_some(), "without a context");
            Ok::<_, Infallible>(Response::new(Body::empty()))
        });
        let service = self.layer.layer(handler);

        let response = service.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();

        let status = tonic::Status::from_header_map(response.headers())?;
        Some(status.get_error_details().error_info().unwrap().reason.clone())
    }

    async fn call_with(&self, path: &str, token: &str) -> Option<String> {
        self.call(path, &[("authorization", &format!("Bearer {token}"))]).await
    }
}

#[tokio::test]
async fn a_good_token_reaches_the_handler() {
    let gate = gate();
    let token = gate.token(&gate.claims("roles/user"));

    assert_eq!(gate.call_with(CREATE_CONTACT, &token).await, None);
    assert_eq!(gate.call_with(CREATE_CONTACT, &token).await, None, "from the cache");
}

#[tokio::test]
async fn what_is_not_declared_is_refused() {
    let gate = gate();
    let token = gate.token(&gate.claims("roles/owner"));

    let answer = gate.call_with("/crm.contacts.v1.ContactService/DropAll", &token).await;

    assert_eq!(answer.as_deref(), Some("METHOD_UNKNOWN"));
}

#[tokio::test]
async fn a_token_of_another_audience_is_refused() {
    let gate = gate();
    let claims = Claims {
        aud: Audience::Internal,
        sub: "services/contacts".to_owned(),
        tid: None,
        generation: None,
        ver: None,
        ..gate.claims("roles/internal.service")
    };

    let answer = gate.call_with(GET_CONTACT, &gate.token(&claims)).await;

    assert_eq!(answer.as_deref(), Some("TOKEN_INVALID"));
}

#[tokio::test]
async fn x_tenant_id_never_grants_anything() {
    let gate = gate();
    let claims = gate.claims("roles/user");
    let bearer = format!("Bearer {}", gate.token(&claims));
    let authorization = ("authorization", bearer.as_str());
    let (own, other) = (claims.tid.unwrap().to_string(), gate.clock.new_id().to_string());

    let same = gate.call(GET_CONTACT, &[authorization, ("x-tenant-id", &own)]).await;
    let another = gate.call(GET_CONTACT, &[authorization, ("x-tenant-id", &other)]).await;

    assert_eq!(same, None);
    assert_eq!(another.as_deref(), Some("TENANT_MISMATCH"));
}

#[tokio::test]
async fn tokens_live_only_between_their_times() {
    let gate = gate();
    let claims = gate.claims("roles/user");
    let token = gate.token(&claims);
    assert_eq!(gate.call_with(GET_CONTACT, &token).await, None);

    gate.clock.advance(TimeDelta::seconds(-60));
    assert_eq!(gate.call_with(GET_CONTACT, &token).await.as_deref(), Some("TOKEN_INVALID"));
    gate.clock.advance(TimeDelta::seconds(60 + 900));
    assert_eq!(gate.call_with(GET_CONTACT, &token).await.as_deref(), Some("TOKEN_EXPIRED"));
}

#[tokio::test]
async fn a_key_that_is_gone_takes_its_cached_tokens_with_it() {
    let gate = gate();
    let token = gate.token(&gate.claims("roles/user"));
    assert_eq!(gate.call_with(GET_CONTACT, &token).await, None);

    gate.verifier.set_keys(&[]).unwrap();

    assert_eq!(gate.call_with(GET_CONTACT, &token).await.as_deref(), Some("TOKEN_INVALID"));
}

#[tokio::test]
async fn a_changed_token_is_refused_wherever_it_changed() {
    let gate = gate();
    let token = gate.token(&gate.claims("roles/user"));
    let signature = token.rfind('.').unwrap();

    for position in (0..token.len()).step_by(7).chain(signature..token.len() - 2) {
        let mut bytes = token.clone().into_bytes();
        bytes[position] = if bytes[position] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(bytes).unwrap();
        let answer = gate.call_with(GET_CONTACT, &changed).await;
        assert_eq!(answer.as_deref(), Some("TOKEN_INVALID"), "byte {position}");
    }
}
