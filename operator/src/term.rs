//! How long a leader may act, and a client that refuses to write beyond it.
//!
//! A process that was paused, or whose machine was, wakes up in the middle of a reconcile and doesn't know how late it is.
//! So the question is asked where it counts: before each write is sent. What is not here: the Lease itself ([`crate::leader`]).
//! The check and the sending are two steps; a pause that falls exactly between them lets one write out late. It is a
//! server-side apply of a whole object, which the next pass of the new leader puts right.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use tower::filter::FilterLayer;

/// A write was held back: this process may not be the leader any more.
#[derive(Debug, thiserror::Error)]
#[error("the Lease may have run out; nothing is written until it is held again")]
pub struct NotLeading;

/// A moment by two clocks. The steady one stands still while a machine sleeps, and the wall clock can be set back: what
/// counts is whichever says that more time has passed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    steady: Instant,
    wall: SystemTime,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Moment {
            steady: Instant::now(),
            wall: SystemTime::now(),
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.steady
            .elapsed()
            .max(self.wall.elapsed().unwrap_or_default())
    }
}

/// The time for which a Lease was last taken or renewed. Clones are the same term.
#[derive(Clone, Debug)]
pub struct Term {
    length: Duration,
    since: Arc<Mutex<Option<Moment>>>,
}

impl Term {
    /// A term that has not begun; each renewal is good for `length`.
    pub fn new(length: Duration) -> Self {
        Term {
            length,
            since: Arc::new(Mutex::new(None)),
        }
    }

    /// The Lease was written by a request that was begun at `asked`.
    pub(crate) fn renew(&self, asked: Moment) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = Some(asked);
    }

    /// The Lease is somebody else's, or given up.
    pub(crate) fn end(&self) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// How much of it is left; zero when it is over or hasn't begun.
    pub fn left(&self) -> Duration {
        let since = *self.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.map_or(Duration::ZERO, |since| {
            self.length.saturating_sub(since.elapsed())
        })
    }

    /// A client that reads at any time, and writes only during this term.
    pub fn client(&self, mut config: Config) -> Result<Client, kube::Error> {
        // A retry of its own would be sent without asking again; whoever reconciles tries again anyway.
        config.default_retry = false;
        let term = self.clone();
        let guard = FilterLayer::new(move |request: http::Request<Body>| {
            if request.method().is_safe() || !term.left().is_zero() {
                Ok(request)
            } else {
                Err(NotLeading)
            }
        });
        Ok(ClientBuilder::try_from(config)?.with_layer(&guard).build())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_lasts_from_the_moment_it_was_asked_for() {
        let term = Term::new(Duration::from_secs(10));
        assert!(term.left().is_zero());
        term.renew(Moment::now());
        assert!(term.left() > Duration::from_secs(5));
        let long_ago = |steady: u64, wall: u64| Moment {
            steady: Instant::now() - Duration::from_secs(steady),
            wall: SystemTime::now() - Duration::from_secs(wall),
        };
        term.renew(long_ago(11, 0));
        assert!(term.left().is_zero());
        // The machine slept.
        term.renew(long_ago(0, 11));
        assert!(term.left().is_zero());
        term.renew(Moment::now());
        term.end();
        assert!(term.left().is_zero());
    }

    /// Nothing listens at the address: what is refused before it is sent can be told from what can't be sent.
    #[tokio::test]
    async fn only_writes_are_held_back() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let term = Term::new(Duration::from_secs(3600));
        let config = Config::new("http://127.0.0.1:1".parse().unwrap());
        let client = term.client(config).unwrap();
        let held_back = async |method: &str| {
            let request = http::Request::builder()
                .method(method)
                .uri("/api")
                .body(Body::empty())
                .unwrap();
            let error = client.send(request).await.unwrap_err();
            error.to_string().contains(&NotLeading.to_string())
        };
        for method in ["POST", "PUT", "PATCH", "DELETE"] {
            assert!(held_back(method).await, "{method}");
        }
        assert!(!held_back("GET").await);
        term.renew(Moment::now());
        assert!(!held_back("PATCH").await);
    }
}
