//! A line of `Exec…=` (`systemd.service(5)`, "Command lines").

use std::collections::{BTreeMap, HashMap};

use crate::problem::Position;

/// The prefixes `- : + ! !!`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "five independent prefixes of the file format"
)]
pub struct CommandFlags {
    /// `-`: a failure is noted and taken for success.
    pub ignore_failure: bool,
    /// `:`: `$` is left alone.
    pub no_expansion: bool,
    /// `+`: runs with full privileges, `User=` and limits of the sandbox unapplied.
    pub full_privileges: bool,
    /// `!` and `!!`: keeps the manager's user and groups.
    pub keep_user: bool,
}

/// One command, as written; [`Command::expand`] makes the arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// An absolute path, or a bare name that is looked up in the fixed search path.
    pub program: String,
    /// `@`: what the program sees as its own name; otherwise it sees `program`.
    pub argv0: Option<String>,
    /// The arguments after the program, unquoted, `$` not yet expanded.
    pub words: Vec<String>,
    /// The prefixes.
    pub flags: CommandFlags,
    /// Where the command stands, for messages.
    pub at: Position,
}

/// Where values of variables come from.
pub trait Variables {
    /// The value of `name`, if it is set.
    fn value(&self, name: &str) -> Option<&str>;
}

impl<S: std::hash::BuildHasher> Variables for HashMap<String, String, S> {
    fn value(&self, name: &str) -> Option<&str> {
        self.get(name).map(String::as_str)
    }
}

impl Variables for BTreeMap<String, String> {
    fn value(&self, name: &str) -> Option<&str> {
        self.get(name).map(String::as_str)
    }
}

impl Variables for [(String, String)] {
    /// The last entry wins, as later assignments do.
    fn value(&self, name: &str) -> Option<&str> {
        self.iter()
            .rev()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }
}

impl Command {
    /// The argument vector, the program's own name first.
    ///
    /// `${NAME}` becomes its value within the word; `$NAME` as a whole word is split at white space, quotes honoured,
    /// and may vanish; `$$` is a dollar sign; an unset variable is empty.
    #[must_use]
    pub fn expand<V: Variables + ?Sized>(&self, env: &V) -> Vec<String> {
        let mut out = Vec::with_capacity(self.words.len().saturating_add(1));
        out.push(self.argv0.clone().unwrap_or_else(|| self.program.clone()));
        for word in &self.words {
            if self.flags.no_expansion || !word.contains('$') {
                out.push(word.clone());
                continue;
            }
            match word.strip_prefix('$') {
                Some(name) if !name.starts_with(['{', '$']) && !name.is_empty() => {
                    crate::words::split_relaxed(env.value(name).unwrap_or_default(), &mut out);
                }
                _ => out.push(expand_within(word, env)),
            }
        }
        out
    }
}

/// Replaces `${NAME}` and `$$` in a word; any other `$` stays.
fn expand_within<V: Variables + ?Sized>(word: &str, env: &V) -> String {
    let mut out = String::with_capacity(word.len());
    let mut rest = word;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('{').and_then(|a| a.split_once('}')) {
            out.push_str(env.value(name).unwrap_or_default());
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(words: &[&str], env: &[(&str, &str)]) -> Vec<String> {
        let command = Command {
            program: "/bin/echo".into(),
            argv0: None,
            words: words.iter().map(|&w| w.into()).collect(),
            flags: CommandFlags::default(),
            at: Position::default(),
        };
        let env: Vec<(String, String)> = env.iter().map(|&(k, v)| (k.into(), v.into())).collect();
        command.expand(&env[..])[1..].to_vec()
    }

    #[test]
    fn a_whole_word_is_split_and_braces_are_not() {
        let env = [("ONE", "one"), ("TWO", "two two")];
        assert_eq!(
            expand(&["$ONE", "$TWO", "${TWO}"], &env),
            ["one", "two", "two", "two two"]
        );
    }

    #[test]
    fn an_unset_variable_vanishes_as_a_word_and_is_empty_in_braces() {
        assert_eq!(
            expand(&["a", "$NONE", "${NONE}", "x${NONE}y"], &[]),
            ["a", "", "xy"]
        );
    }

    #[test]
    fn dollars_that_name_nothing_stay() {
        assert_eq!(
            expand(&["$$HOME", "a$b", "$", "${open", "5$"], &[("b", "no")]),
            ["$HOME", "a$b", "$", "${open", "5$"]
        );
    }

    #[test]
    fn quotes_in_a_split_value_hold_together() {
        assert_eq!(
            expand(&["$OPTS"], &[("OPTS", "--a='b c'  \"d e\"")]),
            ["--a=b c", "d e"]
        );
    }

    #[test]
    fn the_colon_prefix_leaves_dollars_alone() {
        let command = Command {
            program: "/bin/echo".into(),
            argv0: Some("me".into()),
            words: vec!["${A}".into()],
            flags: CommandFlags {
                no_expansion: true,
                ..CommandFlags::default()
            },
            at: Position::default(),
        };
        assert_eq!(
            command.expand(&HashMap::from([("A".to_string(), "x".to_string())])),
            ["me", "${A}"]
        );
    }
}
