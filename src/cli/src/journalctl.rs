//! `journalctl`: shows the journal.

mod arguments;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow, bail};
use clap::Parser;
use orlop_journal::entry::Id;
use orlop_journal::filter::Filter;
use orlop_journal::follow::Follower;
use orlop_journal::reader::{Damage, Direction, Item, Journal, Record};
use orlop_journal::render::{FORMATS, Format, Style, render};
use orlop_journal::{reader, segments, when};

pub(crate) use arguments::parse_size;
use arguments::{Arguments, Lines, filter, lines};

/// How many lines `-f` and `-n` show when no number is given.
const LINES_DEFAULT: usize = 10;
/// Output is collected up to this many bytes before it is written.
const OUTPUT_BYTES: usize = 32 * 1024;

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
    match show(&arguments, &mut io::stdout()) {
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

fn show(arguments: &Arguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    if arguments.output == "help" {
        let names: Vec<&str> = FORMATS.iter().map(|(name, _)| *name).collect();
        writeln!(out, "{}", names.join("\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let format = Format::from_name(&arguments.output).ok_or_else(|| {
        anyhow!(
            "no output format {:?}; `-o help` lists them",
            arguments.output
        )
    })?;
    let directory = &arguments.directory;
    if arguments.vacuum_size.is_some() || arguments.vacuum_time.is_some() {
        return vacuum(arguments, out);
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
                writeln!(out, "-- No entries --")?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        Err(err) => return Err(explain(err)),
    };
    if arguments.disk_usage {
        let size = size_text(journal.disk_bytes());
        writeln!(
            out,
            "Archived and active journals take up {size} in the file system."
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.list_boots {
        return list_boots(&journal, arguments.quiet, out);
    }
    if arguments.verify {
        return verify(&journal, out);
    }
    let boot = arguments.boot.as_deref();
    if let Some(boot) = boot.or(arguments.dmesg.then_some("0")) {
        filter.boot = Some(find_boot(&journal, boot)?);
    }
    let mut output = Output::new(arguments, format, out);
    if let Some(follower) = follower {
        let mut follower = follower?;
        let end = journal.last_sequence().map_err(explain)?;
        let lines = if arguments.no_tail {
            Lines::All
        } else {
            lines.unwrap_or(Lines::Last(LINES_DEFAULT))
        };
        // What is appended while this is printed comes from the follower.
        output.entries(&journal, &filter, Direction::Forward, lines, Some(end))?;
        follower.set_filter(filter);
        follower.start_after(end);
        return follow(follower, output);
    }
    let direction = if arguments.reverse {
        Direction::Reverse
    } else {
        Direction::Forward
    };
    output.entries(
        &journal,
        &filter,
        direction,
        lines.unwrap_or(Lines::All),
        None,
    )?;
    if output.shown == 0 && !arguments.quiet && !format.is_for_programs() {
        output.buffer.extend_from_slice(b"-- No entries --\n");
    }
    output.flush()?;
    // As grep does, and systemd's journalctl.
    let is_in_vain = output.shown == 0 && arguments.grep.is_some();
    Ok(if is_in_vain {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn follow(mut follower: Follower, mut output: Output<'_>) -> anyhow::Result<ExitCode> {
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
        None => bail!("no boot {number}: the journal knows {count}; --list-boots shows them"),
    }
}

fn list_boots(journal: &Journal, quiet: bool, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let boots = journal.boots().map_err(explain)?;
    if !quiet && !boots.is_empty() {
        let (id, first, last) = ("BOOT ID", "FIRST ENTRY", "LAST ENTRY");
        writeln!(out, "{:>3} {id:<32} {first:<27} {last}", "IDX")?;
    }
    let full = |us| orlop_unit::Civil::from_us(us).to_string();
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

fn verify(journal: &Journal, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
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

fn vacuum(arguments: &Arguments, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let directory = &arguments.directory;
    let limit_bytes = match &arguments.vacuum_size {
        None => u64::MAX,
        Some(limit) => parse_size(limit).ok_or_else(|| {
            anyhow!("{limit:?} is no size; give bytes, or a number with K, M or G")
        })?,
    };
    let oldest = match &arguments.vacuum_time {
        None => None,
        Some(span) => {
            let us = when::parse_span(span)
                .ok_or_else(|| anyhow!("{span:?} is no length of time, such as 2days or 90min"))?;
            SystemTime::now().checked_sub(Duration::from_micros(us))
        }
    };
    let freed = segments::vacuum(directory, limit_bytes, oldest)
        .with_context(|| format!("remove old files of {}", directory.display()))?;
    let (freed, directory) = (size_text(freed), directory.display());
    writeln!(
        out,
        "Vacuuming done, freed {freed} of archived journals from {directory}."
    )?;
    Ok(ExitCode::SUCCESS)
}

/// `8.0M`, as systemd writes sizes.
fn size_text(bytes: u64) -> String {
    for (unit, shift) in [("G", 30), ("M", 20), ("K", 10)] {
        if bytes >> shift > 0 {
            let tenths = (u128::from(bytes) * 10) >> shift;
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
struct Output<'a> {
    out: &'a mut dyn Write,
    style: Style,
    quiet: bool,
    buffer: Vec<u8>,
    shown: usize,
    boot: Option<Id>,
}

impl<'a> Output<'a> {
    fn new(arguments: &Arguments, format: Format, out: &'a mut dyn Write) -> Self {
        let is_terminal = io::stdout().is_terminal();
        let hostname = nix::unistd::gethostname().unwrap_or_default();
        let hostname = if arguments.no_hostname {
            String::new()
        } else {
            hostname.to_string_lossy().into_owned()
        };
        Self {
            out,
            style: Style {
                format,
                hostname,
                colour: is_terminal,
                escape: !arguments.all && (is_terminal || format != Format::Cat),
                fields: arguments.output_fields.clone(),
            },
            quiet: arguments.quiet,
            buffer: Vec::new(),
            shown: 0,
            boot: None,
        }
    }

    /// Shows the wanted entries, none numbered above `end`.
    fn entries(
        &mut self,
        journal: &Journal,
        filter: &Filter,
        direction: Direction,
        lines: Lines,
        end: Option<u64>,
    ) -> anyhow::Result<()> {
        match (direction, lines) {
            (Direction::Forward, Lines::Last(count)) => {
                for item in journal.last(filter, count).map_err(explain)? {
                    self.item(&item, journal, end)?;
                }
            }
            (_, lines) => {
                for item in journal.entries(filter, direction) {
                    if lines == Lines::Last(self.shown) {
                        break;
                    }
                    self.item(&item.map_err(explain)?, journal, end)?;
                }
            }
        }
        Ok(())
    }

    fn item(&mut self, item: &Item, journal: &Journal, end: Option<u64>) -> anyhow::Result<()> {
        match item {
            Item::Entry(record) if end.is_some_and(|end| record.entry.sequence > end) => Ok(()),
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
        self.out.write_all(&self.buffer)?;
        self.out.flush()?;
        self.buffer.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_journal::clock::Moment;
    use orlop_journal::entry::{Entry, Transport};
    use orlop_journal::store::{Options, Store};

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

    fn parse(words: &[&str]) -> Arguments {
        Arguments::try_parse_from(std::iter::once(&"journalctl").chain(words)).unwrap()
    }

    /// A journal of two boots; what the arguments show of it.
    fn shown(words: &[&str]) -> String {
        let directory = tempfile::TempDir::new().unwrap();
        for (boot, units) in [(1, ["web", "db"]), (2, ["web", "cron"])] {
            let mut store = Store::new(Options {
                directory: directory.path().to_owned(),
                budget_bytes: Some(1 << 20),
                machine: Id([9; 16]),
                boot: Id([boot; 16]),
            });
            for (second, unit) in units.into_iter().enumerate() {
                let text = format!("{unit} of boot {boot}");
                let mut entry = Entry::new(5 + second as u8, Transport::Stdout, text.into_bytes());
                entry.unit = Some(format!("{unit}.service"));
                entry.identifier = Some(unit.to_owned());
                entry.realtime_us = (u64::from(boot) * 3600 + second as u64) * 1_000_000;
                store.push(entry, Moment::default());
            }
            store.flush(Moment::default());
        }
        let path = directory.path().to_str().unwrap();
        let arguments = parse(&[&["-D", path, "--no-hostname"], words].concat());
        let mut out = Vec::new();
        show(&arguments, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn all_entries_are_shown_with_a_line_between_boots() {
        let boot = "02".repeat(16);
        assert_eq!(
            shown(&[]),
            format!(
                "Jan 01 01:00:00 web: web of boot 1\nJan 01 01:00:01 db: db of boot 1\n-- Boot {boot} --\n\
                 Jan 01 02:00:00 web: web of boot 2\nJan 01 02:00:01 cron: cron of boot 2\n"
            )
        );
    }

    #[test]
    fn each_option_leaves_what_it_should() {
        for (words, expected) in [
            (&["-u", "web"][..], "web of boot 1\nweb of boot 2\n"),
            (
                &["-u", "db", "-u", "cron"],
                "db of boot 1\ncron of boot 2\n",
            ),
            (&["-n", "1"], "cron of boot 2\n"),
            (&["-n1", "-u", "web.service"], "web of boot 2\n"),
            (
                &["-r", "-n", "3"],
                "cron of boot 2\nweb of boot 2\ndb of boot 1\n",
            ),
            (&["-b"], "web of boot 2\ncron of boot 2\n"),
            (&["-b", "-1"], "web of boot 1\ndb of boot 1\n"),
            (&["-b", "1", "-p", "notice"], "web of boot 1\n"),
            (
                &["-b", "02020202020202020202020202020202", "-t", "cron"],
                "cron of boot 2\n",
            ),
            (&["-g", "^(db|cron)"], "db of boot 1\ncron of boot 2\n"),
            (
                &["-S", "1970-01-01 01:00:01", "-U", "@7200"],
                "db of boot 1\nweb of boot 2\n",
            ),
            (&["-k"], ""),
        ] {
            assert_eq!(
                shown(&[words, &["-o", "cat"]].concat()),
                expected,
                "{words:?}"
            );
        }
        assert_eq!(shown(&["-u", "nope"]), "-- No entries --\n");
        assert_eq!(shown(&["-u", "nope", "-q"]), "");
    }

    #[test]
    fn boots_are_listed_with_their_times() {
        let expected = format!(
            "IDX BOOT ID                          FIRST ENTRY                 LAST ENTRY\n \
             -1 {} Thu 1970-01-01 01:00:00 UTC Thu 1970-01-01 01:00:01 UTC\n  \
             0 {} Thu 1970-01-01 02:00:00 UTC Thu 1970-01-01 02:00:01 UTC\n",
            "01".repeat(16),
            "02".repeat(16)
        );
        assert_eq!(shown(&["--list-boots"]), expected);
        assert_eq!(shown(&["--verify"]), "4 entries read, 0 damaged places\n");
    }
}
