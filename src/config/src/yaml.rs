//! YAML text to a tree of values. All or nothing: a text that does not parse gives one problem and no values,
//! because half of a configuration is a different configuration.

use std::collections::{HashMap, HashSet};

use granit_parser::{Event, Marker, Options, Parser, ScalarStyle, Tag};

use crate::node::{Entry, Form, Node, Reader, Scalar, Value};
use crate::problem::{Problem, quoted};

/// Nested collections that a configuration may have; no key needs more than six.
const DEEPEST: usize = 32;
/// Values that a configuration may have after its aliases are expanded.
const MOST_NODES: usize = 50_000;
/// Keys that one mapping may have.
const MOST_KEYS: usize = 5_000;

/// A collection that is still open.
struct Open {
    node: Node,
    anchor: usize,
    /// The key that waits for its value, in a mapping.
    key: Option<(String, u32, u32)>,
    /// The keys that were given, not merged.
    given: HashSet<String>,
}

/// The first document of `text`, or `None` when it is empty or was reported.
pub(crate) fn parse(text: &str, reader: &mut Reader<'_>) -> Option<Node> {
    match build(text, reader) {
        Ok(root) => root,
        Err((line, column, message)) => {
            let problem = Problem::error(
                &reader.source(line, column),
                format!("broken YAML: {message}"),
            )
            .hint("nothing of it is applied");
            reader.problems.push(problem);
            None
        }
    }
}

type Failure = (u32, u32, String);

fn build(text: &str, reader: &mut Reader<'_>) -> Result<Option<Node>, Failure> {
    let mut options = Options::default();
    options.flow_nesting_limit = DEEPEST;
    options.block_nesting_limit = DEEPEST;
    options.set_emit_comments(false);

    let mut open: Vec<Open> = Vec::new();
    let mut anchors: HashMap<usize, (Node, usize)> = HashMap::new();
    let mut nodes = 0_usize;
    let mut root = None;
    let mut duplicates = Vec::new();

    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|e| {
            let (line, column) = place(e.marker());
            (line, column, e.info())
        })?;
        let (line, column) = place(&span.start);
        let finished = match event {
            Event::SequenceStart(_, anchor, _) | Event::MappingStart(_, anchor, _) => {
                if open.len() >= DEEPEST {
                    return Err((line, column, format!("nested deeper than {DEEPEST} levels")));
                }
                let value = match event {
                    Event::SequenceStart(..) => Value::List(Vec::new()),
                    _ => Value::Map(Vec::new()),
                };
                open.push(Open {
                    node: Node {
                        line,
                        column,
                        value,
                    },
                    anchor,
                    key: None,
                    given: HashSet::new(),
                });
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(closed) = open.pop() else { continue };
                remember(&mut anchors, closed.anchor, &closed.node);
                closed.node
            }
            Event::Scalar(text, style, anchor, tag) => {
                nodes += 1;
                let value = scalar(text.into_owned(), style, tag.as_deref());
                let node = Node {
                    line,
                    column,
                    value,
                };
                remember(&mut anchors, anchor, &node);
                node
            }
            Event::Alias(anchor) => {
                let Some((node, size)) = anchors.get(&anchor) else {
                    return Err((line, column, "an alias inside its own anchor".to_owned()));
                };
                nodes = nodes.saturating_add(*size);
                if nodes > MOST_NODES {
                    return Err((
                        line,
                        column,
                        format!("aliases expand to more than {MOST_NODES} values"),
                    ));
                }
                node.clone()
            }
            Event::DocumentEnd => break,
            _ => continue,
        };
        if nodes > MOST_NODES {
            return Err((line, column, format!("more than {MOST_NODES} values")));
        }
        match open.last_mut() {
            None => root = Some(finished),
            Some(parent) => add(parent, finished, &mut duplicates)?,
        }
    }
    for (key, line, column) in duplicates {
        let problem = Problem::warning(
            &reader.source(line, column),
            format!("the key {} is given twice", quoted(&key)),
        )
        .hint("the later one holds");
        reader.problems.push(problem);
    }
    Ok(root)
}

fn add(
    parent: &mut Open,
    child: Node,
    duplicates: &mut Vec<(String, u32, u32)>,
) -> Result<(), Failure> {
    match &mut parent.node.value {
        Value::List(items) => items.push(child),
        Value::Map(entries) => match parent.key.take() {
            None => match child.value {
                Value::Scalar(scalar) => parent.key = Some((scalar.text, child.line, child.column)),
                Value::Null => parent.key = Some((String::new(), child.line, child.column)),
                _ => {
                    return Err((
                        child.line,
                        child.column,
                        "a key that is a list or a mapping".to_owned(),
                    ));
                }
            },
            Some((key, line, column)) if key == "<<" => merge(entries, child, line, column)?,
            Some((key, line, column)) => {
                if entries.len() >= MOST_KEYS {
                    let message = format!("more than {MOST_KEYS} keys in one mapping");
                    return Err((line, column, message));
                }
                if !parent.given.insert(key.clone()) {
                    duplicates.push((key.clone(), line, column));
                }
                entries.retain(|entry| entry.key != key);
                entries.push(Entry {
                    key,
                    line,
                    column,
                    node: child,
                });
            }
        },
        _ => {}
    }
    Ok(())
}

/// `<<: *anchor` (YAML 1.1 merge keys, which cloud-init's users know): adds what is not there yet.
fn merge(entries: &mut Vec<Entry>, from: Node, line: u32, column: u32) -> Result<(), Failure> {
    let sources = match from.value {
        Value::List(items) => items,
        value => vec![Node { value, ..from }],
    };
    for source in sources {
        let Value::Map(merged) = source.value else {
            return Err((line, column, "`<<` wants a mapping".to_owned()));
        };
        for entry in merged {
            if !entries.iter().any(|e| e.key == entry.key) {
                entries.push(entry);
            }
        }
    }
    Ok(())
}

fn remember(anchors: &mut HashMap<usize, (Node, usize)>, anchor: usize, node: &Node) {
    if anchor != 0 {
        anchors.insert(anchor, (node.clone(), size(node)));
    }
}

fn size(node: &Node) -> usize {
    match &node.value {
        Value::Null | Value::Scalar(_) => 1,
        Value::List(items) => 1 + items.iter().map(size).sum::<usize>(),
        Value::Map(entries) => 1 + entries.iter().map(|e| size(&e.node)).sum::<usize>(),
    }
}

fn scalar(text: String, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    let tag = tag.and_then(|tag| tag.suffix_in_namespace("tag:yaml.org,2002:"));
    let form = match (tag.as_deref(), style) {
        (Some("binary"), _) => Form::Binary,
        (Some("str"), _) => Form::Quoted,
        (_, ScalarStyle::Plain) => {
            // https://yaml.org/spec/1.2.2/#1032-tag-resolution
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL") {
                return Value::Null;
            }
            Form::Plain
        }
        _ => Form::Quoted,
    };
    Value::Scalar(Scalar { text, form })
}

fn place(marker: &Marker) -> (u32, u32) {
    let line = u32::try_from(marker.line()).unwrap_or(u32::MAX);
    let column = u32::try_from(marker.col().saturating_add(1)).unwrap_or(u32::MAX);
    (line.max(1), column)
}
