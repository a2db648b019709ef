//! Durations (`15m`, `1h30m`, `7d`) and byte sizes (`4Mi`, `65536`) as people write them, and the amounts of Kubernetes
//! (`100m`, `1.5Gi`).
//!
//! Not here: fractions of durations and sizes (`1.5h`), negative values, units below a second: no field of a `ChatCluster`
//! needs them.

use crate::problem::FieldProblem;

/// What a duration may look like, for messages to people.
pub(crate) const DURATION_FORM: &str = "numbers with a unit s, m, h or d, e.g. 45s, 15m, 1h30m, 7d";
/// What a byte size may look like, for messages to people.
pub(crate) const BYTES_FORM: &str =
    "a number of bytes, or one with a suffix Ki, Mi, Gi, k, M or G, e.g. 4Mi";

/// Whole seconds of a duration such as `15m`; `field` is named in the error.
pub fn parse_duration_seconds(field: &str, text: &str) -> Result<u64, FieldProblem> {
    let wrong = || FieldProblem::new(field, format!("{text:?} is not a duration"), DURATION_FORM);
    let mut total: u64 = 0;
    let mut digits = String::new();
    if text.is_empty() {
        return Err(wrong());
    }
    for character in text.chars() {
        if character.is_ascii_digit() {
            digits.push(character);
            continue;
        }
        let seconds_per_unit = match character {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 86_400,
            _ => return Err(wrong()),
        };
        let count: u64 = digits.parse().map_err(|_| wrong())?;
        digits.clear();
        total = count
            .checked_mul(seconds_per_unit)
            .and_then(|seconds| total.checked_add(seconds))
            .ok_or_else(wrong)?;
    }
    if digits.is_empty() {
        Ok(total)
    } else {
        Err(wrong())
    }
}

/// Bytes of a size such as `4Mi`; `field` is named in the error.
pub fn parse_bytes(field: &str, text: &str) -> Result<u64, FieldProblem> {
    let wrong = || FieldProblem::new(field, format!("{text:?} is not a size"), BYTES_FORM);
    let digits_end = text
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, suffix) = text.split_at(digits_end);
    let count: u64 = digits.parse().map_err(|_| wrong())?;
    let factor: u64 = match suffix {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return Err(wrong()),
    };
    count.checked_mul(factor).ok_or_else(wrong)
}

/// A Kubernetes quantity such as `100m`, `1.5Gi` or `1e3` in billionths, rounded up as the API server does; `None` when it
/// isn't one, is negative, or is larger than any machine.
pub fn parse_quantity(text: &str) -> Option<i128> {
    const NANO: i128 = 1_000_000_000;
    let number_end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(number_end);
    let factor = match suffix {
        "n" => 1,
        "u" => 1_000,
        "m" => 1_000_000,
        "" => NANO,
        "k" => NANO * 1_000,
        "M" => NANO * 1_000_000,
        "G" => NANO * 1_000_000_000,
        "T" => NANO * 1_000_000_000_000,
        "P" => NANO * 1_000_000_000_000_000,
        "E" => NANO * 1_000_000_000_000_000_000,
        "Ki" => NANO << 10,
        "Mi" => NANO << 20,
        "Gi" => NANO << 30,
        "Ti" => NANO << 40,
        "Pi" => NANO << 50,
        "Ei" => NANO << 60,
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            10_i128.checked_pow(u32::try_from(power.checked_add(9)?).ok()?)?
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 9 {
        return None;
    }
    let digits = |digits: &str| -> Option<i128> {
        if digits.is_empty() {
            Some(0)
        } else {
            digits.parse().ok()
        }
    };
    let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
    let parts = digits(fraction)?.checked_mul(factor)?;
    digits(whole)?
        .checked_mul(factor)?
        .checked_add(parts / scale)?
        .checked_add(i128::from(parts % scale != 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_read_with_their_unit() {
        for (text, seconds) in [
            ("45s", 45),
            ("15m", 900),
            ("12h", 43_200),
            ("7d", 604_800),
            ("1h30m", 5_400),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration_seconds("f", text), Ok(seconds), "{text}");
        }
    }

    #[test]
    fn a_bad_duration_names_its_field_and_what_is_allowed() {
        for text in [
            "",
            "15",
            "m",
            "15 m",
            "15min",
            "-1s",
            "1.5h",
            "7d3",
            "99999999999999999999d",
            "213503982334602d",
        ] {
            let problem = parse_duration_seconds("spec.auth.accessTokenTtl", text).unwrap_err();
            assert_eq!(problem.field, "spec.auth.accessTokenTtl");
            assert!(problem.problem.contains(&format!("{text:?}")), "{problem}");
            assert_eq!(problem.allowed, DURATION_FORM);
        }
    }

    #[test]
    fn sizes_are_read_with_their_suffix() {
        for (text, bytes) in [
            ("65536", 65_536),
            ("4Mi", 4_194_304),
            ("1Gi", 1_073_741_824),
            ("64Ki", 65_536),
            ("5M", 5_000_000),
            ("2k", 2_000),
        ] {
            assert_eq!(parse_bytes("f", text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn a_bad_size_names_its_field() {
        for text in [
            "",
            "Mi",
            "4MB",
            "4 Mi",
            "-4Mi",
            "1.5Mi",
            "99999999999999999999",
            "18446744073709551615Gi",
        ] {
            let problem = parse_bytes("spec.media.maxUploadBytes", text).unwrap_err();
            assert_eq!(problem.field, "spec.media.maxUploadBytes");
        }
    }

    #[test]
    fn quantities_are_amounts() {
        for (a, b) in [
            ("0.1", "100m"),
            ("1", "1000m"),
            ("1Gi", "1024Mi"),
            ("1.5Gi", "1536Mi"),
            ("2k", "2000"),
            ("1e9", "1G"),
            ("1E3", "1k"),
            ("1E", "1000P"),
            ("1Ei", "1024Pi"),
            ("1e-3", "1m"),
            ("0.5n", "1n"),
            (".5", "500m"),
        ] {
            assert_eq!(parse_quantity(a), parse_quantity(b), "{a} {b}");
            assert!(parse_quantity(a).is_some(), "{a}");
        }
        assert_ne!(parse_quantity("1G"), parse_quantity("1Gi"));
        for text in [
            "",
            "x",
            "1X",
            "12Q",
            ".",
            "1.2.3",
            "-1",
            "1 Gi",
            "1e",
            "1e99",
            "1e-99",
            "99999999999999999999999999999999999999999Ti",
        ] {
            assert_eq!(parse_quantity(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in ".{0,24}") {
            let _ = parse_quantity(&text);
            let _ = parse_duration_seconds("f", &text);
            let _ = parse_bytes("f", &text);
        }

        #[test]
        fn no_amount_makes_the_parser_panic(text in "[0-9.]{0,40}[eEinumkKMGTPi0-9-]{0,5}") {
            let _ = parse_quantity(&text);
        }

        #[test]
        fn a_sum_of_units_is_the_sum_of_seconds(days in 0u64..1000, hours in 0u64..1000, minutes in 0u64..1000, seconds in 0u64..1000) {
            let text = format!("{days}d{hours}h{minutes}m{seconds}s");
            prop_assert_eq!(
                parse_duration_seconds("f", &text),
                Ok(days * 86_400 + hours * 3_600 + minutes * 60 + seconds)
            );
        }
    }
}
