//! The file that is being read: how values are taken from it, and where findings go.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use crate::name::UnitName;
use crate::problem::{Position, Problems, Severity};
use crate::specifier::Expander;
use crate::syntax::Assignment;
use crate::value::Span;
use crate::words::{Word, Words};

/// The file that is being read.
pub(crate) struct Reading<'a> {
    pub(crate) path: &'a Arc<str>,
    pub(crate) expander: Expander<'a>,
    pub(crate) problems: &'a mut Problems,
}

impl Reading<'_> {
    pub(crate) fn report(&mut self, at: Position, severity: Severity, message: impl Into<String>) {
        self.problems.push(self.path, at, severity, message);
    }

    /// A value that is passed over.
    pub(crate) fn ignore(&mut self, a: &Assignment<'_>, offset: usize, message: &str) {
        self.report(
            a.value.position(offset),
            Severity::Warning,
            format!("{}=: {message}; ignored", a.key),
        );
    }

    /// A value without which the unit must not run.
    pub(crate) fn refuse(&mut self, a: &Assignment<'_>, offset: usize, message: &str) {
        self.report(
            a.value.position(offset),
            Severity::Error,
            format!("{}=: {message}", a.key),
        );
    }

    /// As [`Reading::ignore`] or [`Reading::refuse`].
    pub(crate) fn fail(
        &mut self,
        a: &Assignment<'_>,
        offset: usize,
        message: &str,
        severity: Severity,
    ) {
        match severity {
            Severity::Warning => self.ignore(a, offset, message),
            Severity::Error => self.refuse(a, offset, message),
        }
    }

    /// Text with its specifiers replaced; `offset` is where it starts in the value.
    pub(crate) fn expand<'t>(
        &mut self,
        a: &Assignment<'_>,
        text: &'t str,
        offset: usize,
        severity: Severity,
    ) -> Option<Cow<'t, str>> {
        match self.expander.expand(text) {
            Ok(text) => Some(text),
            Err(unknown) => {
                let message = format!("unknown specifier %{}", unknown.letter);
                self.fail(a, offset.saturating_add(unknown.offset), &message, severity);
                None
            }
        }
    }

    /// The whole value with its specifiers replaced.
    pub(crate) fn text<'t>(
        &mut self,
        a: &'t Assignment<'_>,
        severity: Severity,
    ) -> Option<Cow<'t, str>> {
        self.expand(a, &a.value.text, 0, severity)
    }

    /// The value's words, unquoted, with specifiers replaced.
    pub(crate) fn words(&mut self, a: &Assignment<'_>, severity: Severity) -> Option<Vec<Word>> {
        let mut out = Vec::new();
        let mut words = Words::new(&a.value.text);
        for word in words.by_ref() {
            match word {
                Ok(word) => {
                    let text = self
                        .expand(a, &word.text, word.offset, severity)?
                        .into_owned();
                    out.push(Word { text, ..word });
                }
                Err(error) => {
                    self.fail(a, error.offset(), error.message(), severity);
                    return None;
                }
            }
        }
        for offset in words.unknown_escapes {
            self.report(
                a.value.position(offset),
                Severity::Warning,
                "unknown escape, kept as it is",
            );
        }
        Some(out)
    }

    /// Sets `slot` from the value; the empty value sets the default.
    pub(crate) fn value<T>(
        &mut self,
        a: &Assignment<'_>,
        slot: &mut T,
        default: T,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) {
        if a.value.text.is_empty() {
            *slot = default;
            return;
        }
        let Some(text) = self.text(a, Severity::Warning) else {
            return;
        };
        match parse(&text) {
            Some(value) => *slot = value,
            None => self.ignore(a, 0, &format!("{text:?} is not {expected}")),
        }
    }

    /// As [`Reading::value`] for what may be unset.
    pub(crate) fn option<T>(
        &mut self,
        a: &Assignment<'_>,
        slot: &mut Option<T>,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) {
        self.value(a, slot, None, expected, |text| parse(text).map(Some));
    }

    pub(crate) fn bool(&mut self, a: &Assignment<'_>, slot: &mut bool, default: bool) {
        self.value(a, slot, default, "a boolean", crate::value::parse_bool);
    }

    pub(crate) fn span(&mut self, a: &Assignment<'_>, slot: &mut Option<Span>) {
        self.option(a, slot, "a time span", crate::value::parse_span);
    }

    pub(crate) fn duration(&mut self, a: &Assignment<'_>, slot: &mut Duration, default: Duration) {
        self.value(
            a,
            slot,
            default,
            "a time span",
            |text| match crate::value::parse_span(text)? {
                Span::Finite(span) => Some(span),
                Span::Infinity => Some(Duration::MAX),
            },
        );
    }

    /// A unit name in a list; `None` was reported.
    pub(crate) fn unit_name(
        &mut self,
        a: &Assignment<'_>,
        text: &str,
        offset: usize,
    ) -> Option<UnitName> {
        let text = self.expand(a, text, offset, Severity::Warning)?;
        let name = match UnitName::parse(&text) {
            Ok(name) => name,
            Err(error) => {
                self.ignore(a, offset, &error.to_string());
                return None;
            }
        };
        if !name.is_template() {
            return Some(name);
        }
        match self.expander.name.instance() {
            Some(instance) if !instance.is_empty() => name.with_instance(instance).ok(),
            _ => {
                self.ignore(
                    a,
                    offset,
                    &format!("{name} is a template, an instance is needed"),
                );
                None
            }
        }
    }
}
