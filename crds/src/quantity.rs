//! Durations (`15m`, `1h30m`, `7d`) and byte sizes (`4Mi`, `65536`) as people write them.
//!
//! Not here: fractions (`1.5h`), negative values, units below a second: no field of a `ChatCluster` needs them.

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

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in ".{0,24}") {
            let _ = parse_duration_seconds("f", &text);
            let _ = parse_bytes("f", &text);
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
