//! Where a value came from, and what was wrong with one.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A place in one input.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The input's name as an operator knows it: a path, or `kernel command line`.
    pub name: String,
    /// The line, from 1; 0 where the input as a whole is meant.
    pub line: u32,
    /// The column in characters, from 1; 0 where the input as a whole is meant.
    pub column: u32,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            f.write_str(&self.name)
        } else {
            write!(f, "{}:{}:{}", self.name, self.line, self.column)
        }
    }
}

/// A value that remembers its source.
///
/// Two are equal when their values are: the same machine may be written in two forms.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Sourced<T> {
    /// The value.
    pub value: T,
    /// Where it was written.
    pub source: Source,
}

impl<T: PartialEq> PartialEq for Sourced<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

/// How much a problem costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something that was asked for does not happen.
    Error,
    /// It happens, but perhaps not what was meant.
    Warning,
}

/// One thing that is wrong with an input. Displays as one line, `SOURCE:LINE:COLUMN: error: …`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What it costs.
    pub severity: Severity,
    /// Where it is.
    pub source: Source,
    /// What is wrong. Never holds the value of a secret.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Problem {
    pub(crate) fn error(source: &Source, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            source: source.clone(),
            message: message.into(),
            hint: None,
        }
    }

    pub(crate) fn warning(source: &Source, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(source, message)
        }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{}: {severity}: {}", self.source, OneLine(&self.message))?;
        match &self.hint {
            Some(hint) => write!(f, "; {}", OneLine(hint)),
            None => Ok(()),
        }
    }
}

/// Text with its control characters escaped: an input must not be able to forge a second line of the log.
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
                write!(f, "{}", c.escape_default())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

/// A piece of the input for use in a message: quoted, and not longer than a line can bear.
pub(crate) fn quoted(text: &str) -> String {
    const LONGEST: usize = 60;
    if text.chars().count() <= LONGEST {
        return format!("{text:?}");
    }
    let head: String = text.chars().take(LONGEST).collect();
    format!("{head:?}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_line_whatever_the_input_held() {
        let source = Source {
            name: "user-data".to_owned(),
            line: 3,
            column: 7,
        };
        let problem = Problem::error(&source, "bad \n\u{1b}[31m name").hint("mend it");
        assert_eq!(
            problem.to_string(),
            "user-data:3:7: error: bad \\n\\u{1b}[31m name; mend it"
        );
    }
}
