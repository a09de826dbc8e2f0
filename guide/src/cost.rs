//! What compiling a schema may take, by arithmetic on the schema.
//!
//! The library bounds grammars, and not what it copies while it makes one: where two parts of a
//! schema must hold at once, it copies one of them for every option of the other. And it compares
//! every pair of patterns for names, each time with a set that has grown. So parts, options and
//! patterns are bounded before it begins.

use serde_json::Value;

use crate::error::Error;

/// Parts of a schema times the options that they may meet.
const MAX_COPIES: u64 = 400_000;
/// Names in all `patternProperties`.
const MAX_PATTERNS: usize = 16;
/// Properties that may be left out of an object that must have some.
const MAX_OPTIONAL: usize = 64;

/// What a schema has, all its parts together.
#[derive(Debug)]
struct Tally {
    parts: u64,
    /// Of all unions: their sum, and their product.
    options: u64,
    product: u64,
    patterns: usize,
    has_all_of: bool,
}

/// Refuses a schema whose parts together would take too much.
///
/// # Errors
/// [`Error::Refused`] with what to do.
pub(crate) fn check(schema: &Value) -> Result<(), Error> {
    let mut tally = Tally {
        parts: 0,
        options: 1,
        product: 1,
        patterns: 0,
        has_all_of: false,
    };
    let mut left = vec![schema];
    while let Some(part) = left.pop() {
        tally.parts += 1;
        match part {
            Value::Array(list) => left.extend(list),
            Value::Object(object) => {
                count(&mut tally, object)?;
                left.extend(object.values());
            }
            _ => {}
        }
    }
    if tally.patterns > MAX_PATTERNS {
        let patterns = tally.patterns;
        let message = format!(
            "patternProperties has {patterns} names in all, over the limit of {MAX_PATTERNS}"
        );
        return Err(Error::Refused(message));
    }
    let met = if tally.has_all_of {
        tally.product
    } else {
        tally.options
    };
    if tally.parts.saturating_mul(met) > MAX_COPIES {
        let message = "it has too many options of anyOf and oneOf for its size: use enum for \
                       values, or make it smaller"
            .to_owned();
        return Err(Error::Refused(message));
    }
    Ok(())
}

fn count(tally: &mut Tally, object: &serde_json::Map<String, Value>) -> Result<(), Error> {
    for union in ["anyOf", "oneOf"] {
        if let Some(Value::Array(options)) = object.get(union) {
            let options = options.len() as u64;
            tally.options = tally.options.saturating_add(options);
            tally.product = tally.product.saturating_mul(options.max(1));
        }
    }
    tally.has_all_of |= object.contains_key("allOf");
    if let Some(Value::Object(patterns)) = object.get("patternProperties") {
        tally.patterns += patterns.len();
    }
    let names = object.get("properties").and_then(Value::as_object);
    let required = object.get("required").and_then(Value::as_array);
    let (names, required) = (
        names.map_or(0, |map| map.len()),
        required.map_or(0, Vec::len),
    );
    let optional = names.saturating_sub(required);
    let least = object
        .get("minProperties")
        .and_then(Value::as_u64)
        .unwrap_or(0);
    if least > 0 && optional > MAX_OPTIONAL {
        let message = format!(
            "minProperties beside {optional} properties that may be left out, over the limit of \
             {MAX_OPTIONAL}: name those that are required"
        );
        return Err(Error::Refused(message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_would_take_much_is_refused_and_says_what_to_do() {
        let arrays = vec![json!({"type": "array"}); 140];
        let many = json!({"allOf": [{"anyOf": arrays}, {"anyOf": arrays},
            {"type": "array", "prefixItems": vec![json!(true); 1000]}]});
        let patterns: serde_json::Map<_, _> =
            (0..17).map(|i| (format!("^a{i}"), json!({}))).collect();
        let names: serde_json::Map<_, _> = (0..65).map(|i| (format!("a{i}"), json!({}))).collect();
        for (schema, part) in [
            (many, "options"),
            (json!({"patternProperties": patterns}), "patternProperties"),
            (
                json!({"minProperties": 1, "properties": names}),
                "minProperties",
            ),
        ] {
            let error = check(&schema).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn what_people_write_is_fine() {
        let values: Vec<_> = (0..3000).map(|i| json!(format!("value {i}"))).collect();
        let kinds: Vec<_> = (0..40)
            .map(|i| json!({"type": "object", "properties": {"kind": {"const": i}, "x": {}}}))
            .collect();
        let names: serde_json::Map<_, _> = (0..500).map(|i| (format!("a{i}"), json!({}))).collect();
        for schema in [
            json!({"enum": values}),
            json!({"type": "array", "items": {"anyOf": kinds}}),
            json!({"allOf": [{"anyOf": [{"type": "string"}, {"type": "null"}]}, {"minLength": 1}]}),
            json!({"properties": names, "required": ["a1"]}),
        ] {
            assert_eq!(check(&schema), Ok(()), "{schema}");
        }
    }
}
