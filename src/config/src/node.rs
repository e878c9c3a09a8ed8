//! What YAML, TOML and the kernel command line have in common: a tree of values with their places.

use crate::problem::{Problem, Source};

/// A value and where it begins.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) value: Value,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// YAML's empty value: as if the key were not there.
    Null,
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) node: Node,
}

/// A scalar as it was written. Its type is decided by the key that it stands at, so that YAML 1.1's guesses
/// (`off` is false, `0644` is 420) never happen.
#[derive(Debug, Clone)]
pub(crate) struct Scalar {
    pub(crate) text: String,
    pub(crate) form: Form,
}

/// How a scalar was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// YAML without quotes: may be of any type.
    Plain,
    /// A string by its notation.
    Quoted,
    /// YAML's `!!binary`: the text is base64.
    Binary,
    /// A TOML integer; the text has the digits alone.
    Integer { radix: u32 },
    /// A TOML float or date.
    Other,
    /// A TOML boolean.
    Boolean,
    /// From the kernel command line, where everything is a word.
    Word,
}

impl Node {
    /// What a message calls this kind of value. The value itself may be a secret.
    pub(crate) fn kind(&self) -> &'static str {
        match &self.value {
            Value::Null => "nothing",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
            Value::Scalar(scalar) => match scalar.form {
                Form::Plain | Form::Word => "a plain value",
                Form::Quoted => "a string",
                Form::Binary => "binary data",
                Form::Integer { .. } => "a number",
                Form::Other => "a float or a date",
                Form::Boolean => "a boolean",
            },
        }
    }
}

/// What decoding carries along: the input's name, the path of keys, and what was found wrong.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    pub(crate) name: &'a str,
    pub(crate) path: Vec<String>,
    pub(crate) problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(name: &'a str) -> Self {
        Self {
            name,
            path: Vec::new(),
            problems: Vec::new(),
        }
    }

    pub(crate) fn source(&self, line: u32, column: u32) -> Source {
        Source {
            name: self.name.to_owned(),
            line,
            column,
        }
    }

    pub(crate) fn source_of(&self, node: &Node) -> Source {
        self.source(node.line, node.column)
    }

    /// The key being read, as an operator would write it: `network.interfaces.mtu`.
    pub(crate) fn key(&self) -> String {
        self.path.join(".")
    }

    /// Runs `read` with `key` at the end of the path.
    pub(crate) fn within<T>(&mut self, key: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(key.to_owned());
        let result = read(self);
        self.path.pop();
        result
    }

    /// Reports that the value at the current key is not what the key wants.
    pub(crate) fn wrong_type(&mut self, node: &Node, wanted: &str) {
        let message = format!(
            "{} wants {wanted}, not {}; it is skipped",
            self.key(),
            node.kind()
        );
        let problem = Problem::error(&self.source_of(node), message);
        self.problems.push(problem);
    }
}
