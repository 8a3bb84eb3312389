//! Wall-clock time as a plain number: cooldowns have to survive a restart, so a monotonic clock will not do.

use std::fmt;
use std::ops::Add;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The time `millis` milliseconds after the epoch.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the epoch.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// How long ago `earlier` was; zero when it is yet to come.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// The time `by` before this one, at the earliest the epoch.
    #[must_use]
    pub fn earlier(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Reads the form that [`fmt::Display`] writes, and the same with a fraction or an offset of `+00:00`: what
    /// `node.k8s.amazonaws.com/createdAt` holds.
    #[must_use]
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let (date, rest) = text.split_once('T')?;
        let clock = rest.strip_suffix('Z').or_else(|| rest.strip_suffix("+00:00"))?;
        let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
        let millis: u64 = match fraction.get(..3.min(fraction.len()))? {
            digits if fraction.bytes().all(|b| b.is_ascii_digit()) => format!("{digits:0<3}").parse().ok()?,
            _ => return None,
        };
        let mut date = date.split('-').map(number);
        let (year, month, day) = (date.next()??, date.next()??, date.next()??);
        let mut clock = clock.split(':').map(number);
        let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
        let valid = year >= 1970 && (1..=12).contains(&month) && (1..=31).contains(&day);
        if !valid || hour > 23 || minute > 59 || second > 60 {
            return None;
        }
        let days = days_from_civil(year, month, day);
        Some(Self((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000 + millis))
    }
}

fn number(digits: &str) -> Option<u64> {
    (digits.len() <= 4 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// Days from 1970-01-01 to a date of the Gregorian calendar, counted in years that begin in March, so that the leap day
/// comes last.
const fn days_from_civil(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let before = year * 365 + year / 4 - year / 100 + year / 400;
    before + (153 * month + 2) / 5 + day - 1 - 719_468
}

impl Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, later: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(later.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// RFC 3339 to the second, in UTC.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / 1000;
        let day = seconds / 86_400 + 719_468;
        let era = day / 146_097;
        let of_era = day % 146_097;
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month = (5 * of_year + 2) / 153;
        let date = of_year - (153 * month + 2) / 5 + 1;
        let (year, month) =
            if month < 10 { (era * 400 + year_of_era, month + 3) } else { (era * 400 + year_of_era + 1, month - 9) };
        let clock = seconds % 86_400;
        write!(f, "{year:04}-{month:02}-{date:02}T{:02}:{:02}:{:02}Z", clock / 3600, clock / 60 % 60, clock % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (4_102_444_800, "2100-01-01T00:00:00Z"),
        ] {
            assert_eq!(Timestamp::from_millis(seconds * 1000).to_string(), text);
            assert_eq!(Timestamp::parse_rfc3339(text), Some(Timestamp::from_millis(seconds * 1000)));
        }
        assert_eq!(Timestamp::parse_rfc3339("1970-01-01T00:00:01.25+00:00"), Some(Timestamp::from_millis(1250)));
        for bad in [
            "",
            "yesterday",
            "2024-13-01T00:00:00Z",
            "2024-01-01T00:00:00",
            "2024-01-01T25:00:00Z",
            "2024-01-01Té:00:00Z",
        ] {
            assert_eq!(Timestamp::parse_rfc3339(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(seconds in 0u64..200_000_000_000) {
            let time = Timestamp::from_millis(seconds * 1000);
            if seconds < 253_402_300_800 {
                prop_assert_eq!(Timestamp::parse_rfc3339(&time.to_string()), Some(time));
            }
        }
    }
}
