//! Kubernetes' quantities (`resource.Quantity` of apimachinery), as far as they are whole numbers: `110`, `0.11k`, `11e1`, `1Ki`.

use serde_json::Value;

/// Characters of a quantity; what is longer is none.
const LONGEST: usize = 40;

/// The whole number that a quantity is; none if it is none, or a part, or less than nothing. A number without quotes is one, too.
pub(super) fn whole(value: &Value) -> Option<u64> {
    match value {
        Value::String(text) => parsed(text),
        Value::Number(number) => parsed(&number.to_string()),
        _ => None,
    }
}

fn parsed(text: &str) -> Option<u64> {
    if text.len() > LONGEST {
        return None;
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at_checked(end)?;
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if part.contains('.') || (whole.is_empty() && part.is_empty()) {
        return None;
    }
    let (tens, twos) = scale(suffix)?;
    let digits: u128 = format!("0{whole}{part}").parse().ok()?;
    let tens = tens.checked_sub(i32::try_from(part.len()).ok()?)?;
    let scaled = digits.checked_mul(1_u128.checked_shl(twos)?)?;
    let power = 10_u128.checked_pow(tens.unsigned_abs())?;
    let value = if tens >= 0 {
        scaled.checked_mul(power)?
    } else if scaled.is_multiple_of(power) {
        scaled / power
    } else {
        return None;
    };
    u64::try_from(value).ok()
}

/// By which powers of ten and of two a suffix multiplies.
fn scale(suffix: &str) -> Option<(i32, u32)> {
    Some(match suffix {
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "" => (0, 0),
        "k" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 10),
        "Mi" => (0, 20),
        "Gi" => (0, 30),
        "Ti" => (0, 40),
        "Pi" => (0, 50),
        "Ei" => (0, 60),
        _ => (suffix.strip_prefix(['e', 'E'])?.parse().ok()?, 0),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn whole_numbers_are_read_in_every_form() {
        for (text, number) in [
            ("110", 110),
            ("+110", 110),
            ("110.0", 110),
            ("0.11k", 110),
            (".11k", 110),
            ("110000m", 110),
            ("11e1", 110),
            ("1.1E2", 110),
            ("1100E-1", 110),
            ("1Ki", 1024),
            ("0.5Ki", 512),
            ("18E", 18_000_000_000_000_000_000),
            ("0", 0),
        ] {
            assert_eq!(whole(&json!(text)), Some(number), "{text}");
        }
        assert_eq!(whole(&json!(58)), Some(58));
        assert_eq!(whole(&json!(58.0)), Some(58));
    }

    #[test]
    fn what_is_no_whole_number_is_none() {
        for text in [
            "",
            "-1",
            "many",
            "1.5",
            "110m",
            "1 ",
            " 1",
            "1.1.1",
            ".",
            "k",
            "1K",
            "1ki",
            "1e",
            "1e9999999999",
            "20E",
            "1e38",
            "ü",
        ] {
            assert_eq!(whole(&json!(text)), None, "{text:?}");
        }
        assert_eq!(whole(&json!("9".repeat(LONGEST + 1))), None);
        for value in [json!(null), json!(true), json!([110]), json!({"pods": 110}), json!(-3), json!(1.5)] {
            assert_eq!(whole(&value), None, "{value}");
        }
    }
}
