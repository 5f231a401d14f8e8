//! Templates rendered as transformers renders them; `scripts/goldens/templates.py` made the goldens.

use q35_text::{ChatTemplate, RenderInput, SpecialTokens};
use serde_json::Value;

#[test]
fn equal_to_transformers_byte_for_byte() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let goldens = include_str!("data/renderings.jsonl");
    let tokens = SpecialTokens::from([("eos_token".to_owned(), "<|im_end|>".to_owned())]);
    let mut wrong = Vec::new();
    for line in goldens.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let name = case["template"].as_str().unwrap();
        let source = match name.starts_with("crates/") {
            true => std::fs::read_to_string(format!("{root}/{name}")).unwrap(),
            false => name.to_owned(),
        };
        let input = RenderInput::new(case["messages"].as_array().unwrap())
            .with_tools(case.get("tools"))
            .with_thinking(case.get("enable_thinking").and_then(Value::as_bool))
            .with_generation_prompt(case.get("add_generation_prompt").is_none_or(|add| add == true));
        let template = ChatTemplate::new(&source).unwrap().with_special_tokens(&tokens);
        let (found, expected) = match template.render(&input) {
            Ok(text) => (text, &case["expect"]),
            Err(error) => (error.to_string(), &case["error"]),
        };
        if Some(found.as_str()) != expected.as_str() {
            wrong.push(format!("{line}\n  found: {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), goldens.lines().count(), wrong.join("\n"));
}
