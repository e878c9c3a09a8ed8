//! What is wrong with a unit file, and where.

use std::fmt;
use std::sync::Arc;

/// Whether the unit can be used all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The assignment was ignored; the rest of the unit counts.
    Warning,
    /// The unit does not load.
    Error,
}

/// One finding in one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, as it was named to the store.
    pub path: Arc<str>,
    /// Line, from 1; 0 where the finding is about the whole file.
    pub line: u32,
    /// Column in characters, from 1; 0 where the finding is about the whole line or file.
    pub column: u32,
    /// Whether the unit loads in spite of it.
    pub severity: Severity,
    /// One sentence: lower case, no full stop.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
            if self.column > 0 {
                write!(f, ":{}", self.column)?;
            }
        }
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, ": {severity}: {}", self.message)
    }
}

/// A place in a file: line and column, both from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

/// How many findings one unit may pile up: a hostile file must not fill the log or the memory.
const MAX_PROBLEMS: usize = 64;

/// Collects findings, at most [`MAX_PROBLEMS`] and all errors' first.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    list: Vec<Problem>,
    failed: bool,
}

impl Problems {
    pub(crate) fn push(
        &mut self,
        path: &Arc<str>,
        at: Position,
        severity: Severity,
        message: impl Into<String>,
    ) {
        let first_error = severity == Severity::Error && !self.failed;
        self.failed |= severity == Severity::Error;
        if self.list.len() >= MAX_PROBLEMS && !first_error {
            return;
        }
        self.list.push(Problem {
            path: path.clone(),
            line: at.line,
            column: at.column,
            severity,
            message: message.into(),
        });
    }

    pub(crate) fn failed(&self) -> bool {
        self.failed
    }

    pub(crate) fn into_list(self) -> Vec<Problem> {
        self.list
    }
}
