//! Uploads and downloads.

use std::{ops::Range, sync::Arc};

use axum::{Json, extract::FromRequest, extract::Request};
use axum::{
    body::Body,
    extract::{Multipart, State, multipart::MultipartError},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use carillon_domain::{
    Error, ErrorCode, MediaId, RoomId, UserId, media::Media, services::NewMedia,
};
use futures::{StreamExt, TryStreamExt, stream};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::{
    edge::{Caller, PathParams, Problem, Transfer},
    gateway::App,
    wire::MediaJson,
};

/// What is read of a file at once for a download: more than a connection's buffers take, little for memory.
const PIECE: u64 = 256 * 1024;

/// A form with the fields `room_id` and `file`, in any order.
pub async fn upload(
    State(app): State<App>,
    Caller(who): Caller,
    request: Request,
) -> Result<(StatusCode, Json<MediaJson>), Problem> {
    let limit = app.options.max_upload_bytes;
    // Before the first byte is read, and kept until the file is stored: a stalled upload holds its memory no less than a quick one.
    let _memory = app
        .uploads
        .begin(who.user, announced(request.headers(), limit))?;
    let mut form = Multipart::from_request(request, &()).await.map_err(|_| {
        Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ErrorCode::UnsupportedMediaType.as_str(),
            "the body must be multipart/form-data",
        )
    })?;
    let bad_form = |error: MultipartError| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::too_large(limit),
        _ => Problem::bad_request("the form is malformed or ended too early"),
    };

    let mut room = None;
    let mut file = None;
    while let Some(field) = form.next_field().await.map_err(bad_form)? {
        match field.name() {
            Some("room_id") if room.is_none() => {
                let text = field.text().await.map_err(bad_form)?;
                let id: RoomId = text
                    .parse()
                    .map_err(|_| Problem::field("room_id", "expected a UUID"))?;
                room = Some(id);
            }
            Some("file") if file.is_none() => {
                let name = field.file_name().unwrap_or_default().to_owned();
                let bytes = field.bytes().await.map_err(bad_form)?;
                if bytes.len() > limit {
                    return Err(Problem::too_large(limit));
                }
                file = Some((name, bytes));
            }
            other => {
                let name: String = other.unwrap_or("?").chars().take(64).collect();
                return Err(Problem::field(name, "is not known, or given twice"));
            }
        }
    }
    let Some(room) = room else {
        return Err(Problem::field("room_id", "is required"));
    };
    let Some((file_name, bytes)) = file else {
        return Err(Problem::field("file", "is required"));
    };
    let media = NewMedia {
        room,
        file_name,
        bytes,
    };
    let media = app.services.media.upload(who.user, media).await?;
    Ok((StatusCode::CREATED, Json(media.into())))
}

/// The bytes, with `ETag`, and a single range if asked for (RFC 9110, section 14).
pub async fn download(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(id): PathParams<MediaId>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let media = app.services.media.describe(who.user, id).await?;
    let etag = format!("\"{}\"", media.sha256);
    if names_etag(&headers, header::IF_NONE_MATCH.as_str(), &etag) {
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        describe(response.headers_mut(), &media, &etag);
        response.headers_mut().remove(header::CONTENT_TYPE);
        return Ok(response);
    }
    let range = match wanted_range(&headers, &etag, media.size) {
        Wanted::All => None,
        Wanted::Part(range) => Some(range),
        Wanted::Nothing => {
            let mut response = Problem::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "range_not_satisfiable",
                "the range begins after the last byte",
            )
            .into_response();
            let value = HeaderValue::from_str(&format!("bytes */{}", media.size));
            if let Ok(value) = value {
                response.headers_mut().insert(header::CONTENT_RANGE, value);
            }
            return Ok(response);
        }
    };

    let bytes = range.clone().unwrap_or(0..media.size);
    let body = body(&app, who.user, id, bytes.clone()).await?;
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_LENGTH, (bytes.end - bytes.start).into());
    describe(response.headers_mut(), &media, &etag);
    if let Some(range) = range {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let value = format!("bytes {}-{}/{}", range.start, range.end - 1, media.size);
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(header::CONTENT_RANGE, value);
        }
    }
    Ok(response)
}

/// The memory that an upload may need: what it announces, else the most that is taken.
fn announced(headers: &HeaderMap, limit: usize) -> usize {
    headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map_or(limit, |length: usize| length.min(limit))
}

/// A piece of a file, with the memory it counts for: however long the connection keeps it.
struct Piece {
    bytes: Bytes,
    _memory: Arc<Transfer>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The bytes as the client takes them, a piece at a time. The first piece is read here, so that its error is an answer; a later
/// one cuts the body short, which the announced length shows.
async fn body(app: &App, user: UserId, id: MediaId, range: Range<u64>) -> Result<Body, Problem> {
    if range.is_empty() {
        return Ok(Body::empty());
    }
    let memory = Arc::new(app.downloads.begin(user, PIECE as usize)?);
    let media = app.services.media.clone();
    let read = move |from: u64| {
        let (media, memory) = (media.clone(), memory.clone());
        let piece = from..range.end.min(from + PIECE);
        async move {
            let end = piece.end;
            let (_, bytes) = media.download(user, id, Some(piece.clone())).await?;
            if bytes.len() as u64 != piece.end - piece.start {
                return Err(Error::defect("a piece of a file has another length"));
            }
            let piece = Piece {
                bytes,
                _memory: memory,
            };
            Ok((Bytes::from_owner(piece), end))
        }
    };
    let (first, next) = read(range.start).await?;
    let rest = stream::try_unfold(next, move |from| {
        let piece = (from < range.end).then(|| read(from));
        async move {
            match piece {
                Some(piece) => piece.await.map(Some),
                None => Ok(None),
            }
        }
    })
    .inspect_err(|error| {
        tracing::warn!(%error, cause = error.cause_chain(), "a download was cut short");
    });
    Ok(Body::from_stream(
        stream::once(async { Ok(first) }).chain(rest),
    ))
}

fn describe(headers: &mut HeaderMap, media: &Media, etag: &str) {
    let mut insert = |name: header::HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    insert(header::CONTENT_TYPE, &media.content_type);
    insert(header::ETAG, etag);
    insert(header::ACCEPT_RANGES, "bytes");
    // An upload never changes, but who may read it does, and the next person at this browser is another: the cache asks each time,
    // and mostly hears 304.
    insert(header::CACHE_CONTROL, "private, no-cache");
    insert(header::VARY, "authorization");
    insert(header::CONTENT_DISPOSITION, &disposition(media));
    insert(
        header::CONTENT_SECURITY_POLICY,
        "sandbox; default-src 'none'; frame-ancestors 'none'",
    );
}

/// Characters that may stand in `filename*` (RFC 8187, attr-char).
const ATTRIBUTE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// Pictures, sound and film may be shown in place; everything else, and SVG (which can hold script), is saved.
fn disposition(media: &Media) -> String {
    let shown = ["image/", "video/", "audio/"]
        .iter()
        .any(|kind| media.content_type.starts_with(kind))
        && !media.content_type.contains("svg");
    let kind = if shown { "inline" } else { "attachment" };
    let plain: String = media
        .file_name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ' ') {
                c
            } else {
                '_'
            }
        })
        .collect();
    let encoded = utf8_percent_encode(&media.file_name, ATTRIBUTE);
    format!("{kind}; filename=\"{plain}\"; filename*=UTF-8''{encoded}")
}

fn names_etag(headers: &HeaderMap, name: &str, etag: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|value| value.trim().trim_start_matches("W/"))
        .any(|value| value == etag || value == "*")
}

#[derive(PartialEq, Eq, Debug)]
enum Wanted {
    All,
    Part(Range<u64>),
    Nothing,
}

/// One range is answered; several, a malformed one, or one for another version are answered with all bytes, as the RFC allows.
fn wanted_range(headers: &HeaderMap, etag: &str, size: u64) -> Wanted {
    let Some(text) = headers
        .get(header::RANGE)
        .and_then(|value| value.to_str().ok())
    else {
        return Wanted::All;
    };
    if let Some(condition) = headers.get(header::IF_RANGE)
        && condition.as_bytes() != etag.as_bytes()
    {
        return Wanted::All;
    }
    let Some((first, last)) = text
        .strip_prefix("bytes=")
        .filter(|spec| !spec.contains(','))
        .and_then(|spec| spec.trim().split_once('-'))
    else {
        return Wanted::All;
    };
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..last.saturating_add(1).min(size),
        (Ok(first), Err(_)) if last.is_empty() => first..size,
        (Err(_), Ok(suffix)) if first.is_empty() => size.saturating_sub(suffix)..size,
        _ => return Wanted::All,
    };
    if range.start >= range.end {
        Wanted::Nothing
    } else {
        Wanted::Part(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_domain::Timestamp;

    fn wanted(range: &'static str) -> Wanted {
        let headers = HeaderMap::from_iter([(header::RANGE, HeaderValue::from_static(range))]);
        wanted_range(&headers, "\"e\"", 100)
    }

    /// MEDIA-03: range requests as RFC 9110 says.
    #[test]
    fn ranges() {
        assert_eq!(wanted("bytes=0-9"), Wanted::Part(0..10));
        assert_eq!(wanted("bytes=90-"), Wanted::Part(90..100));
        assert_eq!(wanted("bytes=90-1000"), Wanted::Part(90..100));
        assert_eq!(wanted("bytes=-10"), Wanted::Part(90..100));
        assert_eq!(wanted("bytes=-1000"), Wanted::Part(0..100));
        assert_eq!(wanted("bytes=100-"), Wanted::Nothing);
        assert_eq!(wanted("bytes=-0"), Wanted::Nothing);
        for all in ["bytes=9-0", "bytes=a-b", "lines=1-2", "bytes=0-1,5-6", "x"] {
            assert_eq!(wanted(all), Wanted::All, "{all}");
        }
    }

    #[test]
    fn names_of_files_can_not_break_out_of_their_header() {
        let media = |name: &str, content_type: &str| Media {
            id: MediaId(uuid::Uuid::nil()),
            room: RoomId(uuid::Uuid::nil()),
            owner: UserId(uuid::Uuid::nil()),
            file_name: name.into(),
            content_type: content_type.into(),
            size: 1,
            sha256: String::new(),
            created_at: Timestamp(0),
        };
        assert_eq!(
            disposition(&media("a\"\r\nb ö.png", "image/png")),
            "inline; filename=\"a___b _.png\"; filename*=UTF-8''a%22%0D%0Ab%20%C3%B6.png"
        );
        for saved in ["image/svg+xml", "text/html", "application/pdf"] {
            assert!(disposition(&media("x", saved)).starts_with("attachment"));
        }
    }
}
