//! Domain errors as gRPC statuses and back, without loss: the code travels as the reason of an `ErrorInfo`, field problems as a
//! `BadRequest`, the time to try again as a `RetryInfo` (the error model of google.rpc). Causes are not sent: they belong in the log.

use std::{borrow::Cow, error::Error as StdError};

use carillon_domain::{Error, ErrorCode, FieldError};
use tonic::{Code, Status, TimeoutExpired};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

/// The domain of our `ErrorInfo`s; their reason is the [`ErrorCode`] in upper case.
pub const ERROR_DOMAIN: &str = "carillon.chat";

/// The gRPC code that goes with an error code.
pub fn grpc_code(code: ErrorCode) -> Code {
    match code {
        ErrorCode::InvalidRequest | ErrorCode::UnsupportedMediaType => Code::InvalidArgument,
        ErrorCode::Unauthenticated => Code::Unauthenticated,
        ErrorCode::PermissionDenied => Code::PermissionDenied,
        ErrorCode::NotFound => Code::NotFound,
        ErrorCode::AlreadyExists | ErrorCode::IdempotencyConflict => Code::AlreadyExists,
        // What tonic itself answers to a message above the limit.
        ErrorCode::PayloadTooLarge => Code::OutOfRange,
        ErrorCode::RateLimited => Code::ResourceExhausted,
        ErrorCode::FailedPrecondition => Code::FailedPrecondition,
        // "Retry at a higher level": not at this server.
        ErrorCode::NotOwner => Code::Aborted,
        ErrorCode::Unavailable => Code::Unavailable,
        ErrorCode::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorCode::Internal => Code::Internal,
    }
}

/// The status that carries an error.
pub fn status_from_error(error: &Error) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(
        error.code.as_str().to_uppercase(),
        ERROR_DOMAIN,
        std::collections::HashMap::new(),
    );
    if !error.fields.is_empty() {
        let violations: Vec<_> = error
            .fields
            .iter()
            .map(|problem| FieldViolation::new(&problem.field, &problem.detail))
            .collect();
        details.set_bad_request(violations);
    }
    if error.retry_after.is_some() {
        details.set_retry_info(error.retry_after);
    }
    Status::with_error_details(grpc_code(error.code), error.detail.as_ref(), details)
}

/// The error that a status carries. A status without our details was made by the transport, a proxy or a foreign server: then
/// its code says what it means to us, and [`is_transport`] may hold.
pub fn error_from_status(status: Status) -> Error {
    let details = status.get_error_details();
    let code = details
        .error_info()
        .filter(|info| info.domain == ERROR_DOMAIN)
        .and_then(|info| ErrorCode::parse(&info.reason.to_lowercase()));
    let Some(code) = code else {
        return foreign(status);
    };
    let mut error = Error::new(code, Cow::Owned(status.message().to_owned()));
    error.fields = details
        .bad_request()
        .map(|request| request.field_violations.as_slice())
        .unwrap_or_default()
        .iter()
        .map(|violation| FieldError {
            field: violation.field.clone(),
            detail: violation.description.clone(),
        })
        .collect();
    error.retry_after = details.retry_info().and_then(|info| info.retry_delay);
    error
}

/// Whether the error says that the call didn't get through, rather than what the service thought of it. Its outcome is unknown.
pub fn is_transport(error: &Error) -> bool {
    error
        .source()
        .is_some_and(|cause| cause.is::<TransportFailure>())
}

/// Whether the call was not even sent, because nobody could be connected to: then nothing was done.
pub(crate) fn is_unsent(error: &Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// [`ErrorCode::DeadlineExceeded`] made by the caller's side.
pub(crate) fn deadline_exceeded() -> Error {
    Error::new(
        ErrorCode::DeadlineExceeded,
        "no answer in time, the outcome is unknown",
    )
    .caused_by(TransportFailure(Status::deadline_exceeded(
        "no answer within the deadline",
    )))
}

/// Why a call didn't get through.
#[derive(Debug, thiserror::Error)]
#[error("{}: {}", .0.code(), .0.message())]
struct TransportFailure(#[source] Status);

fn foreign(status: Status) -> Error {
    if is_timeout(&status) {
        return Error::new(
            ErrorCode::DeadlineExceeded,
            "no answer in time, the outcome is unknown",
        )
        .caused_by(TransportFailure(status));
    }
    // tonic keeps the cause of statuses that it made from errors of the connection.
    let broken = status.source().is_some();
    let code = match status.code() {
        _ if broken => ErrorCode::Unavailable,
        Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Aborted => {
            ErrorCode::Unavailable
        }
        Code::InvalidArgument => ErrorCode::InvalidRequest,
        Code::Unauthenticated => ErrorCode::Unauthenticated,
        Code::PermissionDenied => ErrorCode::PermissionDenied,
        Code::NotFound => ErrorCode::NotFound,
        Code::AlreadyExists => ErrorCode::AlreadyExists,
        Code::OutOfRange => ErrorCode::PayloadTooLarge,
        Code::ResourceExhausted => ErrorCode::RateLimited,
        Code::FailedPrecondition => ErrorCode::FailedPrecondition,
        Code::DeadlineExceeded => ErrorCode::DeadlineExceeded,
        Code::Ok | Code::Unimplemented | Code::Internal | Code::DataLoss => ErrorCode::Internal,
    };
    match code {
        ErrorCode::Unavailable => Error::new(code, "the service can't be reached, try again")
            .caused_by(TransportFailure(status)),
        ErrorCode::Internal => Error::new(code, "internal error").caused_by(status),
        // Made by tonic's own checks or by a foreign server: their words are not known to be fit for the caller.
        _ => Error::new(code, code.as_str().replace('_', " ")).caused_by(status),
    }
}

fn is_timeout(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<TimeoutExpired>() {
            return true;
        }
        cause = error.source();
    }
    // tonic's server answers so when the caller's `grpc-timeout` is over.
    status.code() == Code::DeadlineExceeded
        || (status.code() == Code::Cancelled && status.message() == "Timeout expired")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// The mapping is public API for integrators: a change of it must be meant.
    #[test]
    fn every_code_has_its_grpc_code() {
        let table = ErrorCode::ALL.map(|code| (code.as_str(), grpc_code(code)));
        assert_eq!(
            table,
            [
                ("invalid_request", Code::InvalidArgument),
                ("unauthenticated", Code::Unauthenticated),
                ("permission_denied", Code::PermissionDenied),
                ("not_found", Code::NotFound),
                ("already_exists", Code::AlreadyExists),
                ("idempotency_conflict", Code::AlreadyExists),
                ("payload_too_large", Code::OutOfRange),
                ("unsupported_media_type", Code::InvalidArgument),
                ("rate_limited", Code::ResourceExhausted),
                ("failed_precondition", Code::FailedPrecondition),
                ("not_owner", Code::Aborted),
                ("unavailable", Code::Unavailable),
                ("deadline_exceeded", Code::DeadlineExceeded),
                ("internal", Code::Internal),
            ]
        );
    }

    proptest! {
        /// An error crosses without loss, through the headers that carry it.
        #[test]
        fn errors_come_back_as_they_were(
            code in prop::sample::select(&ErrorCode::ALL[..]),
            detail in "\\PC{0,40}",
            fields in prop::collection::vec(("[a-z_.]{1,12}", "\\PC{0,20}"), 0..4),
            retry_after in prop::option::of((0u64..1_000_000, 0u32..1_000_000_000)),
        ) {
            let mut error = Error::new(code, detail);
            for (field, detail) in fields {
                error = error.with_field(field, detail);
            }
            error.retry_after = retry_after.map(|(seconds, nanos)| Duration::new(seconds, nanos));
            let mut headers = http::HeaderMap::new();
            status_from_error(&error).add_header(&mut headers).unwrap();
            let back = error_from_status(Status::from_header_map(&headers).unwrap());
            prop_assert_eq!(back.code, error.code);
            prop_assert_eq!(&back.detail, &error.detail);
            prop_assert_eq!(&back.fields, &error.fields);
            prop_assert_eq!(back.retry_after, error.retry_after);
            prop_assert!(!is_transport(&back));
        }
    }

    #[test]
    fn a_cause_never_crosses() {
        let error = Error::unavailable("scylla", std::io::Error::other("password=hunter2"));
        let status = status_from_error(&error);
        assert!(!format!("{status:?}").contains("hunter2"));
        assert!(!String::from_utf8_lossy(status.details()).contains("hunter2"));
    }

    #[test]
    fn statuses_of_the_transport_are_told_apart_from_the_services_own() {
        let unreachable = error_from_status(Status::unavailable("connection refused"));
        assert_eq!(unreachable.code, ErrorCode::Unavailable);
        assert!(is_transport(&unreachable));
        assert!(!unreachable.to_string().contains("refused"));

        let mut broken = Status::internal("h2 protocol error");
        broken.set_source(std::sync::Arc::new(std::io::Error::other("reset")));
        assert_eq!(error_from_status(broken).code, ErrorCode::Unavailable);

        let late = error_from_status(Status::cancelled("Timeout expired"));
        assert_eq!(late.code, ErrorCode::DeadlineExceeded);
        assert!(is_transport(&late));

        let unknown_method = error_from_status(Status::unimplemented("no such method"));
        assert_eq!(unknown_method.code, ErrorCode::Internal);
        assert!(!is_transport(&unknown_method));

        let too_large = error_from_status(Status::out_of_range("decoded message length too large"));
        assert_eq!(too_large.code, ErrorCode::PayloadTooLarge);
    }
}
