//! Dates of the proleptic Gregorian calendar in UTC.

use std::fmt;

use super::{DAY_US, WEEKDAYS};

/// A moment as a date and a time of day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Civil {
    /// The year; 1970 or later.
    pub year: u32,
    /// 1 to 12.
    pub month: u32,
    /// 1 to 31.
    pub day: u32,
    /// Microseconds since midnight.
    pub us_of_day: u64,
}

impl Civil {
    /// From µs since 1970-01-01 UTC.
    #[must_use]
    pub fn from_us(us: u64) -> Self {
        let (year, month, day) = date(us / DAY_US);
        Self {
            year,
            month,
            day,
            us_of_day: us % DAY_US,
        }
    }

    /// That day of the calendar, at midnight; `None` when there is none, or it is before 1970 or after 9999.
    #[must_use]
    pub fn of_date(year: u32, month: u32, day: u32) -> Option<Self> {
        let is_one = (1970..=9999).contains(&year)
            && (1..=12).contains(&month)
            && (1..=days_in_month(year, month)).contains(&day);
        is_one.then_some(Self {
            year,
            month,
            day,
            us_of_day: 0,
        })
    }

    /// 0 to 23.
    #[must_use]
    pub fn hour(self) -> u64 {
        self.us_of_day / 3_600_000_000
    }

    /// 0 to 59.
    #[must_use]
    pub fn minute(self) -> u64 {
        self.us_of_day / 60_000_000 % 60
    }

    /// 0 to 59.
    #[must_use]
    pub fn second(self) -> u64 {
        self.us_of_day / 1_000_000 % 60
    }

    /// The fraction of the second, 0 to 999 999.
    #[must_use]
    pub fn micros(self) -> u64 {
        self.us_of_day % 1_000_000
    }

    /// The short name of the day of the week.
    #[must_use]
    pub fn weekday(self) -> &'static str {
        let index = usize::try_from(weekday(self.year, self.month, self.day)).unwrap_or(0);
        WEEKDAYS.get(index).copied().unwrap_or_default()
    }

    /// `2026-11-21 05:10:01`.
    #[must_use]
    pub fn date_and_time(self) -> String {
        format!(
            "{:04}-{:02}-{:02} {:02}:{:02}:{:02}",
            self.year,
            self.month,
            self.day,
            self.hour(),
            self.minute(),
            self.second()
        )
    }

    /// To µs since 1970-01-01 UTC.
    #[must_use]
    pub fn to_us(self) -> u64 {
        day_number(self.year, self.month, self.day)
            .saturating_mul(DAY_US)
            .saturating_add(self.us_of_day)
    }
}

impl fmt::Display for Civil {
    /// As `systemd-analyze` prints it: `Thu 2026-01-01 00:15:00 UTC`, fractions of a second cut off.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} UTC", self.weekday(), self.date_and_time())
    }
}

fn is_leap(year: u32) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

/// 28 to 31.
pub(super) fn days_in_month(year: u32, month: u32) -> u32 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// 0 is Monday. 1970-01-01 was a Thursday.
pub(super) fn weekday(year: u32, month: u32, day: u32) -> u32 {
    u32::try_from(day_number(year, month, day).saturating_add(3) % 7).unwrap_or(0)
}

/// Days from 0000-03-01 to 1970-01-01.
const EPOCH: u64 = 719_468;
/// Days in 400 years.
const ERA: u64 = 146_097;

/// Days since 1970-01-01. Years begin in March here, so that a leap day is a year's last.
#[allow(
    clippy::arithmetic_side_effects,
    reason = "years are below 2^32, months and days below 32: nothing leaves a u64, and the epoch is after 0000-03-01"
)]
fn day_number(year: u32, month: u32, day: u32) -> u64 {
    let year = u64::from(year.max(1970)) - u64::from(month <= 2);
    let from_march = (u64::from(month) + 9) % 12;
    let of_year = (153 * from_march + 2) / 5 + u64::from(day) - 1;
    let of_era = year % 400;
    year / 400 * ERA + of_era * 365 + of_era / 4 - of_era / 100 + of_year - EPOCH
}

/// The reverse of [`day_number`].
#[allow(
    clippy::arithmetic_side_effects,
    reason = "days of a u64 of microseconds are below 2^28: nothing leaves a u64, and each subtraction is from the larger"
)]
fn date(days: u64) -> (u32, u32, u32) {
    let days = days + EPOCH;
    let of_era = days % ERA;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = (from_march + 2) % 12 + 1;
    let year = days / ERA * 400 + year_of_era + u64::from(month <= 2);
    let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    (small(year), small(month), small(day))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_of_five_centuries_follows_the_one_before() {
        let mut expected = (1970, 1, 1);
        for number in 0..200_000 {
            assert_eq!(date(number), expected);
            let (year, month, day) = expected;
            assert_eq!(day_number(year, month, day), number);
            expected = if day < days_in_month(year, month) {
                (year, month, day + 1)
            } else if month < 12 {
                (year, month + 1, 1)
            } else {
                (year + 1, 1, 1)
            };
        }
    }

    #[test]
    fn dates_that_are_none_are_refused() {
        for (date, is_one) in [
            ((2024, 2, 29), true),
            ((2025, 2, 29), false),
            ((2100, 2, 29), false),
            ((2025, 0, 1), false),
            ((2025, 13, 1), false),
            ((2025, 4, 31), false),
            ((1969, 12, 31), false),
        ] {
            let (year, month, day) = date;
            assert_eq!(
                Civil::of_date(year, month, day).is_some(),
                is_one,
                "{date:?}"
            );
        }
    }

    #[test]
    fn known_moments() {
        for (us, text) in [
            (0, "Thu 1970-01-01 00:00:00 UTC"),
            (951_782_400_000_000, "Tue 2000-02-29 00:00:00 UTC"),
            (1_795_237_801_000_000, "Sat 2026-11-21 05:10:01 UTC"),
        ] {
            assert_eq!(Civil::from_us(us).to_string(), text);
        }
    }

    proptest::proptest! {
        #[test]
        fn every_moment_comes_back(us in proptest::prelude::any::<u64>()) {
            proptest::prop_assert_eq!(Civil::from_us(us).to_us(), us);
        }
    }

    #[test]
    fn the_end_of_time_has_a_date() {
        assert_eq!(Civil::from_us(u64::MAX).to_us(), u64::MAX);
        let civil = Civil::from_us(1_767_225_600_000_000);
        assert_eq!(civil.to_string(), "Thu 2026-01-01 00:00:00 UTC");
    }
}
