//! Firebase Cloud Messaging, HTTP v1: the access token of a service account, and the message.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use carillon_domain::{Timestamp, push::PushJob};
use parking_lot::RwLock;
use ring::{rand::SystemRandom, rsa, signature::RSA_PKCS1_SHA256};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use serde::Deserialize;
use url::Url;

use crate::{
    endpoint::Trust,
    http::{self, Clients, Failure},
    options::{FcmOptions, OptionsError},
};

const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";
const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
/// An access token isn't used in its last minute.
const MARGIN_SECONDS: i64 = 60;

/// The JSON file of a Google service account; only what is needed of it.
#[derive(Clone, Deserialize)]
pub struct ServiceAccount {
    /// The project that messages are sent for.
    pub project_id: String,
    /// Who asks for access.
    pub client_email: String,
    /// The RSA key, PKCS#8 PEM.
    pub private_key: String,
    /// The key's name.
    #[serde(default)]
    pub private_key_id: Option<String>,
    /// Where access tokens are given.
    #[serde(default = "google_token_uri")]
    pub token_uri: Url,
}

impl std::fmt::Debug for ServiceAccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceAccount")
            .field("project_id", &self.project_id)
            .finish_non_exhaustive()
    }
}

impl ServiceAccount {
    /// Reads the JSON file that Google gives.
    pub fn from_json(json: &str) -> Result<Self, OptionsError> {
        serde_json::from_str(json).map_err(OptionsError::ServiceAccount)
    }
}

fn google_token_uri() -> Url {
    // A constant that parses, as a test shows by reading a file without the field.
    #[allow(clippy::expect_used)]
    Url::parse("https://oauth2.googleapis.com/token").expect("a constant URL")
}

/// The sender of one project.
pub(crate) struct Fcm {
    account: ServiceAccount,
    key: rsa::KeyPair,
    send_url: Url,
    token: RwLock<Option<AccessToken>>,
}

#[derive(Clone)]
struct AccessToken {
    bearer: Arc<str>,
    ends: Timestamp,
}

/// Why there is no access token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("the token endpoint gave no answer")]
    Failure(#[from] Failure),
    #[error("the token endpoint refused with status {0}")]
    Refused(u16),
    #[error("the token endpoint's answer is not understood")]
    Answer(#[source] serde_json::Error),
    #[error("signing failed")]
    Signing,
}

#[derive(Deserialize)]
struct TokenAnswer {
    access_token: String,
    expires_in: i64,
}

// === impl Fcm ===

impl Fcm {
    pub fn new(options: FcmOptions) -> Result<Self, OptionsError> {
        let account = options.service_account;
        let der = PrivatePkcs8KeyDer::from_pem_slice(account.private_key.as_bytes())
            .map_err(|_| OptionsError::ServiceAccountKey)?;
        let key = rsa::KeyPair::from_pkcs8(der.secret_pkcs8_der())
            .map_err(|_| OptionsError::ServiceAccountKey)?;
        let mut send_url = options.base_url;
        send_url
            .path_segments_mut()
            .map_err(|()| OptionsError::BaseUrl("FCM"))?
            .pop_if_empty()
            .extend(["v1", "projects", &account.project_id, "messages:send"]);
        Ok(Self {
            account,
            key,
            send_url,
            token: RwLock::new(None),
        })
    }

    pub fn send_url(&self) -> &Url {
        &self.send_url
    }

    /// An access token that is valid for another minute at least: the remembered one, or a new one. Several callers at once may
    /// each ask for one when none is remembered.
    pub async fn bearer(&self, clients: &Clients, now: Timestamp) -> Result<Arc<str>, TokenError> {
        if let Some(token) = self.token.read().clone()
            && now < token.ends
        {
            return Ok(token.bearer);
        }
        let assertion = self.assertion(now)?;
        let request = clients
            .of(Trust::Configured)
            .post(self.account.token_uri.clone())
            .header("content-type", "application/x-www-form-urlencoded")
            .body(
                url::form_urlencoded::Serializer::new(String::new())
                    .append_pair("grant_type", GRANT)
                    .append_pair("assertion", &assertion)
                    .finish(),
            );
        let answer = http::send(request).await?;
        if !answer.status.is_success() {
            return Err(TokenError::Refused(answer.status.as_u16()));
        }
        let answer: TokenAnswer =
            serde_json::from_slice(&answer.body).map_err(TokenError::Answer)?;
        let seconds = (answer.expires_in - MARGIN_SECONDS).clamp(0, 3600);
        let token = AccessToken {
            bearer: answer.access_token.into(),
            ends: Timestamp(now.0 + seconds * 1000),
        };
        *self.token.write() = Some(token.clone());
        Ok(token.bearer)
    }

    /// Forgets the remembered access token, after a 401.
    pub fn forget_bearer(&self) {
        *self.token.write() = None;
    }

    /// RFC 7523: a JWT that proves who asks, signed with RS256.
    fn assertion(&self, now: Timestamp) -> Result<String, TokenError> {
        let mut header = serde_json::json!({"alg": "RS256", "typ": "JWT"});
        if let Some(id) = &self.account.private_key_id {
            header["kid"] = id.as_str().into();
        }
        let claims = serde_json::json!({
            "iss": self.account.client_email,
            "scope": SCOPE,
            "aud": self.account.token_uri.as_str(),
            "iat": now.seconds(),
            "exp": now.seconds() + 3600,
        });
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key
            .sign(
                &RSA_PKCS1_SHA256,
                &SystemRandom::new(),
                signed.as_bytes(),
                &mut signature,
            )
            .map_err(|_| TokenError::Signing)?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// The body of `messages:send`. Values of `data` must be strings.
pub(crate) fn message(token: &str, job: &PushJob) -> serde_json::Value {
    serde_json::json!({
        "message": {
            "token": token,
            "notification": {"title": job.title, "body": job.body},
            "data": {
                "type": "message",
                "room_id": job.room.to_string(),
                "message_id": job.message.to_string(),
                "sequence": job.sequence.to_string(),
                "sender_id": job.sender.to_string(),
            },
            "android": {"priority": "HIGH"},
        }
    })
}

/// Whether a 404 means that the token is gone. A wrong project or base URL answers 404 too, and must not cost every device its
/// target.
pub(crate) fn is_unregistered(body: &[u8]) -> bool {
    body.iter().all(u8::is_ascii_whitespace)
        || String::from_utf8_lossy(body).contains("UNREGISTERED")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_uri_has_a_default() {
        let account = ServiceAccount::from_json(
            r#"{"type":"service_account","project_id":"town","client_email":"a@b","private_key":"x"}"#,
        )
        .unwrap();
        assert_eq!(
            account.token_uri.as_str(),
            "https://oauth2.googleapis.com/token"
        );
        assert!(!format!("{account:?}").contains("private_key"));
        let options = FcmOptions {
            base_url: Url::parse(FcmOptions::BASE_URL).unwrap(),
            service_account: account,
        };
        assert!(matches!(
            Fcm::new(options),
            Err(OptionsError::ServiceAccountKey)
        ));
    }

    /// NOTIF-03: only FCM's own word costs a device its target.
    #[test]
    fn what_counts_as_unregistered() {
        assert!(is_unregistered(b""));
        assert!(is_unregistered(
            br#"{"error":{"code":404,"status":"NOT_FOUND","details":[{"errorCode":"UNREGISTERED"}]}}"#
        ));
        assert!(!is_unregistered(b"<html>Not Found</html>"));
        assert!(!is_unregistered(
            br#"{"error":{"code":404,"status":"NOT_FOUND","message":"no such project"}}"#
        ));
    }
}
