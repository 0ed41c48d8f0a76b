//! Times as people write them: `500ms 10s 5m 1h`.

use std::time::Duration;

/// A year: longer is "for ever", which is what leaving the option away means.
const MAX_SECONDS: f64 = 366.0 * 24.0 * 3600.0;

/// Reads a time. Zero is none.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let explain = || format!("'{text}' is no time; write 500ms, 10s, 5m or 1h");
    let digits = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(explain)?;
    let (number, unit) = text.split_at(digits);
    let in_seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(explain()),
    };
    if !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return Err(explain());
    }
    let seconds = number.parse::<f64>().map_err(|_| explain())? * in_seconds;
    if seconds < 0.001 {
        return Err(format!("'{text}' is too short; the shortest time is 1ms"));
    }
    if seconds > MAX_SECONDS {
        return Err(format!("'{text}' is too long; the longest time is a year"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::parse;
    use std::time::Duration;

    #[test]
    fn times_read_as_people_write_them() {
        for (text, millis) in [("500ms", 500), ("10s", 10_000), ("1.5s", 1500), ("5m", 300_000), ("1h", 3_600_000)] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "10", "s", "-1s", "1 s", "1d", "0s", "1e9s", "inf", "infs", "NaNs", "9999h9", "99999h"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
