//! Requests to providers: TLS by rustls with ring, no redirects, bounded times and answers.

use std::{error::Error as StdError, sync::Arc, time::Duration};

use carillon_domain::Timestamp;
use reqwest::{Client, RequestBuilder, Response, StatusCode, header::HeaderMap};

use crate::{
    endpoint::{NotPublic, PublicOnly, Trust},
    options::OptionsError,
};

/// Longest answer that is read; providers' errors are short.
const MAX_ANSWER_BYTES: usize = 16 * 1024;

/// One client for addresses that the operator of the cluster named, one for those that strangers name.
pub(crate) struct Clients {
    configured: Client,
    public: Client,
}

/// An answer, read up to a bound.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The address isn't public.
    #[error("the endpoint is not on a public address")]
    NotPublic,
    /// No connection, or no answer in time.
    #[error("no answer")]
    NoAnswer(#[source] reqwest::Error),
}

// === impl Clients ===

impl Clients {
    /// With the longest times that a request may take.
    pub fn new(timeout: Duration, strangers_timeout: Duration) -> Result<Self, OptionsError> {
        let tls = tls()?;
        let builder = |timeout| {
            Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(timeout)
                .timeout(timeout)
                .pool_max_idle_per_host(8)
                .user_agent(concat!("carillon/", env!("CARGO_PKG_VERSION")))
        };
        let made = |builder: reqwest::ClientBuilder| builder.build().map_err(OptionsError::Client);
        Ok(Self {
            configured: made(builder(timeout))?,
            // A proxy would resolve names itself, and so around the check.
            public: made(
                builder(strangers_timeout)
                    .no_proxy()
                    .https_only(true)
                    .dns_resolver(PublicOnly),
            )?,
        })
    }

    pub fn of(&self, trust: Trust) -> &Client {
        match trust {
            Trust::Configured => &self.configured,
            Trust::Public => &self.public,
        }
    }
}

/// The web's roots are compiled in: the image has no files of them.
fn tls() -> Result<rustls::ClientConfig, OptionsError> {
    let roots = rustls::RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(OptionsError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// Sends a request and reads the answer.
pub(crate) async fn send(request: RequestBuilder) -> Result<Answer, Failure> {
    read(request.send().await.map_err(failure)?).await
}

/// The same for a request whose success says all by its status: its body may take its time, and isn't waited for.
pub(crate) async fn send_off(request: RequestBuilder) -> Result<Answer, Failure> {
    let response = request.send().await.map_err(failure)?;
    if response.status().is_success() {
        return Ok(Answer {
            status: response.status(),
            headers: response.headers().clone(),
            body: Vec::new(),
        });
    }
    read(response).await
}

async fn read(mut response: Response) -> Result<Answer, Failure> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failure)? {
        let room = MAX_ANSWER_BYTES - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() == MAX_ANSWER_BYTES {
            break;
        }
    }
    Ok(Answer {
        status: response.status(),
        headers: response.headers().clone(),
        body,
    })
}

fn failure(error: reqwest::Error) -> Failure {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(&error);
    while let Some(current) = cause {
        if current.is::<NotPublic>() {
            return Failure::NotPublic;
        }
        cause = current.source();
    }
    // An endpoint is a capability: whoever has the URL can send to the device. It stays out of the log.
    Failure::NoAnswer(error.without_url())
}

/// `Retry-After` as seconds or a date (RFC 9110), between 1 s and 1 h.
pub(crate) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers
        .get(reqwest::header::RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim();
    let after = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = httpdate::parse_http_date(text).ok()?;
            let since = date.duration_since(std::time::UNIX_EPOCH).ok()?;
            let now = Duration::from_millis(u64::try_from(now.0).unwrap_or(0));
            since.saturating_sub(now)
        }
    };
    Some(after.clamp(Duration::from_secs(1), Duration::from_secs(3600)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NOTIF-02: both forms of `Retry-After`, and nonsense.
    #[test]
    fn retry_after_forms() {
        let now = Timestamp(784_111_777_000); // Sun, 06 Nov 1994 08:49:37 GMT
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("retry-after", text.parse().unwrap());
            retry_after(&headers, now).map(|after| after.as_secs())
        };
        assert_eq!(of("120"), Some(120));
        assert_eq!(of("0"), Some(1));
        assert_eq!(of("999999999"), Some(3600));
        assert_eq!(of("Sun, 06 Nov 1994 08:51:37 GMT"), Some(120));
        assert_eq!(of("Sun, 06 Nov 1994 08:00:00 GMT"), Some(1));
        assert_eq!(of("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
