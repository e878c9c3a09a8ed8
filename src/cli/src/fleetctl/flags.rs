//! Flags as Go's programs take them: `-name`, `--name`, with `=value` or the value in the next word.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};

/// One flag.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flag {
    name: &'static str,
    /// Without a value, or with `=true` and `=false`.
    switch: bool,
    default: &'static str,
    help: &'static str,
    effect: Effect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Heeded,
    /// Scripts may give it; nothing comes of it.
    Ignored,
    /// Ignoring it would deceive.
    Refused,
}

impl Flag {
    pub(super) const fn value(
        name: &'static str,
        default: &'static str,
        help: &'static str,
    ) -> Self {
        Self {
            name,
            switch: false,
            default,
            help,
            effect: Effect::Heeded,
        }
    }

    pub(super) const fn switch(
        name: &'static str,
        default: &'static str,
        help: &'static str,
    ) -> Self {
        Self {
            switch: true,
            ..Self::value(name, default, help)
        }
    }

    pub(super) const fn ignored(name: &'static str) -> Self {
        Self {
            effect: Effect::Ignored,
            ..Self::value(name, "", "")
        }
    }

    pub(super) const fn ignored_switch(name: &'static str) -> Self {
        Self {
            switch: true,
            ..Self::ignored(name)
        }
    }

    pub(super) const fn refused(name: &'static str, help: &'static str) -> Self {
        Self {
            effect: Effect::Refused,
            ..Self::value(name, "", help)
        }
    }
}

/// Flags' values.
#[derive(Clone, Debug, Default)]
pub(super) struct Values(BTreeMap<&'static str, String>);

impl Values {
    /// The value of a flag, empty when there is no such flag.
    pub(super) fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// Whether a switch is on.
    pub(super) fn is_set(&self, name: &str) -> bool {
        matches!(
            self.get(name).to_ascii_lowercase().as_str(),
            "true" | "t" | "1" | "yes"
        )
    }
}

/// Reads flags; gives the words that are none. With `leading` the first of those ends the flags.
pub(super) fn parse(
    flags: &'static [Flag],
    words: &[String],
    leading: bool,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<(Values, Vec<String>)> {
    let mut values = Values::default();
    for flag in flags {
        let value = environment(flag.name).filter(|_| flag.effect == Effect::Heeded);
        values
            .0
            .insert(flag.name, value.unwrap_or_else(|| flag.default.to_owned()));
    }
    let mut rest = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let body = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
        let Some(body) = body.filter(|body| !body.is_empty()) else {
            if word == "--" {
                rest.extend(words.cloned());
                break;
            }
            rest.push(word.clone());
            if leading {
                rest.extend(words.cloned());
                break;
            }
            continue;
        };
        let (name, given) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        let Some(flag) = flags.iter().find(|flag| flag.name == name) else {
            bail!("no flag -{name}");
        };
        let value = match given {
            Some(value) => value,
            None if flag.switch => "true".to_owned(),
            None => words
                .next()
                .cloned()
                .with_context(|| format!("-{name} needs a value"))?,
        };
        match flag.effect {
            Effect::Refused => bail!("-{name}: {}", flag.help),
            Effect::Ignored => {}
            Effect::Heeded => {
                values.0.insert(flag.name, value);
            }
        }
    }
    Ok((values, rest))
}

/// The flags for a reader, each on its line.
pub(super) fn help(flags: &[Flag], indent: usize) -> String {
    let heeded = flags.iter().filter(|f| f.effect == Effect::Heeded);
    heeded
        .map(|flag| {
            let default = match flag.default {
                "" | "false" => String::new(),
                other => format!(" ({other})"),
            };
            format!("{:indent$}--{}: {}{default}\n", "", flag.name, flag.help)
        })
        .collect()
}
