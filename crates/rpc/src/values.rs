//! Conversions of values that every package has. Decoding fails with `InvalidRequest` naming the field; the client side turns that
//! into a defect with [`answer`], since then it's the server that sent nonsense.

use std::{str::FromStr, time::Duration};

use carillon_domain::{Error, Result, Timestamp};

/// Parses an id.
pub(crate) fn id<T: FromStr>(field: &str, text: &str) -> Result<T> {
    text.parse()
        .map_err(|_| Error::invalid(field, "must be a UUID"))
}

/// Parses an id that may be absent.
pub(crate) fn optional_id<T: FromStr>(field: &str, text: Option<&str>) -> Result<Option<T>> {
    text.map(|text| id(field, text)).transpose()
}

/// Parses at most `max` ids.
pub(crate) fn ids<T: FromStr>(field: &str, texts: &[String], max: usize) -> Result<Vec<T>> {
    at_most(field, texts.len(), max)?;
    texts.iter().map(|text| id(field, text)).collect()
}

/// Refuses lists that are longer than the service takes.
pub(crate) fn at_most(field: &str, len: usize, max: usize) -> Result<()> {
    if len > max {
        return Err(Error::invalid(field, format!("at most {max}")));
    }
    Ok(())
}

/// Ids as text.
pub(crate) fn texts<T: ToString>(ids: &[T]) -> Vec<String> {
    ids.iter().map(ToString::to_string).collect()
}

/// A page size of `1..=max`, or the default if absent.
pub(crate) fn limit(limit: Option<u32>, default: usize, max: usize) -> Result<usize> {
    let Some(limit) = limit else {
        return Ok(default);
    };
    match usize::try_from(limit) {
        Ok(limit) if (1..=max).contains(&limit) => Ok(limit),
        _ => Err(Error::invalid("limit", format!("1 to {max}"))),
    }
}

/// A page size on the wire. One that doesn't fit is refused by the server like every other that is too large.
pub(crate) fn limit_to_proto(limit: usize) -> Option<u32> {
    Some(u32::try_from(limit).unwrap_or(u32::MAX))
}

/// A part that must not be absent.
pub(crate) fn required<T>(field: &str, part: Option<T>) -> Result<T> {
    part.ok_or_else(|| Error::invalid(field, "is required"))
}

/// A point in time on the wire.
pub(crate) fn timestamp_to_proto(time: Timestamp) -> prost_types::Timestamp {
    let nanos = time.0.rem_euclid(1000) * 1_000_000;
    prost_types::Timestamp {
        seconds: time.0.div_euclid(1000),
        // Below 10^9.
        nanos: nanos as i32,
    }
}

/// A point in time off the wire, cut to milliseconds.
pub(crate) fn timestamp(field: &str, time: Option<prost_types::Timestamp>) -> Result<Timestamp> {
    let time = required(field, time)?;
    if !(0..1_000_000_000).contains(&time.nanos) {
        return Err(Error::invalid(field, "nanos must be 0 to 999,999,999"));
    }
    time.seconds
        .checked_mul(1000)
        .and_then(|millis| millis.checked_add(i64::from(time.nanos / 1_000_000)))
        .map(Timestamp)
        .ok_or_else(|| Error::invalid(field, "is out of range"))
}

/// [`timestamp`] of a field that may be absent.
pub(crate) fn optional_timestamp(
    field: &str,
    time: Option<prost_types::Timestamp>,
) -> Result<Option<Timestamp>> {
    time.map(|time| timestamp(field, Some(time))).transpose()
}

/// What the client makes of a decoded answer: a malformed one is a defect of the server, not of the caller's request.
pub(crate) fn answer<T>(decoded: Result<T>) -> Result<T> {
    decoded.map_err(|error| {
        let fields: Vec<_> = error.fields.iter().map(|f| f.field.as_str()).collect();
        Error::defect(format!("malformed answer: {}", fields.join(", ")))
    })
}

/// When to call again about a room whose owner changes.
pub(crate) const RETRY_AFTER_MOVE: Duration = Duration::from_millis(500);

/// Default of calls.
pub(crate) const CALL_DEADLINE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use carillon_domain::{ErrorCode, UserId};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn timestamps_come_back_as_they_were(millis in any::<i64>()) {
            let time = Timestamp(millis);
            // The smallest values round down by more than an i64 of milliseconds holds while they are put together.
            prop_assume!(millis > i64::MIN + 1000);
            prop_assert_eq!(timestamp("time", Some(timestamp_to_proto(time))).unwrap(), time);
        }

        #[test]
        fn limits_come_back_as_they_were(n in 1usize..=1000) {
            prop_assert_eq!(limit(limit_to_proto(n), 50, 1000).unwrap(), n);
        }

        #[test]
        fn ids_come_back_as_they_were(raw in any::<u128>()) {
            let user = UserId(uuid::Uuid::from_u128(raw));
            prop_assert_eq!(id::<UserId>("user_id", &user.to_string()).unwrap(), user);
        }
    }

    #[test]
    fn limits_outside_the_range_are_refused() {
        for bad in [Some(0), Some(101), limit_to_proto(usize::MAX)] {
            let error = limit(bad, 50, 100).unwrap_err();
            assert_eq!(error.fields[0].field, "limit");
        }
        assert_eq!(limit(None, 50, 100).unwrap(), 50);
    }

    #[test]
    fn nonsense_in_an_answer_is_a_defect_of_the_server() {
        let error = answer(id::<UserId>("user_id", "nonsense")).unwrap_err();
        assert_eq!(error.code, ErrorCode::Internal);
        assert!(error.cause_chain().contains("user_id"));
    }
}
