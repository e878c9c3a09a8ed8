//! The arguments of `journalctl`, and what they mean.

use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use clap::Parser;
use orlop_journal::entry::Id;
use orlop_journal::filter::{Filter, parse_priorities, unit_pattern};
use orlop_journal::{clock, segments, when};
use regex::bytes::{Regex, RegexBuilder};

/// How many lines `-e` shows.
const LINES_AT_END: usize = 1000;

/// Show the journal: what units, the kernel and Orlop itself have logged.
#[derive(Debug, Parser)]
#[command(
    name = "journalctl",
    version,
    disable_help_subcommand = true,
    override_usage = "journalctl [OPTION…]",
    args_override_self = true
)]
pub(super) struct Arguments {
    /// Show entries of this unit; may be given several times. `.service` is implied, `NAME@` means all instances, `*` and `?` match
    #[arg(short, long = "unit", value_name = "UNIT", action = clap::ArgAction::Append)]
    pub(super) unit: Vec<String>,
    /// Show entries with this identifier; may be given several times
    #[arg(short = 't', long, value_name = "NAME", action = clap::ArgAction::Append)]
    pub(super) identifier: Vec<String>,
    /// Show the newest entries and wait for more
    #[arg(short, long)]
    pub(super) follow: bool,
    /// Show this many of the newest entries, or `all`
    #[arg(short = 'n', long, value_name = "N", num_args = 0..=1, default_missing_value = "10")]
    pub(super) lines: Option<String>,
    /// With --follow, show all entries first
    #[arg(long)]
    pub(super) no_tail: bool,
    /// Show one boot: 0 the newest (default), -1 the one before, 1 the oldest, or a boot id
    #[arg(
        short, long, value_name = "BOOT", num_args = 0..=1, default_missing_value = "0", allow_negative_numbers = true
    )]
    pub(super) boot: Option<String>,
    /// Show the kernel's log, of the newest boot unless --boot is given
    #[arg(short = 'k', long)]
    pub(super) dmesg: bool,
    /// Show entries of this priority and more urgent ones, by name or number, or a range FROM..TO
    #[arg(short, long, value_name = "PRIORITY")]
    pub(super) priority: Option<String>,
    /// Show entries whose message matches this regular expression; without capitals in it, case does not matter
    #[arg(short, long, value_name = "REGEX")]
    pub(super) grep: Option<String>,
    /// Whether case matters for --grep, whatever its capitals
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub(super) case_sensitive: Option<bool>,
    /// Show entries of one invocation of a unit, by its id
    #[arg(long, value_name = "ID")]
    pub(super) invocation: Option<String>,
    /// Show entries not older than this: `2026-11-21 05:10`, `05:10`, `today`, `yesterday`, `-1h`, `2 days ago`, `@SECONDS` (UTC)
    #[arg(short = 'S', long, value_name = "TIME", allow_hyphen_values = true)]
    pub(super) since: Option<String>,
    /// Show entries not newer than this
    #[arg(short = 'U', long, value_name = "TIME", allow_hyphen_values = true)]
    pub(super) until: Option<String>,
    /// The form of the output; `help` lists them
    #[arg(short, long, value_name = "FORMAT", default_value = "short")]
    pub(super) output: String,
    /// Show the newest entries first
    #[arg(short, long)]
    pub(super) reverse: bool,
    /// Show the last 1000 entries
    #[arg(short = 'e', long)]
    pub(super) pager_end: bool,
    /// Show control characters and invalid UTF-8 as they are
    #[arg(short, long)]
    pub(super) all: bool,
    /// Leave out the machine's name
    #[arg(long)]
    pub(super) no_hostname: bool,
    /// Be silent about boots, damage and that there is nothing
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// List the boots that the journal knows
    #[arg(long)]
    pub(super) list_boots: bool,
    /// Show how much space the journal takes
    #[arg(long)]
    pub(super) disk_usage: bool,
    /// Check all files, and say what is damaged
    #[arg(long)]
    pub(super) verify: bool,
    /// Remove the oldest files until the rest take at most this: bytes, or with K, M or G
    #[arg(long, value_name = "SIZE")]
    pub(super) vacuum_size: Option<String>,
    /// Remove files that hold nothing younger than this: `2days`, `1week`, `90min`
    #[arg(long, value_name = "TIME")]
    pub(super) vacuum_time: Option<String>,
    /// In the forms verbose, json, json-pretty and export, show only these fields: names with commas between
    #[arg(long, value_name = "FIELDS", value_delimiter = ',')]
    pub(super) output_fields: Vec<String>,
    /// Read another directory
    #[arg(short = 'D', long, value_name = "DIRECTORY", default_value = segments::DIRECTORY)]
    pub(super) directory: PathBuf,
    /// Accepted: there is no pager
    #[arg(long)]
    pub(super) no_pager: bool,
    /// Accepted: times are in UTC in any case
    #[arg(long)]
    pub(super) utc: bool,
    /// Accepted: lines are never cut
    #[arg(short = 'l', long)]
    pub(super) full: bool,
    /// Accepted: there is no catalogue of explanations
    #[arg(short = 'x', long)]
    pub(super) catalog: bool,
    /// Accepted: all entries are the system's
    #[arg(long)]
    pub(super) system: bool,
    /// Accepted: files of several machines are always merged
    #[arg(short, long)]
    pub(super) merge: bool,
}

/// What the arguments ask for, apart from the boot.
pub(super) fn filter(arguments: &Arguments) -> anyhow::Result<Filter> {
    let now_us = clock::Moment::now().realtime_us;
    let time = |text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => when::parse(text, now_us)
            .map(Some)
            .ok_or_else(|| anyhow!("{text:?} is no time that is understood; see --help")),
    };
    let priorities = match &arguments.priority {
        None => None,
        Some(text) => Some(parse_priorities(text).ok_or_else(|| anyhow!("no priority {text:?}"))?),
    };
    let invocation = match &arguments.invocation {
        None => None,
        Some(text) => Some(Id::parse(text).ok_or_else(|| anyhow!("{text:?} is no invocation id"))?),
    };
    Ok(Filter {
        units: arguments
            .unit
            .iter()
            .map(|name| unit_pattern(name))
            .collect(),
        identifiers: arguments.identifier.clone(),
        priorities,
        boot: None,
        invocation,
        kernel_only: arguments.dmesg,
        since_us: time(&arguments.since)?,
        until_us: time(&arguments.until)?,
        pattern: pattern(arguments)?,
    })
}

fn pattern(arguments: &Arguments) -> anyhow::Result<Option<Regex>> {
    let Some(text) = &arguments.grep else {
        return Ok(None);
    };
    let ignores_case = match arguments.case_sensitive {
        Some(matters) => !matters,
        None => !text.chars().any(char::is_uppercase),
    };
    let built = RegexBuilder::new(text)
        .case_insensitive(ignores_case)
        .build();
    Ok(Some(built.with_context(|| format!("--grep {text:?}"))?))
}

/// How many entries to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lines {
    All,
    /// That many of the newest.
    Last(usize),
}

/// What `-n` and `-e` ask for, if they are given.
pub(super) fn lines(arguments: &Arguments) -> anyhow::Result<Option<Lines>> {
    match arguments.lines.as_deref() {
        None => Ok(arguments.pager_end.then_some(Lines::Last(LINES_AT_END))),
        Some("all") => Ok(Some(Lines::All)),
        Some(number) => match number.parse() {
            Ok(count) => Ok(Some(Lines::Last(count))),
            Err(_) => bail!("--lines takes a number or `all`, not {number:?}"),
        },
    }
}

/// A number of bytes, perhaps with K, M or G.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match text.get(digits.len()..)? {
        "" | "B" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Arguments {
        Arguments::try_parse_from(std::iter::once(&"journalctl").chain(words)).unwrap()
    }

    #[test]
    fn options_with_an_optional_value_leave_the_next_option_alone() {
        let arguments = parse(&["-b", "-u", "web", "-n", "-f"]);
        assert_eq!(arguments.boot.as_deref(), Some("0"));
        assert_eq!(arguments.unit, ["web"]);
        assert_eq!(lines(&arguments).unwrap(), Some(Lines::Last(10)));
        assert!(arguments.follow);
        assert_eq!(parse(&["-b", "-1"]).boot.as_deref(), Some("-1"));
        assert_eq!(parse(&["-b-1"]).boot.as_deref(), Some("-1"));
        assert_eq!(parse(&["-n50"]).lines.as_deref(), Some("50"));
        assert_eq!(parse(&["-xeu", "web"]).unit, ["web"]);
        assert_eq!(parse(&["--since", "-1h"]).since.as_deref(), Some("-1h"));
    }

    #[test]
    fn wrong_values_are_named() {
        for (words, named) in [
            (&["--since", "whenever"][..], "whenever"),
            (&["-p", "loud"][..], "loud"),
            (&["-g", "("][..], "("),
            (&["--invocation", "12"][..], "12"),
        ] {
            let err = filter(&parse(words)).unwrap_err();
            assert!(format!("{err:#}").contains(named), "{err:#}");
        }
        assert!(lines(&parse(&["-n", "many"])).is_err());
    }

    #[test]
    fn grep_minds_case_when_a_capital_is_in_it() {
        let matches = |words: &[&str], text: &str| {
            pattern(&parse(words))
                .unwrap()
                .unwrap()
                .is_match(text.as_bytes())
        };
        assert!(matches(&["-g", "refused|lost"], "Connection REFUSED"));
        assert!(!matches(&["-g", "Refused"], "connection refused"));
        assert!(matches(
            &["-g", "Refused", "--case-sensitive=false"],
            "connection refused"
        ));
        assert!(!matches(&["-g", "refused", "--case-sensitive"], "Refused"));
    }
}
