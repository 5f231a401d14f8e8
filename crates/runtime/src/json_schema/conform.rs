//! Validation of a value against a JSON Schema (draft 2020-12).
//!
//! Hand-written because the `jsonschema` crate would add 35 crates with Unicode tables to every build, and because the
//! result is not only valid or invalid: an integer that was written as `3.0` becomes `3` where the schema asks for an
//! integer. `format` is an annotation, as the standard's default says.

use serde_json::{Number, Value};

use super::{MAX_DEPTH, object, patterns, strings, subschemas, target, type_of};

/// The first constraint that a value violates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mismatch {
    /// JSON Pointer of the violating part of the value.
    pub(crate) at: String,
    /// The constraint, as `type "integer"`.
    pub(crate) expected: String,
}

/// Checks `value` against `schema`, whose references point into the document `root`. Returns the value, with integers in
/// integer form.
///
/// # Errors
/// The first violated constraint.
pub(crate) fn conform(root: &Value, schema: &Value, value: &Value) -> Result<Value, Mismatch> {
    Checker { root }.check(schema, value.clone(), "", 0)
}

struct Checker<'a> {
    root: &'a Value,
}

fn mismatch<T>(at: &str, keyword: &str, constraint: &Value) -> Result<T, Mismatch> {
    let mut constraint = constraint.to_string();
    if constraint.len() > 120 {
        constraint = constraint.chars().take(117).collect::<String>() + "...";
    }
    Err(Mismatch { at: at.to_owned(), expected: format!("{keyword} {constraint}") })
}

impl Checker<'_> {
    fn check(&self, schema: &Value, value: Value, at: &str, depth: usize) -> Result<Value, Mismatch> {
        if depth > MAX_DEPTH {
            return mismatch(at, "a schema without endless", &Value::from("$ref"));
        }
        match schema {
            Value::Bool(true) => return Ok(value),
            Value::Object(_) => {}
            _ => return mismatch(at, "nothing: the schema is", schema),
        }
        let mut value = value;
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            match target(self.root, reference) {
                Some(target) => value = self.check(target, value, at, depth + 1)?,
                None => return mismatch(at, "a schema with the target of $ref", &Value::from(reference)),
            }
        }
        if schema.get("nullable") == Some(&Value::Bool(true)) && value.is_null() {
            return Ok(value);
        }
        value = self.typed(schema, value, at)?;
        if let Some(expected) = schema.get("const").filter(|expected| !equal(expected, &value)) {
            return mismatch(at, "const", expected);
        }
        let listed = || subschemas(schema, "enum").iter().any(|one| equal(one, &value));
        if let Some(expected) = schema.get("enum").filter(|_| !listed()) {
            return mismatch(at, "enum", expected);
        }
        value = self.applicators(schema, value, at, depth)?;
        match value {
            Value::Array(items) => self.array(schema, items, at, depth),
            Value::Object(fields) => self.object(schema, fields, at, depth),
            other => scalar(schema, &other, at).map(|()| other),
        }
    }

    /// `type`; converts integral numbers where only integers are allowed.
    fn typed(&self, schema: &Value, value: Value, at: &str) -> Result<Value, Mismatch> {
        let declared = strings(schema, "type");
        if declared.is_empty() || declared.contains(&type_of(&value)) {
            return Ok(value);
        }
        if let (true, Some(integer)) = (declared.contains(&"integer"), integer(&value)) {
            return Ok(integer);
        }
        mismatch(at, "type", &schema["type"])
    }

    fn applicators(
        &self,
        schema: &Value,
        mut value: Value,
        at: &str,
        depth: usize,
    ) -> Result<Value, Mismatch> {
        for branch in subschemas(schema, "allOf") {
            value = self.check(branch, value, at, depth + 1)?;
        }
        let any = subschemas(schema, "anyOf");
        if !any.is_empty() {
            value = self.first_branch(any, value, at, depth, ("anyOf", &schema["anyOf"]))?.0;
        }
        let one = subschemas(schema, "oneOf");
        if !one.is_empty() {
            let (checked, matches) = self.first_branch(one, value, at, depth, ("oneOf", &schema["oneOf"]))?;
            if matches > 1 {
                return mismatch(at, "exactly one of", &schema["oneOf"]);
            }
            value = checked;
        }
        let matches = |schema: &&Value| self.check(schema, value.clone(), at, depth + 1).is_ok();
        if let Some(not) = schema.get("not").filter(matches) {
            return mismatch(at, "not", not);
        }
        if let Some(condition) = schema.get("if") {
            let holds = self.check(condition, value.clone(), at, depth + 1).is_ok();
            if let Some(branch) = schema.get(if holds { "then" } else { "else" }) {
                value = self.check(branch, value, at, depth + 1)?;
            }
        }
        Ok(value)
    }

    /// The value as the first matching branch returns it, and the number of matching branches.
    fn first_branch(
        &self,
        branches: &[Value],
        value: Value,
        at: &str,
        depth: usize,
        (keyword, all): (&str, &Value),
    ) -> Result<(Value, usize), Mismatch> {
        let check = |branch: &Value| self.check(branch, value.clone(), at, depth + 1).ok();
        let mut matching = branches.iter().filter_map(check);
        match matching.next() {
            Some(first) => Ok((first, 1 + matching.count())),
            None => mismatch(at, keyword, all),
        }
    }

    fn array(&self, schema: &Value, items: Vec<Value>, at: &str, depth: usize) -> Result<Value, Mismatch> {
        let count = items.len() as f64;
        bounds(schema, at, count, ("minItems", "maxItems"))?;
        let prefix = subschemas(schema, "prefixItems");
        let mut checked = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            let at = format!("{at}/{index}");
            let item_schema = prefix.get(index).or_else(|| schema.get("items"));
            checked.push(match item_schema {
                Some(schema) => self.check(schema, item, &at, depth + 1)?,
                None => item,
            });
        }
        if schema.get("uniqueItems") == Some(&Value::Bool(true)) {
            let repeated =
                |(index, item): (usize, &Value)| checked[..index].iter().any(|one| equal(one, item));
            if checked.iter().enumerate().any(repeated) {
                return mismatch(at, "uniqueItems", &Value::Bool(true));
            }
        }
        if let Some(contained) = schema.get("contains") {
            let matches =
                checked.iter().filter(|item| self.check(contained, (*item).clone(), at, depth + 1).is_ok());
            let matches = matches.count() as f64;
            if schema.get("minContains").is_none() && matches < 1.0 {
                return mismatch(at, "contains", contained);
            }
            bounds(schema, at, matches, ("minContains", "maxContains"))?;
        }
        Ok(Value::Array(checked))
    }

    fn object(
        &self,
        schema: &Value,
        fields: serde_json::Map<String, Value>,
        at: &str,
        depth: usize,
    ) -> Result<Value, Mismatch> {
        bounds(schema, at, fields.len() as f64, ("minProperties", "maxProperties"))?;
        for name in strings(schema, "required") {
            if !fields.contains_key(name) {
                return mismatch(at, "the required property", &Value::from(name));
            }
        }
        for (name, needed) in object(schema, "dependentRequired").into_iter().flatten() {
            let missing = |needed: &Value| needed.as_str().is_some_and(|needed| !fields.contains_key(needed));
            if fields.contains_key(name) && needed.as_array().is_some_and(|list| list.iter().any(missing)) {
                return mismatch(at, "dependentRequired", needed);
            }
        }
        let mut checked = serde_json::Map::new();
        for (name, mut field) in fields {
            let at = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
            if let Some(names) = schema.get("propertyNames") {
                self.check(names, Value::from(name.as_str()), &at, depth + 1)?;
            }
            for schema in property_schemas(schema, &name) {
                field = self.check(schema, field, &at, depth + 1)?;
            }
            checked.insert(name, field);
        }
        Ok(Value::Object(checked))
    }
}

/// The schemas that apply to a property: of `properties` and `patternProperties`, otherwise `additionalProperties`.
pub(super) fn property_schemas<'a>(schema: &'a Value, name: &str) -> Vec<&'a Value> {
    let named = object(schema, "properties").and_then(|properties| properties.get(name));
    let patterns = object(schema, "patternProperties").into_iter().flatten();
    let matching = patterns.filter(|(pattern, _)| patterns::is_match(pattern, name) == Some(true));
    let mut schemas: Vec<&Value> = named.into_iter().chain(matching.map(|(_, schema)| schema)).collect();
    if schemas.is_empty() {
        schemas.extend(schema.get("additionalProperties"));
    }
    schemas
}

fn scalar(schema: &Value, value: &Value, at: &str) -> Result<(), Mismatch> {
    match value {
        Value::String(text) => {
            bounds(schema, at, text.chars().count() as f64, ("minLength", "maxLength"))?;
            match schema.get("pattern") {
                Some(Value::String(pattern)) if patterns::is_match(pattern, text) == Some(false) => {
                    mismatch(at, "pattern", &schema["pattern"])
                }
                _ => Ok(()),
            }
        }
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            bounds(schema, at, number, ("minimum", "maximum"))?;
            let limit = |keyword: &str| schema.get(keyword).and_then(Value::as_f64);
            if limit("exclusiveMinimum").is_some_and(|limit| number <= limit) {
                return mismatch(at, "exclusiveMinimum", &schema["exclusiveMinimum"]);
            }
            if limit("exclusiveMaximum").is_some_and(|limit| number >= limit) {
                return mismatch(at, "exclusiveMaximum", &schema["exclusiveMaximum"]);
            }
            let multiple = |step: f64| ((number / step) - (number / step).round()).abs() < 1e-9;
            if limit("multipleOf").is_some_and(|step| step > 0.0 && !multiple(step)) {
                return mismatch(at, "multipleOf", &schema["multipleOf"]);
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn bounds(schema: &Value, at: &str, number: f64, (least, most): (&str, &str)) -> Result<(), Mismatch> {
    let limit = |keyword: &str| schema.get(keyword).and_then(Value::as_f64);
    if limit(least).is_some_and(|limit| number < limit) {
        return mismatch(at, least, &schema[least]);
    }
    if limit(most).is_some_and(|limit| number > limit) {
        return mismatch(at, most, &schema[most]);
    }
    Ok(())
}

/// The number as an integer, if it is one.
fn integer(value: &Value) -> Option<Value> {
    let number = value.as_number()?;
    if number.is_i64() || number.is_u64() {
        return Some(value.clone());
    }
    let float = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < 9.2e18)?;
    Some(Value::Number(Number::from(float as i64)))
}

/// Equality of JSON values: numbers by value, objects without regard to order.
pub(crate) fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| equal(x, y)),
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len() && x.iter().all(|(name, x)| y.get(name).is_some_and(|y| equal(x, y)))
        }
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn is_valid(schema: &Value, value: &Value) -> bool {
        conform(schema, schema, value).is_ok()
    }

    /// Schema, then valid values, then invalid ones.
    #[test]
    fn keywords_of_the_standard() {
        let tree = json!({"$defs": {"node": {"type": "object", "required": ["v"], "properties": {
            "v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}}},
            "$ref": "#/$defs/node"});
        let cases = [
            (json!({"type": ["integer", "null"]}), json!([1, null, 3.0]), json!([1.5, "1", true])),
            (json!({"enum": [1, "a", null]}), json!([1, 1.0, "a", null]), json!([2, "b", false])),
            (json!({"const": {"a": [1, 2]}}), json!([{"a": [1, 2]}]), json!([{"a": [2, 1]}, {}])),
            (json!({"anyOf": [{"type": "string"}, {"minimum": 3}]}), json!(["x", 3, true]), json!([2])),
            (json!({"oneOf": [{"type": "integer"}, {"minimum": 3}]}), json!([1, 3.5]), json!([5, 1.5])),
            (json!({"allOf": [{"minimum": 1}, {"maximum": 3}]}), json!([1, 3]), json!([0, 4])),
            (json!({"not": {"type": "string"}}), json!([1]), json!(["a"])),
            (
                json!({"type": "string", "pattern": "^a+$", "maxLength": 2}),
                json!(["a", "aa"]),
                json!(["aaa", "b"]),
            ),
            (json!({"multipleOf": 0.1}), json!([0.3, 2]), json!([0.25])),
            (json!({"exclusiveMinimum": 0, "exclusiveMaximum": 2}), json!([1, 0.1]), json!([0, 2])),
            (
                json!({"items": {"type": "integer"}, "uniqueItems": true}),
                json!([[1, 2], []]),
                json!([[1, 1.0], ["a"]]),
            ),
            (
                json!({"prefixItems": [{"type": "string"}], "items": false}),
                json!([["a"], []]),
                json!([["a", 1], [1]]),
            ),
            (json!({"contains": {"const": 1}, "maxContains": 1}), json!([[1, 2]]), json!([[2], [1, 1]])),
            (
                json!({"required": ["a"], "minProperties": 2}),
                json!([{"a": 1, "b": 2}]),
                json!([{"a": 1}, {"b": 1, "c": 2}]),
            ),
            (
                json!({"patternProperties": {"^n_": {"type": "number"}}, "additionalProperties": {"type": "string"}}),
                json!([{"n_a": 1, "b": "x"}]),
                json!([{"n_a": "x"}, {"b": 1}]),
            ),
            (json!({"propertyNames": {"maxLength": 1}}), json!([{"a": 1}]), json!([{"ab": 1}])),
            (
                json!({"if": {"required": ["a"]}, "then": {"required": ["b"]}}),
                json!([{}, {"a": 1, "b": 1}]),
                json!([{"a": 1}]),
            ),
            (json!({"type": "string", "nullable": true}), json!(["a", null]), json!([1])),
            (
                tree,
                json!([{"v": 1, "next": {"v": 2, "next": null}}]),
                json!([{"v": 1, "next": {}}, {"next": null}]),
            ),
            (json!({"$ref": "#"}), json!([]), json!([1])),
        ];
        for (schema, valid, invalid) in cases {
            for value in valid.as_array().unwrap() {
                assert!(is_valid(&schema, value), "{schema} refuses {value}");
            }
            for value in invalid.as_array().unwrap() {
                assert!(!is_valid(&schema, value), "{schema} accepts {value}");
            }
        }
    }

    #[test]
    fn integers_are_written_as_integers() {
        let schema = json!({"properties": {"n": {"type": "integer"}, "list": {"items": {"anyOf": [
            {"type": "null"}, {"type": "integer"}]}}, "x": {"type": "number"}}});
        let value = conform(&schema, &schema, &json!({"n": 3.0, "list": [1.0, null], "x": 2.0})).unwrap();
        assert_eq!(value.to_string(), r#"{"n":3,"list":[1,null],"x":2.0}"#);
    }

    #[test]
    fn a_mismatch_names_its_place() {
        let schema = json!({"properties": {"a": {"items": {"type": "integer"}}}});
        let mismatch = conform(&schema, &schema, &json!({"a": [1, "x"]})).unwrap_err();
        assert_eq!((mismatch.at.as_str(), mismatch.expected.as_str()), ("/a/1", "type \"integer\""));
    }
}
