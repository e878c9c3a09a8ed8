//! `journalctl`: shows the journal. Also starts its writer, `orlop journal`.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use clap::Parser;
use orlop_journal::entry::Id;
use orlop_journal::filter::{Filter, parse_priorities, unit_pattern};
use orlop_journal::follow::Follower;
use orlop_journal::reader::{Damage, Direction, Item, Journal, Record};
use orlop_journal::render::{FORMATS, Format, Style, render};
use orlop_journal::{clock, reader, segments, timestamp, when, writer};
use regex::bytes::{Regex, RegexBuilder};

/// How many lines `-f` and `-n` show when no number is given.
const LINES_DEFAULT: usize = 10;
/// How many lines `-e` shows.
const LINES_AT_END: usize = 1000;
/// Output is collected up to this many bytes before it is written.
const OUTPUT_BYTES: usize = 32 * 1024;

/// Show the journal: what units, the kernel and Orlop itself have logged.
#[derive(Debug, Parser)]
#[command(
    name = "journalctl",
    version,
    disable_help_subcommand = true,
    args_override_self = true
)]
struct Arguments {
    /// Show entries of this unit; may be given several times. `.service` is implied, `NAME@` means all instances, `*` and `?` match
    #[arg(short, long = "unit", value_name = "UNIT", action = clap::ArgAction::Append)]
    unit: Vec<String>,
    /// Show entries with this identifier; may be given several times
    #[arg(short = 't', long, value_name = "NAME", action = clap::ArgAction::Append)]
    identifier: Vec<String>,
    /// Show the newest entries and wait for more
    #[arg(short, long)]
    follow: bool,
    /// Show this many of the newest entries, or `all`
    #[arg(short = 'n', long, value_name = "N", num_args = 0..=1, default_missing_value = "10")]
    lines: Option<String>,
    /// With --follow, show all entries first
    #[arg(long)]
    no_tail: bool,
    /// Show one boot: 0 the newest (default), -1 the one before, 1 the oldest, or a boot id
    #[arg(
        short, long, value_name = "BOOT", num_args = 0..=1, default_missing_value = "0", allow_negative_numbers = true
    )]
    boot: Option<String>,
    /// Show the kernel's log, of the newest boot unless --boot is given
    #[arg(short = 'k', long)]
    dmesg: bool,
    /// Show entries of this priority and more urgent ones, by name or number, or a range FROM..TO
    #[arg(short, long, value_name = "PRIORITY")]
    priority: Option<String>,
    /// Show entries whose message matches this regular expression; without capitals in it, case does not matter
    #[arg(short, long, value_name = "REGEX")]
    grep: Option<String>,
    /// Whether case matters for --grep, whatever its capitals
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    case_sensitive: Option<bool>,
    /// Show entries of one invocation of a unit, by its id
    #[arg(long, value_name = "ID")]
    invocation: Option<String>,
    /// Show entries not older than this: `2026-11-21 05:10`, `05:10`, `today`, `yesterday`, `-1h`, `2 days ago`, `@SECONDS` (UTC)
    #[arg(short = 'S', long, value_name = "TIME", allow_hyphen_values = true)]
    since: Option<String>,
    /// Show entries not newer than this
    #[arg(short = 'U', long, value_name = "TIME", allow_hyphen_values = true)]
    until: Option<String>,
    /// The form of the output; `help` lists them
    #[arg(short, long, value_name = "FORMAT", default_value = "short")]
    output: String,
    /// Show the newest entries first
    #[arg(short, long)]
    reverse: bool,
    /// Show the last 1000 entries
    #[arg(short = 'e', long)]
    pager_end: bool,
    /// Show control characters and invalid UTF-8 as they are
    #[arg(short, long)]
    all: bool,
    /// Leave out the machine's name
    #[arg(long)]
    no_hostname: bool,
    /// Be silent about boots, damage and that there is nothing
    #[arg(short, long)]
    quiet: bool,
    /// List the boots that the journal knows
    #[arg(long)]
    list_boots: bool,
    /// Show how much space the journal takes
    #[arg(long)]
    disk_usage: bool,
    /// Check all files, and say what is damaged
    #[arg(long)]
    verify: bool,
    /// Remove the oldest files until the rest take at most this: bytes, or with K, M or G
    #[arg(long, value_name = "SIZE")]
    vacuum_size: Option<String>,
    /// Read another directory
    #[arg(short = 'D', long, value_name = "DIRECTORY", default_value = segments::DIRECTORY)]
    directory: PathBuf,
    /// Accepted: there is no pager
    #[arg(long)]
    no_pager: bool,
    /// Accepted: times are in UTC in any case
    #[arg(long)]
    utc: bool,
    /// Accepted: lines are never cut
    #[arg(short = 'l', long)]
    full: bool,
    /// Accepted: there is no catalogue of explanations
    #[arg(short = 'x', long)]
    catalog: bool,
    /// Accepted: all entries are the system's
    #[arg(long)]
    system: bool,
    /// Accepted: files of several machines are always merged
    #[arg(short, long)]
    merge: bool,
}

/// Runs `journalctl` with the arguments after its name.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    let name = OsString::from("journalctl");
    let arguments = match Arguments::try_parse_from(std::iter::once(&name).chain(arguments)) {
        Ok(arguments) => arguments,
        Err(err) => {
            // To a closed output, there is nobody to tell.
            let _ = err.print();
            return ExitCode::from(u8::try_from(err.exit_code()).unwrap_or(1));
        }
    };
    match show(&arguments) {
        Ok(code) => code,
        Err(err) if is_closed_output(&err) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("journalctl: {err:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whoever read the output, such as `head`, has enough.
fn is_closed_output(err: &anyhow::Error) -> bool {
    err.downcast_ref::<io::Error>()
        .is_some_and(|err| err.kind() == io::ErrorKind::BrokenPipe)
}

fn show(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if arguments.output == "help" {
        let names: Vec<&str> = FORMATS.iter().map(|(name, _)| *name).collect();
        writeln!(io::stdout(), "{}", names.join("\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let format = Format::from_name(&arguments.output).ok_or_else(|| {
        anyhow!(
            "no output format {:?}; `-o help` lists them",
            arguments.output
        )
    })?;
    let directory = &arguments.directory;
    if let Some(limit) = &arguments.vacuum_size {
        return vacuum(directory, limit);
    }
    let mut filter = filter(arguments)?;
    let lines = lines(arguments)?;
    // Watch before reading: what is written in between is then seen as a change.
    let follower = if arguments.follow {
        Some(Follower::new(directory, Filter::default()))
    } else {
        None
    };
    let journal = match Journal::open(directory) {
        Ok(journal) => journal,
        Err(reader::Error::List(_, err)) if err.kind() == io::ErrorKind::NotFound => {
            if arguments.follow {
                bail!("there is no journal at {}", directory.display());
            }
            if !arguments.quiet {
                eprintln!("journalctl: there is no journal at {}", directory.display());
                writeln!(io::stdout(), "-- No entries --")?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        Err(err) => return Err(explain(err)),
    };
    if arguments.disk_usage {
        let size = size_text(journal.disk_bytes());
        writeln!(
            io::stdout(),
            "Archived and active journals take up {size} in the file system."
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.list_boots {
        return list_boots(&journal, arguments.quiet);
    }
    if arguments.verify {
        return verify(&journal);
    }
    let boot = match &arguments.boot {
        Some(boot) => Some(boot.as_str()),
        None if arguments.dmesg => Some("0"),
        None => None,
    };
    if let Some(boot) = boot {
        filter.boot = Some(find_boot(&journal, boot)?);
    }
    let mut output = Output::new(arguments, format);
    if let Some(follower) = follower {
        let end = journal.last_sequence().map_err(explain)?;
        let count = if arguments.no_tail {
            usize::MAX
        } else {
            lines.unwrap_or(LINES_DEFAULT)
        };
        for item in journal.last(&filter, count).map_err(explain)? {
            let is_shown_later =
                matches!(&item, Item::Entry(record) if record.entry.sequence > end);
            if !is_shown_later {
                output.item(&item, &journal)?;
            }
        }
        let mut follower = follower?;
        follower.set_filter(filter);
        follower.start_after(end);
        return follow(follower, output);
    }
    let limit = lines.unwrap_or(usize::MAX);
    if arguments.reverse {
        for item in journal.entries(&filter, Direction::Reverse) {
            if output.shown == limit {
                break;
            }
            output.item(&item.map_err(explain)?, &journal)?;
        }
    } else if lines.is_some() {
        for item in journal.last(&filter, limit).map_err(explain)? {
            output.item(&item, &journal)?;
        }
    } else {
        for item in journal.entries(&filter, Direction::Forward) {
            output.item(&item.map_err(explain)?, &journal)?;
        }
    }
    if output.shown == 0 && !arguments.quiet && !format.is_for_programs() {
        output.buffer.extend_from_slice(b"-- No entries --\n");
    }
    output.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn follow(mut follower: Follower, mut output: Output) -> anyhow::Result<ExitCode> {
    loop {
        let next = match follower.try_next()? {
            Some(item) => Some(item),
            None => {
                output.flush()?;
                follower.next(Some(io::stdout().as_fd()))?
            }
        };
        match next {
            Some(Item::Entry(record)) => output.entry(&record)?,
            Some(Item::Damage(damage)) => output.damage(&damage)?,
            None => return Ok(ExitCode::SUCCESS),
        }
    }
}

/// What the arguments ask for, apart from the boot.
fn filter(arguments: &Arguments) -> anyhow::Result<Filter> {
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

/// How many of the newest entries are asked for; `None` for all.
fn lines(arguments: &Arguments) -> anyhow::Result<Option<usize>> {
    match arguments.lines.as_deref() {
        None if arguments.pager_end => Ok(Some(LINES_AT_END)),
        None => Ok(None),
        Some("all") => Ok(arguments.follow.then_some(usize::MAX)),
        Some(number) => {
            let number = number
                .parse()
                .map_err(|_| anyhow!("--lines takes a number or `all`, not {number:?}"))?;
            Ok(Some(number))
        }
    }
}

/// The boot that `-b` names.
fn find_boot(journal: &Journal, name: &str) -> anyhow::Result<Id> {
    if let Some(id) = Id::parse(name) {
        return Ok(id);
    }
    let number: i64 = name
        .parse()
        .map_err(|_| anyhow!("{name:?} is neither the number nor the id of a boot"))?;
    let ids = journal.boot_ids();
    let count = i64::try_from(ids.len()).unwrap_or(i64::MAX);
    let index = if number > 0 {
        number - 1
    } else {
        count - 1 + number
    };
    let found = usize::try_from(index).ok().and_then(|index| ids.get(index));
    match found {
        Some(id) => Ok(*id),
        // Before the first entry of all, the newest boot has no entries; that is no mistake of the user's.
        None if number == 0 => Ok(segments::boot_id()),
        None => bail!("the journal knows {count} boots, none of them is {number}"),
    }
}

fn list_boots(journal: &Journal, quiet: bool) -> anyhow::Result<ExitCode> {
    let boots = journal.boots().map_err(explain)?;
    let mut out = io::stdout().lock();
    if !quiet && !boots.is_empty() {
        let (id, first, last) = ("BOOT ID", "FIRST ENTRY", "LAST ENTRY");
        writeln!(out, "{:>3} {id:<32} {first:<23} {last}", "IDX")?;
    }
    let full = |us| format!("{} UTC", timestamp::date_and_time(us));
    for (index, boot) in boots.iter().enumerate() {
        let back = boots.len() - 1 - index;
        let number = if back == 0 {
            "0".to_owned()
        } else {
            format!("-{back}")
        };
        let (first, last) = (full(boot.first_us), full(boot.last_us));
        writeln!(out, "{number:>3} {} {first} {last}", boot.id)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn verify(journal: &Journal) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    let (mut entries, mut damages) = (0u64, 0u64);
    for item in journal.entries(&Filter::default(), Direction::Forward) {
        match item.map_err(explain)? {
            Item::Entry(_) => entries += 1,
            Item::Damage(damage) if journal.may_be_unfinished(&damage) => {
                writeln!(out, "{damage} (it may be in the writing)")?;
            }
            Item::Damage(damage) => {
                damages += 1;
                writeln!(out, "{damage}")?;
            }
        }
    }
    writeln!(out, "{entries} entries read, {damages} damaged places")?;
    Ok(if damages == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn vacuum(directory: &Path, limit: &str) -> anyhow::Result<ExitCode> {
    let limit_bytes = parse_size(limit)
        .ok_or_else(|| anyhow!("{limit:?} is no size; give bytes, or a number with K, M or G"))?;
    let freed = segments::vacuum(directory, limit_bytes)
        .with_context(|| format!("remove old files of {}", directory.display()))?;
    let (freed, directory) = (size_text(freed), directory.display());
    writeln!(
        io::stdout(),
        "Vacuuming done, freed {freed} of archived journals from {directory}."
    )?;
    Ok(ExitCode::SUCCESS)
}

fn parse_size(text: &str) -> Option<u64> {
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

/// `8.0M`, as systemd writes sizes.
fn size_text(bytes: u64) -> String {
    for (unit, shift) in [("G", 30), ("M", 20), ("K", 10)] {
        if bytes >> shift > 0 {
            let tenths = u128::from(bytes) * 10 >> shift;
            return format!("{}.{}{unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes}B")
}

fn explain(err: reader::Error) -> anyhow::Error {
    let denied = err.kind() == io::ErrorKind::PermissionDenied;
    let err = anyhow::Error::new(err);
    if denied {
        err.context("you may not read the journal; try it as root (sudo journalctl)")
    } else {
        err
    }
}

/// Collects lines for standard output.
struct Output {
    style: Style,
    quiet: bool,
    buffer: Vec<u8>,
    shown: usize,
    boot: Option<Id>,
}

impl Output {
    fn new(arguments: &Arguments, format: Format) -> Self {
        let is_terminal = io::stdout().is_terminal();
        let hostname = nix::unistd::gethostname().unwrap_or_default();
        let hostname = if arguments.no_hostname {
            String::new()
        } else {
            hostname.to_string_lossy().into_owned()
        };
        Self {
            style: Style {
                format,
                hostname,
                colour: is_terminal,
                escape: !arguments.all && (is_terminal || format != Format::Cat),
            },
            quiet: arguments.quiet,
            buffer: Vec::new(),
            shown: 0,
            boot: None,
        }
    }

    fn item(&mut self, item: &Item, journal: &Journal) -> anyhow::Result<()> {
        match item {
            Item::Entry(record) => self.entry(record),
            Item::Damage(damage) if journal.may_be_unfinished(damage) => Ok(()),
            Item::Damage(damage) => self.damage(damage),
        }
    }

    fn entry(&mut self, record: &Record) -> anyhow::Result<()> {
        let is_other_boot = self
            .boot
            .replace(record.boot)
            .is_some_and(|boot| boot != record.boot);
        if is_other_boot && !self.quiet && !self.style.format.is_for_programs() {
            self.buffer
                .extend_from_slice(format!("-- Boot {} --\n", record.boot).as_bytes());
        }
        render(record, &self.style, &mut self.buffer);
        self.shown += 1;
        if self.buffer.len() >= OUTPUT_BYTES {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn damage(&mut self, damage: &Damage) -> anyhow::Result<()> {
        if !self.quiet {
            // In its place between the entries, when both go to the terminal.
            self.flush()?;
            eprintln!("journalctl: {damage}");
        }
        Ok(())
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(&self.buffer)?;
        out.flush()?;
        self.buffer.clear();
        Ok(())
    }
}

/// Collect the output of all units and the kernel's log in the journal. Started by PID 1.
#[derive(Debug, Parser)]
#[command(name = "orlop journal", disable_help_subcommand = true)]
struct WriterArguments {
    /// Where to keep it
    #[arg(long, value_name = "DIRECTORY", default_value = segments::DIRECTORY)]
    directory: PathBuf,
    /// The most that it takes: bytes, or with K, M or G; a tenth of the filesystem, at most 256M, when not given
    #[arg(long, value_name = "SIZE")]
    size: Option<String>,
    /// Leave the kernel's log alone
    #[arg(long)]
    no_kernel: bool,
}

/// Runs `orlop journal` with the arguments after the word.
pub(crate) fn run_writer(arguments: &[OsString]) -> ExitCode {
    let name = OsString::from("orlop journal");
    let arguments = match WriterArguments::try_parse_from(std::iter::once(&name).chain(arguments)) {
        Ok(arguments) => arguments,
        Err(err) => {
            // To a closed output, there is nobody to tell.
            let _ = err.print();
            return ExitCode::from(u8::try_from(err.exit_code()).unwrap_or(1));
        }
    };
    let mut settings = writer::Settings {
        directory: arguments.directory,
        ..Default::default()
    };
    if let Some(size) = arguments.size {
        settings.budget_bytes = parse_size(&size);
        if settings.budget_bytes.is_none() {
            eprintln!("orlop journal: {size:?} is no size; give bytes, or a number with K, M or G");
            return ExitCode::from(2);
        }
    }
    if arguments.no_kernel {
        settings.kernel_log = None;
    }
    match writer::run(&settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("orlop journal: {}", writer::chain(&err));
            ExitCode::FAILURE
        }
    }
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
        assert_eq!(lines(&arguments).unwrap(), Some(10));
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

    #[test]
    fn sizes_are_read_and_written_alike() {
        assert_eq!(parse_size("8M"), Some(8 << 20));
        assert_eq!(parse_size("100"), Some(100));
        assert_eq!(parse_size("1T"), None);
        assert_eq!(parse_size("M"), None);
        assert_eq!(parse_size("99999999999999999999G"), None);
        assert_eq!(size_text(8 << 20), "8.0M");
        assert_eq!(size_text(1536), "1.5K");
        assert_eq!(size_text(12), "12B");
    }
}
