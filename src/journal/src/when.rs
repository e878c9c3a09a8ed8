//! The moments that `--since` and `--until` take. Pure.

use orlop_unit::Civil;

/// Microseconds of a day.
const DAY_US: u64 = 86_400 * SECOND_US;

const SECOND_US: u64 = 1_000_000;

/// Names of spans with their length in µs (systemd.time(7)).
const SPANS: [(&[&str], u64); 8] = [
    (&["us", "usec", "µs"], 1),
    (&["ms", "msec"], 1_000),
    (&["", "s", "sec", "second", "seconds"], SECOND_US),
    (&["m", "min", "minute", "minutes"], 60 * SECOND_US),
    (&["h", "hr", "hour", "hours"], 3_600 * SECOND_US),
    (&["d", "day", "days"], DAY_US),
    (&["w", "week", "weeks"], 7 * DAY_US),
    (&["month", "months"], 2_630_016 * SECOND_US),
];

/// The moment that `text` names, µs since 1970-01-01 UTC. Understood are `2026-11-21 05:10:01`, with `T`, with a fraction, with `Z`
/// or `UTC`, without seconds or time; `05:10[:01]` of today; `now`, `today`, `yesterday`, `tomorrow`; `-1h 30min`, `+5min`,
/// `2 days ago`; `@1795237801`.
#[must_use]
pub fn parse(text: &str, now_us: u64) -> Option<u64> {
    let text = text.trim();
    let midnight = now_us - now_us % DAY_US;
    match text {
        "now" => return Some(now_us),
        "today" => return Some(midnight),
        "yesterday" => return midnight.checked_sub(DAY_US),
        "tomorrow" => return midnight.checked_add(DAY_US),
        _ => {}
    }
    if let Some(seconds) = text.strip_prefix('@') {
        return decimal_us(seconds, SECOND_US);
    }
    if let Some(span) = text.strip_prefix('-') {
        return now_us.checked_sub(parse_span(span)?);
    }
    if let Some(span) = text.strip_prefix('+') {
        return now_us.checked_add(parse_span(span)?);
    }
    if let Some(span) = text.strip_suffix("ago") {
        return now_us.checked_sub(parse_span(span)?);
    }
    let text = ["UTC", "Z", "+00:00"]
        .iter()
        .find_map(|zone| text.strip_suffix(zone))
        .unwrap_or(text)
        .trim_end();
    let (date, time) = match text.split_once(['T', ' ']) {
        Some((date, time)) => (Some(date), Some(time.trim_start())),
        None if text.contains(':') => (None, Some(text)),
        None => (Some(text), None),
    };
    let day_us = date.map_or(Some(midnight), parse_date)?;
    day_us.checked_add(time.map_or(Some(0), parse_time)?)
}

/// A length of time such as `1h 30min` or `90`, in µs.
#[must_use]
pub fn parse_span(text: &str) -> Option<u64> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    let mut total = 0u64;
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let after = after.trim_start();
        let end = after
            .find(|c: char| c.is_ascii_digit() || c.is_whitespace())
            .unwrap_or(after.len());
        let (name, after) = after.split_at(end);
        let (_, unit_us) = SPANS.iter().find(|(names, _)| names.contains(&name))?;
        total = total.checked_add(decimal_us(number, *unit_us)?)?;
        rest = after.trim_start();
    }
    Some(total)
}

fn parse_date(text: &str) -> Option<u64> {
    let mut parts = text.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || year.len() != 4 {
        return None;
    }
    let part = |text| u32::try_from(number(text)?).ok();
    Civil::of_date(part(year)?, part(month)?, part(day)?).map(Civil::to_us)
}

fn parse_time(text: &str) -> Option<u64> {
    let mut parts = text.split(':');
    let (hour, minute) = (number(parts.next()?)?, number(parts.next()?)?);
    let second_us = parts
        .next()
        .map_or(Some(0), |seconds| decimal_us(seconds, SECOND_US))?;
    let valid = parts.next().is_none() && hour < 24 && minute < 60 && second_us < 60 * SECOND_US;
    valid.then(|| (hour * 3600 + minute * 60) * SECOND_US + second_us)
}

/// `text` as a decimal fraction of a unit of that many µs.
fn decimal_us(text: &str, unit_us: u64) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut total = number(whole)?.checked_mul(unit_us)?;
    let mut digit_us = unit_us;
    for c in fraction.chars() {
        digit_us /= 10;
        total = total.checked_add(u64::from(c.to_digit(10)?) * digit_us)?;
    }
    Some(total)
}

fn number(text: &str) -> Option<u64> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 2026-11-21 05:10:01 UTC.
    const NOW_US: u64 = 1_795_237_801_000_000;

    #[test]
    fn the_usual_forms_are_understood() {
        for (text, expected) in [
            ("2026-11-20 23:00:05", "2026-11-20 23:00:05"),
            ("2026-11-20T23:00:05Z", "2026-11-20 23:00:05"),
            ("2026-11-20 23:00:05.75 UTC", "2026-11-20 23:00:05"),
            ("2026-11-20 23:00", "2026-11-20 23:00:00"),
            ("2026-11-20", "2026-11-20 00:00:00"),
            ("04:30", "2026-11-21 04:30:00"),
            ("now", "2026-11-21 05:10:01"),
            ("today", "2026-11-21 00:00:00"),
            ("yesterday", "2026-11-20 00:00:00"),
            ("tomorrow", "2026-11-22 00:00:00"),
            ("-1h", "2026-11-21 04:10:01"),
            ("-1h30min", "2026-11-21 03:40:01"),
            ("-90", "2026-11-21 05:08:31"),
            ("+5 min", "2026-11-21 05:15:01"),
            ("2 days ago", "2026-11-19 05:10:01"),
            ("1.5h ago", "2026-11-21 03:40:01"),
            ("@1795237800", "2026-11-21 05:10:00"),
        ] {
            assert_eq!(
                parse(text, NOW_US)
                    .map(|us| Civil::from_us(us).date_and_time())
                    .as_deref(),
                Some(expected),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in [
            "",
            "-",
            "ago",
            "soon",
            "2026-13-01",
            "2026-11-31",
            "26-11-01",
            "2026-11-20 24:00",
            "12:60",
            "8888888888888:88",
            "1:2:3:4",
            "-1 fortnight",
            "@",
            "@x",
            "-999999999999999 months",
            "2026-11-20 5",
            "+-1h",
            "١٢:٣٠",
        ] {
            assert_eq!(parse(text, NOW_US), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text in "\\PC{0,30}", now_us in any::<u64>()) {
            let _ = parse(&text, now_us);
        }

        #[test]
        fn what_the_journal_prints_can_be_asked_for(us in 0..253_402_300_800_000_000u64) {
            prop_assert_eq!(parse(&Civil::from_us(us).date_and_time(), NOW_US), Some(us - us % SECOND_US));
        }
    }
}
