//! Compiles `proto/` in Rust alone: messages, clients, servers, the raw
//! descriptors, and the checks that the `buf.validate` rules ask for.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost_reflect::prost::Message as _;
use prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value,
};

/// Messages that carry a secret: their `Debug` is written by hand in `lib.rs`.
const SECRET_MESSAGES: [&str; 4] = [
    "crm.registry.v1.CreateClusterRequest",
    "crm.registry.v1.AcquireLeaseResponse",
    "crm.identity.v1.IssueServiceTokenRequest",
    "crm.identity.v1.IssueServiceTokenResponse",
];

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    println!("cargo::rerun-if-changed={}", root.display());

    let mut files = Vec::new();
    collect(&root.join("crm"), &mut files)?;
    files.sort();
    // What errors carry: clients such as grpcurl look it up by reflection.
    files.push(root.join("google/rpc/error_details.proto"));
    let mut compiler = protox::Compiler::new([&root])?;
    compiler.include_imports(true).include_source_info(true);
    let descriptors = compiler.open_files(files)?.encode_file_descriptor_set();
    fs::write(out.join("descriptors.binpb"), &descriptors)?;

    let mut own = prost_types::FileDescriptorSet::decode(descriptors.as_slice())?;
    own.file
        .retain(|file| file.package().starts_with("crm.") || file.package() == "google.protobuf");
    tonic_prost_build::configure().btree_map(".").skip_debug(SECRET_MESSAGES).compile_fds(own)?;

    let pool = DescriptorPool::decode(descriptors.as_slice())?;
    fs::write(out.join("validate.rs"), validation(&pool)?)?;
    Ok(())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    Ok(())
}

/// One `impl Validate` for each message of this project.
fn validation(pool: &DescriptorPool) -> Result<String, Box<dyn Error>> {
    let mut code = String::new();
    for message in pool.all_messages() {
        if !message.full_name().starts_with("crm.") || message.is_map_entry() {
            continue;
        }
        let mut body = String::new();
        for field in message.fields() {
            body.push_str(&check_field(pool, &field)?);
        }
        // Names of unused arguments begin with `_`.
        let arguments = if body.is_empty() {
            "_at: &Path<'_>, _out: &mut Violations"
        } else {
            "at: &Path<'_>, out: &mut Violations"
        };
        code.push_str(&format!(
            "impl Validate for {} {{\n    fn validate(&self, {arguments}) {{\n{body}    }}\n}}\n",
            rust_type(&message)
        ));
    }
    Ok(code)
}

/// The path of the type that prost generates: nested messages live in a module
/// named after the outer message.
fn rust_type(message: &MessageDescriptor) -> String {
    let package = message.package_name().trim_start_matches("crm.").replace('.', "::");
    let outer =
        message.parent_message().map(|parent| snake(parent.name()) + "::").unwrap_or_default();
    format!("crate::{package}::{outer}{}", message.name())
}

fn snake(name: &str) -> String {
    let mut out = String::new();
    for (i, c) in name.char_indices() {
        if c.is_uppercase() && i > 0 {
            out.push('_');
        }
        out.extend(c.to_lowercase());
    }
    out
}

fn check_field(pool: &DescriptorPool, field: &FieldDescriptor) -> Result<String, Box<dyn Error>> {
    let name = field.name();
    let rust = if matches!(name, "use" | "type") { format!("r#{name}") } else { name.to_owned() };
    let mut checks = Vec::new();

    let extension = pool
        .get_extension_by_name("buf.validate.field")
        .ok_or("buf.validate.field is not there")?;
    let options = field.options();
    if options.has_extension(&extension) {
        let rules = options.get_extension(&extension);
        let rules = rules.as_message().ok_or("buf.validate.field is no message")?;
        checks.extend(rule_checks(field, &rust, rules)?);
    }

    // PostgreSQL's text has no NUL, whatever a field's own rules are.
    if matches!(field.kind(), Kind::String) && field.cardinality() != Cardinality::Repeated {
        checks.push(format!("no_nul(&self.{rust}, &at, out);"));
    } else if field.is_map() {
        checks.push(format!(
            "for (key, value) in &self.{rust} {{ no_nul(key, &at, out); no_nul(value, &at, out); }}"
        ));
    }

    // What only answers have is ignored in requests (AIP-203), and messages in
    // it can be very many.
    if let Kind::Message(inner) = field.kind()
        && inner.full_name() == "google.protobuf.Timestamp"
        && field.cardinality() != Cardinality::Repeated
        && !is_output_only(field)?
    {
        checks.push(format!("timestamp(self.{rust}.as_ref(), &at, out);"));
    }
    if let Kind::Message(inner) = field.kind()
        && inner.full_name().starts_with("crm.")
        && !field.is_map()
        && field.containing_oneof().is_none()
        && !is_output_only(field)?
    {
        checks.push(if field.cardinality() == Cardinality::Repeated {
            // More than there may be are not looked at: they are refused anyway.
            let most = max_items(field)?.map(|most| format!(".take({most})")).unwrap_or_default();
            format!("for (i, item) in self.{rust}.iter().enumerate(){most} {{ item.validate(&at.item(i), out); }}")
        } else {
            format!("if let Some(message) = &self.{rust} {{ message.validate(&at, out); }}")
        });
    }
    if checks.is_empty() {
        return Ok(String::new());
    }
    Ok(format!("        {{ let at = at.field(\"{name}\"); {} }}\n", checks.join(" ")))
}

/// Whether google.api.field_behavior says that only answers have the field.
fn is_output_only(field: &FieldDescriptor) -> Result<bool, Box<dyn Error>> {
    const OUTPUT_ONLY: i32 = 3;
    let pool = field.parent_pool();
    let extension = pool
        .get_extension_by_name("google.api.field_behavior")
        .ok_or("google.api.field_behavior is not there")?;
    let options = field.options();
    let behaviors = options.get_extension(&extension);
    let behaviors = behaviors.as_list().ok_or("google.api.field_behavior is no list")?;
    Ok(behaviors.iter().any(|behavior| behavior.as_enum_number() == Some(OUTPUT_ONLY)))
}

/// How many items a list may have.
fn max_items(field: &FieldDescriptor) -> Result<Option<u64>, Box<dyn Error>> {
    let pool = field.parent_pool();
    let extension = pool
        .get_extension_by_name("buf.validate.field")
        .ok_or("buf.validate.field is not there")?;
    let options = field.options();
    let rules = options.get_extension(&extension);
    let rules = rules.as_message().and_then(|rules| rules.get_field_by_name("repeated"));
    let rules = rules.as_ref().and_then(|rules| rules.as_message());
    let most = rules.filter(|rules| rules.has_field_by_name("max_items"));
    Ok(most.and_then(|rules| rules.get_field_by_name("max_items")).and_then(|most| most.as_u64()))
}

/// The statements for the rules of one field. An unknown rule fails the build:
/// a rule that is written and not checked would be a lie.
fn rule_checks(
    field: &FieldDescriptor,
    rust: &str,
    rules: &DynamicMessage,
) -> Result<Vec<String>, Box<dyn Error>> {
    let mut checks = Vec::new();
    let (mut required, mut skip_zero) = (None, false);
    for (rule, value) in rules.fields() {
        match (rule.name(), value) {
            ("required", Value::Bool(true)) => {
                let single_message = matches!(field.kind(), Kind::Message(_)) && !field.is_list();
                required = Some(if single_message {
                    format!("self.{rust}.is_some()")
                } else {
                    format!("!self.{rust}.is_empty()")
                });
            }
            ("ignore", Value::EnumNumber(1)) => skip_zero = true,
            ("string", Value::Message(string)) => {
                checks.extend(scalar_checks("string", &format!("&self.{rust}"), "&at", string)?)
            }
            ("int64", Value::Message(number)) => {
                checks.extend(scalar_checks("number", &format!("self.{rust}"), "&at", number)?)
            }
            ("int32" | "uint32", Value::Message(number)) => {
                let optional = field.supports_presence();
                let value = if optional { "number".to_owned() } else { format!("self.{rust}") };
                let value = format!("i64::from({value})");
                let found = scalar_checks("number", &value, "&at", number)?;
                checks.push(if optional {
                    format!("if let Some(number) = self.{rust} {{ {} }}", found.join(" "))
                } else {
                    found.join(" ")
                });
            }
            ("enum", Value::Message(rules)) => checks.extend(enum_checks(field, rust, rules)?),
            ("repeated", Value::Message(rules)) => checks.extend(list_checks(field, rust, rules)?),
            ("map", Value::Message(rules)) => checks.extend(map_checks(field, rust, rules)?),
            (other, _) => return Err(unsupported(field, other)),
        }
    }
    if skip_zero {
        checks = vec![format!("if !self.{rust}.is_empty() {{ {} }}", checks.join(" "))];
    }
    // What is not there is that, and nothing else.
    if let Some(is_there) = required {
        checks = vec![if checks.is_empty() {
            format!("required({is_there}, &at, out);")
        } else {
            format!("if required({is_there}, &at, out) {{ {} }}", checks.join(" "))
        }];
    }
    Ok(checks)
}

fn enum_checks(
    field: &FieldDescriptor,
    rust: &str,
    rules: &DynamicMessage,
) -> Result<Vec<String>, Box<dyn Error>> {
    let Kind::Enum(descriptor) = field.kind() else {
        return Err("enum rule on another type".into());
    };
    let known: Vec<_> = descriptor.values().map(|value| value.number().to_string()).collect();
    let check = |(rule, value): (FieldDescriptor, &Value)| match (rule.name(), value) {
        ("defined_only", Value::Bool(true)) => {
            Ok(format!("defined_only(self.{rust}, &[{}], &at, out);", known.join(", ")))
        }
        ("not_in", Value::List(list)) => {
            let list = list.iter().filter_map(Value::as_i32).map(|number| number.to_string());
            let list = list.collect::<Vec<_>>().join(", ");
            Ok(format!("not_in(self.{rust}, &[{list}], &at, out);"))
        }
        (other, _) => Err(unsupported(field, other)),
    };
    rules.fields().map(check).collect()
}

fn list_checks(
    field: &FieldDescriptor,
    rust: &str,
    rules: &DynamicMessage,
) -> Result<Vec<String>, Box<dyn Error>> {
    let check = |(rule, value): (FieldDescriptor, &Value)| match (rule.name(), value.as_u64()) {
        (rule @ ("min_items" | "max_items"), Some(limit)) => {
            Ok(format!("{rule}(self.{rust}.len(), {limit}, &at, out);"))
        }
        (other, _) => Err(unsupported(field, other)),
    };
    rules.fields().map(check).collect()
}

fn map_checks(
    field: &FieldDescriptor,
    rust: &str,
    rules: &DynamicMessage,
) -> Result<Vec<String>, Box<dyn Error>> {
    let mut checks = Vec::new();
    for (rule, value) in rules.fields() {
        let (items, variable, inner) = match (rule.name(), value) {
            ("max_pairs", value) => {
                let limit = value.as_u64().unwrap_or(0);
                checks.push(format!("max_items(self.{rust}.len(), {limit}, &at, out);"));
                continue;
            }
            ("keys", Value::Message(inner)) => (format!("key in self.{rust}.keys()"), "key", inner),
            ("values", Value::Message(inner)) => {
                (format!("(key, value) in &self.{rust}"), "value", inner)
            }
            (other, _) => return Err(unsupported(field, other)),
        };
        let inner = inner.get_field_by_name("string").ok_or("only strings in maps")?.into_owned();
        let inner = inner.as_message().ok_or("no string rules")?;
        let inner = scalar_checks("string", variable, "&at", inner)?.join(" ");
        checks.push(format!("for {items} {{ let at = at.key(key); {inner} }}"));
    }
    Ok(checks)
}

fn scalar_checks(
    kind: &str,
    value: &str,
    at: &str,
    rules: &DynamicMessage,
) -> Result<Vec<String>, Box<dyn Error>> {
    let mut checks = Vec::new();
    for (rule, limit) in rules.fields() {
        checks.push(match (kind, rule.name(), limit) {
            ("string", "min_len" | "max_len", Value::U64(limit)) => {
                format!("{}({value}, {limit}, {at}, out);", rule.name())
            }
            ("string", "uuid", Value::Bool(true)) => format!("uuid({value}, {at}, out);"),
            ("number", "gte", Value::I32(limit)) => format!("gte({value}, {limit}, {at}, out);"),
            ("number", "gte", Value::I64(limit)) => format!("gte({value}, {limit}, {at}, out);"),
            ("number", "lte", Value::I32(limit)) => format!("lte({value}, {limit}, {at}, out);"),
            ("number", "lte", Value::I64(limit)) => format!("lte({value}, {limit}, {at}, out);"),
            ("number", "gte", Value::U32(limit)) => format!("gte({value}, {limit}, {at}, out);"),
            ("number", "lte", Value::U32(limit)) => format!("lte({value}, {limit}, {at}, out);"),
            (_, other, _) => {
                return Err(format!("rule {other} is not supported by this build").into());
            }
        });
    }
    Ok(checks)
}

fn unsupported(field: &FieldDescriptor, rule: &str) -> Box<dyn Error> {
    format!("{}: rule {rule} is not supported by this build", field.full_name()).into()
}
