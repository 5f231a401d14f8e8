//! Lowering of a JSON Schema to the keywords that llguidance's grammars support.
//!
//! Every answer that the lowered schema allows is valid under the original one, except that `uniqueItems` is left out
//! and enforced while the answer is generated. Keywords without an equivalent are refused by name and place.

use serde_json::{Map, Value, json};

use super::conform::conform;
use super::{MAX_DEPTH, object, patterns, resolve, strings, subschemas};

/// A part of a schema that grammars cannot enforce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The keyword, if one is to blame.
    pub(crate) keyword: Option<String>,
    /// JSON Pointer of the subschema.
    pub(crate) at: String,
    pub(crate) reason: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = if self.at.is_empty() { "the schema's root" } else { &self.at };
        match &self.keyword {
            Some(keyword) => write!(f, "`{keyword}` at {place}: {}", self.reason),
            None => write!(f, "{place}: {}", self.reason),
        }
    }
}

/// Keywords of any draft that constrain values and have no equivalent.
const UNSUPPORTED: [&str; 20] = [
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "extends",
    "disallow",
    "divisibleBy",
    "$dynamicRef",
    "$dynamicAnchor",
    "$recursiveRef",
    "$recursiveAnchor",
    "unevaluatedItems",
    "unevaluatedProperties",
    "propertyNames",
];

/// Keywords that describe a value without constraining it.
const ANNOTATIONS: [&str; 16] = [
    "title",
    "description",
    "default",
    "example",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "discriminator",
    "$comment",
    "$vocabulary",
    "contentMediaType",
    "contentEncoding",
    "contentSchema",
    "externalDocs",
    "xml",
];

/// Formats that grammars enforce.
const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

/// Formats whose values are a superset of those of an enforced format.
const WIDER_FORMATS: [(&str, &str); 11] = [
    ("idn-email", "email"),
    ("name-email", "email"),
    ("idn-hostname", "hostname"),
    ("ipvanyaddress", "ipv4"),
    ("iri", "uri"),
    ("uri-reference", "uri"),
    ("iri-reference", "uri"),
    ("uri-template", "uri"),
    ("url", "uri"),
    ("http-url", "uri"),
    ("guid", "uuid"),
];

/// Formats that are enforced by a pattern.
const PATTERN_FORMATS: [(&str, &str); 9] = [
    ("byte", "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"),
    ("base64", "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"),
    ("base64url", "^([A-Za-z0-9_\\-]{4})*([A-Za-z0-9_\\-]{2}==|[A-Za-z0-9_\\-]{3}=)?$"),
    ("json-pointer", "^(/([^~/]|~[01])*)*$"),
    ("relative-json-pointer", "^(0|[1-9][0-9]*)(#|(/([^~/]|~[01])*)*)$"),
    ("uuid4", "^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"),
    ("uuid7", "^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"),
    ("uuid1", "^[0-9a-f]{8}-[0-9a-f]{4}-1[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"),
    ("decimal", "^-?[0-9]+(\\.[0-9]+)?$"),
];

/// Formats without a definition that a text could violate.
const FREE_FORMATS: [&str; 9] =
    ["password", "binary", "path", "file-path", "directory-path", "textarea", "html", "markdown", "unknown"];

/// Lowers a schema.
///
/// # Errors
/// The first part without an equivalent.
pub(crate) fn lower(schema: &Value) -> Result<Value, Refusal> {
    Lowering { root: schema }.schema(schema, "", 0)
}

/// The subschemas of `schema` with their JSON Pointers.
pub(crate) fn children(schema: &Value) -> Vec<(String, &Value)> {
    let mut children = Vec::new();
    for keyword in ["$defs", "definitions", "properties", "patternProperties"] {
        for (name, child) in object(schema, keyword).into_iter().flatten() {
            children.push((format!("/{keyword}/{}", escape(name)), child));
        }
    }
    for keyword in ["items", "additionalProperties", "additionalItems"] {
        children.extend(
            schema.get(keyword).filter(|child| child.is_object()).map(|child| (format!("/{keyword}"), child)),
        );
    }
    for keyword in ["prefixItems", "anyOf", "oneOf", "allOf"] {
        for (index, child) in subschemas(schema, keyword).iter().enumerate() {
            children.push((format!("/{keyword}/{index}"), child));
        }
    }
    children
}

fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

fn refuse<T>(keyword: &str, at: &str, reason: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { keyword: Some(keyword.to_owned()), at: at.to_owned(), reason: reason.into() })
}

struct Lowering<'a> {
    root: &'a Value,
}

impl Lowering<'_> {
    fn schema(&self, schema: &Value, at: &str, depth: usize) -> Result<Value, Refusal> {
        let fields = match schema {
            Value::Bool(_) => return Ok(schema.clone()),
            Value::Object(fields) if depth < MAX_DEPTH => fields,
            Value::Object(_) => {
                return Err(Refusal { keyword: None, at: at.into(), reason: "nested too deeply".into() });
            }
            _ => {
                return Err(Refusal {
                    keyword: None,
                    at: at.into(),
                    reason: "not a schema: an object or a boolean".into(),
                });
            }
        };
        let mut lowered = Map::new();
        for (keyword, value) in self.without_simple_cases(fields, at)? {
            let place = format!("{at}/{keyword}");
            if UNSUPPORTED.contains(&keyword.as_str()) {
                return refuse(&keyword, at, "this keyword cannot be enforced while the answer is generated");
            }
            if ANNOTATIONS.contains(&keyword.as_str()) {
                continue;
            }
            let value = match (keyword.as_str(), value) {
                ("$defs" | "definitions" | "properties" | "patternProperties", Value::Object(children)) => {
                    let lower = |(name, child): (String, Value)| {
                        let child = self.schema(&child, &format!("{place}/{}", escape(&name)), depth + 1)?;
                        Ok((name, child))
                    };
                    Value::Object(children.into_iter().map(lower).collect::<Result<_, _>>()?)
                }
                ("prefixItems" | "anyOf" | "oneOf" | "allOf" | "items", Value::Array(children)) => {
                    let lower = |(index, child)| self.schema(child, &format!("{place}/{index}"), depth + 1);
                    Value::Array(children.iter().enumerate().map(lower).collect::<Result<_, _>>()?)
                }
                ("items" | "additionalProperties" | "additionalItems", child) => {
                    self.schema(&child, &place, depth + 1)?
                }
                (_, value) => value,
            };
            lowered.insert(keyword, value);
        }
        if let Some(branches) = lowered.shift_remove("oneOf") {
            self.check_disjoint(schema, at)?;
            // No value matches two branches, so one of them is any of them.
            match lowered.get_mut("anyOf") {
                None => drop(lowered.insert("anyOf".into(), branches)),
                Some(_) => {
                    let both = lowered.entry("allOf").or_insert_with(|| json!([]));
                    both.as_array_mut().into_iter().for_each(|all| all.push(json!({"anyOf": branches})));
                }
            }
        }
        Ok(match schema.get("nullable") {
            Some(Value::Bool(true)) => json!({"anyOf": [lowered, {"type": "null"}]}),
            _ => Value::Object(lowered),
        })
    }

    /// The keywords of a schema, with those replaced that have an equivalent in its other keywords.
    fn without_simple_cases(
        &self,
        fields: &Map<String, Value>,
        at: &str,
    ) -> Result<Map<String, Value>, Refusal> {
        let mut fields = fields.clone();
        fields.shift_remove("nullable");
        // The grammar's mask enforces it, not the grammar.
        if fields.get("uniqueItems").is_some_and(Value::is_boolean) {
            fields.shift_remove("uniqueItems");
        }
        let applies_in_place =
            ["allOf", "anyOf", "oneOf", "$ref", "if"].iter().any(|keyword| fields.contains_key(*keyword));
        if !applies_in_place {
            // Without applicators, everything that is not evaluated is additional.
            for (unevaluated, additional) in
                [("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")]
            {
                if let Some(value) = fields.shift_remove(unevaluated) {
                    fields.entry(additional).or_insert(value);
                }
            }
        }
        if let Some(names) = fields.shift_remove("propertyNames") {
            self.lower_property_names(&mut fields, &names, at)?;
        }
        if let Some(format) = fields.get("format").and_then(Value::as_str).map(str::to_owned) {
            lower_format(&mut fields, &format, at)?;
        }
        if let Some(equivalent) = fields.get("pattern").and_then(Value::as_str).and_then(patterns::equivalent)
        {
            match equivalent {
                Some(pattern) => fields.insert("pattern".into(), pattern.into()),
                None => fields.shift_remove("pattern"),
            };
        }
        Ok(fields)
    }

    /// `propertyNames` as the properties or patterns that it allows.
    fn lower_property_names(
        &self,
        fields: &mut Map<String, Value>,
        names: &Value,
        at: &str,
    ) -> Result<(), Refusal> {
        let unsupported = "only names that are listed by `enum` or `const`, or described by `pattern` alone, can be enforced";
        let Some(resolved) = resolve(self.root, names) else {
            return refuse("propertyNames", at, unsupported);
        };
        let constraints: Vec<&str> = match resolved {
            Value::Bool(true) => Vec::new(),
            Value::Object(keywords) => {
                let free = |keyword: &&str| *keyword != "type" && !ANNOTATIONS.contains(keyword);
                keywords.keys().map(String::as_str).filter(free).collect()
            }
            _ => return refuse("propertyNames", at, unsupported),
        };
        let value = fields.get("additionalProperties").cloned().unwrap_or(Value::Bool(true));
        match constraints[..] {
            [] => return Ok(()),
            _ if fields.contains_key("properties") || fields.contains_key("patternProperties") => {
                return refuse("propertyNames", at, "it cannot be enforced beside `properties`");
            }
            ["enum"] | ["const"] => {
                let listed = subschemas(resolved, "enum").iter().chain(resolved.get("const"));
                let listed = listed.filter_map(Value::as_str).map(|name| (name.to_owned(), value.clone()));
                fields.insert("properties".into(), Value::Object(listed.collect()));
            }
            ["pattern"] => {
                let pattern = resolved["pattern"].as_str().unwrap_or_default().to_owned();
                fields.insert("patternProperties".into(), json!({ pattern: value }));
            }
            _ => return refuse("propertyNames", at, unsupported),
        }
        fields.insert("additionalProperties".into(), Value::Bool(false));
        Ok(())
    }

    fn check_disjoint(&self, schema: &Value, at: &str) -> Result<(), Refusal> {
        let branches = subschemas(schema, "oneOf");
        for (index, branch) in branches.iter().enumerate() {
            for (other_index, other) in branches.iter().enumerate().skip(index + 1) {
                if !self.are_disjoint(branch, other, 0) {
                    let reason = format!(
                        "a value could match branch {index} and branch {other_index}\n\
                         hint: give them different types or constants, or use `anyOf`"
                    );
                    return refuse("oneOf", at, reason);
                }
            }
        }
        Ok(())
    }

    /// True if no value matches both schemas; false if some does, or it cannot be told.
    fn are_disjoint(&self, a: &Value, b: &Value, depth: usize) -> bool {
        let (Some(a), Some(b), true) = (resolve(self.root, a), resolve(self.root, b), depth < 12) else {
            return false;
        };
        if *a == Value::Bool(false) || *b == Value::Bool(false) {
            return true;
        }
        self.is_disjoint_by_branches(a, b, depth)
            || self.is_disjoint_by_branches(b, a, depth)
            || self.is_disjoint_by_values(a, b)
            || self.is_disjoint_by_values(b, a)
            || are_disjoint_types(a, b)
            || (is_only(a, "object") && is_only(b, "object") && self.are_disjoint_objects(a, b, depth))
            || are_disjoint_ranges(a, b)
            || are_disjoint_ranges(b, a)
    }

    fn is_disjoint_by_branches(&self, a: &Value, b: &Value, depth: usize) -> bool {
        let all = |keyword: &str| {
            let branches = subschemas(a, keyword);
            !branches.is_empty() && branches.iter().all(|branch| self.are_disjoint(branch, b, depth + 1))
        };
        all("anyOf")
            || all("oneOf")
            || subschemas(a, "allOf").iter().any(|branch| self.are_disjoint(branch, b, depth + 1))
    }

    /// True if `a` lists its values and `b` allows none of them.
    fn is_disjoint_by_values(&self, a: &Value, b: &Value) -> bool {
        let values: Vec<&Value> = match a.get("const") {
            Some(value) => vec![value],
            None => subschemas(a, "enum").iter().collect(),
        };
        !values.is_empty() && values.iter().all(|value| conform(self.root, b, value).is_err())
    }

    /// True if a property that one of them requires has disjoint schemas, or is not allowed in the other.
    fn are_disjoint_objects(&self, a: &Value, b: &Value, depth: usize) -> bool {
        let required = strings(a, "required").into_iter().chain(strings(b, "required"));
        required.into_iter().any(|name| {
            let (in_a, in_b) =
                (super::conform::property_schemas(a, name), super::conform::property_schemas(b, name));
            in_a.iter().any(|in_a| in_b.iter().any(|in_b| self.are_disjoint(in_a, in_b, depth + 1)))
                || in_a.contains(&&Value::Bool(false))
                || in_b.contains(&&Value::Bool(false))
        })
    }
}

fn lower_format(fields: &mut Map<String, Value>, format: &str, at: &str) -> Result<(), Refusal> {
    let schema = Value::Object(fields.clone());
    let types = strings(&schema, "type");
    if !types.is_empty() && !types.contains(&"string") {
        fields.shift_remove("format");
        if format == "int32" {
            fields.entry("minimum").or_insert_with(|| i32::MIN.into());
            fields.entry("maximum").or_insert_with(|| i32::MAX.into());
        }
        return Ok(());
    }
    if let Some((_, narrower)) = WIDER_FORMATS.iter().find(|(wider, _)| *wider == format) {
        fields.insert("format".into(), (*narrower).into());
    } else if let Some((_, pattern)) = PATTERN_FORMATS.iter().find(|(name, _)| *name == format) {
        fields.shift_remove("format");
        fields.entry("pattern").or_insert_with(|| (*pattern).into());
    } else if FREE_FORMATS.contains(&format) {
        fields.shift_remove("format");
    } else if !FORMATS.contains(&format) {
        return refuse(
            "format",
            at,
            format!("the format {format:?} is not known; known are {}", FORMATS.join(", ")),
        );
    }
    Ok(())
}

fn is_only(schema: &Value, name: &str) -> bool {
    strings(schema, "type") == [name]
}

fn are_disjoint_types(a: &Value, b: &Value) -> bool {
    let (a, b) = (strings(a, "type"), strings(b, "type"));
    let overlap =
        |a: &str, b: &str| a == b || matches!((a, b), ("integer", "number") | ("number", "integer"));
    !a.is_empty() && !b.is_empty() && !a.iter().any(|a| b.iter().any(|b| overlap(a, b)))
}

/// True if both are numbers and all of `a` lie below all of `b`.
fn are_disjoint_ranges(a: &Value, b: &Value) -> bool {
    let numeric = |schema| is_only(schema, "number") || is_only(schema, "integer");
    let limit = |schema: &Value, keyword: &str| schema.get(keyword).and_then(Value::as_f64);
    let below = |most: Option<f64>, least: Option<f64>, touching: bool| match (most, least) {
        (Some(most), Some(least)) => most < least || (touching && most == least),
        _ => false,
    };
    let (a_most, a_open) = (limit(a, "maximum"), limit(a, "exclusiveMaximum"));
    let (b_least, b_open) = (limit(b, "minimum"), limit(b, "exclusiveMinimum"));
    numeric(a)
        && numeric(b)
        && (below(a_most, b_least, false)
            || below(a_open, b_least, true)
            || below(a_most, b_open, true)
            || below(a_open, b_open, true))
}

#[cfg(test)]
mod tests {
    use super::super::equal;
    use super::*;

    fn one_of(a: Value, b: Value) -> Result<Value, Refusal> {
        lower(&json!({"oneOf": [a, b]}))
    }

    #[test]
    fn disjoint_branches_of_one_of() {
        let tagged = |tag: &str| json!({"type": "object", "required": ["kind"], "properties": {"kind": {"const": tag}}});
        let cases = [
            (tagged("a"), tagged("b"), true),
            (tagged("a"), tagged("a"), false),
            (json!({"type": "string"}), json!({"type": "null"}), true),
            (json!({"type": "integer"}), json!({"type": "number"}), false),
            (json!({"enum": ["a", "b"]}), json!({"enum": ["c"]}), true),
            (json!({"enum": ["a", "b"]}), json!({"enum": ["b"]}), false),
            (json!({"const": 1}), json!({"type": "string"}), true),
            (json!({"type": "integer", "maximum": 3}), json!({"type": "integer", "minimum": 4}), true),
            (json!({"type": "integer", "maximum": 4}), json!({"type": "integer", "minimum": 4}), false),
            (
                json!({"type": "object", "required": ["a"], "properties": {"a": true}}),
                json!({"type": "object", "properties": {"b": true}, "additionalProperties": false}),
                true,
            ),
            (
                json!({"type": "object", "required": ["a"], "properties": {"a": true}}),
                json!({"type": "object", "required": ["b"], "properties": {"b": true}}),
                false,
            ),
            (json!({"anyOf": [{"type": "null"}, {"type": "boolean"}]}), json!({"type": "string"}), true),
        ];
        for (a, b, disjoint) in cases {
            assert_eq!(one_of(a.clone(), b.clone()).is_ok(), disjoint, "{a} and {b}");
            assert_eq!(one_of(b.clone(), a.clone()).is_ok(), disjoint, "{b} and {a}");
        }
        let pydantic = json!({
            "$defs": {"Cat": tagged("cat"), "Dog": tagged("dog")},
            "discriminator": {"mapping": {"cat": "#/$defs/Cat"}, "propertyName": "kind"},
            "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
        });
        assert_eq!(lower(&pydantic).unwrap()["anyOf"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn equivalent_keywords() {
        let cases = [
            (
                json!({"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "integer"}}),
                json!({"type": "object", "additionalProperties": {"type": "integer"}}),
            ),
            (
                json!({"type": "object", "propertyNames": {"enum": ["a"]}, "additionalProperties": {"type": "null"}}),
                json!({"type": "object", "additionalProperties": false, "properties": {"a": {"type": "null"}}}),
            ),
            (
                json!({"type": "object", "unevaluatedProperties": false, "title": "T"}),
                json!({"type": "object", "additionalProperties": false}),
            ),
            (
                json!({"type": "string", "format": "uri-reference"}),
                json!({"type": "string", "format": "uri"}),
            ),
            (json!({"type": "string", "format": "password"}), json!({"type": "string"})),
            (json!({"type": "number", "format": "double"}), json!({"type": "number"})),
            (
                json!({"type": "string", "nullable": true}),
                json!({"anyOf": [{"type": "string"}, {"type": "null"}]}),
            ),
            (json!({"properties": {"title": {"title": "x"}}}), json!({"properties": {"title": {}}})),
        ];
        for (schema, expected) in cases {
            let lowered = lower(&schema).unwrap();
            assert!(equal(&lowered, &expected), "{schema}: {lowered}");
        }
    }

    #[test]
    fn refusals_name_keyword_and_place() {
        let cases = [
            (json!({"properties": {"a": {"not": {}}}}), "`not` at /properties/a: "),
            (json!({"$defs": {"x/y": {"contains": {}}}}), "`contains` at /$defs/x~1y: "),
            (json!({"items": {"type": "string", "format": "zip"}}), "`format` at /items: the format \"zip\""),
            (
                json!({"oneOf": [{}, {}]}),
                "`oneOf` at the schema's root: a value could match branch 0 and branch 1",
            ),
            (json!({"anyOf": [5]}), "/anyOf/0: not a schema"),
        ];
        for (schema, expected) in cases {
            let refusal = lower(&schema).unwrap_err().to_string();
            assert!(refusal.starts_with(expected), "{refusal}");
        }
    }
}
