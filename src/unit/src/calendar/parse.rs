//! From text to a [`Calendar`], as systemd reads it.

use super::{ALL_WEEKDAYS, Calendar, Civil, Component, Field, SECOND_US, YEARS};

/// Why a text is no calendar expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CalendarError {
    /// Nothing is written.
    #[error("the expression is empty")]
    Empty,
    /// A zone that is not UTC.
    #[error("times are in UTC, the time zone {0:?} is not known")]
    TimeZone(String),
    /// Something that does not belong at this place.
    #[error("{expected} expected at {found:?}")]
    Syntax {
        /// Byte offset in the text.
        offset: usize,
        /// What could stand here.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// A value outside of its field, a range that runs backwards, a repetition that never comes.
    #[error("the {field} cannot be {text:?}")]
    Range {
        /// Byte offset in the text.
        offset: usize,
        /// The field's name.
        field: &'static str,
        /// As it was written.
        text: String,
    },
}

impl CalendarError {
    /// Where in the text, in bytes.
    #[must_use]
    pub fn offset(&self) -> usize {
        match self {
            Self::Empty | Self::TimeZone(_) => 0,
            Self::Syntax { offset, .. } | Self::Range { offset, .. } => *offset,
        }
    }
}

/// Names for whole expressions. `anually` is a misspelling that systemd has always taken.
const NAMED: &[(&str, &str)] = &[
    ("minutely", "*-*-* *:*:00"),
    ("hourly", "*-*-* *:00:00"),
    ("daily", "*-*-* 00:00:00"),
    ("weekly", "Mon *-*-* 00:00:00"),
    ("monthly", "*-*-01 00:00:00"),
    ("quarterly", "*-01,04,07,10-01 00:00:00"),
    ("semiannually", "*-01,07-01 00:00:00"),
    ("semi-annually", "*-01,07-01 00:00:00"),
    ("biannually", "*-01,07-01 00:00:00"),
    ("bi-annually", "*-01,07-01 00:00:00"),
    ("yearly", "*-01-01 00:00:00"),
    ("annually", "*-01-01 00:00:00"),
    ("anually", "*-01-01 00:00:00"),
];

const LONG_WEEKDAYS: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];

/// How many items one list may have.
const MAX_COMPONENTS: usize = 240;

impl Calendar {
    /// Reads an expression such as `Mon..Fri 09:00`, `*-*~01 03:00` or `weekly`.
    ///
    /// # Errors
    /// [`CalendarError`] says what is wrong and where.
    pub fn parse(text: &str) -> Result<Self, CalendarError> {
        let (body, utc) = match text
            .len()
            .checked_sub(4)
            .and_then(|n| text.split_at_checked(n))
        {
            Some((body, zone)) if zone.eq_ignore_ascii_case(" UTC") => (body, true),
            _ => (text, false),
        };
        if body.is_empty() {
            return Err(CalendarError::Empty);
        }
        let named = NAMED
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(body));
        let mut calendar = Reader::new(named.map_or(body, |(_, text)| text))
            .calendar()
            .map_err(|error| time_zone(body).unwrap_or(error))?;
        calendar.utc |= utc;
        Ok(calendar)
    }
}

/// The error for a last word that looks like a time zone.
fn time_zone(text: &str) -> Option<CalendarError> {
    let (_, word) = text.rsplit_once(' ')?;
    let zone = word.chars().next().is_some_and(|c| c.is_ascii_alphabetic())
        && weekday_name(word).is_none_or(|(_, length)| length < word.len())
        && word
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '-' | '+'));
    zone.then(|| CalendarError::TimeZone(word.to_owned()))
}

/// The weekday (0 is Monday) that a text begins with, and how long its name is.
fn weekday_name(text: &str) -> Option<(u32, usize)> {
    let names = LONG_WEEKDAYS.iter().chain(&super::WEEKDAYS);
    names.zip((0..7).chain(0..7)).find_map(|(name, day)| {
        text.get(..name.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(name))
            .then_some((day, name.len()))
    })
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

/// A list, and where it stood.
struct Listed {
    field: Field,
    from: usize,
    to: usize,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at = self.at.saturating_add(token.len());
        }
        found
    }

    fn skip_spaces(&mut self) {
        while self.eat(" ") {}
    }

    fn expected(&self, expected: &'static str) -> CalendarError {
        CalendarError::Syntax {
            offset: self.at,
            expected,
            found: self.rest().chars().take(20).collect(),
        }
    }

    fn calendar(&mut self) -> Result<Calendar, CalendarError> {
        let mut calendar = Calendar {
            weekdays: ALL_WEEKDAYS,
            year: Field::default(),
            month: Field::default(),
            day: Field::default(),
            from_month_end: false,
            hour: Field::only(0),
            minute: Field::only(0),
            second_us: Field::only(0),
            utc: false,
        };
        self.weekdays(&mut calendar)?;
        if self.peek() == Some('@') {
            self.epoch(&mut calendar)?;
            return Ok(calendar);
        }
        self.date(&mut calendar)?;
        if self.peek().is_some() {
            self.time(&mut calendar)?;
        }
        Ok(calendar)
    }

    /// `Mon,Wed..Fri`; a comma after the last is taken, as is `-` for `..`.
    fn weekdays(&mut self, calendar: &mut Calendar) -> Result<(), CalendarError> {
        let mut days = 0u8;
        let mut first_of_range: Option<u32> = None;
        loop {
            let Some((day, length)) = weekday_name(self.rest()) else {
                if first_of_range.is_some() {
                    return Err(self.expected("a weekday"));
                }
                break;
            };
            let from = self.at;
            self.at = self.at.saturating_add(length);
            let first = first_of_range.take().unwrap_or(day);
            if first > day {
                return Err(self.range("weekday", from));
            }
            let closes_range = first < day || self.text.get(..from).is_some_and(ends_range);
            for day in first..=day {
                days |= 1u8.checked_shl(day).unwrap_or(0);
            }
            match self.peek() {
                None => break,
                Some(' ') => {
                    self.skip_spaces();
                    break;
                }
                Some(',') => {
                    self.eat(",");
                    // A comma may stand before the time: `Mon, 12:00`.
                    if self.peek() == Some(' ') {
                        self.skip_spaces();
                        break;
                    }
                }
                Some('.') if !closes_range && self.eat("..") => first_of_range = Some(day),
                Some('-') if !closes_range && self.eat("-") => first_of_range = Some(day),
                Some(_) => return Err(self.expected("a comma, .. or a space")),
            }
        }
        if days != 0 {
            calendar.weekdays = days;
        }
        Ok(())
    }

    fn range(&self, field: &'static str, from: usize) -> CalendarError {
        CalendarError::Range {
            offset: from,
            field,
            text: self.text.get(from..self.at).unwrap_or_default().to_owned(),
        }
    }

    /// `@1234`: a moment by its number.
    fn epoch(&mut self, calendar: &mut Calendar) -> Result<(), CalendarError> {
        let from = self.at;
        self.eat("@");
        let digits = self.rest();
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(self.expected("a number of seconds"));
        }
        self.at = self.text.len();
        let seconds = digits.parse::<u64>().ok();
        let moment = seconds
            .and_then(|seconds| seconds.checked_mul(SECOND_US.into()))
            .map(Civil::from_us)
            .filter(|civil| civil.year <= YEARS.1)
            .ok_or_else(|| self.range("number of seconds", from))?;
        let second = moment.us_of_day / 1_000_000;
        let small = |value: u64| u32::try_from(value).unwrap_or(0);
        calendar.year = Field::only(moment.year);
        calendar.month = Field::only(moment.month);
        calendar.day = Field::only(moment.day);
        calendar.hour = Field::only(small(second / 3600));
        calendar.minute = Field::only(small(second / 60 % 60));
        calendar.second_us = Field::only(small(second % 60).saturating_mul(SECOND_US));
        calendar.utc = true;
        Ok(())
    }

    /// `YEAR-MONTH-DAY`, `MONTH-DAY`, with `~` before the day; nothing where a time stands.
    fn date(&mut self, calendar: &mut Calendar) -> Result<(), CalendarError> {
        if self.peek().is_none() {
            return Ok(());
        }
        let start = self.at;
        let first = self.list(Unit::Whole)?;
        if matches!(self.peek(), None | Some(':')) {
            self.at = start;
            return Ok(());
        }
        let mut from_end = self.date_separator()?;
        let second = self.list(Unit::Whole)?;
        let (year, month, day) = if matches!(self.peek(), None | Some(' ')) {
            (None, first, second)
        } else {
            if from_end {
                return Err(self.expected("a space"));
            }
            from_end = self.date_separator()?;
            let third = self.list(Unit::Whole)?;
            if !matches!(self.peek(), None | Some(' ')) {
                return Err(self.expected("a space"));
            }
            (Some(first), second, third)
        };
        self.skip_spaces();
        if let Some(mut year) = year {
            for component in year.field.0.iter_mut().flatten() {
                component.start = full_year(component.start);
                component.stop = component.stop.map(full_year);
            }
            calendar.year = self.check(year, "year", YEARS, false)?;
        }
        calendar.month = self.check(month, "month", (1, 12), false)?;
        // Counted from the end, only what every month has can be named.
        let last = if from_end { 28 } else { 31 };
        calendar.day = self.check(day, "day", (1, last), from_end)?;
        calendar.from_month_end = from_end && calendar.day.0.is_some();
        Ok(())
    }

    /// True for `~`.
    fn date_separator(&mut self) -> Result<bool, CalendarError> {
        if self.eat("~") {
            Ok(true)
        } else if self.eat("-") {
            Ok(false)
        } else {
            Err(self.expected("- or ~"))
        }
    }

    /// `HOUR:MINUTE` and perhaps `:SECOND`.
    fn time(&mut self, calendar: &mut Calendar) -> Result<(), CalendarError> {
        let hour = self.list(Unit::Whole)?;
        if !self.eat(":") {
            return Err(self.expected("a colon"));
        }
        let minute = self.list(Unit::Whole)?;
        calendar.hour = self.check(hour, "hour", (0, 23), false)?;
        calendar.minute = self.check(minute, "minute", (0, 59), false)?;
        if self.peek().is_none() {
            return Ok(());
        }
        if !self.eat(":") {
            return Err(self.expected("a colon"));
        }
        let second = self.list(Unit::Micro)?;
        calendar.second_us = self.check(second, "second", (0, 60 * SECOND_US - 1), false)?;
        if self.peek().is_some() {
            return Err(self.expected("the end"));
        }
        Ok(())
    }

    /// `*`, or items with commas between them.
    fn list(&mut self, unit: Unit) -> Result<Listed, CalendarError> {
        let from = self.at;
        if self.eat("*") {
            let field = match unit {
                Unit::Whole => Field::default(),
                Unit::Micro => Field(Some(vec![Component {
                    start: 0,
                    stop: None,
                    repeat: SECOND_US,
                }])),
            };
            let to = self.at;
            return Ok(Listed { field, from, to });
        }
        let mut components = Vec::new();
        loop {
            components.push(self.component(unit)?);
            if components.len() > MAX_COMPONENTS {
                return Err(self.range("list", from));
            }
            if !self.eat(",") {
                break;
            }
        }
        if !matches!(self.peek(), None | Some(' ' | '-' | '~' | ':')) {
            return Err(self.expected("a comma or the end of the list"));
        }
        let to = self.at;
        Ok(Listed {
            field: Field(Some(components)),
            from,
            to,
        })
    }

    fn component(&mut self, unit: Unit) -> Result<Component, CalendarError> {
        let start = self.number(unit)?;
        let mut component = Component {
            start,
            stop: None,
            repeat: 0,
        };
        if self.eat("..") {
            component.stop = Some(self.number(unit)?);
            component.repeat = unit.one();
        }
        if self.eat("/") {
            let from = self.at;
            component.repeat = self.number(unit)?;
            if component.repeat == 0 {
                return Err(self.range("repetition", from));
            }
        }
        Ok(component)
    }

    /// A number in the smallest units of the field; digits after the sixth decimal round.
    fn number(&mut self, unit: Unit) -> Result<u32, CalendarError> {
        let from = self.at;
        let whole = self.digits();
        if whole.is_empty() {
            return Err(self.expected("a number"));
        }
        let mut value = whole.parse::<u32>().ok();
        if unit == Unit::Micro {
            value = value.and_then(|value| value.checked_mul(SECOND_US));
            let fraction = self.rest().starts_with('.') && !self.rest().starts_with("..");
            if fraction {
                self.eat(".");
                let digits = self.digits();
                if digits.is_empty() {
                    return Err(self.expected("a digit"));
                }
                let mut place = SECOND_US;
                for digit in digits.chars().filter_map(|c| c.to_digit(10)) {
                    let down = place / 10;
                    let part = match (down, place) {
                        (0, 1) => u32::from(digit >= 5),
                        (0, _) => 0,
                        _ => digit.saturating_mul(down),
                    };
                    value = value.and_then(|value| value.checked_add(part));
                    place = down;
                }
            }
        }
        // Above this nothing is in any field's range; below it sums cannot overflow.
        value
            .filter(|value| *value <= u32::MAX / 4)
            .ok_or_else(|| self.range("number", from))
    }

    fn digits(&mut self) -> &'a str {
        let rest = self.rest();
        let length = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        self.at = self.at.saturating_add(length);
        rest.get(..length).unwrap_or_default()
    }

    /// Brings a list into its normal form, and refuses what its field cannot hold.
    fn check(
        &self,
        listed: Listed,
        name: &'static str,
        (least, last): (u32, u32),
        from_end: bool,
    ) -> Result<Field, CalendarError> {
        let Some(mut list) = listed.field.0 else {
            return Ok(Field(None));
        };
        let refused = || CalendarError::Range {
            offset: listed.from,
            field: name,
            text: self
                .text
                .get(listed.from..listed.to)
                .unwrap_or_default()
                .to_owned(),
        };
        for component in &mut list {
            if let Some(stop) = component.stop {
                if stop < component.start || stop > last {
                    return Err(refused());
                }
                // The last value that is really met.
                let over = stop
                    .saturating_sub(component.start)
                    .checked_rem(component.repeat)
                    .unwrap_or(0);
                component.stop = Some(stop.saturating_sub(over));
                if component.stop == Some(component.start) {
                    (component.stop, component.repeat) = (None, 0);
                }
            }
            let inside = (least..=last).contains(&component.start);
            // A repetition without an end must come at least once more.
            let repeats = component.stop.is_some()
                || if from_end {
                    component.start.saturating_sub(component.repeat) >= least
                } else {
                    component.start.saturating_add(component.repeat) <= last
                };
            if !(inside && repeats) {
                return Err(refused());
            }
        }
        list.sort_unstable();
        list.dedup();
        Ok(Field(Some(list)))
    }
}

/// Whether a text ends in what joins two weekdays.
fn ends_range(text: &str) -> bool {
    text.ends_with("..") || text.ends_with('-')
}

/// What a field's numbers count.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Whole,
    /// Seconds with a fraction, kept in µs.
    Micro,
}

impl Unit {
    fn one(self) -> u32 {
        match self {
            Self::Whole => 1,
            Self::Micro => SECOND_US,
        }
    }
}

/// Two digits are a year between 1970 and 2069.
fn full_year(year: u32) -> u32 {
    match year {
        0..70 => year.saturating_add(2000),
        70..100 => year.saturating_add(1900),
        _ => year,
    }
}
