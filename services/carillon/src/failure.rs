//! Why the process ends, in a sentence that says what to do next.

use std::fmt;

/// The command line or the configuration can't be used.
pub const USAGE: u8 = 64;
/// Something that is needed is not available.
pub const UNAVAILABLE: u8 = 69;
/// A role failed.
pub const SOFTWARE: u8 = 70;

/// An end with a status.
#[derive(Debug)]
pub struct Failure {
    /// Exit status.
    pub status: u8,
    message: String,
}

impl Failure {
    /// The configuration or command line can't be used.
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            status: USAGE,
            message: message.into(),
        }
    }

    /// Something needed is not available.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self {
            status: UNAVAILABLE,
            message: message.into(),
        }
    }

    /// A role failed.
    pub fn software(message: impl Into<String>) -> Self {
        Self {
            status: SOFTWARE,
            message: message.into(),
        }
    }
}

impl std::error::Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<carillon_domain::Error> for Failure {
    fn from(error: carillon_domain::Error) -> Self {
        let mut message = error.detail.to_string();
        for field in &error.fields {
            message.push_str(&format!("; {}: {}", field.field, field.detail));
        }
        // Whoever starts the process may see the cause; a client never does.
        let cause = error.cause_chain();
        if !cause.is_empty() {
            message.push_str(&format!(" ({cause})"));
        }
        Self {
            status: UNAVAILABLE,
            message,
        }
    }
}
