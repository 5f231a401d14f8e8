//! JSON Schema: lookups, validation of values, and lowering to the keywords that grammars support.

mod conform;
mod lower;
mod patterns;

use serde_json::{Map, Value};

pub(crate) use conform::{Mismatch, conform, equal};
pub(crate) use lower::{Refusal, children, lower};

/// Nesting of references and subschemas beyond which a schema counts as endless.
const MAX_DEPTH: usize = 64;

/// Follows `$ref` from `schema` within the document `root`; keywords beside it are ignored. `None` for a reference outside
/// the document, a missing target, or a circle.
fn resolve<'a>(root: &'a Value, schema: &'a Value) -> Option<&'a Value> {
    let mut schema = schema;
    for _ in 0..MAX_DEPTH {
        let Some(reference) = schema.get("$ref").and_then(Value::as_str) else { return Some(schema) };
        schema = target(root, reference)?;
    }
    None
}

/// The schema at a reference such as `#/$defs/Item`.
fn target<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    match reference.strip_prefix('#')? {
        "" => Some(root),
        pointer => root.pointer(&pointer.replace("%25", "%")),
    }
}

/// The values of a keyword that holds one string or a list of strings.
fn strings<'a>(schema: &'a Value, keyword: &str) -> Vec<&'a str> {
    match schema.get(keyword) {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// The subschemas of a keyword that holds a list of them.
fn subschemas<'a>(schema: &'a Value, keyword: &str) -> &'a [Value] {
    schema.get(keyword).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn object<'a>(schema: &'a Value, keyword: &str) -> Option<&'a Map<String, Value>> {
    schema.get(keyword).and_then(Value::as_object)
}

/// The JSON type of a value.
pub(crate) fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Keywords that constrain one type only.
const TYPED_KEYWORDS: [(&str, &str); 19] = [
    ("items", "array"),
    ("prefixItems", "array"),
    ("minItems", "array"),
    ("maxItems", "array"),
    ("uniqueItems", "array"),
    ("contains", "array"),
    ("properties", "object"),
    ("patternProperties", "object"),
    ("additionalProperties", "object"),
    ("propertyNames", "object"),
    ("required", "object"),
    ("pattern", "string"),
    ("minLength", "string"),
    ("format", "string"),
    ("minimum", "number"),
    ("maximum", "number"),
    ("exclusiveMinimum", "number"),
    ("exclusiveMaximum", "number"),
    ("multipleOf", "number"),
];

/// The types that `schema` speaks about: declared by `type`, of the values of `enum` and `const`, constrained by a
/// keyword of that type, or one of these in a branch. Integers count as numbers.
pub(crate) fn mentioned_types(root: &Value, schema: &Value) -> Vec<&'static str> {
    let mut types = Vec::new();
    collect_types(root, schema, &mut types, 0);
    types
}

fn collect_types(root: &Value, schema: &Value, types: &mut Vec<&'static str>, depth: usize) {
    let (Some(schema), true) = (resolve(root, schema), depth < MAX_DEPTH) else { return };
    let declared = strings(schema, "type");
    for name in ["null", "boolean", "number", "string", "array", "object"] {
        if declared.contains(&name) || (name == "number" && declared.contains(&"integer")) {
            types.push(name);
        }
    }
    types.extend(subschemas(schema, "enum").iter().chain(schema.get("const")).map(type_of));
    if declared.is_empty() {
        types.extend(
            TYPED_KEYWORDS.iter().filter(|(keyword, _)| schema.get(keyword).is_some()).map(|(_, t)| t),
        );
    }
    if schema.get("nullable") == Some(&Value::Bool(true)) {
        types.push("null");
    }
    for keyword in ["anyOf", "oneOf", "allOf"] {
        for branch in subschemas(schema, keyword) {
            collect_types(root, branch, types, depth + 1);
        }
    }
}

/// The schema of the property `name` in `schema`, its references and branches included.
pub(crate) fn property_schema<'a>(root: &'a Value, schema: &'a Value, name: &str) -> Option<&'a Value> {
    find_property(root, schema, name, 0)
}

fn find_property<'a>(root: &'a Value, schema: &'a Value, name: &str, depth: usize) -> Option<&'a Value> {
    let schema = resolve(root, schema).filter(|_| depth < MAX_DEPTH)?;
    let own = conform::property_schemas(schema, name).into_iter().next();
    own.or_else(|| {
        let branches =
            ["allOf", "anyOf", "oneOf"].into_iter().flat_map(|keyword| subschemas(schema, keyword));
        branches.into_iter().find_map(|branch| find_property(root, branch, name, depth + 1))
    })
}

/// True if a schema of the array at `path` (keys and indices) in a value of `root` has `uniqueItems`. With several
/// possible branches one of them is enough.
pub(crate) fn requires_unique_items(root: &Value, path: &[Value]) -> bool {
    let mut schemas = vec![root];
    for step in path {
        let mut next = Vec::new();
        for schema in with_branches(root, &schemas) {
            match step {
                Value::String(name) => next.extend(conform::property_schemas(schema, name)),
                index => {
                    let index = index.as_u64().unwrap_or(0) as usize;
                    next.extend(subschemas(schema, "prefixItems").get(index).or_else(|| schema.get("items")));
                }
            }
        }
        schemas = next;
    }
    with_branches(root, &schemas).iter().any(|schema| schema.get("uniqueItems") == Some(&Value::Bool(true)))
}

/// The schemas, the targets of their references, and the branches of all of them.
fn with_branches<'a>(root: &'a Value, schemas: &[&'a Value]) -> Vec<&'a Value> {
    let mut all: Vec<&Value> = Vec::new();
    let mut rest = schemas.to_vec();
    while let Some(schema) = rest.pop() {
        if all.iter().any(|known| std::ptr::eq(*known, schema)) {
            continue;
        }
        all.push(schema);
        let reference = schema.get("$ref").and_then(Value::as_str);
        rest.extend(reference.and_then(|reference| target(root, reference)));
        rest.extend(["anyOf", "oneOf", "allOf"].iter().flat_map(|keyword| subschemas(schema, keyword)));
    }
    all
}

/// True if `uniqueItems` is true anywhere in `schema`.
pub(crate) fn has_unique_items(schema: &Value) -> bool {
    match schema {
        Value::Object(fields) => {
            fields.get("uniqueItems") == Some(&Value::Bool(true)) || fields.values().any(has_unique_items)
        }
        Value::Array(items) => items.iter().any(has_unique_items),
        _ => false,
    }
}
