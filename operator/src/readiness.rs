//! Asks a pod what it depends on: `GET http://<pod>:<admin port>/ready` names each dependency and whether it answers.
//!
//! The operator never probes a store itself: what counts is whether the roles reach it, from where they run.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;

use crate::pods::InUse;

/// Longest wait for one pod's answer. A pod itself waits up to two seconds for a dependency.
const TIMEOUT: Duration = Duration::from_secs(4);
/// Largest answer that is read, bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// What a pod says about its dependencies.
#[derive(Clone, Debug, PartialEq)]
pub struct PodReadiness {
    /// Name of the pod.
    pub pod: String,
    /// Those of its dependencies of which it knows; a first attempt that is under way has told nothing yet.
    pub dependencies: Vec<Dependency>,
    /// What it has in use of keys and certificates that change.
    pub in_use: InUse,
}

/// One dependency of a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Dependency {
    /// `scylla`, `redis`, `rabbitmq`, …
    pub name: String,
    /// Whether it answers the pod.
    pub ready: bool,
}

/// An HTTP client for pods.
pub struct ReadinessClient {
    client: Client<HttpConnector, Empty<Bytes>>,
}

impl ReadinessClient {
    /// A client without connections yet.
    pub fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(TIMEOUT));
        ReadinessClient {
            client: Client::builder(TokioExecutor::new())
                .pool_max_idle_per_host(0)
                .build(connector),
        }
    }

    /// The answer of the pod at `address`; `None` when there is none that can be read.
    pub async fn ask(&self, pod: &str, address: &str, admin_port: u16) -> Option<PodReadiness> {
        // An IPv6 address stands in brackets in a URL.
        let host = if address.contains(':') {
            format!("[{address}]")
        } else {
            address.to_owned()
        };
        let url = format!("http://{host}:{admin_port}/ready").parse().ok()?;
        let answer = async {
            let response = self.client.get(url).await.ok()?;
            let body = Limited::new(response.into_body(), MAX_ANSWER)
                .collect()
                .await
                .ok()?;
            parse(&body.to_bytes())
        };
        let (dependencies, in_use) = tokio::time::timeout(TIMEOUT, answer).await.ok()??;
        Some(PodReadiness {
            pod: pod.to_owned(),
            dependencies,
            in_use,
        })
    }
}

impl Default for ReadinessClient {
    fn default() -> Self {
        ReadinessClient::new()
    }
}

#[derive(Deserialize)]
struct Answer {
    dependencies: Vec<AnsweredDependency>,
    #[serde(default)]
    in_use: InUse,
}

#[derive(Deserialize)]
struct AnsweredDependency {
    name: String,
    status: String,
}

fn parse(body: &[u8]) -> Option<(Vec<Dependency>, InUse)> {
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let dependencies = answer
        .dependencies
        .into_iter()
        .filter_map(|dependency| {
            let ready = match dependency.status.as_str() {
                "up" => true,
                "connecting" => return None,
                _ => false,
            };
            Some(Dependency {
                name: dependency.name,
                ready,
            })
        })
        .collect();
    Some((dependencies, answer.in_use))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_pod_that_is_not_ready_is_heard() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = socket.read(&mut request).await.unwrap();
            let body = r#"{"status":"unready","dependencies":[{"name":"scylla","status":"down","latency_ms":3.1},{"name":"redis","status":"up","latency_ms":1}]}"#;
            let answer = format!(
                "HTTP/1.1 503 Service Unavailable\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            socket.write_all(answer.as_bytes()).await.unwrap();
        });
        let heard = ReadinessClient::new()
            .ask("town-auth-1", "127.0.0.1", port)
            .await
            .unwrap();
        assert_eq!(
            heard.dependencies,
            [
                Dependency {
                    name: "scylla".to_owned(),
                    ready: false
                },
                Dependency {
                    name: "redis".to_owned(),
                    ready: true
                },
            ]
        );
    }

    /// A roll-out starts pods all the time: one that connects for the first time is no outage.
    #[test]
    fn a_pod_that_has_just_started_complains_of_nothing() {
        let body = br#"{"status":"unready","dependencies":[{"name":"scylla","required":true,"status":"connecting","latency_ms":0},{"name":"redis","required":true,"status":"up","latency_ms":1}]}"#;
        assert_eq!(
            parse(body).unwrap().0,
            [Dependency {
                name: "redis".to_owned(),
                ready: true
            }]
        );
    }

    #[tokio::test]
    async fn silence_and_nonsense_are_no_answer() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        assert_eq!(
            ReadinessClient::new().ask("p", "127.0.0.1", port).await,
            None
        );
        assert_eq!(parse(b"<html>"), None);
        assert_eq!(parse(b"{}"), None);
    }
}
