//! Machines and what is said of their metadata.

use std::collections::BTreeMap;

use orlop_schedule::MachineId;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Refusal;
use crate::client::{Condition, Write};
use crate::keys::Key;
use crate::registry::Registry;

/// The machines that are heard.
pub(super) fn list(registry: &Registry) -> Vec<Value> {
    let heard = registry
        .machines
        .iter()
        .filter(|(id, _)| registry.present.contains(id));
    heard
        .map(|(id, record)| {
            json!({
                "id": id.as_str(),
                "primaryIP": record.ip,
                "metadata": record.merged_metadata(registry.metadata.get(id)),
            })
        })
        .collect()
}

#[derive(Debug, Deserialize)]
struct Operation {
    op: String,
    path: String,
    #[serde(default)]
    value: Value,
}

/// Changes by machine: an empty value takes a key away.
pub(super) type Changes = BTreeMap<MachineId, BTreeMap<String, String>>;

/// Reads operations in the manner of RFC 6902. fleet's documents show a value as a text, its code took an object: both do.
pub(super) fn parse_patch(body: &[u8]) -> Result<Changes, Refusal> {
    let operations: Vec<Operation> = serde_json::from_slice(body)
        .map_err(|err| Refusal::bad(format!("the body cannot be read: {err}")))?;
    let mut changes = Changes::new();
    for operation in operations {
        let path = &operation.path;
        let (id, key) = path
            .strip_prefix('/')
            .and_then(|rest| rest.split_once("/metadata/"))
            .filter(|(id, key)| !id.is_empty() && !id.contains('/') && is_key(key))
            .ok_or_else(|| Refusal::bad(format!("{path:?} is no path such as /ID/metadata/KEY")))?;
        let value = match operation.op.as_str() {
            "remove" => String::new(),
            "add" | "replace" => operation
                .value
                .as_str()
                .or_else(|| operation.value.get("value").and_then(Value::as_str))
                .filter(|value| !value.is_empty())
                .ok_or_else(|| Refusal::bad(format!("{path}: a value is needed")))?
                .to_owned(),
            other => {
                return Err(Refusal::bad(format!(
                    "{other:?} is no operation: add, replace or remove"
                )));
            }
        };
        let machine = changes.entry(MachineId::new(id)).or_default();
        machine.insert(key.to_owned(), value);
    }
    Ok(changes)
}

fn is_key(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    !text.is_empty() && text.bytes().all(fits)
}

/// The writes that add changes to those that are stored, if these are still the same.
pub(super) fn patch(registry: &Registry, changes: &Changes) -> (Vec<Condition>, Vec<Write>) {
    let mut conditions = Vec::new();
    let mut writes = Vec::new();
    for (id, changed) in changes {
        let key = Key::Metadata(id.clone()).to_string();
        let stored = registry.metadata.get(id);
        let text = |map: &BTreeMap<String, String>| serde_json::to_string(map).unwrap_or_default();
        conditions.push(match stored {
            None => Condition::Absent(key.clone()),
            Some(map) => Condition::Value(key.clone(), text(map)),
        });
        let mut merged = stored.cloned().unwrap_or_default();
        merged.extend(changed.clone());
        writes.push(Write::Put(key, text(&merged), 0));
    }
    (conditions, writes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_value_are_taken_and_bad_paths_are_not() {
        let body = br#"[{"op":"add","path":"/m1/metadata/a","value":"1"},
            {"op":"replace","path":"/m1/metadata/b","value":{"value":"2"}},
            {"op":"remove","path":"/m2/metadata/c"}]"#;
        let changes = parse_patch(body).unwrap();
        assert_eq!(changes[&MachineId::new("m1")]["a"], "1");
        assert_eq!(changes[&MachineId::new("m1")]["b"], "2");
        assert_eq!(changes[&MachineId::new("m2")]["c"], "");
        for bad in [
            r#"[{"op":"add","path":"/m1/metadata/a b","value":"1"}]"#,
            r#"[{"op":"add","path":"m1/metadata/a","value":"1"}]"#,
            r#"[{"op":"add","path":"/m1/a","value":"1"}]"#,
            r#"[{"op":"move","path":"/m1/metadata/a","value":"1"}]"#,
            r#"[{"op":"add","path":"/m1/metadata/a"}]"#,
            "{}",
        ] {
            assert!(parse_patch(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
