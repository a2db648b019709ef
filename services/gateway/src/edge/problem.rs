//! Errors as problem details (RFC 9457).
//!
//! A handler answers with a [`Problem`], which puts itself into the response's extensions; the outermost layer writes the body,
//! since only it knows the trace id.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use carillon_domain::{Error, ErrorCode, FieldError};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::usecases;

/// An error answer.
#[derive(Clone, Debug)]
pub struct Problem {
    pub status: StatusCode,
    pub code: &'static str,
    pub detail: String,
    pub fields: Vec<FieldError>,
    pub retry_after: Option<Duration>,
    /// The value of `WWW-Authenticate`, for 401.
    challenge: Option<&'static str>,
}

impl Problem {
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
            fields: Vec::new(),
            retry_after: None,
            challenge: None,
        }
    }

    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", detail)
    }

    /// A problem with one field.
    pub fn field(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Error::invalid(field, detail).into()
    }

    pub fn not_found(what: &str) -> Self {
        Error::not_found(what).into()
    }

    /// No credentials were given: RFC 6750 wants a challenge without an error code then.
    pub fn no_credentials() -> Self {
        Self {
            challenge: Some("Bearer"),
            ..Self::new(
                StatusCode::UNAUTHORIZED,
                ErrorCode::Unauthenticated.as_str(),
                "an access token is needed",
            )
        }
    }

    pub fn too_large(limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            ErrorCode::PayloadTooLarge.as_str(),
            format!("at most {limit} bytes are accepted"),
        )
    }

    pub fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            ErrorCode::Internal.as_str(),
            "internal error",
        )
    }

    /// The whole answer.
    pub fn render(&self, trace_id: &str) -> Response {
        #[derive(Serialize)]
        struct Body<'a> {
            r#type: String,
            title: &'a str,
            status: u16,
            code: &'a str,
            detail: &'a str,
            #[serde(skip_serializing_if = "<[_]>::is_empty")]
            errors: &'a [FieldError],
            trace_id: &'a str,
        }
        let body = Body {
            r#type: format!("urn:carillon:problem:{}", self.code),
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            code: self.code,
            detail: &self.detail,
            errors: &self.fields,
            trace_id,
        };
        let text = serde_json::to_string(&body).unwrap_or_default();
        let mut response = (
            self.status,
            [
                (header::CONTENT_TYPE, "application/problem+json"),
                (header::CACHE_CONTROL, "no-store"),
            ],
            text,
        )
            .into_response();
        if let Some(challenge) = self.challenge {
            response.headers_mut().insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static(challenge),
            );
        }
        if let Some(after) = self.retry_after {
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        response
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let error = usecases::shown(error);
        let status = StatusCode::from_u16(error.code.http_status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = match error.code {
            ErrorCode::Unavailable => error.retry_after.or(Some(Duration::from_secs(1))),
            _ => error.retry_after,
        };
        Self {
            status,
            code: error.code.as_str(),
            detail: error.detail.into_owned(),
            fields: error.fields,
            retry_after,
            challenge: (error.code == ErrorCode::Unauthenticated)
                .then_some(r#"Bearer error="invalid_token""#),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}
