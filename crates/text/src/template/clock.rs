//! `strftime_now`: the date, as some templates print it into the system prompt.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Environment, Error, ErrorKind};

/// What `strftime_now` reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    fixed_sec: Option<i64>,
    offset_sec: i64,
}

impl Clock {
    /// The system's time, UTC. A library does not know the user's time zone.
    pub fn utc() -> Self {
        Self { fixed_sec: None, offset_sec: 0 }
    }

    /// The system's time at an offset from UTC, in seconds to the east.
    pub fn offset(offset_sec: i64) -> Self {
        Self { fixed_sec: None, offset_sec }
    }

    /// Always the same moment, in seconds since 1970: for renderings that must not change.
    pub fn fixed(unix_sec: i64) -> Self {
        Self { fixed_sec: Some(unix_sec), offset_sec: 0 }
    }

    fn now_sec(self) -> i64 {
        let system =
            || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        self.fixed_sec.unwrap_or_else(system) + self.offset_sec
    }
}

pub(super) fn install(environment: &mut Environment<'static>, clock: Clock) {
    environment.add_function("strftime_now", move |format: String| strftime(clock.now_sec(), &format));
}

const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Year, month and day of the Gregorian calendar, from days since 1970-01-01. Counts in eras of 400 years that begin
/// in March, so that the leap day is the last of its year.
fn civil(days: i64) -> (i64, usize, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month as usize, day)
}

fn strftime(unix_sec: i64, format: &str) -> Result<String, Error> {
    let (days, second) = (unix_sec.div_euclid(86_400), unix_sec.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let weekday = (days + 3).rem_euclid(7) as usize;
    let day_of_year = days - (0..).map(|back| days - back).find(|d| civil(*d).0 < year).unwrap_or(days);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        let unpadded = directive == Some('-');
        if unpadded {
            directive = chars.next();
        }
        let padded = |value: i64, width: usize| match unpadded {
            true => value.to_string(),
            false => format!("{value:0width$}"),
        };
        out.push_str(&match directive {
            Some('Y') => year.to_string(),
            Some('y') => padded(year.rem_euclid(100), 2),
            Some('m') => padded(month as i64, 2),
            Some('d') => padded(day, 2),
            Some('H') => padded(hour, 2),
            Some('I') => padded((hour + 11) % 12 + 1, 2),
            Some('M') => padded(minute, 2),
            Some('S') => padded(second, 2),
            Some('j') => padded(day_of_year, 3),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('A') => DAYS[weekday].to_owned(),
            Some('a') => DAYS[weekday][..3].to_owned(),
            Some('B') => MONTHS[month - 1].to_owned(),
            Some('b') => MONTHS[month - 1][..3].to_owned(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('%') => "%".to_owned(),
            other => {
                let message = format!("strftime_now: the directive %{} is not known", other.unwrap_or(' '));
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_that_are_known() {
        let cases = [
            (0, "%Y-%m-%d %H:%M:%S %A %j", "1970-01-01 00:00:00 Thursday 001"),
            (951_782_400, "%d %b %Y %a", "29 Feb 2000 Tue"),
            (1_709_251_199, "%B %-d, %y %I:%M %p %j", "February 29, 24 11:59 PM 060"),
            (1_735_603_200, "%F %T %j%%", "2024-12-31 00:00:00 366%"),
            (-1, "%F %T", "1969-12-31 23:59:59"),
        ];
        for (sec, format, expected) in cases {
            assert_eq!(strftime(sec, format).unwrap(), expected);
        }
        assert!(strftime(0, "%Q").is_err());
    }
}
