//! `orlop boot-times`: where the time of this boot went.

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs `orlop boot-times`.
pub(crate) fn run(_args: &[OsString]) -> ExitCode {
    orlop_sys::signal::end_with_closed_pipes();
    let text = match std::fs::read_to_string(orlop_boot::times::PATH) {
        Ok(text) => text,
        Err(err) => {
            eprintln!("orlop boot-times: {}: {err}", orlop_boot::times::PATH);
            return ExitCode::FAILURE;
        }
    };
    let mut steps: Vec<(u64, u64, &str)> = text.lines().filter_map(parse).collect();
    steps.sort_unstable();
    println!("{:>10} {:>10}  STEP", "START MS", "TOOK MS");
    for (start_ns, end_ns, name) in steps {
        let ms = |ns: u64| ns as f64 / 1e6;
        println!(
            "{:>10.1} {:>10.1}  {name}",
            ms(start_ns),
            ms(end_ns.saturating_sub(start_ns))
        );
    }
    ExitCode::SUCCESS
}

fn parse(line: &str) -> Option<(u64, u64, &str)> {
    let mut words = line.split(' ');
    let name = words.next()?;
    Some((
        words.next()?.parse().ok()?,
        words.next()?.parse().ok()?,
        name,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_torn_are_left_out() {
        assert_eq!(parse("setup 5 9"), Some((5, 9, "setup")));
        assert_eq!(parse("setup 5"), None);
        assert_eq!(parse("setup x 9"), None);
    }
}
