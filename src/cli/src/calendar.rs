//! `orlop calendar EXPR…`: the normal form of calendar expressions and the next moments, as `systemd-analyze calendar` prints them.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::SystemTime;

use orlop_unit::value::format_distance;
use orlop_unit::{Calendar, CalendarError, Civil};

const USAGE: &str = "usage: orlop calendar [--iterations=N] EXPRESSION…";
const DEFAULT_ITERATIONS: usize = 5;
/// What a terminal can bear.
const MAX_ITERATIONS: usize = 10_000;

/// Runs the words after `orlop calendar`: 0 when all expressions are good, 1 when one is not, 2 for a wrong call.
pub(crate) fn run(args: &[OsString]) -> ExitCode {
    orlop_sys::signal::end_with_closed_pipes();
    let mut iterations = DEFAULT_ITERATIONS;
    let mut expressions = Vec::new();
    for arg in args {
        let text = arg.to_string_lossy();
        match text.strip_prefix("--iterations=") {
            Some(number) => match number.parse() {
                Ok(number) if (1..=MAX_ITERATIONS).contains(&number) => iterations = number,
                _ => {
                    eprintln!("orlop calendar: --iterations= takes 1 to {MAX_ITERATIONS}\n{USAGE}");
                    return ExitCode::from(2);
                }
            },
            None if text.starts_with('-') => {
                eprintln!("orlop calendar: no option {text}\n{USAGE}");
                return ExitCode::from(2);
            }
            None => expressions.push(text.into_owned()),
        }
    }
    if expressions.is_empty() {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    }
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let now_us = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
    let mut sound = true;
    for (index, expression) in expressions.iter().enumerate() {
        match describe(expression, now_us, iterations) {
            Ok(text) if index == 0 => print!("{text}"),
            Ok(text) => print!("\n{text}"),
            Err(error) => {
                eprintln!("orlop calendar: {expression:?}: {error}");
                sound = false;
            }
        }
    }
    ExitCode::from(u8::from(!sound))
}

fn describe(expression: &str, now_us: u64, iterations: usize) -> Result<String, CalendarError> {
    let calendar = Calendar::parse(expression)?;
    let normal = calendar.to_string();
    let mut out = String::new();
    let mut line = |label: &str, value: &str| {
        out.push_str(&format!("{label:>15}: {value}\n"));
    };
    if normal != expression {
        line("Original form", expression);
    }
    line("Normalized form", &normal);
    let mut last_us = now_us;
    for iteration in 1..=iterations {
        let Some(next_us) = calendar.next_after(last_us) else {
            if iteration == 1 {
                line("Next elapse", "never");
            }
            break;
        };
        let label = match iteration {
            1 => "Next elapse".to_owned(),
            n => format!("Iter. #{n}"),
        };
        line(&label, &Civil::from_us(next_us).to_string());
        line("From now", &format_distance(next_us, now_us));
        last_us = next_us;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_moments_are_listed_with_their_distance() {
        // 2026-01-01 00:13:30 UTC
        let text = describe("*:0/15", 1_767_226_410_000_000, 2).unwrap();
        assert_eq!(
            text,
            "  Original form: *:0/15\n\
             Normalized form: *-*-* *:00/15:00\n\
             \x20   Next elapse: Thu 2026-01-01 00:15:00 UTC\n\
             \x20      From now: 1min 30s left\n\
             \x20      Iter. #2: Thu 2026-01-01 00:30:00 UTC\n\
             \x20      From now: 16min left\n"
        );
        assert_eq!(
            describe("2026-02-30 00:00:00", 0, 5).unwrap(),
            "Normalized form: 2026-02-30 00:00:00\n    Next elapse: never\n"
        );
        assert!(describe("25:00", 0, 5).is_err());
    }
}
