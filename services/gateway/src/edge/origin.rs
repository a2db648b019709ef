//! Which pages may call us from a browser.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowOrigin, CorsLayer};

/// The allow-list of origins.
#[derive(Clone)]
pub struct AllowedOrigins {
    any: bool,
    list: Vec<String>,
}

impl AllowedOrigins {
    pub fn new(list: &[String]) -> Self {
        Self {
            any: list.iter().any(|origin| origin == "*"),
            list: list
                .iter()
                .map(|origin| origin.trim_end_matches('/').to_ascii_lowercase())
                .collect(),
        }
    }

    fn lists(&self, origin: &str) -> bool {
        self.any || self.list.contains(&origin.to_ascii_lowercase())
    }

    /// Whether a page of this origin may open a socket here: without `Origin` it is no browser; else the host must be ours or
    /// listed.
    pub fn admits_socket(&self, headers: &HeaderMap) -> bool {
        let Some(origin) = headers.get(header::ORIGIN) else {
            return true;
        };
        origin
            .to_str()
            .is_ok_and(|origin| is_same_host(origin, headers) || self.lists(origin))
    }

    /// Whether a cookie may authenticate a socket: unlike a token in a header, a browser sends it from any page, so that `*`
    /// does not count.
    pub fn admits_cookie(&self, headers: &HeaderMap) -> bool {
        let Some(origin) = headers.get(header::ORIGIN) else {
            return true;
        };
        origin.to_str().is_ok_and(|origin| {
            is_same_host(origin, headers) || self.list.contains(&origin.to_ascii_lowercase())
        })
    }
}

fn is_same_host(origin: &str, headers: &HeaderMap) -> bool {
    let host = headers
        .get(header::HOST)
        .and_then(|value| value.to_str().ok());
    let origin_host = origin.split_once("://").map(|(_, host)| host);
    matches!((host, origin_host), (Some(host), Some(origin)) if host.eq_ignore_ascii_case(origin))
}

/// Cross-origin requests of listed origins, with a bearer token and never with cookies.
pub fn cors(origins: AllowedOrigins) -> CorsLayer {
    let exposed = [
        "x-request-id",
        "retry-after",
        "ratelimit",
        "ratelimit-policy",
        "ratelimit-limit",
        "ratelimit-remaining",
        "ratelimit-reset",
        "api-version",
        "etag",
        "location",
        "content-range",
        "content-disposition",
    ];
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(
            move |origin: &HeaderValue, _parts| {
                origin.to_str().is_ok_and(|origin| origins.lists(origin))
            },
        ))
        .allow_methods([
            Method::GET,
            Method::HEAD,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
        ])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::RANGE,
            header::IF_NONE_MATCH,
            HeaderName::from_static("x-request-id"),
            HeaderName::from_static("traceparent"),
        ])
        .expose_headers(exposed.map(HeaderName::from_static))
        .max_age(Duration::from_secs(3600))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(origin: &'static str) -> HeaderMap {
        HeaderMap::from_iter([
            (header::HOST, HeaderValue::from_static("chat.example:8080")),
            (header::ORIGIN, HeaderValue::from_static(origin)),
        ])
    }

    /// EDGE-05: pages of our own host and of listed origins, nobody else.
    #[test]
    fn sockets_are_for_listed_origins() {
        let origins = AllowedOrigins::new(&["https://app.example/".to_owned()]);
        assert!(origins.admits_socket(&HeaderMap::new()));
        assert!(origins.admits_socket(&sent("http://chat.example:8080")));
        assert!(origins.admits_socket(&sent("https://APP.example")));
        assert!(!origins.admits_socket(&sent("https://chat.example")));
        assert!(!origins.admits_socket(&sent("https://evil.example")));
        assert!(!origins.admits_socket(&sent("null")));
    }

    #[test]
    fn a_cookie_needs_more_than_a_star() {
        let origins = AllowedOrigins::new(&["*".to_owned()]);
        assert!(origins.admits_socket(&sent("https://evil.example")));
        assert!(!origins.admits_cookie(&sent("https://evil.example")));
        assert!(origins.admits_cookie(&sent("http://chat.example:8080")));
    }
}
