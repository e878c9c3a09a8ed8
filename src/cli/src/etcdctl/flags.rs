//! Flags as etcdctl takes them: `--name value`, `--name=value`, `-n value`, anywhere among the words.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Failure;

/// One flag.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flag {
    pub(super) name: &'static str,
    /// Its one letter, if it has one.
    short: Option<char>,
    /// Without a value, or with `=true` and `=false`.
    switch: bool,
    default: &'static str,
    help: &'static str,
}

impl Flag {
    pub(super) const fn value(
        name: &'static str,
        default: &'static str,
        help: &'static str,
    ) -> Self {
        Self {
            name,
            short: None,
            switch: false,
            default,
            help,
        }
    }

    pub(super) const fn switch(name: &'static str, help: &'static str) -> Self {
        Self {
            switch: true,
            ..Self::value(name, "false", help)
        }
    }

    pub(super) const fn short(self, letter: char) -> Self {
        Self {
            short: Some(letter),
            ..self
        }
    }
}

/// What was given: the flags' values, and the words that are none.
#[derive(Clone, Debug, Default)]
pub(super) struct Given {
    values: BTreeMap<&'static str, (String, bool)>,
    /// The words that are no flags.
    pub(super) words: Vec<String>,
    /// How many of the words stood before `--`.
    pub(super) separator: Option<usize>,
}

/// Where the flags end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// At `--`, or nowhere.
    End,
    /// At the first word.
    Word,
}

impl Given {
    /// Reads `words`; what is not given is taken from the environment or is the default.
    pub(super) fn read(
        tables: &[&'static [Flag]],
        words: &[String],
        until: Until,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, String> {
        let mut given = Self::default();
        let all = || tables.iter().copied().flatten();
        for flag in all() {
            let value = environment(flag.name);
            let set = value.is_some();
            let value = value.unwrap_or_else(|| flag.default.to_owned());
            given.values.insert(flag.name, (value, set));
        }
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if word == "--" {
                given.separator = Some(given.words.len());
                given.words.extend(words.cloned());
                break;
            }
            let Some(body) = word.strip_prefix('-').filter(|body| !body.is_empty()) else {
                given.words.push(word.clone());
                if until == Until::Word {
                    given.words.extend(words.cloned());
                    break;
                }
                continue;
            };
            let (flag, value) = if let Some(body) = body.strip_prefix('-') {
                let (name, value) = match body.split_once('=') {
                    Some((name, value)) => (name, Some(value)),
                    None => (body, None),
                };
                let flag = all().find(|f| f.name == name);
                (
                    flag.ok_or_else(|| format!("unknown flag: --{name}"))?,
                    value,
                )
            } else {
                let letter = body.chars().next().unwrap_or_default();
                let rest = &body[letter.len_utf8()..];
                let rest = rest.strip_prefix('=').unwrap_or(rest);
                let value = Some(rest).filter(|rest| !rest.is_empty());
                let flag = all().find(|f| f.short == Some(letter) || f.name == body);
                let flag =
                    flag.ok_or_else(|| format!("unknown shorthand flag: {letter:?} in -{body}"))?;
                (flag, value.filter(|_| flag.name != body))
            };
            let value = match value {
                Some(value) => value.to_owned(),
                None if flag.switch => "true".to_owned(),
                None => words
                    .next()
                    .cloned()
                    .ok_or_else(|| format!("flag needs an argument: --{}", flag.name))?,
            };
            if flag.switch && switch(&value).is_none() {
                return Err(format!(
                    "invalid argument {value:?} for \"--{}\" flag: strconv.ParseBool: parsing {value:?}: invalid syntax",
                    flag.name
                ));
            }
            given.values.insert(flag.name, (value, true));
        }
        Ok(given)
    }

    /// The value of a flag, empty when there is no such flag.
    pub(super) fn get(&self, name: &str) -> &str {
        self.values.get(name).map_or("", |(value, _)| value)
    }

    /// Whether it was given, here or in the environment.
    pub(super) fn has(&self, name: &str) -> bool {
        self.values.get(name).is_some_and(|(_, set)| *set)
    }

    /// Whether a switch is on.
    pub(super) fn is_set(&self, name: &str) -> bool {
        switch(self.get(name)).unwrap_or(false)
    }

    /// A number.
    pub(super) fn number(&self, name: &str) -> Result<i64, Failure> {
        let text = self.get(name);
        text.parse().map_err(|_| {
            Failure::new(
                1,
                format!("invalid argument {text:?} for \"--{name}\" flag: strconv.ParseInt: parsing {text:?}: invalid syntax"),
            )
        })
    }

    /// A time such as `5s`, `1m30s` or `200ms`.
    pub(super) fn duration(&self, name: &str) -> Result<Duration, Failure> {
        let text = self.get(name);
        duration(text).ok_or_else(|| {
            Failure::new(
                1,
                format!("invalid argument {text:?} for \"--{name}\" flag: time: invalid duration {text:?}"),
            )
        })
    }
}

fn switch(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A time as Go writes it; not more than some years.
fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest.get(..end)?.parse().ok()?;
        rest = rest.get(end..)?;
        let end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let scale = match rest.get(..end)? {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        rest = rest.get(end..)?;
        total += number * scale;
    }
    (!text.is_empty() && total < 1e9).then(|| Duration::from_secs_f64(total))
}

/// The flags for a reader, each on its line.
pub(super) fn help(flags: &[Flag]) -> String {
    flags
        .iter()
        .map(|flag| {
            let short = flag
                .short
                .map_or("    ".to_owned(), |letter| format!("-{letter}, "));
            let default = match flag.default {
                "" | "false" => String::new(),
                other => format!(" ({other})"),
            };
            format!("  {short}--{}: {}{default}\n", flag.name, flag.help)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &[Flag] = &[
        Flag::value("write-out", "simple", "").short('w'),
        Flag::switch("prefix", ""),
        Flag::value("rev", "0", ""),
    ];

    fn read(words: &[&str]) -> Result<Given, String> {
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        Given::read(&[FLAGS], &words, Until::End, |name| {
            (name == "rev").then(|| "7".to_owned())
        })
    }

    #[test]
    fn flags_may_stand_anywhere_before_the_two_dashes() {
        let given =
            read(&["a", "-w", "json", "--prefix", "b", "--", "--rev=1"]).expect("it is fine");
        assert_eq!(given.words, ["a", "b", "--rev=1"]);
        assert_eq!(given.separator, Some(2));
        assert_eq!(given.get("write-out"), "json");
        assert!(given.is_set("prefix") && given.has("prefix"));
        assert_eq!(given.number("rev").expect("of the environment"), 7);
        for word in ["-w=table", "-wtable", "--write-out=table"] {
            let given = read(&[word, "--prefix=false"]).expect("it is fine");
            assert_eq!(given.get("write-out"), "table");
            assert!(!given.is_set("prefix"));
        }
        assert_eq!(read(&["--no"]).expect_err("unknown"), "unknown flag: --no");
        read(&["--rev"]).expect_err("a value is missing");
        read(&["--prefix=7"]).expect_err("it is no switch's value");
        read(&["-ü"]).expect_err("unknown");
    }

    #[test]
    fn times_are_written_as_in_go() {
        assert_eq!(duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(duration("200ms"), Some(Duration::from_millis(200)));
        assert_eq!(duration("1.5h"), Some(Duration::from_secs(5400)));
        for wrong in ["", "5", "s", "1y", "1s1", "ü"] {
            assert_eq!(duration(wrong), None, "{wrong:?}");
        }
    }
}
