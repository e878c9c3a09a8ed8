//! How a key of the configuration is read, merged, shown and named: one line in a [`record!`] does all four.

use serde::{Deserialize, Serialize};

use crate::node::{Entry, Form, Node, Reader, Scalar as Written, Value};
use crate::problem::{Problem, Severity, Source, Sourced, quoted};

/// One key that can be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The path of keys, `network.interfaces.mtu`.
    pub path: String,
    /// What it means.
    pub summary: &'static str,
    /// What it wants: `true or false`, `a list of IP addresses`.
    pub wants: String,
}

/// One value that is set, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The path of keys, with indices where there are lists: `users[0].name`.
    pub path: String,
    /// The value; secrets and contents of files are described instead.
    pub value: String,
    /// Where it was written.
    pub source: Source,
}

/// A value that is written as one scalar.
pub(crate) trait Scalar: Sized {
    /// What a message says that the key wants: `a number`.
    const WANTS: &'static str;
    /// The value, or what is wrong with it, in words that do not quote a secret.
    fn read(written: &Written) -> Result<Self, Wrong>;
    /// The value for people.
    fn show(&self) -> String;
    /// A remark on a value that is accepted all the same.
    fn remark(_written: &Written) -> Option<String> {
        None
    }
}

/// Why a scalar is not what a key wants.
pub(crate) enum Wrong {
    /// Not of that type at all.
    Type,
    /// Of that type, but not possible.
    Value(String),
}

/// What can stand at a key.
pub(crate) trait Field {
    /// Takes the value from an input; a later input's value wins over an earlier one's.
    fn take(&mut self, node: &Node, reader: &mut Reader<'_>);
    /// Takes the value of a key below this one, named by a path as the kernel command line does.
    fn take_at(&mut self, path: &[&str], node: &Node, reader: &mut Reader<'_>) {
        if path.is_empty() {
            self.take(node, reader);
        } else {
            let message = format!("{} has no keys below it", reader.key());
            let problem = Problem::warning(&reader.source_of(node), message);
            reader.problems.push(problem);
        }
    }
    /// Appends the values that are set.
    fn show(&self, path: &str, shown: &mut Vec<Shown>);
    /// Appends the keys from here down.
    fn describe(path: &str, summary: &'static str, keys: &mut Vec<Key>)
    where
        Self: Sized;
}

/// A mapping with known keys. Implemented by [`record!`] alone.
pub(crate) trait Record: Default {
    const KEYS: &'static [&'static str];
    fn field(&mut self, key: &str) -> Option<&mut dyn Field>;
    fn show_fields(&self, path: &str, shown: &mut Vec<Shown>);
    fn describe_fields(path: &str, keys: &mut Vec<Key>);
}

/// A [`Record`] that stands in a list.
pub(crate) trait Item: Record {
    /// What the item lacks, if it cannot be used: `a path`.
    fn lacks(&self) -> Option<&'static str>;
    /// Whether a later item takes this one's place instead of following it.
    fn is_replaced_by(&self, _later: &Self) -> bool {
        false
    }
    /// What becomes of an item of which any value is wrong, when the rest of it must not be used alone: `the file is not
    /// written`.
    fn refused_whole() -> Option<&'static str> {
        None
    }
    /// An item written as one word, where that is allowed.
    fn from_word(_word: &str) -> Option<Self> {
        None
    }
}

/// Declares a mapping's keys: a line of documentation, the key, and the type of its value.
///
/// A type is `Option<Sourced<T>>` (one value), `Vec<Sourced<T>>` (a list, which a later input replaces),
/// [`Collected`] (a list, to which a later input adds), [`Settings`], another record, or a `Vec` of one.
macro_rules! record {
    ($(#[$meta:meta])* pub struct $name:ident { $( #[doc = $doc:literal] pub $key:ident: $type:ty, )* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default)]
        pub struct $name { $( #[doc = $doc] pub $key: $type, )* }

        impl $crate::field::Record for $name {
            const KEYS: &'static [&'static str] = &[$(stringify!($key)),*];

            fn field(&mut self, key: &str) -> Option<&mut dyn $crate::field::Field> {
                match key {
                    $( stringify!($key) => Some(&mut self.$key), )*
                    _ => None,
                }
            }

            fn show_fields(&self, path: &str, shown: &mut Vec<$crate::field::Shown>) {
                $( $crate::field::Field::show(&self.$key, &$crate::field::below(path, stringify!($key)), shown); )*
            }

            fn describe_fields(path: &str, keys: &mut Vec<$crate::field::Key>) {
                $( <$type as $crate::field::Field>::describe(
                    &$crate::field::below(path, stringify!($key)), $doc.trim_ascii(), keys); )*
            }
        }

        impl $crate::field::Field for $name {
            fn take(&mut self, node: &$crate::node::Node, reader: &mut $crate::node::Reader<'_>) {
                $crate::field::take_record(self, node, reader);
            }

            fn take_at(&mut self, path: &[&str], node: &$crate::node::Node, reader: &mut $crate::node::Reader<'_>) {
                $crate::field::take_record_at(self, path, node, reader);
            }

            fn show(&self, path: &str, shown: &mut Vec<$crate::field::Shown>) {
                $crate::field::Record::show_fields(self, path, shown);
            }

            fn describe(path: &str, _: &'static str, keys: &mut Vec<$crate::field::Key>) {
                <Self as $crate::field::Record>::describe_fields(path, keys);
            }
        }
    };
}
pub(crate) use record;

pub(crate) fn below(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// `-` and `_` are one in a key (coreos-cloudinit did the same).
pub(crate) fn normalized(key: &str) -> String {
    key.replace('-', "_")
}

pub(crate) fn take_record<R: Record>(record: &mut R, node: &Node, reader: &mut Reader<'_>) {
    match &node.value {
        Value::Null => {}
        Value::Map(entries) => {
            for entry in entries {
                match record.field(&normalized(&entry.key)) {
                    Some(field) => {
                        reader.within(&normalized(&entry.key), |r| field.take(&entry.node, r))
                    }
                    None => unknown_key(entry, R::KEYS, reader),
                }
            }
        }
        _ => reader.wrong_type(node, "a mapping"),
    }
}

pub(crate) fn take_record_at<R: Record>(
    record: &mut R,
    path: &[&str],
    node: &Node,
    reader: &mut Reader<'_>,
) {
    let Some((first, rest)) = path.split_first() else {
        return take_record(record, node, reader);
    };
    match record.field(&normalized(first)) {
        Some(field) => reader.within(&normalized(first), |r| field.take_at(rest, node, r)),
        None => {
            let entry = Entry {
                key: (*first).to_owned(),
                line: node.line,
                column: node.column,
                node: node.clone(),
            };
            unknown_key(&entry, R::KEYS, reader);
        }
    }
}

/// Reports a key that none of `candidates` is.
pub(crate) fn unknown_key(entry: &Entry, candidates: &[&str], reader: &mut Reader<'_>) {
    let source = reader.source(entry.line, entry.column);
    let place = match reader.path.is_empty() {
        true => String::new(),
        false => format!(" in {}", reader.key()),
    };
    let message = format!(
        "unknown key {}{place}; it has no effect",
        quoted(&entry.key)
    );
    let problem = Problem::warning(&source, message);
    let key = normalized(&entry.key);
    let elsewhere = crate::elsewhere::hint(&below(&reader.key(), &key));
    reader
        .problems
        .push(match (elsewhere, nearest(&key, candidates)) {
            (Some(hint), _) => problem.hint(hint),
            (None, Some(near)) => problem.hint(format!("did you mean {near:?}?")),
            (None, None) => problem,
        });
}

/// The candidate that `key` was probably meant to be.
fn nearest<'a>(key: &str, candidates: &[&'a str]) -> Option<&'a str> {
    // A third of the letters may be wrong; the length bounds the work on hostile keys.
    if key.len() > 64 {
        return None;
    }
    candidates
        .iter()
        .map(|candidate| (distance(key, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().div_ceil(3).min(3))
        .min()
        .map(|(_, candidate)| candidate)
}

/// The number of letters to insert, remove or replace to make `a` of `b` (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let replaced = row[j] + usize::from(x != *y);
            next.push(replaced.min(row[j + 1] + 1).min(next[j] + 1));
        }
        row = next;
    }
    row[b.len()]
}

/// The scalar at `node`, or `None` when it was reported.
fn read_scalar<T: Scalar>(node: &Node, reader: &mut Reader<'_>) -> Option<Sourced<T>> {
    let Value::Scalar(written) = &node.value else {
        if !matches!(node.value, Value::Null) {
            reader.wrong_type(node, T::WANTS);
        }
        return None;
    };
    let source = reader.source_of(node);
    match T::read(written) {
        Ok(value) => {
            if let Some(remark) = T::remark(written) {
                let problem = Problem::warning(&source, format!("{}: {remark}", reader.key()));
                reader.problems.push(problem);
            }
            Some(Sourced { value, source })
        }
        Err(Wrong::Type) => {
            reader.wrong_type(node, T::WANTS);
            None
        }
        Err(Wrong::Value(why)) => {
            let problem =
                Problem::error(&source, format!("{}: {why}; it is skipped", reader.key()));
            reader.problems.push(problem);
            None
        }
    }
}

/// Entries that a list may have, and settings that a mapping may have.
const MOST_ENTRIES: usize = 5_000;

/// Reports a list that is too long, and says where it is cut off.
fn bounded<'a, T>(items: &'a [T], node: &Node, reader: &mut Reader<'_>) -> &'a [T] {
    if items.len() > MOST_ENTRIES {
        let message = format!(
            "{} has {} entries; those after {MOST_ENTRIES} are skipped",
            reader.key(),
            items.len()
        );
        let problem = Problem::error(&reader.source_of(node), message);
        reader.problems.push(problem);
    }
    items.get(..MOST_ENTRIES).unwrap_or(items)
}

/// The scalars of a list; one scalar stands for a list of one, and a word of the kernel command line is split at commas.
fn read_list<T: Scalar>(node: &Node, reader: &mut Reader<'_>) -> Option<Vec<Sourced<T>>> {
    match &node.value {
        Value::Null => None,
        Value::List(items) => Some(
            bounded(items, node, reader)
                .iter()
                .filter_map(|item| read_scalar(item, reader))
                .collect(),
        ),
        Value::Scalar(written) if written.form == Form::Word => {
            let words = written.text.split(',').filter(|word| !word.is_empty());
            let items = words.map(|word| Node {
                value: Value::Scalar(Written {
                    text: word.to_owned(),
                    form: Form::Word,
                }),
                ..*node
            });
            Some(
                items
                    .filter_map(|item| read_scalar(&item, reader))
                    .collect(),
            )
        }
        Value::Scalar(_) => Some(read_scalar(node, reader).into_iter().collect()),
        Value::Map(_) => {
            reader.wrong_type(node, &format!("a list ({})", T::WANTS));
            None
        }
    }
}

fn show_scalar<T: Scalar>(value: &Sourced<T>, path: String, shown: &mut Vec<Shown>) {
    shown.push(Shown {
        path,
        value: value.value.show(),
        source: value.source.clone(),
    });
}

impl<T: Scalar> Field for Option<Sourced<T>> {
    fn take(&mut self, node: &Node, reader: &mut Reader<'_>) {
        if let Some(value) = read_scalar(node, reader) {
            *self = Some(value);
        }
    }

    fn show(&self, path: &str, shown: &mut Vec<Shown>) {
        if let Some(value) = self {
            show_scalar(value, path.to_owned(), shown);
        }
    }

    fn describe(path: &str, summary: &'static str, keys: &mut Vec<Key>) {
        keys.push(Key {
            path: path.to_owned(),
            summary,
            wants: T::WANTS.to_owned(),
        });
    }
}

impl<T: Scalar> Field for Vec<Sourced<T>> {
    fn take(&mut self, node: &Node, reader: &mut Reader<'_>) {
        if let Some(values) = read_list(node, reader) {
            *self = values;
        }
    }

    fn show(&self, path: &str, shown: &mut Vec<Shown>) {
        for (i, value) in self.iter().enumerate() {
            show_scalar(value, format!("{path}[{i}]"), shown);
        }
    }

    fn describe(path: &str, summary: &'static str, keys: &mut Vec<Key>) {
        keys.push(Key {
            path: path.to_owned(),
            summary,
            wants: format!("a list: {}", T::WANTS),
        });
    }
}

/// A list to which each input adds what is not there yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Collected<T>(pub Vec<Sourced<T>>);

impl<T> Default for Collected<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Scalar + PartialEq> Field for Collected<T> {
    fn take(&mut self, node: &Node, reader: &mut Reader<'_>) {
        for value in read_list(node, reader).into_iter().flatten() {
            if !self.0.contains(&value) {
                self.0.push(value);
            }
        }
    }

    fn show(&self, path: &str, shown: &mut Vec<Shown>) {
        self.0.show(path, shown);
    }

    fn describe(path: &str, summary: &'static str, keys: &mut Vec<Key>) {
        <Vec<Sourced<T>> as Field>::describe(path, summary, keys);
    }
}

/// A mapping whose keys are free, in the order of the text: the sysctls.
///
/// A key may be written with its dots (`net.core.somaxconn`) or as nested mappings, which is what
/// TOML makes of unquoted dots. A later value of a key takes the earlier one's place.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Settings(pub Vec<Setting>);

/// One entry of [`Settings`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// The key, as it was written.
    pub key: String,
    /// Its value.
    pub value: Sourced<String>,
}

impl Settings {
    fn set(&mut self, key: &str, node: &Node, reader: &mut Reader<'_>) {
        match &node.value {
            Value::Map(entries) => {
                for entry in entries {
                    self.set(&below(key, &entry.key), &entry.node, reader);
                }
            }
            _ => reader.within(key, |reader| {
                let Some(value) = read_scalar::<AnyText>(node, reader) else {
                    return;
                };
                let value = Sourced {
                    value: value.value.0,
                    source: value.source,
                };
                if let Some(setting) = self.0.iter_mut().find(|setting| setting.key == key) {
                    setting.value = value;
                } else if self.0.len() < MOST_ENTRIES {
                    let key = key.to_owned();
                    self.0.push(Setting { key, value });
                } else {
                    let message = format!("there are more than {MOST_ENTRIES} settings already");
                    reader.problems.push(Problem::error(&value.source, message));
                }
            }),
        }
    }
}

/// A setting's value: a number is as good as a string.
struct AnyText(String);

impl Scalar for AnyText {
    const WANTS: &'static str = "a string or a number";

    fn read(written: &Written) -> Result<Self, Wrong> {
        match written.form {
            Form::Plain | Form::Quoted | Form::Word | Form::Integer { radix: 10 } => {
                Ok(Self(written.text.clone()))
            }
            Form::Integer { radix } => i64::from_str_radix(&written.text, radix)
                .map(|number| Self(number.to_string()))
                .map_err(|_| Wrong::Type),
            _ => Err(Wrong::Type),
        }
    }

    fn show(&self) -> String {
        self.0.clone()
    }
}

impl Field for Settings {
    fn take(&mut self, node: &Node, reader: &mut Reader<'_>) {
        match &node.value {
            Value::Null => {}
            Value::Map(entries) => {
                for entry in entries {
                    self.set(&entry.key, &entry.node, reader);
                }
            }
            _ => reader.wrong_type(node, "a mapping of keys to values"),
        }
    }

    fn take_at(&mut self, path: &[&str], node: &Node, reader: &mut Reader<'_>) {
        if path.is_empty() {
            self.take(node, reader);
        } else {
            self.set(&path.join("."), node, reader);
        }
    }

    fn show(&self, path: &str, shown: &mut Vec<Shown>) {
        for setting in &self.0 {
            shown.push(Shown {
                path: below(path, &setting.key),
                value: setting.value.value.clone(),
                source: setting.value.source.clone(),
            });
        }
    }

    fn describe(path: &str, summary: &'static str, keys: &mut Vec<Key>) {
        keys.push(Key {
            path: format!("{path}.KEY"),
            summary,
            wants: AnyText::WANTS.to_owned(),
        });
    }
}

impl<R: Item> Field for Vec<R> {
    fn take(&mut self, node: &Node, reader: &mut Reader<'_>) {
        let items = match &node.value {
            Value::Null => return,
            Value::List(items) => bounded(items, node, reader),
            _ => return reader.wrong_type(node, "a list of mappings"),
        };
        for item in items {
            let mut record = R::default();
            let reported = reader.problems.len();
            match &item.value {
                Value::Scalar(written) => match R::from_word(&written.text) {
                    Some(from_word) => record = from_word,
                    None => {
                        reader.wrong_type(item, "a list of mappings");
                        continue;
                    }
                },
                _ => take_record(&mut record, item, reader),
            }
            if let Some(lacking) = record.lacks() {
                let message = format!(
                    "an entry of {} has no usable {lacking}; it is skipped",
                    reader.key()
                );
                let problem = Problem::error(&reader.source_of(item), message);
                reader.problems.push(problem);
                continue;
            }
            if let Some(consequence) = R::refused_whole() {
                let new = reader.problems.iter_mut().skip(reported);
                let mut errors = new.filter(|problem| problem.severity == Severity::Error);
                if let Some(first) = errors.next() {
                    first.hint.get_or_insert_with(|| consequence.to_owned());
                    continue;
                }
            }
            match self
                .iter_mut()
                .find(|earlier| earlier.is_replaced_by(&record))
            {
                Some(earlier) => *earlier = record,
                None => self.push(record),
            }
        }
    }

    fn show(&self, path: &str, shown: &mut Vec<Shown>) {
        for (i, record) in self.iter().enumerate() {
            record.show_fields(&format!("{path}[{i}]"), shown);
        }
    }

    fn describe(path: &str, _: &'static str, keys: &mut Vec<Key>) {
        R::describe_fields(path, keys);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_is_matched_to_the_one_that_was_meant() {
        let keys = ["hostname", "write_files", "users"];
        assert_eq!(nearest("hostnme", &keys), Some("hostname"));
        assert_eq!(nearest("write_file", &keys), Some("write_files"));
        assert_eq!(nearest("zebra", &keys), None);
    }
}
