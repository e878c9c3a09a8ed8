//! The inputs, and how each is recognised and applied to one [`Machine`].

use std::borrow::Cow;

use crate::elsewhere::lift_coreos;
use crate::encoding::{LARGEST, gunzip, is_gzip};
use crate::field::{Field, Key, Shown};
use crate::machine::Machine;
use crate::node::{Entry, Node, Reader, Value};
use crate::problem::{Problem, Sourced};
use crate::{kernel, native, yaml};

/// What an input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// User-data: recognised by its first line, `#cloud-config` for YAML or `#orlop` for TOML; perhaps in gzip.
    CloudConfig,
    /// NoCloud's `meta-data`: YAML with `instance-id`, `local-hostname` and `public-keys`.
    MetaData,
    /// The native form.
    Toml,
    /// The kernel command line.
    KernelCommandLine,
}

/// One source of configuration.
#[derive(Debug, Clone)]
pub struct Input {
    /// What problems call it.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// What it holds.
    pub text: Vec<u8>,
}

/// Reads `inputs` in rising precedence: where two set the same value, the later one wins.
///
/// Never fails: what can not be used is reported and left out, so that the machine still starts.
#[must_use]
pub fn load(inputs: Vec<Input>) -> (Machine, Vec<Problem>) {
    let mut machine = Machine::default();
    let mut problems = Vec::new();
    for input in inputs {
        let mut reader = Reader::new(&input.name);
        if let Some(text) = text(&input, &mut reader) {
            apply(&input, &text, &mut machine, &mut reader);
        }
        reader
            .problems
            .sort_by_key(|problem| (problem.source.line, problem.source.column));
        problems.append(&mut reader.problems);
    }
    (machine, problems)
}

impl Machine {
    /// All values that are set, in the order of the keys' table.
    #[must_use]
    pub fn shown(&self) -> Vec<Shown> {
        let mut shown = Vec::new();
        Field::show(self, "", &mut shown);
        shown
    }

    /// All keys that there are.
    #[must_use]
    pub fn keys() -> Vec<Key> {
        let mut keys = Vec::new();
        <Self as Field>::describe("", "", &mut keys);
        keys
    }
}

/// The input's text, or `None` when it is empty or was reported.
fn text<'a>(input: &'a Input, reader: &mut Reader<'_>) -> Option<Cow<'a, str>> {
    let mut report = |message: String, line, column| {
        let problem =
            Problem::error(&reader.source(line, column), message).hint("nothing of it is applied");
        reader.problems.push(problem);
        None
    };
    let mut bytes = Cow::Borrowed(input.text.as_slice());
    if is_gzip(&bytes) && input.kind != Kind::KernelCommandLine {
        match gunzip(&bytes) {
            Ok(unpacked) => bytes = Cow::Owned(unpacked),
            Err(e) => return report(e.to_string(), 0, 0),
        }
    }
    if bytes.len() as u64 > LARGEST {
        return report(format!("larger than {} MiB", LARGEST >> 20), 0, 0);
    }
    if let Err(e) = std::str::from_utf8(&bytes) {
        let head = bytes.get(..e.valid_up_to()).unwrap_or_default();
        let line_start = head
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |at| at + 1);
        let line = 1 + head.iter().filter(|b| **b == b'\n').count();
        let column = 1 + String::from_utf8_lossy(head.get(line_start..).unwrap_or_default())
            .chars()
            .count();
        return report(
            "not text in UTF-8".to_owned(),
            u32::try_from(line).unwrap_or(u32::MAX),
            u32::try_from(column).unwrap_or(u32::MAX),
        );
    }
    let text = match bytes {
        Cow::Borrowed(bytes) => String::from_utf8_lossy(bytes),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8(bytes).unwrap_or_default()),
    };
    // A byte order mark is no part of the text.
    match text.strip_prefix('\u{feff}') {
        Some(rest) => Some(Cow::Owned(rest.to_owned())),
        None => Some(text),
    }
}

fn apply(input: &Input, text: &str, machine: &mut Machine, reader: &mut Reader<'_>) {
    match input.kind {
        Kind::KernelCommandLine => kernel::apply(text, machine, reader),
        Kind::MetaData => meta_data(text, machine, reader),
        Kind::Toml => {
            if let Some(root) = native::parse(text, reader) {
                apply_tree(root, machine, reader);
            }
        }
        Kind::CloudConfig => {
            let root = match user_data_kind(text) {
                UserData::Empty => None,
                UserData::Yaml => yaml::parse(text, reader),
                UserData::Toml => native::parse(text, reader),
                UserData::Unusable(message) => {
                    let problem = Problem::error(&reader.source(1, 1), message)
                        .hint("a cloud-config's first line is `#cloud-config`");
                    reader.problems.push(problem);
                    None
                }
            };
            if let Some(root) = root {
                apply_tree(root, machine, reader);
            }
        }
    }
}

enum UserData {
    Empty,
    Yaml,
    Toml,
    Unusable(&'static str),
}

fn user_data_kind(text: &str) -> UserData {
    let first = text.lines().next().unwrap_or_default().trim_end();
    match first {
        "#cloud-config" => UserData::Yaml,
        "#orlop" => UserData::Toml,
        _ if text.trim().is_empty() => UserData::Empty,
        _ if first.starts_with("#!") => UserData::Unusable("a script, which Orlop does not run"),
        _ if first.starts_with("#cloud-config-archive") || first.starts_with("#include") => {
            UserData::Unusable("a list of other configurations, which Orlop does not read")
        }
        _ if first.starts_with('{') => {
            UserData::Unusable("JSON (Ignition?), which Orlop does not read")
        }
        _ if first.starts_with("Content-Type:") || first.starts_with("MIME-Version:") => {
            UserData::Unusable("a MIME message, which Orlop does not read")
        }
        _ => UserData::Unusable("not a cloud-config"),
    }
}

fn apply_tree(mut root: Node, machine: &mut Machine, reader: &mut Reader<'_>) {
    lift_coreos(&mut root, reader);
    if let Value::Map(_) | Value::Null = root.value {
        machine.take(&root, reader);
    } else {
        let message = format!("wants a mapping of keys to values, not {}", root.kind());
        let problem =
            Problem::error(&reader.source_of(&root), message).hint("nothing of it is applied");
        reader.problems.push(problem);
    }
}

/// Keys of meta-data that data sources write and that say nothing for this machine.
const META_DATA_IGNORED: &[&str] = &["dsmode", "network_interfaces", "seedfrom", "cloud_name"];

fn meta_data(text: &str, machine: &mut Machine, reader: &mut Reader<'_>) {
    let Some(root) = yaml::parse(text, reader) else {
        return;
    };
    let Value::Map(entries) = root.value else {
        reader.path.push("meta-data".to_owned());
        return reader.wrong_type(&root, "a mapping");
    };
    // `local-hostname` is the one that NoCloud documents, so it comes last.
    let order = ["instance_id", "hostname", "local_hostname", "public_keys"];
    for wanted in order {
        for entry in entries
            .iter()
            .filter(|entry| crate::field::normalized(&entry.key) == wanted)
        {
            match wanted {
                "public_keys" => {
                    machine.take_at(&["ssh_authorized_keys"], &keys_of(&entry.node), reader)
                }
                "instance_id" => machine.take_at(&["instance_id"], &entry.node, reader),
                _ => machine.take_at(&["hostname"], &entry.node, reader),
            }
        }
    }
    for entry in &entries {
        let key = crate::field::normalized(&entry.key);
        if !order.contains(&key.as_str()) && !META_DATA_IGNORED.contains(&key.as_str()) {
            crate::field::unknown_key(entry, &order, reader);
        }
    }
}

/// `public-keys` is a key, a list of keys, or a mapping of names to keys.
fn keys_of(node: &Node) -> Node {
    let Value::Map(entries) = &node.value else {
        return node.clone();
    };
    let keys = entries.iter().map(|Entry { node, .. }| node.clone());
    Node {
        value: Value::List(keys.collect()),
        ..*node
    }
}

/// A value that was not written anywhere.
pub(crate) fn built_in<T>(value: T) -> Sourced<T> {
    Sourced {
        value,
        source: crate::Source {
            name: "built in".to_owned(),
            line: 0,
            column: 0,
        },
    }
}
