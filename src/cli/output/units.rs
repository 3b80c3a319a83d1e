//! Human-readable units, as Docker prints them: sizes, ages, truncated texts.

use jiff::Timestamp;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Formats bytes in decimal units, with three significant digits and no space: `5.57MB`.
pub fn size(bytes: u64) -> String {
    sized(bytes, 3)
}

/// As [`size`], with four significant digits, where Docker prints four.
pub fn precise_size(bytes: u64) -> String {
    sized(bytes, 4)
}

fn sized(bytes: u64, digits: usize) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    // Exact enough: at most four digits of 53 bits are printed.
    #[allow(clippy::cast_precision_loss)]
    let mut value = bytes as f64;
    let mut unit = 0;
    // From 999.5 on, three digits round to the next unit's 1; four do from 999.95 on.
    let ceiling = if digits == 3 { 999.5 } else { 999.95 };
    while value >= ceiling && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = match value {
        v if v >= ceiling / 10.0 => digits - 3,
        v if v >= ceiling / 100.0 => digits - 2,
        _ => digits - 1,
    };
    let digits = format!("{value:.decimals$}");
    let digits = if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { &digits };
    format!("{digits}{}", UNITS[unit])
}

/// Formats a duration in words, without ` ago`.
pub fn age(seconds: i64) -> String {
    // Docker rounds hours to the nearest, everything else down.
    let hours = (seconds + 1800) / 3600;
    match seconds {
        i64::MIN..1 => "Less than a second".into(),
        1 => "1 second".into(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".into(),
        120..3600 => format!("{} minutes", seconds / 60),
        _ if hours == 1 => "About an hour".into(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 14 => format!("{} days", hours / 24),
        _ if hours < 24 * 60 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", seconds / 3600 / 24 / 365),
    }
}

/// Truncates the text to `width` terminal columns, the last one being `…`.
pub fn ellipsis(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut short = String::new();
    let mut left = width.saturating_sub(1);
    for c in text.chars() {
        match left.checked_sub(c.width().unwrap_or(0)) {
            Some(rest) => left = rest,
            None => break,
        }
        short.push(c);
    }
    short.push('…');
    short
}

/// Formats a time relative to `now`: `2 weeks ago`; `N/A` if it is unknown or not after 1970-01-01.
pub fn ago(moment: Option<Timestamp>, now: Timestamp) -> String {
    match moment {
        Some(created) if created > Timestamp::UNIX_EPOCH => {
            format!("{} ago", age(now.as_second() - created.as_second()))
        }
        _ => UNKNOWN.into(),
    }
}

/// Docker's text for a missing value.
pub const UNKNOWN: &str = "N/A";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_truncated() {
        for (text, short) in [("", ""), ("abcd", "abcd"), ("abcde", "abc…"), ("éééé", "éééé"), ("ééééé", "ééé…")]
        {
            assert_eq!(ellipsis(text, 4), short);
        }
        // Wide ones take two columns.
        assert_eq!((ellipsis("漢字", 4), ellipsis("漢字漢", 4)), ("漢字".into(), "漢…".into()));
    }

    #[test]
    fn sizes_are_rounded_at_every_boundary() {
        for (bytes, text) in [
            (0, "0B"),
            (1, "1B"),
            (999, "999B"),
            (1000, "1kB"),
            (1001, "1kB"),
            (1005, "1kB"),
            (1234, "1.23kB"),
            (9_994, "9.99kB"),
            (9_996, "10kB"),
            (99_940, "99.9kB"),
            (99_960, "100kB"),
            (999_499, "999kB"),
            (999_500, "1MB"),
            (5_570_000, "5.57MB"),
            (5_500_000, "5.5MB"),
            (100_000_000, "100MB"),
            (1_813_000_000, "1.81GB"),
            (u64::MAX, "18.4EB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn precise_sizes_have_four_digits() {
        for (bytes, text) in
            [(0, "0B"), (1_234_567, "1.235MB"), (13_300, "13.3kB"), (999_949, "999.9kB"), (999_960, "1MB")]
        {
            assert_eq!(precise_size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn ages_are_rounded_at_every_boundary() {
        const MINUTE: i64 = 60;
        const HOUR: i64 = 3600;
        const DAY: i64 = 24 * HOUR;
        for (seconds, text) in [
            (-5, "Less than a second"),
            (0, "Less than a second"),
            (1, "1 second"),
            (2, "2 seconds"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (HOUR - 1, "59 minutes"),
            (HOUR, "About an hour"),
            (89 * MINUTE, "About an hour"),
            (90 * MINUTE, "2 hours"),
            (47 * HOUR + 29 * MINUTE, "47 hours"),
            (48 * HOUR, "2 days"),
            (14 * DAY - HOUR, "13 days"),
            (14 * DAY, "2 weeks"),
            (60 * DAY - HOUR, "8 weeks"),
            (60 * DAY, "2 months"),
            (730 * DAY - HOUR, "24 months"),
            (730 * DAY, "2 years"),
            (1200 * DAY, "3 years"),
        ] {
            assert_eq!(age(seconds), text, "{seconds}");
        }
    }
}
