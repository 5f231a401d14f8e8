//! `strftime_now`: the date, as some templates print it into the system prompt.

use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use minijinja::{Environment, Error, ErrorKind};

/// The clock that `strftime_now` reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    fixed_sec: Option<i64>,
    offset_sec: i64,
}

impl Clock {
    /// The system's time in UTC. A library does not know the user's time zone.
    pub fn utc() -> Self {
        Self { fixed_sec: None, offset_sec: 0 }
    }

    /// The system's time at an offset from UTC, in seconds to the east.
    pub fn offset(offset_sec: i64) -> Self {
        Self { fixed_sec: None, offset_sec }
    }

    /// One constant moment, in seconds since 1970, for reproducible renderings.
    pub fn fixed(unix_sec: i64) -> Self {
        Self { fixed_sec: Some(unix_sec), offset_sec: 0 }
    }

    fn now_sec(self) -> i64 {
        let system =
            || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        self.fixed_sec.unwrap_or_else(system).saturating_add(self.offset_sec)
    }
}

pub(super) fn install(environment: &mut Environment<'static>, clock: Clock) {
    environment.add_function("strftime_now", move |format: String| strftime(clock.now_sec(), &format));
}

/// Formats the local time `unix_sec`. The time is civil, without a zone, so directives of time zones are errors.
fn strftime(unix_sec: i64, format: &str) -> Result<String, Error> {
    let failed = |error: jiff::Error| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}"))
    };
    let time = Timestamp::from_second(unix_sec).map_err(failed)?;
    strtime::format(format, TimeZone::UTC.to_datetime(time)).map_err(failed)
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
