//! Time spans (`systemd.time(7)`, "Parsing Time Spans" and "Displaying Time Spans").

use std::time::Duration;

/// A time span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// So long.
    Finite(Duration),
    /// For ever.
    Infinity,
}

impl Span {
    /// For time-outs: `None` never comes, and neither does zero (`systemd.service(5)`, `TimeoutStartSec=`).
    #[must_use]
    pub fn timeout(self) -> Option<Duration> {
        match self {
            Self::Finite(span) if !span.is_zero() => Some(span),
            _ => None,
        }
    }
}

const MILLISECOND: u64 = 1000;
const SECOND: u64 = 1_000_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const WEEK: u64 = 7 * DAY;
/// 30.4375 days.
const MONTH: u64 = 2_629_800 * SECOND;
/// 365.25 days.
const YEAR: u64 = 31_557_600 * SECOND;

/// A unit may be followed by the next number at once, so of two that begin alike the longer one stands first.
const UNITS: &[(&str, u64)] = &[
    ("seconds", SECOND),
    ("second", SECOND),
    ("sec", SECOND),
    ("s", SECOND),
    ("minutes", MINUTE),
    ("minute", MINUTE),
    ("min", MINUTE),
    ("months", MONTH),
    ("month", MONTH),
    ("msec", MILLISECOND),
    ("ms", MILLISECOND),
    ("m", MINUTE),
    ("M", MONTH),
    ("hours", HOUR),
    ("hour", HOUR),
    ("hr", HOUR),
    ("h", HOUR),
    ("days", DAY),
    ("day", DAY),
    ("d", DAY),
    ("weeks", WEEK),
    ("week", WEEK),
    ("w", WEEK),
    ("years", YEAR),
    ("year", YEAR),
    ("y", YEAR),
    ("usec", 1),
    ("us", 1),
    // The micro sign and the Greek letter.
    ("µs", 1),
    ("μs", 1),
];

// Below these, smaller units are shown.
const TWO_DAYS: u64 = 2 * DAY;
const DAY_AND_HOUR: u64 = 25 * HOUR;
const SIX_HOURS: u64 = 6 * HOUR;
const FIVE_MINUTES: u64 = 5 * MINUTE;

const SPACES: [char; 4] = [' ', '\t', '\n', '\r'];

/// A time span: `5min 20s`, `1.5h`; a number without unit counts `default_unit_us` microseconds.
#[must_use]
pub fn parse_span_in(text: &str, default_unit_us: u64) -> Option<Span> {
    let text = text.trim_matches(SPACES);
    if text == "infinity" {
        return Some(Span::Infinity);
    }
    if text.is_empty() {
        return None;
    }
    let mut rest = text;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (whole, tail) = leading_digits(rest.strip_prefix('+').unwrap_or(rest));
        let (fraction, tail) = match tail.strip_prefix('.') {
            Some(tail) => {
                let (fraction, tail) = leading_digits(tail);
                (Some(fraction).filter(|f| !f.is_empty())?, tail)
            }
            None if whole.is_empty() => return None,
            None => ("", tail),
        };
        let after_number = tail.trim_start_matches(SPACES);
        let unit = UNITS
            .iter()
            .find_map(|(name, scale)| Some((after_number.strip_prefix(name)?, *scale)));
        // `1.2.3` is no list of numbers, `1.2 .3` is one.
        if unit.is_none() && after_number.len() == tail.len() && !tail.is_empty() {
            return None;
        }
        let (tail, scale) = unit.unwrap_or((after_number, default_unit_us));
        let whole: u64 = match whole {
            "" => 0,
            digits => u64::try_from(digits.parse::<i64>().ok()?).ok()?,
        };
        total = total.checked_add(whole.checked_mul(scale)?)?;
        let mut place = scale;
        for digit in fraction.chars() {
            place /= 10;
            total = total.checked_add(u64::from(digit.to_digit(10)?).checked_mul(place)?)?;
        }
        rest = tail.trim_start_matches(SPACES);
    }
    Some(Span::Finite(Duration::from_micros(total)))
}

fn leading_digits(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, ""))
}

/// A time span; a number without unit counts seconds.
#[must_use]
pub fn parse_span(text: &str) -> Option<Span> {
    parse_span_in(text, SECOND)
}

/// A span as `systemctl` and `systemd-analyze` print it: `1h 5min 3s`, below a minute with a fraction.
///
/// What is smaller than `accuracy_us` is left out.
#[must_use]
pub fn format_span(us: u64, accuracy_us: u64) -> String {
    const SHOWN: [(&str, u64); 9] = [
        ("y", YEAR),
        ("month", MONTH),
        ("w", WEEK),
        ("d", DAY),
        ("h", HOUR),
        ("min", MINUTE),
        ("s", SECOND),
        ("ms", MILLISECOND),
        ("us", 1),
    ];
    if us == 0 {
        return "0".to_owned();
    }
    let accuracy_us = accuracy_us.max(1);
    let mut out = String::new();
    let mut left = us;
    for (name, unit) in SHOWN {
        if left == 0 || (left < accuracy_us && !out.is_empty()) {
            break;
        }
        let (Some(whole), Some(part)) = (left.checked_div(unit), left.checked_rem(unit)) else {
            continue;
        };
        if whole == 0 {
            continue;
        }
        if !out.is_empty() {
            out.push(' ');
        }
        left = part;
        if left > 0
            && unit <= SECOND
            && let Some(fraction) = fraction(part, unit, accuracy_us)
        {
            out.push_str(&format!("{whole}.{fraction}{name}"));
            break;
        }
        out.push_str(&format!("{whole}{name}"));
    }
    out
}

/// How far one moment lies from another, as `systemctl` tells it: `1 week 3 days ago`, `5min 20s left`, `now`.
#[must_use]
pub fn format_distance(moment_us: u64, now_us: u64) -> String {
    let us = moment_us.abs_diff(now_us);
    let count = |us: u64, unit: u64| us.checked_div(unit).unwrap_or(0);
    let rest = |us: u64, unit: u64| us.checked_rem(unit).unwrap_or(0);
    let plural = |n: u64, word: &str| match n {
        1 => format!("1 {word}"),
        n => format!("{n} {word}s"),
    };
    let two = |unit: u64, word: &str, small: u64, small_word: &str| {
        let mut text = plural(count(us, unit), word);
        match count(rest(us, unit), small) {
            0 => {}
            n => {
                text.push(' ');
                text.push_str(&plural(n, small_word));
            }
        }
        text
    };
    let text = match us {
        0 => return "now".to_owned(),
        YEAR.. => two(YEAR, "year", MONTH, "month"),
        MONTH.. => two(MONTH, "month", DAY, "day"),
        WEEK.. => two(WEEK, "week", DAY, "day"),
        TWO_DAYS.. => plural(count(us, DAY), "day"),
        DAY_AND_HOUR.. => format!("1 day {}h", count(rest(us, DAY), HOUR)),
        SIX_HOURS.. => format!("{}h", count(us, HOUR)),
        HOUR.. => format!("{}h {}min", count(us, HOUR), count(rest(us, HOUR), MINUTE)),
        FIVE_MINUTES.. => format!("{}min", count(us, MINUTE)),
        MINUTE.. => format!(
            "{}min {}s",
            count(us, MINUTE),
            count(rest(us, MINUTE), SECOND)
        ),
        SECOND.. => format!("{}s", count(us, SECOND)),
        MILLISECOND.. => format!("{}ms", count(us, MILLISECOND)),
        _ => format!("{us}us"),
    };
    let side = if moment_us < now_us { "ago" } else { "left" };
    format!("{text} {side}")
}

/// The decimals of `part` of a unit down to the accuracy; `None` when that leaves no place for one.
fn fraction(part: u64, unit: u64, accuracy_us: u64) -> Option<String> {
    let places = |value: u64| value.checked_ilog10().unwrap_or(0);
    let all = places(unit);
    let cut = places(accuracy_us);
    let width = usize::try_from(all.checked_sub(cut).filter(|width| *width > 0)?).ok()?;
    let shown = part.checked_div(10u64.checked_pow(cut)?)?;
    Some(format!("{shown:0width$}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_match_the_vectors_of_systemd_analyze() {
        for (text, us) in [
            ("5min 20s", 320_000_000),
            ("2 h", 7_200_000_000),
            ("1y 12month", 63_115_200_000_000),
            ("55s500ms", 55_500_000),
            ("300ms20s 5day", 432_020_300_000),
            ("50", 50_000_000),
            ("1.5h", 5_400_000_000),
            ("1M", 2_629_800_000_000),
            ("1m", 60_000_000),
            ("0", 0),
        ] {
            assert_eq!(
                parse_span(text),
                Some(Span::Finite(Duration::from_micros(us))),
                "{text}"
            );
        }
        assert_eq!(parse_span("infinity"), Some(Span::Infinity));
        for bad in [
            "abc",
            "",
            "5 parsecs",
            "-1",
            "1..5",
            "99999999999999999999",
            ".",
        ] {
            assert_eq!(parse_span(bad), None, "{bad}");
        }
        assert_eq!(parse_span("0").unwrap().timeout(), None);
    }

    #[test]
    fn spans_are_printed_as_systemctl_prints_them() {
        for (us, accuracy, text) in [
            (0, 1, "0"),
            (3_903_000_000, 1, "1h 5min 3s"),
            (55_500_000, 1, "55.500000s"),
            (55_500_000, 1000, "55.500s"),
            (61_500_000, 1_000_000, "1min 1s"),
            (2 * MONTH + DAY, 1, "2month 1d"),
            (1500, 1, "1.500ms"),
            (1500, 1000, "1ms"),
            (7, 1, "7us"),
        ] {
            assert_eq!(format_span(us, accuracy), text);
        }
    }

    #[test]
    fn distances_lose_detail_as_they_grow() {
        for (us, text) in [
            (0, "now"),
            (900, "900us left"),
            (90 * SECOND, "1min 30s left"),
            (7 * MINUTE + SECOND, "7min left"),
            (3 * HOUR + 5 * MINUTE, "3h 5min left"),
            (DAY, "24h left"),
            (26 * HOUR, "1 day 2h left"),
            (10 * DAY, "1 week 3 days left"),
            (YEAR + 3 * MONTH, "1 year 3 months left"),
        ] {
            assert_eq!(format_distance(YEAR + us, YEAR), text);
        }
        assert_eq!(format_distance(0, SECOND), "1s ago");
    }
}
