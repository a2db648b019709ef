//! Checks of what people type. Each answers with the field's name and what is allowed.

use crate::{
    Error, Result,
    event::{Draft, MessageType},
};

/// Longest text of a message, in bytes of UTF-8.
pub const MAX_CONTENT_BYTES: usize = 16 * 1024;
/// Longest password, in bytes: bounds the hashing work that a stranger can ask for.
pub const MAX_PASSWORD_BYTES: usize = 256;
/// Shortest password, in characters (NIST SP 800-63B).
pub const MIN_PASSWORD_CHARS: usize = 8;

/// Collects problems, so that one answer names them all.
#[derive(Default)]
pub struct Problems(Option<Error>);

impl Problems {
    /// Notes a problem with a field.
    pub fn add(&mut self, field: &str, detail: impl Into<String>) {
        let error = self.0.take().unwrap_or_else(|| {
            Error::new(
                crate::ErrorCode::InvalidRequest,
                "the request has invalid fields",
            )
        });
        self.0 = Some(error.with_field(field, detail));
    }

    /// Notes `detail` when `ok` is false.
    pub fn check(&mut self, ok: bool, field: &str, detail: &str) {
        if !ok {
            self.add(field, detail);
        }
    }

    /// An error if any problem was noted.
    pub fn into_result(self) -> Result<()> {
        self.0.map_or(Ok(()), Err)
    }
}

/// 3 to 32 of `a-z A-Z 0-9 _ . -`, beginning with a letter or digit.
pub fn is_username(text: &str) -> bool {
    (3..=32).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        && text.as_bytes()[0].is_ascii_alphanumeric()
}

/// A plausible address: one `@`, something on both sides, a dot or `localhost` in the domain, at most 254 bytes, no blanks or
/// control characters. Whether mail arrives is shown by verification, not by syntax.
pub fn is_email(text: &str) -> bool {
    let Some((local, domain)) = text.rsplit_once('@') else {
        return false;
    };
    text.len() <= 254
        && (1..=64).contains(&local.len())
        && !local.contains('@')
        && !text.chars().any(|c| c.is_whitespace() || c.is_control())
        && domain.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && label.chars().all(|c| c.is_alphanumeric() || c == '-')
                && !label.starts_with('-')
        })
        && (domain.contains('.') || domain == "localhost")
}

/// An E.164 number: `+` and 8 to 15 digits, the first not 0.
pub fn is_phone(text: &str) -> bool {
    text.strip_prefix('+').is_some_and(|digits| {
        (8..=15).contains(&digits.len())
            && digits.bytes().all(|b| b.is_ascii_digit())
            && !digits.starts_with('0')
    })
}

/// Long enough to matter, short enough to hash.
pub fn is_password(text: &str) -> bool {
    text.chars().count() >= MIN_PASSWORD_CHARS && text.len() <= MAX_PASSWORD_BYTES
}

/// A shown name of a room or person: 1 to 80 characters after trimming, no control characters.
pub fn is_display_name(text: &str) -> bool {
    (1..=80).contains(&text.trim().chars().count()) && !text.chars().any(char::is_control)
}

/// Characters that change the direction of the text around them, or can't be seen: with them a name passes for another one.
fn is_deceptive(c: char) -> bool {
    matches!(c,
        '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2028}' | '\u{2029}'
        | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

/// A shown name of a person: as [`is_display_name`], and nothing that hides or turns text around.
pub fn is_shown_name(text: &str) -> bool {
    is_display_name(text) && !text.chars().any(is_deceptive)
}

/// What somebody writes of themselves: at most 500 characters; line breaks and no other control characters.
pub fn is_bio(text: &str) -> bool {
    text.chars().count() <= 500 && !text.chars().any(|c| c.is_control() && c != '\n')
}

/// What somebody is up to: at most 140 characters, no control characters.
pub fn is_status(text: &str) -> bool {
    text.chars().count() <= 140 && !text.chars().any(char::is_control)
}

/// Checks a draft as a person may send it (MSG-04).
pub fn draft(draft: &Draft) -> Result<()> {
    let mut problems = Problems::default();
    problems.check(
        crate::ClientMessageId::parse(&draft.client_message_id.0).is_some(),
        "client_message_id",
        "1 to 64 visible ASCII characters",
    );
    problems.check(
        draft.message_type != MessageType::System,
        "type",
        "text, image, video, audio, file or location",
    );
    content(&mut problems, draft.message_type, &draft.content);
    problems.into_result()
}

/// Checks new content for a message of this type.
pub fn content(problems: &mut Problems, message_type: MessageType, content: &str) {
    problems.check(!content.trim().is_empty(), "content", "must not be empty");
    problems.check(
        content.len() <= MAX_CONTENT_BYTES,
        "content",
        "at most 16384 bytes of UTF-8",
    );
    problems.check(!content.contains('\0'), "content", "must not contain NUL");
    match message_type {
        MessageType::Image | MessageType::Video | MessageType::Audio | MessageType::File => {
            problems.check(
                content.parse::<crate::MediaId>().is_ok(),
                "content",
                "the id of an upload",
            );
        }
        MessageType::Location => problems.check(
            is_location(content),
            "content",
            "latitude,longitude in degrees",
        ),
        MessageType::Text | MessageType::System => {}
    }
}

fn is_location(text: &str) -> bool {
    let Some((latitude, longitude)) = text.split_once(',') else {
        return false;
    };
    let within = |text: &str, limit: f64| {
        text.trim()
            .parse::<f64>()
            .is_ok_and(|value| value.abs() <= limit)
    };
    within(latitude, 90.0) && within(longitude, 180.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ClientMessageId;

    #[test]
    fn usernames() {
        for good in ["ann", "Ann_B.c-9", "0xr"] {
            assert!(is_username(good), "{good}");
        }
        for bad in ["an", "", "_ann", "ann b", "änn", &"a".repeat(33)] {
            assert!(!is_username(bad), "{bad}");
        }
    }

    /// USER-01: emoji and other scripts are fine, tricks aren't.
    #[test]
    fn shown_names() {
        for good in ["Ann", "Ænn 👩\u{200d}🚀", "安", "آن"] {
            assert!(is_shown_name(good), "{good}");
        }
        for bad in [
            "",
            " ",
            "a\nb",
            "\u{202e}nnA",
            "Ann\u{200b}",
            &"a".repeat(81),
        ] {
            assert!(!is_shown_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn emails() {
        for good in ["ann@example.com", "a.b+c@x.example", "ann@localhost"] {
            assert!(is_email(good), "{good}");
        }
        for bad in [
            "ann",
            "@x.com",
            "ann@",
            "a b@x.com",
            "a@b@x.com",
            "ann@x",
            "ann@x..com",
            "ann@-x.com",
        ] {
            assert!(!is_email(bad), "{bad}");
        }
    }

    #[test]
    fn every_problem_of_a_draft_is_named() {
        let error = draft(&Draft {
            client_message_id: ClientMessageId("has blank".into()),
            message_type: MessageType::System,
            content: " ".into(),
            reply_to: None,
        })
        .unwrap_err();
        let fields: Vec<_> = error.fields.iter().map(|f| f.field.as_str()).collect();
        assert_eq!(fields, ["client_message_id", "type", "content"]);
    }
}
