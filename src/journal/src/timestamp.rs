//! Times of day and dates, in UTC: the machine keeps no other zone. Pure.

/// A moment as a date and a time of day, UTC, in the proleptic Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Civil {
    /// From 1970 on.
    pub year: u64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
    /// 0 to 999 999.
    pub micros: u32,
}

/// Short names of the months.
pub const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// Short names of the days of the week, beginning with that of 1970-01-01.
const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];

/// Microseconds of a day.
pub const DAY_US: u64 = 86_400 * 1_000_000;

/// Days from 0000-03-01, a leap day's morrow and so the start of the reckoning below, to 1970-01-01.
const DAYS_TO_EPOCH: u64 = 719_468;
const DAYS_IN_ERA: u64 = 146_097;

impl Civil {
    /// The moment that many µs after 1970-01-01.
    #[must_use]
    pub fn from_us(us: u64) -> Self {
        let (days, in_day_us) = (us / DAY_US + DAYS_TO_EPOCH, us % DAY_US);
        let (era, day_of_era) = (days / DAYS_IN_ERA, days % DAYS_IN_ERA);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 {
            march_month + 3
        } else {
            march_month - 9
        };
        let seconds = in_day_us / 1_000_000;
        Self {
            year: year_of_era + era * 400 + u64::from(month <= 2),
            month: month as u8,
            day: day as u8,
            hour: (seconds / 3600) as u8,
            minute: (seconds / 60 % 60) as u8,
            second: (seconds % 60) as u8,
            micros: (in_day_us % 1_000_000) as u32,
        }
    }

    /// µs since 1970-01-01; `None` when a part is out of its range or the date is before 1970 or after 9999.
    #[must_use]
    pub fn to_us(self) -> Option<u64> {
        let month = usize::from(self.month).checked_sub(1)?;
        let divides = |years| self.year.is_multiple_of(years);
        let leap = divides(4) && (!divides(100) || divides(400));
        let lengths = [
            31,
            if leap { 29 } else { 28 },
            31,
            30,
            31,
            30,
            31,
            31,
            30,
            31,
            30,
            31,
        ];
        let valid = (1970..=9999).contains(&self.year)
            && (1..=*lengths.get(month)?).contains(&self.day)
            && self.hour < 24
            && self.minute < 60
            && self.second < 60
            && self.micros < 1_000_000;
        if !valid {
            return None;
        }
        let year = self.year - u64::from(self.month <= 2);
        let march_month = u64::from(if self.month > 2 {
            self.month - 3
        } else {
            self.month + 9
        });
        let year_of_era = year % 400;
        let day_of_year = (153 * march_month + 2) / 5 + u64::from(self.day) - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = year / 400 * DAYS_IN_ERA + day_of_era - DAYS_TO_EPOCH;
        let seconds =
            u64::from(self.hour) * 3600 + u64::from(self.minute) * 60 + u64::from(self.second);
        Some(days * DAY_US + seconds * 1_000_000 + u64::from(self.micros))
    }
}

/// The short name of the day of the week.
#[must_use]
pub fn weekday(us: u64) -> &'static str {
    WEEKDAYS[(us / DAY_US % 7) as usize]
}

/// `2026-11-21 05:10:01`.
#[must_use]
pub fn date_and_time(us: u64) -> String {
    let Civil {
        year,
        month,
        day,
        hour,
        minute,
        second,
        ..
    } = Civil::from_us(us);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_moments() {
        assert_eq!(date_and_time(0), "1970-01-01 00:00:00");
        assert_eq!(date_and_time(951_782_400_000_000), "2000-02-29 00:00:00");
        assert_eq!(date_and_time(1_795_237_801_000_000), "2026-11-21 05:10:01");
        assert_eq!(weekday(1_795_237_801_000_000), "Sat");
    }

    #[test]
    fn dates_that_are_none_are_refused() {
        let date = |year, month, day| {
            Civil {
                year,
                month,
                day,
                hour: 0,
                minute: 0,
                second: 0,
                micros: 0,
            }
            .to_us()
        };
        assert!(date(2024, 2, 29).is_some());
        assert!(date(2025, 2, 29).is_none());
        assert!(date(2100, 2, 29).is_none());
        assert!(date(2025, 0, 1).is_none());
        assert!(date(2025, 13, 1).is_none());
        assert!(date(2025, 4, 31).is_none());
        assert!(date(1969, 12, 31).is_none());
    }

    proptest! {
        #[test]
        fn every_moment_comes_back(us in 0..253_402_300_800_000_000u64) {
            prop_assert_eq!(Civil::from_us(us).to_us(), Some(us));
        }

        #[test]
        fn any_number_is_some_moment(us in any::<u64>()) {
            let _ = date_and_time(us);
        }
    }
}
