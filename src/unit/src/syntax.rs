//! The lines of a unit file (`systemd.syntax(7)`).

use std::borrow::Cow;
use std::sync::Arc;

use crate::problem::{Position, Problems, Severity};

/// The longest line, continuations included, in bytes.
pub(crate) const MAX_LINE_BYTES: usize = 1 << 20;

/// The right-hand side of an assignment, continuations joined, and where each part of it stood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Value<'a> {
    pub(crate) text: Cow<'a, str>,
    start: Position,
    /// For each further line: the byte offset in `text` at which it begins, and its place.
    joins: Vec<(usize, Position)>,
}

impl Value<'_> {
    /// Where the character at a byte offset of the text stood in the file.
    pub(crate) fn position(&self, offset: usize) -> Position {
        let (from, base) = self
            .joins
            .iter()
            .rev()
            .find(|(start, _)| *start <= offset)
            .copied()
            .unwrap_or((0, self.start));
        let characters = self
            .text
            .get(from..offset)
            .map_or(0, |part| part.chars().count());
        let column = base
            .column
            .saturating_add(u32::try_from(characters).unwrap_or(u32::MAX));
        Position {
            line: base.line,
            column,
        }
    }
}

/// One `Key=Value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Assignment<'a> {
    pub(crate) section: &'a str,
    pub(crate) key: Cow<'a, str>,
    pub(crate) key_at: Position,
    pub(crate) value: Value<'a>,
}

/// A line with its continuations.
struct Logical<'a> {
    text: Cow<'a, str>,
    /// As [`Value::joins`], from the line's first character on.
    parts: Vec<(usize, Position)>,
    line: u32,
}

/// Reads all assignments of a file. What is no assignment becomes a problem and is passed over.
pub(crate) fn parse<'a>(
    path: &Arc<str>,
    text: &'a str,
    problems: &mut Problems,
) -> Vec<Assignment<'a>> {
    let mut out = Vec::new();
    let mut section: Option<&'a str> = None;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = text
        .split('\n')
        .zip(1u32..)
        .map(|(line, n)| (line.strip_suffix('\r').unwrap_or(line), n));
    while let Some(logical) = next_logical(&mut lines) {
        let at = |column: u32| Position {
            line: logical.line,
            column,
        };
        if logical.text.len() > MAX_LINE_BYTES {
            problems.push(
                path,
                at(1),
                Severity::Error,
                format!("line is longer than {MAX_LINE_BYTES} bytes"),
            );
            continue;
        }
        let trimmed = logical.text.trim();
        if trimmed.is_empty() {
            continue;
        }
        let indent = logical
            .text
            .len()
            .saturating_sub(logical.text.trim_start().len());
        let column = u32::try_from(indent).unwrap_or(u32::MAX).saturating_add(1);
        if trimmed.starts_with('[') {
            let name = match &logical.text {
                Cow::Borrowed(line) => line
                    .trim()
                    .strip_prefix('[')
                    .and_then(|t| t.strip_suffix(']')),
                Cow::Owned(_) => None,
            };
            match name {
                Some(name) if !name.is_empty() => section = Some(name),
                _ => {
                    section = None;
                    problems.push(
                        path,
                        at(column),
                        Severity::Error,
                        "section header is not closed by ]",
                    );
                }
            }
            continue;
        }
        let Some(equals) = logical.text.find('=') else {
            problems.push(
                path,
                at(column),
                Severity::Warning,
                "no = in this line, ignored",
            );
            continue;
        };
        let Some(section) = section else {
            problems.push(
                path,
                at(column),
                Severity::Warning,
                "assignment before the first section, ignored",
            );
            continue;
        };
        if let Some(assignment) = assignment(section, &logical, equals, at(column)) {
            out.push(assignment);
        } else {
            problems.push(
                path,
                at(column),
                Severity::Warning,
                "no key before =, ignored",
            );
        }
    }
    out
}

fn assignment<'a>(
    section: &'a str,
    logical: &Logical<'a>,
    equals: usize,
    key_at: Position,
) -> Option<Assignment<'a>> {
    let (key, value) = match &logical.text {
        Cow::Borrowed(line) => {
            let line: &'a str = line;
            let (key, value) = line.split_at_checked(equals)?;
            (
                Cow::Borrowed(key.trim()),
                Cow::Borrowed(value.strip_prefix('=')?.trim()),
            )
        }
        Cow::Owned(line) => {
            let (key, value) = line.split_at_checked(equals)?;
            (
                Cow::Owned(key.trim().to_owned()),
                Cow::Owned(value.strip_prefix('=')?.trim().to_owned()),
            )
        }
    };
    if key.is_empty() {
        return None;
    }
    let raw = logical.text.get(equals.saturating_add(1)..)?;
    let skipped = equals
        .saturating_add(1)
        .saturating_add(raw.len().saturating_sub(raw.trim_start().len()));
    let whole = Value {
        text: logical.text.clone(),
        start: Position {
            line: logical.line,
            column: 1,
        },
        joins: logical.parts.clone(),
    };
    let start = whole.position(skipped);
    let joins = logical
        .parts
        .iter()
        .filter_map(|(offset, at)| Some((offset.checked_sub(skipped)?, *at)))
        .filter(|(offset, _)| *offset > 0)
        .collect();
    Some(Assignment {
        section,
        key,
        key_at,
        value: Value {
            text: value,
            start,
            joins,
        },
    })
}

/// The next line that is no comment, joined with those that its backslashes ask for.
fn next_logical<'a>(lines: &mut impl Iterator<Item = (&'a str, u32)>) -> Option<Logical<'a>> {
    let is_comment = |line: &str| line.trim_start().starts_with(['#', ';']);
    let (first, line) = lines.by_ref().find(|(line, _)| !is_comment(line))?;
    let Some(head) = continued(first) else {
        return Some(Logical {
            text: Cow::Borrowed(first),
            parts: Vec::new(),
            line,
        });
    };
    let mut text = format!("{head} ");
    let mut parts = Vec::new();
    for (next, number) in lines.by_ref().filter(|(line, _)| !is_comment(line)) {
        // Bounded here already: the rest of an over-long line is read over, not gathered.
        if text.len() <= MAX_LINE_BYTES {
            parts.push((
                text.len(),
                Position {
                    line: number,
                    column: 1,
                },
            ));
        }
        let more = continued(next);
        if text.len() <= MAX_LINE_BYTES {
            text.push_str(more.unwrap_or(next));
            if more.is_some() {
                text.push(' ');
            }
        }
        if more.is_none() {
            break;
        }
    }
    Some(Logical {
        text: Cow::Owned(text),
        parts,
        line,
    })
}

/// The line without the backslash that continues it; an even number of backslashes ends no line.
fn continued(line: &str) -> Option<&str> {
    let backslashes = line.bytes().rev().take_while(|b| *b == b'\\').count();
    if backslashes % 2 == 1 {
        line.strip_suffix('\\')
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<(String, String, String)>, Vec<String>) {
        let mut problems = Problems::default();
        let list = parse(&"f".into(), text, &mut problems)
            .into_iter()
            .map(|a| {
                (
                    a.section.to_owned(),
                    a.key.into_owned(),
                    a.value.text.into_owned(),
                )
            })
            .collect();
        (
            list,
            problems
                .into_list()
                .iter()
                .map(ToString::to_string)
                .collect(),
        )
    }

    #[test]
    fn continuations_become_one_space_and_skip_comments() {
        let (list, problems) = read("[S]\nA = one\\\n  # no\n ; no\n two \\\nthree\nB=x\\\\\nC=\n");
        assert_eq!(
            list,
            [
                ("S", "A", "one  two  three"),
                ("S", "B", "x\\\\"),
                ("S", "C", "")
            ]
            .map(|(s, k, v)| (s.to_owned(), k.to_owned(), v.to_owned()))
        );
        assert!(problems.is_empty());
    }

    #[test]
    fn a_blank_line_ends_a_continuation() {
        let (list, _) = read("[S]\nA=x\\\n\nB=y\n");
        assert_eq!(list.len(), 2);
    }

    #[test]
    fn windows_line_ends_and_a_byte_order_mark_do_no_harm() {
        let (list, problems) = read("\u{feff}[S]\r\nA=x\\\r\ny\r\n");
        assert_eq!((list[0].2.as_str(), problems.len()), ("x y", 0));
    }

    #[test]
    fn what_is_no_assignment_is_named_with_its_place() {
        let (_, problems) = read("A=1\n[S\n[T]\n  nonsense\n=x\n");
        assert_eq!(
            problems,
            [
                "f:1:1: warning: assignment before the first section, ignored",
                "f:2:1: error: section header is not closed by ]",
                "f:4:3: warning: no = in this line, ignored",
                "f:5:1: warning: no key before =, ignored",
            ]
        );
    }

    #[test]
    fn positions_survive_continuations() {
        let text = "[S]\nKey= äb \\\n# c\n  cd\\\nef\n";
        let list = parse(&"f".into(), text, &mut Problems::default());
        let value = &list[0].value;
        let place = |what: &str| {
            let p = value.position(value.text.find(what).unwrap());
            (p.line, p.column)
        };
        assert_eq!(
            (place("ä"), place("b"), place("cd"), place("d"), place("ef")),
            ((2, 6), (2, 7), (4, 3), (4, 4), (5, 1))
        );
    }

    #[test]
    fn an_endless_line_is_refused_without_being_kept() {
        let text = format!("[S]\nA={}x\nB=1\n", "x\\\n".repeat(MAX_LINE_BYTES));
        let (list, problems) = read(&text);
        assert_eq!((list.len(), problems.len()), (1, 1));
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "([\\[\\]=\\\\\n\r#; a-cä\"'%$]){0,80}") {
            let mut problems = Problems::default();
            for a in parse(&"f".into(), &text, &mut problems) {
                for offset in 0..=a.value.text.len() {
                    let _ = a.value.position(offset);
                }
            }
        }
    }
}
