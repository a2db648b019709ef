//! One delivery to one device: the request, and what its answer means.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use carillon_domain::{
    Clock,
    push::{PushJob, PushProvider, PushTarget},
};
use carillon_telemetry::metrics::{HistogramVec, IntCounterVec, histogram, int_counter};
use reqwest::StatusCode;
use tracing::Instrument;
use url::Url;

use crate::{
    endpoint::{self, Trust},
    fcm::{self, Fcm},
    http::{self, Answer, Clients, Failure},
    options::{NotificationOptions, OptionsError, WebPushOptions},
    web_push::{MAX_PLAINTEXT, Subscription},
};

static DELIVERIES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    int_counter(
        "carillon_push_deliveries_total",
        "Deliveries to devices, by provider and outcome: delivered, gone, rejected, retry, repeated, limited.",
        &["provider", "outcome"],
    )
});
static DURATION: LazyLock<HistogramVec> = LazyLock::new(|| {
    histogram(
        "carillon_push_delivery_duration_seconds",
        "Time of a request to a push provider, with what it needs before.",
        &["provider"],
    )
});

/// When a provider doesn't say when to try again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// What became of a delivery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// The provider took it.
    Delivered,
    /// The provider says that the target doesn't exist any more.
    Gone,
    /// The provider, or we, will never take it.
    Rejected,
    /// Try again.
    Retry(Duration),
    /// It was delivered before.
    Repeated,
    /// The recipient got too many just now.
    Limited,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Gone => "gone",
            Self::Rejected => "rejected",
            Self::Retry(_) => "retry",
            Self::Repeated => "repeated",
            Self::Limited => "limited",
        }
    }

    pub fn count(self, provider: PushProvider) {
        DELIVERIES
            .with_label_values(&[provider.as_str(), self.as_str()])
            .inc();
    }
}

/// The configured providers.
pub(crate) struct Providers {
    clients: Clients,
    web_push: Option<WebPushOptions>,
    fcm: Option<Fcm>,
    clock: Arc<dyn Clock>,
}

// === impl Providers ===

impl Providers {
    pub fn new(options: NotificationOptions, clock: Arc<dyn Clock>) -> Result<Self, OptionsError> {
        if let Some(web_push) = &options.web_push {
            let subject = &web_push.subject;
            if !subject.starts_with("mailto:") && !subject.starts_with("https://") {
                return Err(OptionsError::VapidSubject);
            }
            if let Some(base) = &web_push.base_url {
                check_base(base, "Web Push")?;
            }
        }
        if let Some(fcm) = &options.fcm {
            check_base(&fcm.base_url, "FCM")?;
        }
        for (provider, is_used) in [
            (PushProvider::WebPush, options.web_push.is_some()),
            (PushProvider::Fcm, options.fcm.is_some()),
        ] {
            for outcome in ["delivered", "gone", "rejected", "retry"] {
                if is_used {
                    DELIVERIES.with_label_values(&[provider.as_str(), outcome]);
                }
            }
        }
        Ok(Self {
            clients: Clients::new(options.request_timeout, options.strangers_timeout)?,
            web_push: options.web_push,
            fcm: options.fcm.map(Fcm::new).transpose()?,
            clock,
        })
    }

    pub fn has(&self, provider: PushProvider) -> bool {
        match provider {
            PushProvider::WebPush => self.web_push.is_some(),
            PushProvider::Fcm => self.fcm.is_some(),
            PushProvider::Apns => false,
        }
    }

    /// Checks a Web Push endpoint as it will be called.
    pub fn check_endpoint(&self, endpoint: &str) -> Result<(Url, Trust), &'static str> {
        let base = self.web_push.as_ref().and_then(|o| o.base_url.as_ref());
        endpoint::check(endpoint, base)
    }

    /// The origin of an endpoint that a stranger named. `None` for targets whose address the operator of the cluster configured, and
    /// for those that aren't called at all.
    pub fn strangers_origin(&self, target: &PushTarget) -> Option<String> {
        if target.provider != PushProvider::WebPush || self.web_push.is_none() {
            return None;
        }
        match self.check_endpoint(&target.token) {
            Ok((url, Trust::Public)) => Some(url.origin().ascii_serialization()),
            _ => None,
        }
    }

    /// What came of it; `None` when there was no answer.
    pub async fn deliver(&self, job: &PushJob, target: &PushTarget) -> Option<Outcome> {
        let provider = target.provider.as_str();
        let span = tracing::info_span!(
            "push.deliver",
            otel.kind = "client",
            push.provider = provider,
            http.request.method = "POST",
            http.response.status_code = tracing::field::Empty,
            push.outcome = tracing::field::Empty,
        );
        async {
            let timer = DURATION.with_label_values(&[provider]).start_timer();
            let outcome = match target.provider {
                PushProvider::WebPush => self.web_push(job, target).await,
                PushProvider::Fcm => self.fcm(job, target).await,
                PushProvider::Apns => Some(Outcome::Rejected),
            };
            timer.observe_duration();
            let recorded = outcome.map_or("no answer", Outcome::as_str);
            tracing::Span::current().record("push.outcome", recorded);
            outcome
        }
        .instrument(span)
        .await
    }

    async fn web_push(&self, job: &PushJob, target: &PushTarget) -> Option<Outcome> {
        let Some(options) = &self.web_push else {
            return Some(Outcome::Rejected);
        };
        let keys = (target.p256dh.as_deref(), target.auth.as_deref());
        let (Some(p256dh), Some(auth)) = keys else {
            return Some(Outcome::Rejected);
        };
        // Checked when it was registered; the configuration may have changed since.
        let Ok((url, trust)) = self.check_endpoint(&target.token) else {
            return Some(Outcome::Rejected);
        };
        let Ok(subscription) = Subscription::parse(p256dh, auth) else {
            return Some(Outcome::Rejected);
        };
        let Ok(body) = subscription.encrypt(&payload(job)) else {
            return Some(Outcome::Rejected);
        };
        let authorization =
            options
                .vapid_key
                .authorization(&url, &options.subject, self.clock.now());
        let request = self
            .clients
            .of(trust)
            .post(url)
            .header("ttl", options.ttl.as_secs())
            .header("urgency", "high")
            .header("content-encoding", "aes128gcm")
            .header("content-type", "application/octet-stream")
            .header("authorization", authorization)
            .body(body);
        self.judge(http::send_off(request).await, |answer| {
            matches!(answer.status, StatusCode::NOT_FOUND | StatusCode::GONE)
        })
    }

    async fn fcm(&self, job: &PushJob, target: &PushTarget) -> Option<Outcome> {
        let Some(fcm) = &self.fcm else {
            return Some(Outcome::Rejected);
        };
        let bearer = match fcm.bearer(&self.clients, self.clock.now()).await {
            Ok(bearer) => bearer,
            Err(error) => {
                // Credentials that don't work are the operator's to repair; jobs wait and are dead-lettered, not lost.
                tracing::error!(error = &error as &dyn std::error::Error, "no access to FCM");
                return Some(Outcome::Retry(RETRY_AFTER));
            }
        };
        let request = self
            .clients
            .of(Trust::Configured)
            .post(fcm.send_url().clone())
            .bearer_auth(bearer)
            .json(&fcm::message(&target.token, job));
        let answer = http::send_off(request).await;
        if let Ok(answer) = &answer
            && answer.status == StatusCode::UNAUTHORIZED
        {
            fcm.forget_bearer();
            return Some(Outcome::Retry(RETRY_AFTER));
        }
        self.judge(answer, |answer| match answer.status {
            StatusCode::GONE => true,
            StatusCode::NOT_FOUND => fcm::is_unregistered(&answer.body),
            _ => false,
        })
    }

    fn judge(
        &self,
        answer: Result<Answer, Failure>,
        is_gone: impl FnOnce(&Answer) -> bool,
    ) -> Option<Outcome> {
        let answer = match answer {
            Ok(answer) => answer,
            Err(Failure::NotPublic) => return Some(Outcome::Rejected),
            Err(failure) => {
                tracing::debug!(error = &failure as &dyn std::error::Error, "no answer");
                return None;
            }
        };
        let status = answer.status;
        tracing::Span::current().record("http.response.status_code", status.as_u16());
        Some(if status.is_success() {
            Outcome::Delivered
        } else if is_gone(&answer) {
            Outcome::Gone
        } else if status == StatusCode::TOO_MANY_REQUESTS
            || status == StatusCode::REQUEST_TIMEOUT
            || status.is_server_error()
        {
            let after = http::retry_after(&answer.headers, self.clock.now());
            Outcome::Retry(after.unwrap_or(RETRY_AFTER))
        } else {
            tracing::warn!(status = status.as_u16(), "a push was rejected");
            Outcome::Rejected
        })
    }
}

/// A base URL must not end in something that a path can't be added to.
fn check_base(base: &Url, what: &'static str) -> Result<(), OptionsError> {
    let usable = matches!(base.scheme(), "http" | "https")
        && base.query().is_none()
        && base.fragment().is_none();
    if usable {
        Ok(())
    } else {
        Err(OptionsError::BaseUrl(what))
    }
}

/// What the browser's service worker gets, cut to what every push service takes.
fn payload(job: &PushJob) -> Vec<u8> {
    let of = |title: &str, body: &str| {
        serde_json::json!({
            "type": "message",
            "room_id": job.room,
            "message_id": job.message,
            "sequence": job.sequence,
            "sender_id": job.sender,
            "title": title,
            "body": body,
        })
        .to_string()
        .into_bytes()
    };
    let title: String = job.title.chars().take(80).collect();
    let mut body = job.body.as_str();
    loop {
        let bytes = of(&title, body);
        if bytes.len() <= MAX_PLAINTEXT || body.is_empty() {
            return bytes;
        }
        let half = body.len() / 2;
        let end = (0..=half).rev().find(|&i| body.is_char_boundary(i));
        body = &body[..end.unwrap_or(0)];
    }
}

#[cfg(test)]
mod tests {
    use carillon_domain::{MessageId, RoomId, Sequence, UserId};

    use super::*;

    /// NOTIF-01: a payload fits whatever its text, also one that JSON makes six times as long.
    #[test]
    fn payloads_fit() {
        for body in ["hi".to_owned(), "\u{1}".repeat(16_000), "ä".repeat(9000)] {
            let job = PushJob {
                id: "1/0".to_owned(),
                room: RoomId::new(),
                message: MessageId::new(),
                sequence: Sequence(1),
                sender: UserId::new(),
                title: "\u{1}".repeat(500),
                body: body.clone(),
                recipients: vec![],
                mentions: Default::default(),
                direct: false,
                traceparent: None,
            };
            let bytes = payload(&job);
            assert!(bytes.len() <= MAX_PLAINTEXT);
            let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            assert!(body.starts_with(json["body"].as_str().unwrap()));
            assert!(!json["body"].as_str().unwrap().is_empty());
        }
    }
}
