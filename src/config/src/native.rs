//! TOML text, the native form, to a tree of values.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::node::{Entry, Form, Node, Reader, Scalar, Value};
use crate::problem::Problem;

/// The document of `text`, or `None` when it was reported.
pub(crate) fn parse(text: &str, reader: &mut Reader<'_>) -> Option<Node> {
    let places = Places::of(text);
    match DeTable::parse(text) {
        Ok(table) => Some(Node {
            line: 1,
            column: 1,
            value: map(table.get_ref(), &places),
        }),
        Err(error) => {
            let (line, column) = error.span().map_or((1, 1), |span| places.find(span.start));
            let problem = Problem::error(
                &reader.source(line, column),
                format!("broken TOML: {}", error.message()),
            )
            .hint("nothing of it is applied");
            reader.problems.push(problem);
            None
        }
    }
}

fn map(table: &DeTable<'_>, places: &Places<'_>) -> Value {
    let mut keyed: Vec<_> = table.iter().collect();
    // The order of the text is the order of sysctls, files and units.
    keyed.sort_by_key(|(key, _)| key.span().start);
    Value::Map(
        keyed
            .into_iter()
            .map(|(key, value)| {
                let (line, column) = places.find(key.span().start);
                Entry {
                    key: key.get_ref().to_string(),
                    line,
                    column,
                    node: node(value, places),
                }
            })
            .collect(),
    )
}

fn node(value: &Spanned<DeValue<'_>>, places: &Places<'_>) -> Node {
    let (line, column) = places.find(value.span().start);
    let scalar = |text: String, form| Value::Scalar(Scalar { text, form });
    let value = match value.get_ref() {
        DeValue::String(text) => scalar(text.to_string(), Form::Quoted),
        DeValue::Integer(integer) => scalar(
            integer.as_str().to_owned(),
            Form::Integer {
                radix: integer.radix(),
            },
        ),
        DeValue::Float(float) => scalar(float.as_str().to_owned(), Form::Other),
        DeValue::Datetime(datetime) => scalar(datetime.to_string(), Form::Other),
        DeValue::Boolean(boolean) => scalar(boolean.to_string(), Form::Boolean),
        DeValue::Array(items) => Value::List(items.iter().map(|item| node(item, places)).collect()),
        DeValue::Table(table) => map(table, places),
    };
    Node {
        line,
        column,
        value,
    }
}

/// Byte offsets to lines and columns.
struct Places<'a> {
    text: &'a str,
    line_starts: Vec<usize>,
}

impl<'a> Places<'a> {
    fn of(text: &'a str) -> Self {
        let line_starts = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(at, _)| at + 1))
            .collect();
        Self { text, line_starts }
    }

    fn find(&self, offset: usize) -> (u32, u32) {
        let line = self
            .line_starts
            .partition_point(|&start| start <= offset)
            .max(1);
        let start = self.line_starts.get(line - 1).copied().unwrap_or(0);
        let column = self
            .text
            .get(start..offset)
            .map_or(0, |head| head.chars().count())
            + 1;
        (
            u32::try_from(line).unwrap_or(u32::MAX),
            u32::try_from(column).unwrap_or(u32::MAX),
        )
    }
}
