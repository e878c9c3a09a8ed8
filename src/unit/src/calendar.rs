//! Calendar expressions (`systemd.time(7)`, "Calendar Events"): `Mon..Fri *-*-* 09:00`, `*:0/15`, `*-*~01`.
//!
//! Times are UTC: the image carries no time-zone database, so an expression may end in `UTC` and in no other zone.
//! Text goes through [`Calendar::parse`], back through `Display` (systemd's normal form), and
//! [`Calendar::next_after`] walks the moments.

use std::fmt;

mod civil;
mod parse;

pub use civil::Civil;
pub use parse::CalendarError;

/// Years that an expression can name, and the last one that it can come round in.
pub(crate) const YEARS: (u32, u32) = (1970, 2199);
const SECOND_US: u32 = 1_000_000;
const DAY_US: u64 = 86_400 * 1_000_000;

/// `2`, `2..8`, `2/3`, `2..8/3`: one item of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Component {
    start: u32,
    /// The last value, included.
    stop: Option<u32>,
    /// The distance of the values; 0 is `start` alone.
    repeat: u32,
}

impl Component {
    /// The least value from `from` on.
    fn next(self, from: u32) -> Option<u32> {
        if self.start >= from {
            return Some(self.start);
        }
        let distance = from.saturating_sub(self.start);
        let steps = distance.checked_next_multiple_of(self.repeat)?;
        let value = self.start.checked_add(steps)?;
        self.stop.is_none_or(|stop| value <= stop).then_some(value)
    }
}

/// A field's list; `None` is `*`, any value.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
struct Field(Option<Vec<Component>>);

impl Field {
    fn only(value: u32) -> Self {
        Self(Some(vec![Component {
            start: value,
            stop: None,
            repeat: 0,
        }]))
    }

    /// The least value from `from` on that is not above `last`.
    fn next(&self, from: u32, last: u32) -> Option<u32> {
        let value = match &self.0 {
            None => Some(from),
            Some(list) => list.iter().filter_map(|c| c.next(from)).min(),
        };
        value.filter(|value| *value <= last)
    }

    /// The values from `from` to `last`.
    fn values(&self, from: u32, last: u32) -> impl Iterator<Item = u32> {
        std::iter::successors(self.next(from, last), move |value| {
            self.next(value.saturating_add(1), last)
        })
    }
}

/// A parsed expression: the set of moments, to the microsecond, that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calendar {
    /// Bit 0 is Monday; all seven bits are any day.
    weekdays: u8,
    year: Field,
    month: Field,
    day: Field,
    /// `~`: days count from the month's end, 1 being the last.
    from_month_end: bool,
    hour: Field,
    minute: Field,
    /// In microseconds of the minute.
    second_us: Field,
    /// `UTC` was written.
    utc: bool,
}

const ALL_WEEKDAYS: u8 = 0x7f;
const WEEKDAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

impl Calendar {
    /// The first moment strictly after `after_us`, both in µs since 1970-01-01 UTC; `None` when there is none before 2200.
    #[must_use]
    pub fn next_after(&self, after_us: u64) -> Option<u64> {
        let from_us = after_us.checked_add(1)?;
        let from = Civil::from_us(from_us);
        let first_year = from.year.max(YEARS.0);
        for year in self.year.values(first_year, YEARS.1) {
            let same_year = year == from.year;
            let first_month = if same_year { from.month } else { 1 };
            for month in self.month.values(first_month, 12) {
                let same_month = same_year && month == from.month;
                let first_day = if same_month { from.day } else { 1 };
                for day in first_day..=civil::days_in_month(year, month) {
                    if !self.has_day(year, month, day) {
                        continue;
                    }
                    let floor_us = if same_month && day == from.day {
                        from.us_of_day
                    } else {
                        0
                    };
                    if let Some(us_of_day) = self.next_in_day(floor_us) {
                        let date = Civil {
                            year,
                            month,
                            day,
                            us_of_day,
                        };
                        return Some(date.to_us());
                    }
                }
            }
        }
        None
    }

    /// Whether the day, which exists, is one of the expression's.
    fn has_day(&self, year: u32, month: u32, day: u32) -> bool {
        let weekday = civil::weekday(year, month, day);
        if self.weekdays & 1u8.checked_shl(weekday).unwrap_or(0) == 0 {
            return false;
        }
        let Some(list) = &self.day.0 else { return true };
        let length = civil::days_in_month(year, month);
        list.iter().any(|component| {
            let component = if self.from_month_end {
                let forward = |back: u32| length.saturating_add(1).checked_sub(back);
                let (Some(start), stop) = (
                    forward(component.stop.unwrap_or(component.start)),
                    component.stop.and_then(|_| forward(component.start)),
                ) else {
                    return false;
                };
                Component {
                    start,
                    stop,
                    ..*component
                }
            } else {
                *component
            };
            component.next(day) == Some(day)
        })
    }

    /// The first moment of a day that is not before `floor_us`, in µs since midnight.
    fn next_in_day(&self, floor_us: u64) -> Option<u64> {
        const MINUTE_US: u64 = 60 * SECOND_US as u64;
        let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let (first_hour, first_minute) = (
            small(floor_us / (60 * MINUTE_US)),
            small(floor_us / MINUTE_US % 60),
        );
        for hour in self.hour.values(first_hour, 23) {
            let same_hour = hour == first_hour;
            let from = if same_hour { first_minute } else { 0 };
            for minute in self.minute.values(from, 59) {
                let from = if same_hour && minute == first_minute {
                    small(floor_us % MINUTE_US)
                } else {
                    0
                };
                if let Some(us) = self.second_us.next(from, 60 * SECOND_US - 1) {
                    let minutes = u64::from(hour)
                        .saturating_mul(60)
                        .saturating_add(minute.into());
                    return Some(minutes.saturating_mul(MINUTE_US).saturating_add(us.into()));
                }
            }
        }
        None
    }
}

impl fmt::Display for Calendar {
    /// systemd's normal form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.weekdays != ALL_WEEKDAYS {
            write_weekdays(f, self.weekdays)?;
            f.write_str(" ")?;
        }
        write_field(f, &self.year, 4)?;
        f.write_str("-")?;
        write_field(f, &self.month, 2)?;
        f.write_str(if self.from_month_end { "~" } else { "-" })?;
        write_field(f, &self.day, 2)?;
        f.write_str(" ")?;
        write_field(f, &self.hour, 2)?;
        f.write_str(":")?;
        write_field(f, &self.minute, 2)?;
        f.write_str(":")?;
        write_seconds(f, &self.second_us)?;
        f.write_str(if self.utc { " UTC" } else { "" })
    }
}

/// Three or more in a row become a range, others are listed.
fn write_weekdays(f: &mut fmt::Formatter<'_>, days: u8) -> fmt::Result {
    let has = |day: usize| {
        u32::try_from(day)
            .ok()
            .and_then(|day| 1u8.checked_shl(day))
            .is_some_and(|bit| days & bit != 0)
    };
    let mut separator = "";
    let mut run = 0usize;
    for (day, name) in WEEKDAYS.iter().enumerate() {
        if !has(day) {
            run = 0;
            continue;
        }
        run = run.saturating_add(1);
        let goes_on = day < 6 && has(day.saturating_add(1));
        if run >= 2 && goes_on {
            continue;
        }
        if run >= 3 {
            separator = "..";
        }
        write!(f, "{separator}{name}")?;
        separator = ",";
    }
    Ok(())
}

fn write_field(f: &mut fmt::Formatter<'_>, field: &Field, width: usize) -> fmt::Result {
    let Some(list) = &field.0 else {
        return f.write_str("*");
    };
    for (index, component) in list.iter().enumerate() {
        if index > 0 {
            f.write_str(",")?;
        }
        write!(f, "{:0width$}", component.start)?;
        if let Some(stop) = component.stop {
            write!(f, "..{stop:0width$}")?;
        }
        if component.repeat > 0 && !(component.stop.is_some() && component.repeat == 1) {
            write!(f, "/{}", component.repeat)?;
        }
    }
    Ok(())
}

fn write_seconds(f: &mut fmt::Formatter<'_>, field: &Field) -> fmt::Result {
    let list = field.0.as_deref().unwrap_or_default();
    let whole = |us: u32| us.is_multiple_of(SECOND_US);
    let every_second = Component {
        start: 0,
        stop: None,
        repeat: SECOND_US,
    };
    if list.contains(&every_second) && list.iter().all(|c| whole(c.start) && whole(c.repeat)) {
        return f.write_str("*");
    }
    let write = |f: &mut fmt::Formatter<'_>, us: u32, width: usize| {
        write!(f, "{:0width$}", us / SECOND_US)?;
        match us % SECOND_US {
            0 => Ok(()),
            fraction => write!(f, ".{fraction:06}"),
        }
    };
    for (index, component) in list.iter().enumerate() {
        if index > 0 {
            f.write_str(",")?;
        }
        write(f, component.start, 2)?;
        if let Some(stop) = component.stop {
            f.write_str("..")?;
            write(f, stop, 2)?;
        }
        if component.repeat > 0 && !(component.stop.is_some() && component.repeat == SECOND_US) {
            f.write_str("/")?;
            write(f, component.repeat, 1)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
