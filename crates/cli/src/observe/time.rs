//! Times: as they are given, and as they are shown.

use std::time::{Duration, SystemTime};

use clap::ValueEnum;
use jiff::Timestamp;

/// How times are shown, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum TimeFormat {
    /// `Jan  2 15:04:05.000`
    #[value(alias = "StampMilli")]
    StampMilli,
    /// `2006-01-02T15:04:05Z`
    #[value(alias = "RFC3339")]
    Rfc3339,
    /// With milliseconds.
    #[value(alias = "RFC3339Milli")]
    Rfc3339Milli,
    /// With microseconds.
    #[value(alias = "RFC3339Micro")]
    Rfc3339Micro,
    /// With nanoseconds.
    #[value(alias = "RFC3339Nano")]
    Rfc3339Nano,
}

impl TimeFormat {
    pub(super) fn show(self, time: Option<&prost_types::Timestamp>) -> String {
        let read = |time: &prost_types::Timestamp| Timestamp::new(time.seconds, time.nanos).ok();
        let Some(time) = time.and_then(read) else { return "N/A".to_owned() };
        match self {
            Self::StampMilli => time.strftime("%b %e %H:%M:%S.%3f").to_string(),
            Self::Rfc3339 => time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            Self::Rfc3339Milli => format!("{time:.3}"),
            Self::Rfc3339Micro => format!("{time:.6}"),
            Self::Rfc3339Nano => format!("{time:.9}"),
        }
    }
}

/// Reads a time: so long ago, or RFC 3339.
pub(super) fn read(text: &str, now: SystemTime) -> Result<SystemTime, &'static str> {
    const RULE: &str = "must be how long ago, such as 30s, 5m or 2h, or a time such as 2026-01-31T23:59:59Z";
    if let Some(ago) = duration(text) {
        return now.checked_sub(ago).ok_or(RULE);
    }
    text.parse::<Timestamp>().map(SystemTime::from).map_err(|_unread| RULE)
}

/// `1h30m`, `500ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_suffix(" ago").unwrap_or(text);
    let mut whole = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|character: char| !character.is_ascii_digit())?;
        let (number, behind) = rest.split_at_checked(digits)?;
        let number: u32 = number.parse().ok()?;
        let units = behind.find(|character: char| character.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at_checked(units)?;
        let unit = match unit {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            "d" => Duration::from_secs(86_400),
            _ => return None,
        };
        whole = whole.checked_add(unit.checked_mul(number)?)?;
        rest = behind;
    }
    Some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_shown() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        for (text, ago) in [("30s", 30), ("5m", 300), ("1h30m", 5400), ("2d", 172_800), ("0s", 0)] {
            assert_eq!(read(text, now), Ok(now - Duration::from_secs(ago)), "{text}");
        }
        assert_eq!(read("2023-11-14T22:13:20Z", now), Ok(now));
        for text in ["", "5", "5x", "m", "yesterday", "-5m"] {
            assert!(read(text, now).is_err(), "{text:?}");
        }
        let time = prost_types::Timestamp { seconds: 1_700_000_000, nanos: 5_600_000 };
        for (format, expected) in [
            (TimeFormat::StampMilli, "Nov 14 22:13:20.005"),
            (TimeFormat::Rfc3339, "2023-11-14T22:13:20Z"),
            (TimeFormat::Rfc3339Milli, "2023-11-14T22:13:20.005Z"),
            (TimeFormat::Rfc3339Micro, "2023-11-14T22:13:20.005600Z"),
        ] {
            assert_eq!(format.show(Some(&time)), expected);
        }
        assert_eq!(TimeFormat::Rfc3339.show(None), "N/A");
    }
}
