//! What tenants keep with a contact.

use crm_proto::contacts::v1::Contact;
use crm_testing::{Tenant, code_and_reason, field_faults};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct};
use tonic::Code;

use crate::{ada, contacts, create, get, value};

#[tokio::test]
async fn metadata_comes_back_exactly_and_has_limits() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    let list = ListValue {
        values: vec![
            value(Kind::NullValue(0)),
            value(Kind::NumberValue(0.1 + 0.2)),
            value(Kind::NumberValue(-1e300)),
            value(Kind::NumberValue(5e-324)),
            value(Kind::StringValue("\u{feff}\u{1}\u{2028}🦀".to_owned())),
            value(Kind::ListValue(ListValue::default())),
        ],
    };
    let metadata = Struct { fields: [(String::new(), value(Kind::ListValue(list)))].into() };
    let with = |metadata| create(Contact { metadata: Some(metadata), ..ada() });
    let nested = |depth| {
        (1..depth).fold(Struct::default(), |inner, _| Struct {
            fields: [("in".to_owned(), value(Kind::StructValue(inner)))].into(),
        })
    };
    let large =
        Struct { fields: [("x".to_owned(), value(Kind::StringValue("x".repeat(65_536))))].into() };

    let created = contacts(&admin).create_contact(admin.request(with(metadata.clone()))).await;
    let created = created.unwrap().into_inner();
    let read = contacts(&admin).get_contact(admin.request(get(&created.name))).await.unwrap();
    let deep = contacts(&admin).create_contact(admin.request(with(nested(32)))).await;
    let too_deep = contacts(&admin).create_contact(admin.request(with(nested(33)))).await;
    let far_too_deep = contacts(&admin).create_contact(admin.request(with(nested(200)))).await;
    let too_large = contacts(&admin).create_contact(admin.request(with(large))).await;

    assert_eq!(created.metadata, Some(metadata));
    assert_eq!(read.into_inner(), created);
    deep.unwrap();
    assert_eq!(field_faults(too_deep)[0].1, "METADATA_DEPTH");
    let expected = (Code::InvalidArgument, "MALFORMED_REQUEST".to_owned());
    assert_eq!(code_and_reason(far_too_deep), expected);
    assert_eq!(field_faults(too_large)[0].1, "METADATA_SIZE");
    tenant.check_log().await;
}

#[tokio::test]
async fn every_number_in_metadata_comes_back() {
    let tenant = Tenant::create().await;
    let admin = tenant.admin();
    // A sequence that covers signs, exponents and mantissas alike.
    let mut bits = 0x9e37_79b9_7f4a_7c15_u64;
    let numbers = std::iter::repeat_with(|| {
        bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f64::from_bits(bits)
    });
    let values = numbers.filter(|n| n.is_finite()).take(500).map(|n| value(Kind::NumberValue(n)));
    let list = ListValue { values: values.collect() };
    let metadata = Struct { fields: [("n".to_owned(), value(Kind::ListValue(list)))].into() };
    let contact = Contact { metadata: Some(metadata.clone()), ..ada() };

    let created = contacts(&admin).create_contact(admin.request(create(contact))).await.unwrap();
    let name = created.into_inner().name;
    let read = contacts(&admin).get_contact(admin.request(get(&name))).await.unwrap();

    assert_eq!(read.into_inner().metadata, Some(metadata));
}
