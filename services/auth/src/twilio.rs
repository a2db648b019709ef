//! One-time codes by Twilio Verify's HTTP API (AUTH-03). It makes the codes and checks them; no code and no number is kept or logged here.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use carillon_domain::{Error, ErrorCode, Result};
use reqwest::{Client, Response, StatusCode};
use url::Url;
use zeroize::Zeroizing;

use crate::otp::OtpProvider;

/// Longest time that a request may take: shorter than the caller's patience.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer that is read.
const MAX_ANSWER_BYTES: usize = 16 * 1024;
/// When to try again when the provider has had enough.
const RETRY_AFTER: Duration = Duration::from_secs(600);

/// Where Twilio is, and who asks.
pub struct TwilioOptions {
    /// Scheme and host; a path is kept.
    pub base_url: Url,
    /// `AC…`
    pub account_sid: String,
    /// Its secret.
    pub auth_token: Zeroizing<String>,
    /// `VA…`, the Verify service that says what messages look like.
    pub service_sid: String,
}

impl TwilioOptions {
    /// Where Twilio Verify is.
    pub const BASE_URL: &str = "https://verify.twilio.com";
}

/// Options that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TwilioError {
    /// One of the ids isn't letters and digits.
    #[error(
        "account_sid and service_sid are 2 to 64 letters and digits, and auth_token isn't empty"
    )]
    Malformed,
    /// No client could be made.
    #[error("no HTTP client: {0}")]
    Client(#[source] reqwest::Error),
    /// The base URL takes no path.
    #[error("the base URL takes no path")]
    BaseUrl,
    /// TLS can't be set up.
    #[error("TLS: {0}")]
    Tls(#[source] rustls::Error),
}

/// Twilio Verify.
pub struct Twilio {
    client: Client,
    options: TwilioOptions,
}

// === impl Twilio ===

impl Twilio {
    /// Connects to nothing yet.
    pub fn new(options: TwilioOptions) -> std::result::Result<Self, TwilioError> {
        let is_id = |id: &str| {
            (2..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
        };
        if !is_id(&options.account_sid)
            || !is_id(&options.service_sid)
            || options.auth_token.is_empty()
        {
            return Err(TwilioError::Malformed);
        }
        if options.base_url.cannot_be_a_base() {
            return Err(TwilioError::BaseUrl);
        }
        // The web's roots are compiled in: the image has no files of them.
        let roots =
            rustls::RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TwilioError::Tls)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .timeout(PATIENCE)
            .user_agent(concat!("carillon/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(TwilioError::Client)?;
        Ok(Self { client, options })
    }

    async fn post(&self, resource: &str, form: &[(&str, &str)]) -> Result<(StatusCode, Vec<u8>)> {
        let mut url = self.options.base_url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty()
                .extend(["v2", "Services", &self.options.service_sid, resource]);
        }
        let body = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(form)
            .finish();
        let sent = self
            .client
            .post(url)
            .basic_auth(
                &self.options.account_sid,
                Some(self.options.auth_token.as_str()),
            )
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body)
            .send()
            .await;
        let answer = async {
            let answer = sent?;
            Ok::<_, reqwest::Error>((answer.status(), read(answer).await?))
        };
        answer
            .await
            .map_err(|error| unavailable("no answer").caused_by(error.without_url()))
    }
}

#[async_trait]
impl OtpProvider for Twilio {
    async fn send(&self, phone_number: &str) -> Result<()> {
        let form = [("To", phone_number), ("Channel", "sms")];
        match self.post("Verifications", &form).await?.0 {
            status if status.is_success() => Ok(()),
            StatusCode::BAD_REQUEST => Err(Error::invalid("phone_number", "can't be sent a code")),
            status => Err(refused(status)),
        }
    }

    async fn check(&self, phone_number: &str, code: &str) -> Result<bool> {
        let form = [("To", phone_number), ("Code", code)];
        let (status, body) = self.post("VerificationCheck", &form).await?;
        match status {
            StatusCode::OK => {
                let answer: serde_json::Value = serde_json::from_slice(&body)
                    .map_err(|error| unavailable("an answer that isn't JSON").caused_by(error))?;
                Ok(answer["status"] == "approved")
            }
            // It has ended, was used, or was never sent.
            StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST => Ok(false),
            status => Err(refused(status)),
        }
    }
}

async fn read(mut answer: Response) -> std::result::Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        let room = MAX_ANSWER_BYTES - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() == MAX_ANSWER_BYTES {
            break;
        }
    }
    Ok(body)
}

fn refused(status: StatusCode) -> Error {
    if status == StatusCode::TOO_MANY_REQUESTS {
        let detail = "too many codes or attempts for this number, try again later";
        return Error::new(ErrorCode::RateLimited, detail).retry_after(RETRY_AFTER);
    }
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        tracing::error!(%status, "the provider of one-time codes refuses our credentials");
    }
    unavailable(format_args!("status {status}"))
}

fn unavailable(what: impl fmt::Display) -> Error {
    tracing::warn!("the provider of one-time codes: {what}");
    Error::new(
        ErrorCode::Unavailable,
        "codes can't be sent or checked now, try again",
    )
}
