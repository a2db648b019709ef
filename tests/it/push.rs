//! NOTIF-01, NOTIF-02: a send to somebody without a live device is pushed to their device, once.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use base64::Engine as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use reqwest::Method;
use serde_json::json;

use crate::world::{
    platform::{QUICK, RealCluster, RealOptions, Up},
    script::Stage,
    servers,
};

/// A push service (RFC 8030) that keeps what it gets.
pub struct Endpoint {
    base: String,
    secrets: tempfile::TempDir,
    got: Arc<Mutex<Vec<Push>>>,
    status: Arc<AtomicU16>,
}

/// A push as it arrived.
#[derive(Clone, Debug)]
pub struct Push {
    pub path: String,
    pub encoding: String,
    pub authorization: String,
    pub body: Bytes,
}

impl Endpoint {
    /// Listens on loopback; answers 201 to everything until told otherwise.
    pub async fn start() -> Result<Self> {
        let got: Arc<Mutex<Vec<Push>>> = Arc::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let base = format!("http://{}", listener.local_addr()?);
        let keep = got.clone();
        let status = Arc::new(AtomicU16::new(201));
        let answers = status.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (keep, answers) = (keep.clone(), answers.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (keep, answers) = (keep.clone(), answers.clone());
                    async move {
                        let header = |name: &str| {
                            request
                                .headers()
                                .get(name)
                                .and_then(|v| v.to_str().ok())
                                .unwrap_or_default()
                                .to_owned()
                        };
                        let mut push = Push {
                            path: request.uri().path().to_owned(),
                            encoding: header("content-encoding"),
                            authorization: header("authorization"),
                            body: Bytes::new(),
                        };
                        push.body = request
                            .into_body()
                            .collect()
                            .await
                            .map(|body| body.to_bytes())
                            .unwrap_or_default();
                        keep.lock()
                            .expect("no test panics while it holds this")
                            .push(push);
                        Ok::<_, Infallible>(
                            Response::builder()
                                .status(answers.load(Ordering::Relaxed))
                                .body(Full::<Bytes>::default())
                                .expect("a plain response"),
                        )
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(hyper_util::rt::TokioIo::new(stream), service),
                );
            }
        });
        let secrets = tempfile::tempdir()?;
        let key = carillon_notification::VapidKey::generate();
        std::fs::create_dir_all(secrets.path().join("vapid"))?;
        std::fs::write(
            secrets.path().join("vapid/private_key.pem"),
            key.private_key(),
        )?;
        std::fs::write(
            secrets.path().join("vapid/subject"),
            "mailto:operator@example.com",
        )?;
        Ok(Self {
            base,
            secrets,
            got,
            status,
        })
    }

    /// The status of every answer from now on.
    pub fn answer(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }

    /// The ChatCluster's part that pushes here.
    pub fn spec(&self) -> String {
        format!(
            "  notification: {{webPush: {{secretName: vapid, baseUrl: {:?}}}}}\n",
            self.base
        )
    }

    /// The directory that stands for the cluster's Secrets.
    pub fn secrets(&self) -> &std::path::Path {
        self.secrets.path()
    }

    /// Registers a person's device here, with the key pair of RFC 8291's example.
    pub async fn register(&self, stage: &mut Stage, name: &str) -> Result<()> {
        let (base, person) = stage.person(name)?;
        let device = json!({
            "provider": "web_push",
            "token": format!("{}/push/{name}", self.base),
            "p256dh": "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4",
            "auth": "BTBZMqHH6r4Tts7J_aSIgg",
        });
        person
            .ask(&base, Method::POST, "/devices", Some(&device))
            .await?;
        Ok(())
    }

    /// What came so far.
    pub fn got(&self) -> Vec<Push> {
        self.got
            .lock()
            .expect("no test panics while it holds this")
            .clone()
    }

    /// Waits until this many came.
    pub async fn wait_for(&self, count: usize) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.got().len() < count {
            ensure!(
                Instant::now() < deadline,
                "{} of {count} pushes came within 30 s",
                self.got().len()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

/// Offline Bob is pushed each message once; online Alice isn't; a message that comes while he is connected isn't pushed.
async fn play(base: String, messages: &str, endpoint: &Endpoint) -> Result<()> {
    let mut stage = Stage::new(vec![base]);
    stage
        .run("alice: register\nbob: register\nalice: connect\nalice: dm bob")
        .await?;
    endpoint.register(&mut stage, "bob").await?;
    endpoint.register(&mut stage, "alice").await?;
    stage
        .run("alice: send @alice+bob \"first\" as one\nalice: send @alice+bob \"first\" as one")
        .await?;
    endpoint.wait_for(1).await?;
    stage.run("bob: connect\nalice: hears user_online\nalice: send @alice+bob \"you are here\"\nbob: sees @alice+bob \"you are here\"").await?;
    // Whether to push is decided after the answer: Bob stays until it is.
    unneeded_push(messages).await?;
    stage
        .run("bob: drop\nalice: hears user_offline\nalice: send @alice+bob \"last\"")
        .await?;
    endpoint.wait_for(2).await?;
    let got = endpoint.got();
    ensure!(got.len() == 2, "pushed {} times: {got:?}", got.len());
    for push in &got {
        ensure!(
            push.path == "/push/bob" && push.encoding == "aes128gcm",
            "{push:?}"
        );
        ensure!(push.authorization.starts_with("vapid t="), "{push:?}");
        // Encrypted for the device (RFC 8291): the push service doesn't read the text.
        let clear = ["first", "last"].iter().any(|text| {
            push.body
                .windows(text.len())
                .any(|window| window == text.as_bytes())
        });
        ensure!(!clear && push.body.len() > 86, "{push:?}");
    }
    let token = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(
        got[0]
            .authorization
            .split(['=', '.'])
            .nth(1)
            .unwrap_or_default(),
    )?;
    ensure!(String::from_utf8_lossy(&token).contains("ES256"));
    Ok(())
}

/// Waits until the message role found that a message needs no push.
async fn unneeded_push(admin: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let metrics = reqwest::get(format!("{admin}/metrics"))
            .await?
            .text()
            .await?;
        if metrics.contains(r#"carillon_message_push_jobs_total{outcome="unneeded"} 1"#) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "no push was unneeded: {metrics}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// NOTIF-01 on embedded stores.
#[tokio::test(flavor = "multi_thread")]
async fn embedded_push() -> Result<()> {
    let endpoint = Endpoint::start().await?;
    let up =
        Up::start_with_secrets(&format!("{QUICK}{}", endpoint.spec()), endpoint.secrets()).await?;
    play(up.base.clone(), &up.admin, &endpoint).await
}

/// NOTIF-01, NOTIF-02 over RabbitMQ, with two gateways.
#[tokio::test(flavor = "multi_thread")]
async fn push_over_rabbitmq() -> Result<()> {
    let Some(servers) = servers::stores("push::push_over_rabbitmq") else {
        return Ok(());
    };
    let endpoint = Endpoint::start().await?;
    let spec = format!("{QUICK}{}", endpoint.spec());
    let options = RealOptions {
        gateways: 2,
        spec,
        secrets: Some(endpoint.secrets().into()),
        ..Default::default()
    };
    let cluster = RealCluster::start(&servers, &options).await?;
    play(
        cluster.gateways[0].base.clone(),
        &cluster.messages[0].admin,
        &endpoint,
    )
    .await
}
