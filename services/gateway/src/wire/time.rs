use carillon_domain::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use time::{
    OffsetDateTime,
    format_description::{BorrowedFormatItem, well_known::Rfc3339},
    macros::format_description,
};

const RFC3339_MILLIS: &[BorrowedFormatItem<'static>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// A point in time as clients see it.
#[derive(Clone, Copy, Debug)]
pub struct Time(pub Timestamp);

impl From<Timestamp> for Time {
    fn from(timestamp: Timestamp) -> Self {
        Self(timestamp)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0.0) * 1_000_000)
            .ok()
            .and_then(|time| time.format(RFC3339_MILLIS).ok())
            .ok_or_else(|| serde::ser::Error::custom("time out of range"))?;
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = OffsetDateTime::parse(&text, &Rfc3339)
            .map_err(|_| de::Error::custom("expected a time as in RFC 3339"))?;
        i64::try_from(time.unix_timestamp_nanos() / 1_000_000)
            .map(|millis| Self(Timestamp(millis)))
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_are_always_written() {
        let shown = |millis| serde_json::to_string(&Time(Timestamp(millis))).unwrap();
        let read: Time = serde_json::from_str("\"2026-09-21T16:13:20.007+02:00\"").unwrap();
        assert_eq!(read.0, Timestamp(1_790_000_000_007));
        assert!(serde_json::from_str::<Time>("\"soon\"").is_err());
        assert_eq!(shown(0), "\"1970-01-01T00:00:00.000Z\"");
        assert_eq!(shown(1_790_000_000_007), "\"2026-09-21T14:13:20.007Z\"");
    }
}
