//! The layer against tokens and metadata, good and bad.

#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::convert::Infallible;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::TimeDelta;
use crm_auth::{Audience, AuthLayer, Claims, ISSUER, SigningKey, TenantContext, Verifier};
use crm_clock::Clock;
use crm_proto::rules::Rules;
use http::{Request, Response};
use jsonwebtoken::{Algorithm, EncodingKey};
use tonic::body::Body;
use tonic_types::StatusExt as _;
use tower::{Layer as _, ServiceExt as _, service_fn};
use uuid::Uuid;

const GET_CONTACT: &str = "/crm.contacts.v1.ContactService/GetContact";
const CREATE_CONTACT: &str = "/crm.contacts.v1.ContactService/CreateContact";
const GET_TENANT: &str = "/crm.registry.v1.TenantService/GetTenant";
const ACQUIRE_LEASE: &str = "/crm.registry.v1.LeaseService/AcquireLease";

struct Gate {
    clock: Clock,
    key: SigningKey,
    raw_key: EncodingKey,
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
    Gate {
        layer: AuthLayer::new(rules, verifier.clone()),
        raw_key: EncodingKey::from_ed_der(&pkcs8),
        clock,
        key,
        verifier,
    }
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

    /// Signs any header and payload with the right key.
    fn raw_token(&self, header: &str, payload: &str) -> String {
        let message =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &self.raw_key, Algorithm::EdDSA);
        let signature = signature.unwrap();
        format!("{message}.{signature}")
    }

    /// What the layer says: `None` when the call reaches the handler.
    async fn call(&self, path: &str, headers: &[(&str, &[u8])]) -> Option<String> {
        let mut request = Request::builder().uri(path);
        for (name, value) in headers {
            request = request.header(*name, http::HeaderValue::from_bytes(value).unwrap());
        }
        let handler = service_fn(|request: Request<Body>| async move {
            let known = request.extensions().get::<TenantContext>().is_some();
            let mut response = Response::new(Body::empty());
            response.extensions_mut().insert(known);
            Ok::<_, Infallible>(response)
        });
        let service = self.layer.layer(handler);

        let response = service.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();

        let status = tonic::Status::from_header_map(response.headers())?;
        Some(status.get_error_details().error_info().unwrap().reason.clone())
    }

    async fn call_with(&self, path: &str, token: &str) -> Option<String> {
        let value = format!("Bearer {token}");
        self.call(path, &[("authorization", value.as_bytes())]).await
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
async fn roles_and_scopes_decide() {
    let gate = gate();
    let viewer = gate.token(&gate.claims("roles/viewer"));
    let operator =
        Claims { tid: None, generation: None, ver: None, ..gate.claims("roles/platform.operator") };
    let operator = gate.token(&operator);

    assert_eq!(gate.call_with(GET_CONTACT, &viewer).await, None);
    assert_eq!(
        gate.call_with(CREATE_CONTACT, &viewer).await.as_deref(),
        Some("PERMISSION_MISSING")
    );
    assert_eq!(gate.call_with(GET_TENANT, &viewer).await.as_deref(), Some("PERMISSION_MISSING"));
    assert_eq!(gate.call_with(GET_TENANT, &operator).await, None);
    assert_eq!(gate.call_with(GET_CONTACT, &operator).await.as_deref(), Some("PERMISSION_MISSING"));
    assert_eq!(
        gate.call_with(ACQUIRE_LEASE, &operator).await.as_deref(),
        Some("PERMISSION_MISSING")
    );
}

#[tokio::test]
async fn a_tenant_token_with_a_platform_role_stays_a_tenant_token() {
    let gate = gate();
    let token = gate.token(&gate.claims("roles/platform.operator"));

    assert_eq!(gate.call_with(GET_TENANT, &token).await.as_deref(), Some("PERMISSION_MISSING"));
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
async fn claims_that_do_not_fit_are_refused() {
    let gate = gate();
    let good = gate.claims("roles/user");
    let id = good.tid;
    let bad = [
        Claims { iss: "else".to_owned(), ..good.clone() },
        Claims { sub: "serviceAccounts/7".to_owned(), ..good.clone() },
        Claims { sub: "services/contacts".to_owned(), ..good.clone() },
        Claims { sub: format!("users/{}", Uuid::nil()), ..good.clone() },
        Claims { sub: good.sub.to_uppercase(), ..good.clone() },
        Claims { sub: String::new(), ..good.clone() },
        Claims { tid: None, ..good.clone() },
        Claims { generation: None, ..good.clone() },
        Claims { ver: None, ..good.clone() },
        Claims { sid: id, ..good.clone() },
        Claims { roles: vec![], ..good.clone() },
        Claims { roles: vec![String::new()], ..good.clone() },
        Claims { roles: vec!["r".to_owned(); 33], ..good.clone() },
        Claims { exp: good.exp + 1, ..good.clone() },
        Claims { exp: good.iat, ..good.clone() },
        Claims { iat: -1, exp: 1, ..good.clone() },
        Claims { nbf: good.nbf + 60, ..good.clone() },
        Claims { nbf: -1, ..good.clone() },
    ];

    for claims in bad {
        let answer = gate.call_with(GET_CONTACT, &gate.token(&claims)).await;
        assert_eq!(answer.as_deref(), Some("TOKEN_INVALID"), "{claims:?}");
    }
}

#[tokio::test]
async fn headers_and_payloads_that_are_not_ours_are_refused_though_signed() {
    let gate = gate();
    let payload = serde_json::to_string(&gate.claims("roles/user")).unwrap();
    let header = r#"{"alg":"EdDSA","typ":"at+jwt","kid":"k1"}"#;
    let good = gate.raw_token(header, &payload);
    assert_eq!(gate.call_with(GET_CONTACT, &good).await, None);
    let headers = [
        r#"{"alg":"none","typ":"at+jwt","kid":"k1"}"#,
        r#"{"alg":"HS256","typ":"at+jwt","kid":"k1"}"#,
        r#"{"alg":"EdDSA","typ":"JWT","kid":"k1"}"#,
        r#"{"alg":"EdDSA","kid":"k1"}"#,
        r#"{"alg":"EdDSA","typ":"at+jwt"}"#,
        r#"{"alg":"EdDSA","typ":"at+jwt","kid":"k2"}"#,
        r#"{"alg":"EdDSA","typ":"at+jwt","kid":["k1"]}"#,
        r#"{"alg":"EdDSA","typ":"at+jwt","kid":"k1","kid":"k1"}"#,
        r#"{"alg":"EdDSA","typ":"at+jwt","kid":"k1","crit":["exp"]}"#,
        r#"{"alg":"EdDSA","typ":"at+jwt","kid":"k1","jku":"http://127.0.0.1/"}"#,
        r#"{"alg":"EdDSA","typ":"at+jwt","kid":"k1","jwk":{}}"#,
        "[]",
        "",
    ];
    let sub = payload.find("\"sub\"").unwrap();
    let payloads = [
        payload.replace("\"roles\":[", "\"roles\":[1,"),
        payload.replace("\"exp\":", "\"exp\":1.5e9,\"old\":"),
        payload.replace("\"gen\":1", "\"gen\":null"),
        payload.replace("\"gen\":1", "\"gen\":-1"),
        payload.replace("\"aud\":\"crm\"", "\"aud\":[\"crm\"]"),
        payload.replace("\"ver\":1", "\"ver\":1,\"admin\":true"),
        format!("{}\"ver\":1,{}", &payload[..sub], &payload[sub..]),
        payload.replace("\"iss\":\"crm\",", ""),
        "null".to_owned(),
    ];

    for header in headers {
        let token = gate.raw_token(header, &payload);
        assert_eq!(
            gate.call_with(GET_CONTACT, &token).await.as_deref(),
            Some("TOKEN_INVALID"),
            "{header}"
        );
    }
    for payload in payloads {
        let token = gate.raw_token(header, &payload);
        assert_eq!(
            gate.call_with(GET_CONTACT, &token).await.as_deref(),
            Some("TOKEN_INVALID"),
            "{payload}"
        );
    }
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

#[tokio::test]
async fn authorization_stands_once_and_in_one_form() {
    let gate = gate();
    let token = gate.token(&gate.claims("roles/user"));
    let bearer = format!("Bearer {token}").into_bytes();
    let twice = format!("Bearer {token}, Bearer {token}").into_bytes();
    let basic = format!("Basic {token}").into_bytes();
    let binary = [b"Bearer ".as_slice(), &[0xff, 0xfe]].concat();

    let none = gate.call(GET_CONTACT, &[]).await;
    assert_eq!(none.as_deref(), Some("TOKEN_MISSING"));
    let wrong: [&[(&str, &[u8])]; 6] = [
        &[("authorization", &bearer), ("authorization", &bearer)],
        &[("authorization", &twice)],
        &[("authorization", &basic)],
        &[("authorization", token.as_bytes())],
        &[("authorization", &binary)],
        &[("authorization", b"")],
    ];
    for headers in wrong {
        assert_eq!(gate.call(GET_CONTACT, headers).await.as_deref(), Some("TOKEN_INVALID"));
    }
}

#[tokio::test]
async fn x_tenant_id_never_grants_anything() {
    let gate = gate();
    let claims = gate.claims("roles/user");
    let bearer = format!("Bearer {}", gate.token(&claims)).into_bytes();
    let operator =
        Claims { tid: None, generation: None, ver: None, ..gate.claims("roles/platform.operator") };
    let operator = format!("Bearer {}", gate.token(&operator)).into_bytes();
    let own = claims.tid.unwrap().to_string().into_bytes();
    let other = Uuid::nil().to_string().into_bytes();
    let authorization: (&str, &[u8]) = ("authorization", &bearer);

    assert_eq!(gate.call(GET_CONTACT, &[authorization, ("x-tenant-id", &own)]).await, None);
    let alone = gate.call(GET_CONTACT, &[("x-tenant-id", &own)]).await;
    assert_eq!(alone.as_deref(), Some("TOKEN_MISSING"));
    let wrong: [&[(&str, &[u8])]; 5] = [
        &[authorization, ("x-tenant-id", &other)],
        &[authorization, ("x-tenant-id", &own), ("x-tenant-id", &own)],
        &[authorization, ("x-tenant-id", b"acme")],
        &[authorization, ("x-tenant-id", &[0xff])],
        &[("authorization", &operator), ("x-tenant-id", &own)],
    ];
    for (i, headers) in wrong.iter().enumerate() {
        let path = if i == 4 { GET_TENANT } else { GET_CONTACT };
        assert_eq!(gate.call(path, headers).await.as_deref(), Some("TENANT_MISMATCH"), "{i}");
    }
}
