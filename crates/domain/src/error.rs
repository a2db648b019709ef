//! The one error type that crosses ports and services, and its stable codes.
//!
//! `Display` shows only what a stranger may read. The cause, if any, is kept as `source` for the log.

use std::{borrow::Cow, error::Error as StdError, fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

/// Shorthand for results of ports and services.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as a stable code. Its snake_case form is the `code` of problem details (RFC 9457), of socket errors and of gRPC details.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is malformed or a field is out of its range; `fields` says which.
    InvalidRequest,
    /// No credentials, or they are not valid (any more).
    Unauthenticated,
    /// Known caller, but not allowed to do this.
    PermissionDenied,
    /// The thing does not exist, or the caller may not know that it does.
    NotFound,
    /// The thing exists already.
    AlreadyExists,
    /// The same client message id came with other content.
    IdempotencyConflict,
    /// The request is too large.
    PayloadTooLarge,
    /// The content's type is refused, or differs from what its bytes say.
    UnsupportedMediaType,
    /// Too many requests; try again after `retry_after`.
    RateLimited,
    /// The state of the thing doesn't allow it (an edit after the window, for example).
    FailedPrecondition,
    /// Another replica owns this partition; the caller routes again. Never shown to clients.
    NotOwner,
    /// A store or a peer can't be reached, or ownership moves: retry with the same ids.
    Unavailable,
    /// It took too long; the outcome is unknown, retry with the same ids.
    DeadlineExceeded,
    /// A defect of ours; see the log under the trace id.
    Internal,
}

impl ErrorCode {
    /// Every code, for tables and tests.
    pub const ALL: [Self; 14] = [
        Self::InvalidRequest,
        Self::Unauthenticated,
        Self::PermissionDenied,
        Self::NotFound,
        Self::AlreadyExists,
        Self::IdempotencyConflict,
        Self::PayloadTooLarge,
        Self::UnsupportedMediaType,
        Self::RateLimited,
        Self::FailedPrecondition,
        Self::NotOwner,
        Self::Unavailable,
        Self::DeadlineExceeded,
        Self::Internal,
    ];

    /// The stable text form.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::Unauthenticated => "unauthenticated",
            Self::PermissionDenied => "permission_denied",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::IdempotencyConflict => "idempotency_conflict",
            Self::PayloadTooLarge => "payload_too_large",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::RateLimited => "rate_limited",
            Self::FailedPrecondition => "failed_precondition",
            Self::NotOwner => "not_owner",
            Self::Unavailable => "unavailable",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Internal => "internal",
        }
    }

    /// The reverse of [`ErrorCode::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.as_str() == text)
    }

    /// The HTTP status (RFC 9110) that goes with the code.
    pub fn http_status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::Unauthenticated => 401,
            Self::PermissionDenied => 403,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::IdempotencyConflict | Self::FailedPrecondition => 409,
            Self::PayloadTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::RateLimited => 429,
            Self::Internal => 500,
            Self::NotOwner | Self::Unavailable => 503,
            Self::DeadlineExceeded => 504,
        }
    }

    /// Whether the same request, with the same ids, may succeed later.
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::NotOwner | Self::Unavailable | Self::DeadlineExceeded | Self::RateLimited
        )
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is wrong with one field of a request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FieldError {
    /// The field's path in the request, for example `username`.
    pub field: String,
    /// What is allowed.
    pub detail: String,
}

/// An error of a port or a service. Cheap to clone: a failed batch answers many waiters.
#[derive(Clone, Debug)]
pub struct Error {
    /// The stable code.
    pub code: ErrorCode,
    /// A sentence for the caller; holds no content, secret or personal data.
    pub detail: Cow<'static, str>,
    /// Problems by field, for [`ErrorCode::InvalidRequest`] and [`ErrorCode::AlreadyExists`].
    pub fields: Vec<FieldError>,
    /// When to try again, if known.
    pub retry_after: Option<Duration>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error with a sentence for the caller.
    pub fn new(code: ErrorCode, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            detail: detail.into(),
            fields: Vec::new(),
            retry_after: None,
            source: None,
        }
    }

    /// [`ErrorCode::InvalidRequest`] about one field.
    pub fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRequest, "the request has invalid fields")
            .with_field(field, detail)
    }

    /// [`ErrorCode::NotFound`]: `what` is a noun such as "room".
    pub fn not_found(what: &str) -> Self {
        Self::new(ErrorCode::NotFound, format!("no such {what}"))
    }

    /// [`ErrorCode::PermissionDenied`].
    pub fn denied(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorCode::PermissionDenied, detail)
    }

    /// [`ErrorCode::Unauthenticated`].
    pub fn unauthenticated(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorCode::Unauthenticated, detail)
    }

    /// [`ErrorCode::Unavailable`] because of `cause`; `what` names the dependency, such as "scylla".
    pub fn unavailable(what: &str, cause: impl StdError + Send + Sync + 'static) -> Self {
        Self::new(
            ErrorCode::Unavailable,
            format!("{what} is not available, try again"),
        )
        .caused_by(cause)
    }

    /// [`ErrorCode::Internal`] because of `cause`, whose text is only logged.
    pub fn internal(cause: impl StdError + Send + Sync + 'static) -> Self {
        Self::new(ErrorCode::Internal, "internal error").caused_by(cause)
    }

    /// [`ErrorCode::Internal`] with a cause in words, only logged.
    pub fn defect(cause: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, "internal error").caused_by(Defect(cause.into()))
    }

    /// Adds a field's problem.
    #[must_use]
    pub fn with_field(mut self, field: impl Into<String>, detail: impl Into<String>) -> Self {
        self.fields.push(FieldError {
            field: field.into(),
            detail: detail.into(),
        });
        self
    }

    /// Says when to try again.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Keeps the cause for the log.
    #[must_use]
    pub fn caused_by(mut self, cause: impl StdError + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(cause));
        self
    }

    /// The causes' texts, outermost first, for the log only.
    pub fn cause_chain(&self) -> String {
        let mut text = String::new();
        let mut cause: Option<&(dyn StdError + 'static)> =
            self.source.as_ref().map(|c| c.as_ref() as _);
        while let Some(error) = cause {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|cause| cause.as_ref() as _)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Defect(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_distinct_texts_that_parse_back() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::parse(code.as_str()), Some(code));
        }
        assert_eq!(ErrorCode::parse("no_such_code"), None);
    }

    #[test]
    fn display_never_shows_the_cause() {
        let error = Error::unavailable("scylla", std::io::Error::other("password=hunter2"));
        assert!(!error.to_string().contains("hunter2"));
        assert!(error.cause_chain().contains("hunter2"));
    }
}
