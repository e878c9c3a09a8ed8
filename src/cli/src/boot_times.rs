//! `orlop boot-times`: where the time of this boot went, as a table or a chart.

mod chart;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Show where the time of this boot went: each step and each unit, from the kernel's start on.
#[derive(Debug, Parser)]
#[command(name = "orlop boot-times", disable_help_subcommand = true)]
struct Arguments {
    /// Print a chart, as SVG: `orlop boot-times --svg >boot.svg`
    #[arg(long)]
    svg: bool,
    /// Read the steps from another file, such as one that was copied from a machine
    #[arg(value_name = "FILE", default_value = orlop_boot::times::PATH)]
    file: PathBuf,
}

/// A step of the boot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Step {
    /// ns since the kernel's start.
    start_ns: u64,
    /// ns since the kernel's start; not before `start_ns`.
    end_ns: u64,
    /// What ran: `boot.drivers`, `setup`, `web.service`.
    name: String,
}

/// Runs `orlop boot-times`.
pub(crate) fn run(args: &[OsString]) -> ExitCode {
    orlop_sys::signal::end_with_closed_pipes();
    let name = OsString::from("orlop boot-times");
    let arguments = match Arguments::try_parse_from(std::iter::once(&name).chain(args)) {
        Ok(arguments) => arguments,
        Err(err) => {
            // To a closed output, there is nobody to tell.
            let _ = err.print();
            return ExitCode::from(u8::try_from(err.exit_code()).unwrap_or(1));
        }
    };
    let text = match std::fs::read_to_string(&arguments.file) {
        Ok(text) => text,
        Err(err) => {
            eprintln!("orlop boot-times: {}: {err}", arguments.file.display());
            return ExitCode::FAILURE;
        }
    };
    let steps = parse(&text);
    if arguments.svg {
        let title = format!(
            "Orlop {} on {}",
            env!("CARGO_PKG_VERSION"),
            nix::unistd::gethostname()
                .unwrap_or_default()
                .to_string_lossy()
        );
        print!("{}", chart::svg(&steps, &title));
    } else {
        print!("{}", table(&steps));
    }
    ExitCode::SUCCESS
}

/// All steps in the order of their starts; lines that are torn are left out.
fn parse(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = text.lines().filter_map(parse_line).collect();
    steps.sort_unstable();
    steps
}

fn parse_line(line: &str) -> Option<Step> {
    let mut words = line.split(' ');
    let name = words.next()?.to_owned();
    let (start_ns, end_ns) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    (start_ns <= end_ns && !name.is_empty()).then_some(Step {
        start_ns,
        end_ns,
        name,
    })
}

fn table(steps: &[Step]) -> String {
    let mut out = format!("{:>10} {:>10}  STEP\n", "START MS", "TOOK MS");
    for step in steps {
        let (start_ms, took_ms) = (ms(step.start_ns), ms(step.end_ns - step.start_ns));
        out.push_str(&format!(
            "{start_ms:>10.1} {took_ms:>10.1}  {}\n",
            step.name
        ));
    }
    out
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_come_in_order_and_torn_lines_are_left_out() {
        let steps = parse("b 5000000 9500000\na 1000000 2000000\nsetup 5\nsetup x 9\nback 9 5\n\n");
        let expected =
            "  START MS    TOOK MS  STEP\n       1.0        1.0  a\n       5.0        4.5  b\n";
        assert_eq!(table(&steps), expected);
    }
}
