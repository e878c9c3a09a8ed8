use proptest::prelude::*;

use super::*;

/// 2026-01-01 00:00:00 UTC.
const BASE_US: u64 = 1_767_225_600_000_000;

fn parse(text: &str) -> Calendar {
    Calendar::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn moments(text: &str) -> impl Iterator<Item = String> {
    let calendar = parse(text);
    let mut last_us = BASE_US;
    std::iter::from_fn(move || {
        last_us = calendar.next_after(last_us)?;
        Some(Civil::from_us(last_us).to_string())
    })
}

/// Text, normal form, the next two moments. Those of the reference come from systemd 252.
#[test]
fn expressions_have_the_normal_form_and_the_moments_of_systemd() {
    let rows: &[(&str, &str, &[&str])] = &[
        (
            "Sun 02:00",
            "Sun *-*-* 02:00:00",
            &["Sun 2026-01-04 02:00:00", "Sun 2026-01-11 02:00:00"],
        ),
        (
            "weekly",
            "Mon *-*-* 00:00:00",
            &["Mon 2026-01-05 00:00:00", "Mon 2026-01-12 00:00:00"],
        ),
        (
            "Mon..Fri 09:00",
            "Mon..Fri *-*-* 09:00:00",
            &["Thu 2026-01-01 09:00:00", "Fri 2026-01-02 09:00:00"],
        ),
        (
            "*:0/15",
            "*-*-* *:00/15:00",
            &["Thu 2026-01-01 00:15:00", "Thu 2026-01-01 00:30:00"],
        ),
        (
            "*-*~01 03:00",
            "*-*~01 03:00:00",
            &["Sat 2026-01-31 03:00:00", "Sat 2026-02-28 03:00:00"],
        ),
        (
            "Mon *-05~07/1",
            "Mon *-05~07/1 00:00:00",
            &["Mon 2026-05-25 00:00:00", "Mon 2027-05-31 00:00:00"],
        ),
        (
            "Sat,Sun 12-05 08:05:40",
            "Sat,Sun *-12-05 08:05:40",
            &["Sat 2026-12-05 08:05:40", "Sun 2027-12-05 08:05:40"],
        ),
        (
            "*-01,04,07,10-01",
            "*-01,04,07,10-01 00:00:00",
            &["Wed 2026-04-01 00:00:00", "Wed 2026-07-01 00:00:00"],
        ),
        (
            "hourly",
            "*-*-* *:00:00",
            &["Thu 2026-01-01 01:00:00", "Thu 2026-01-01 02:00:00"],
        ),
        ("2026-02-30", "2026-02-30 00:00:00", &[]),
        ("@1234", "1970-01-01 00:20:34 UTC", &[]),
        (
            "daily utc",
            "*-*-* 00:00:00 UTC",
            &["Fri 2026-01-02 00:00:00", "Sat 2026-01-03 00:00:00"],
        ),
        (
            "Mon, 17:48",
            "Mon *-*-* 17:48:00",
            &["Mon 2026-01-05 17:48:00", "Mon 2026-01-12 17:48:00"],
        ),
        (
            "Sat,Thu,Mon..Wed,Sat..Sun",
            "Mon..Thu,Sat,Sun *-*-* 00:00:00",
            &["Sat 2026-01-03 00:00:00", "Sun 2026-01-04 00:00:00"],
        ),
        (
            "*:3..10/4,3..11/4,1,1",
            "*-*-* *:01,03..07/4,03..11/4:00",
            &["Thu 2026-01-01 00:01:00", "Thu 2026-01-01 00:03:00"],
        ),
        (
            "*-*~01..26/5",
            "*-*~01..26/5 00:00:00",
            &["Tue 2026-01-06 00:00:00", "Sun 2026-01-11 00:00:00"],
        ),
        (
            "*:*:0.5..2.7/0.4",
            "*-*-* *:*:00.500000..02.500000/0.400000",
            &["Thu 2026-01-01 00:00:00", "Thu 2026-01-01 00:00:00"],
        ),
        (
            "*:*:0.1234567",
            "*-*-* *:*:00.123457",
            &["Thu 2026-01-01 00:00:00", "Thu 2026-01-01 00:01:00"],
        ),
        (
            "*-2-29",
            "*-02-29 00:00:00",
            &["Tue 2028-02-29 00:00:00", "Sun 2032-02-29 00:00:00"],
        ),
        (
            "69-1-1",
            "2069-01-01 00:00:00",
            &["Tue 2069-01-01 00:00:00"],
        ),
    ];
    for (text, normal, next) in rows {
        assert_eq!(parse(text).to_string(), *normal, "{text}");
        let found: Vec<String> = moments(text).take(2).collect();
        let wanted: Vec<String> = next.iter().map(|n| format!("{n} UTC")).collect();
        assert_eq!(found, wanted, "{text}");
    }
}

#[test]
fn fractions_of_a_second_are_kept_to_the_microsecond() {
    let calendar = parse("*:*:0.5/0.25");
    assert_eq!(calendar.next_after(BASE_US), Some(BASE_US + 500_000));
    assert_eq!(
        calendar.next_after(BASE_US + 500_000),
        Some(BASE_US + 750_000)
    );
    assert_eq!(parse("*:*:*").next_after(BASE_US - 1), Some(BASE_US));
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    for (text, message, offset) in [
        ("", "the expression is empty", 0),
        (" UTC", "the expression is empty", 0),
        ("*-*-* 25:00", "the hour cannot be \"25\"", 6),
        ("Fri..Mon", "the weekday cannot be \"Mon\"", 5),
        ("Mon.. 12:00", "a weekday expected at \" 12:00\"", 5),
        ("*-*~31", "the day cannot be \"31\"", 4),
        ("*:0/60", "the minute cannot be \"0/60\"", 2),
        ("10", "a colon expected at \"\"", 2),
        (
            "12:00 Europe/Berlin",
            "times are in UTC, the time zone \"Europe/Berlin\" is not known",
            0,
        ),
        ("*:*:59.9999999", "the second cannot be \"59.9999999\"", 4),
        (
            "@99999999999999999999",
            "the number of seconds cannot be \"@99999999999999999999\"",
            0,
        ),
    ] {
        let error = Calendar::parse(text).unwrap_err();
        assert_eq!(
            (error.to_string().as_str(), error.offset()),
            (message, offset),
            "{text}"
        );
    }
}

#[test]
fn the_search_ends_with_the_last_year() {
    assert_eq!(moments("2199-12-31").count(), 1);
    assert_eq!(parse("daily").next_after(u64::MAX), None);
    assert_eq!(parse("daily").next_after(u64::MAX - 1), None);
}

proptest! {
    #[test]
    fn no_text_panics(text in "([0-9*,./:~@ -]|\\.\\.|Mon|Fri|UTC|ä){0,24}", after_us in any::<u64>()) {
        if let Ok(calendar) = Calendar::parse(&text) {
            let _ = calendar.next_after(after_us);
            let normal = calendar.to_string();
            prop_assert_eq!(Calendar::parse(&normal).unwrap().to_string(), normal);
        }
    }

    /// The model asks of each minute whether it is named.
    #[test]
    fn no_moment_is_missed_or_invented(
        weekday in 0usize..9, day in 1u32..29, step in 1u32..5, from_end in any::<bool>(),
        hour in 0u32..24, minute in 0u32..30, every in 7u32..30, start_min in 0u64..600_000,
    ) {
        let prefix = WEEKDAYS.get(weekday).map_or(String::new(), |name| format!("{name} "));
        let mark = if from_end { '~' } else { '-' };
        let day = if from_end { day.max(step + 1) } else { day.min(31 - step) };
        let text = format!("{prefix}*-*{mark}{day}/{step} {hour}:{minute}/{every}");
        let calendar = parse(&text);
        let named = |civil: &Civil| {
            let length = civil::days_in_month(civil.year, civil.month);
            let first = if from_end { length + 1 - day } else { day };
            let of_day = u32::try_from(civil.us_of_day / 60_000_000).unwrap();
            let (h, m) = (of_day / 60, of_day % 60);
            (weekday > 6 || civil::weekday(civil.year, civil.month, civil.day) as usize == weekday)
                && civil.day >= first && (civil.day - first).is_multiple_of(step)
                && h == hour && m >= minute && (m - minute).is_multiple_of(every)
        };
        let start_us = BASE_US + start_min * 60_000_000;
        let midnight_us = start_us - start_us % DAY_US;
        let minutes = (0..1500u64).flat_map(|day| (0..60u64).map(move |minute| (day, minute)));
        let expected = minutes
            .map(|(day, minute)| midnight_us + day * DAY_US + (u64::from(hour) * 60 + minute) * 60_000_000)
            .find(|us| *us > start_us && named(&Civil::from_us(*us)));
        prop_assert!(expected.is_some(), "{}", text);
        prop_assert_eq!(calendar.next_after(start_us), expected, "{}", text);
    }
}
