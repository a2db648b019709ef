//! Extractors that answer bad input with the place of the problem.

use axum::{
    extract::rejection::PathRejection,
    extract::{FromRequest, FromRequestParts, Path, RawPathParams, Request},
};
use bytes::Bytes;
use carillon_domain::{Error, ErrorCode};
use http::{HeaderMap, StatusCode, header, request::Parts};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::Problem;
use crate::gateway::App;

/// A JSON body. 415 for other content types, 413 above the limit, 400 with the field's path for what doesn't fit.
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned> FromRequest<App> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        require_json(request.headers())?;
        let bytes = read_limited(request, app.options.max_body_bytes).await?;
        parse_json(&bytes).map(Self)
    }
}

/// A JSON body that may be left out.
pub struct OptionalJsonBody<T>(pub T);

impl<T: DeserializeOwned + Default> FromRequest<App> for OptionalJsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let typed = request.headers().contains_key(header::CONTENT_TYPE);
        if typed {
            require_json(request.headers())?;
        }
        let bytes = read_limited(request, app.options.max_body_bytes).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        if !typed {
            return Err(not_json());
        }
        parse_json(&bytes).map(Self)
    }
}

fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    let essence = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .map(|value| value.split(';').next().unwrap_or_default().trim());
    match essence {
        Some(essence) if essence.eq_ignore_ascii_case("application/json") => Ok(()),
        _ => Err(not_json()),
    }
}

fn not_json() -> Problem {
    Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ErrorCode::UnsupportedMediaType.as_str(),
        "the body must be application/json",
    )
}

async fn read_limited(request: Request, limit: usize) -> Result<Bytes, Problem> {
    let announced = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(Problem::too_large(limit));
    }
    match Limited::new(request.into_body(), limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => {
            Err(Problem::too_large(limit))
        }
        Err(_) => Err(Problem::bad_request("the body ended too early")),
    }
}

/// Parses JSON; the problem names the field's path.
fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    parse_json_domain(bytes).map_err(Into::into)
}

fn parse_json_domain<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    // Derived structs would take an array of their fields' values too.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Err(Error::new(
            ErrorCode::InvalidRequest,
            "the body must be a JSON object",
        ));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        describe_json(error.inner(), &path)
    })?;
    deserializer
        .end()
        .map_err(|error| describe_json(&error, "."))?;
    Ok(value)
}

/// What is wrong with a piece of JSON.
pub fn describe_json(error: &serde_json::Error, path: &str) -> Error {
    let place = if error.line() > 0 {
        format!(" at line {} column {}", error.line(), error.column())
    } else {
        String::new()
    };
    match error.classify() {
        serde_json::error::Category::Data => {
            // Quoted input can be long, and can be a secret: only what was expected is repeated.
            let text = error.to_string();
            let text = text.strip_suffix(&place).unwrap_or(&text);
            Error::invalid(field_of(path, text), without_quoted_input(text))
        }
        _ => Error::new(
            ErrorCode::InvalidRequest,
            format!("the JSON is malformed{place}"),
        ),
    }
}

/// The path of the field: for a missing or unknown field serde's path ends at its parent, and its text names the field.
fn field_of(path: &str, text: &str) -> String {
    let named = ["missing field `", "unknown field `"]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix))
        .and_then(|rest| rest.split('`').next())
        .map(|name| name.chars().take(64).collect::<String>());
    match (path, named) {
        (".", Some(name)) => name,
        (path, Some(name)) if path != name && !path.ends_with(&format!(".{name}")) => {
            format!("{path}.{name}")
        }
        (path, _) => path.to_owned(),
    }
}

fn without_quoted_input(text: &str) -> String {
    if text.starts_with("missing field") {
        return "is required".to_owned();
    }
    if text.starts_with("unknown field") {
        return "is not known".to_owned();
    }
    if text.starts_with("UUID parsing failed") {
        return "expected a UUID".to_owned();
    }
    match text.split_once(", expected ") {
        Some((_, "u64" | "usize")) => "expected a whole number, at least 0".to_owned(),
        Some((_, expected)) => format!("expected {expected}"),
        // Parsers of numbers in query strings speak of digits.
        None if text.contains("digit") => "expected a whole number, at least 0".to_owned(),
        None => "is not valid".to_owned(),
    }
}

/// A query string, parsed like JSON bodies are.
pub struct QueryParams<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for QueryParams<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let query = parts.uri.query().unwrap_or_default();
        let pairs = form_urlencoded::parse(query.as_bytes());
        serde_path_to_error::deserialize(serde_urlencoded::Deserializer::new(pairs))
            .map(Self)
            .map_err(|error| {
                let text = error.inner().to_string();
                Problem::field(
                    field_of(&error.path().to_string(), &text),
                    without_quoted_input(&text),
                )
            })
    }
}

/// Parameters of the path, such as a room's id.
pub struct PathParams<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for PathParams<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(PathRejection::FailedToDeserializePathParams(_)) => {
                Err(bad_parameter(parts, state).await)
            }
            Err(_) => Err(Problem::internal()),
        }
    }
}

/// Every typed parameter is a UUID: the first that isn't one is the problem.
async fn bad_parameter<S: Send + Sync>(parts: &mut Parts, state: &S) -> Problem {
    let field = match RawPathParams::from_request_parts(parts, state).await {
        Ok(raw) => raw
            .iter()
            .find(|(_, value)| value.parse::<uuid::Uuid>().is_err())
            .map(|(name, _)| name.to_owned()),
        Err(_) => None,
    };
    Problem::field(
        field.unwrap_or_else(|| "path".to_owned()),
        "expected a UUID",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{NewMessageRequest, RegisterRequest};

    fn problem<T: DeserializeOwned>(body: &str) -> String {
        match parse_json_domain::<T>(body.as_bytes()) {
            Ok(_) => "fine".to_owned(),
            Err(error) => format!(
                "{}: {} {:?}",
                error.code,
                error.detail,
                error
                    .fields
                    .iter()
                    .map(|f| format!("{}: {}", f.field, f.detail))
                    .collect::<Vec<_>>()
            ),
        }
    }

    #[test]
    fn each_problem_names_its_place_and_repeats_no_secret() {
        let answers = [
            problem::<RegisterRequest>(r#"{"username": "a", "email": "#),
            problem::<RegisterRequest>(r#"[]"#),
            problem::<RegisterRequest>(r#"{"username": 5, "email": "x", "password": "p"}"#),
            problem::<RegisterRequest>(r#"{"username": "a", "email": "x"}"#),
            problem::<RegisterRequest>(
                r#"{"username": "a", "email": "x", "password": ["hunter2"]}"#,
            ),
            problem::<RegisterRequest>(
                r#"{"username": "a", "email": "x", "password": "p", "admin": true}"#,
            ),
            problem::<RegisterRequest>(r#"{"username":"a","email":"x","password":"p"} {}"#),
            problem::<NewMessageRequest>(
                r#"{"client_message_id":"c","content":"hi","reply_to":"nope"}"#,
            ),
            problem::<NewMessageRequest>(
                r#"{"client_message_id":"c","content":"hi","type":"dance"}"#,
            ),
        ]
        .join("\n");
        insta::assert_snapshot!(answers);
        assert!(!answers.contains("hunter2"));
    }
}
