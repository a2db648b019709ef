//! Keys, certificates and passwords change while people write: no request fails, nobody is logged out, no process restarts. What the operator
//! and the kubelet do to the files of pods is done here to the files of processes; that they do it is tested where there are any
//! (`operator/tests/it/rotation.rs`, and ring 4).

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use carillon_crds::config::{fingerprint, in_use};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::world::{
    certificates::{Authority, by_role},
    client::{self, Person},
    platform::{QUICK, RealCluster, RealOptions},
    servers,
};

/// Whoever writes without ever trying again: what fails is a failure.
pub struct Strict {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<Result<()>>>,
}

impl Strict {
    pub async fn start(bases: &[String]) -> Result<Self> {
        let mut strict = Self {
            stop: Arc::default(),
            sent: Arc::default(),
            tasks: Vec::new(),
        };
        for n in 0..8 {
            let base = bases[n % bases.len()].clone();
            let mut person = Person::register(&base, &format!("writer{n}")).await?;
            let body = json!({"name": format!("room{n}"), "description": "", "type": "public"});
            let made = person
                .ask(&base, Method::POST, "/rooms", Some(&body))
                .await?;
            let room = made["id"].as_str().context("id")?.to_owned();
            let by_socket = n % 2 == 0;
            if by_socket {
                person.connect(&base, false).await?;
            }
            let (stop, sent) = (strict.stop.clone(), strict.sent.clone());
            strict.tasks.push(tokio::spawn(async move {
                for at in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let message = json!({
                        "client_message_id": format!("{n}-{at}"), "type": "text", "content": "x", "room_id": room,
                    });
                    if by_socket {
                        person.socket_request("send_message", message).await?;
                    } else {
                        let mut message = message;
                        message.as_object_mut().context("an object")?.remove("room_id");
                        let path = format!("/rooms/{room}/messages");
                        person.ask(&base, Method::POST, &path, Some(&message)).await?;
                        // Through auth and presence as well.
                        person.ask(&base, Method::GET, "/auth/me", None).await?;
                        person.ask(&base, Method::GET, "/rooms", None).await?;
                    }
                    sent.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(30)).await;
                }
                Ok(())
            }));
        }
        Ok(strict)
    }

    /// Everybody goes on writing for a while, and nothing has failed so far.
    pub async fn flow(&mut self) -> Result<()> {
        let target = self.sent.load(Ordering::Relaxed) + 80;
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.sent.load(Ordering::Relaxed) < target {
            for task in &mut self.tasks {
                if task.is_finished() {
                    task.await??;
                    bail!("a writer stopped by itself");
                }
            }
            ensure!(Instant::now() < deadline, "the writers hang");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    pub async fn end(self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await??;
        }
        Ok(self.sent.load(Ordering::Relaxed))
    }
}

/// Puts a file in place of another, whole.
fn put(file: &Path, text: &str) -> Result<()> {
    let draft = file.with_extension("draft");
    fs::write(&draft, text)?;
    Ok(fs::rename(draft, file)?)
}

/// Waits until every process that shows `name` shows what is expected of its role.
async fn in_use_everywhere(
    cluster: &RealCluster,
    name: &str,
    expected: impl Fn(&str) -> Option<String>,
) -> Result<()> {
    let http = client::http();
    for role in cluster
        .gateways
        .iter()
        .chain(&cluster.messages)
        .chain(&cluster.others)
    {
        let kind = role.name.split('-').next().unwrap_or_default();
        let Some(expected) = expected(kind) else {
            continue;
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let ready: Value = http
                .get(format!("{}/ready", role.admin))
                .send()
                .await?
                .json()
                .await?;
            if ready["in_use"][name] == *expected {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "{} has {name} {}, not {expected}",
                role.name,
                ready["in_use"]
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

async fn redis(address: &str, command: &str) -> Result<()> {
    let mut socket = TcpStream::connect(address).await?;
    socket
        .write_all(format!("{command}\r\n").as_bytes())
        .await?;
    let mut answer = [0; 256];
    let length = socket.read(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    ensure!(!answer.starts_with('-'), "{command}: {answer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_rotates_under_load() -> Result<()> {
    let Some(servers) = servers::stores("rotation::everything_rotates_under_load") else {
        return Ok(());
    };
    let secrets = tempfile::tempdir()?;
    let redis_secret = secrets.path().join("redis");
    fs::create_dir(&redis_secret)?;
    let address = servers.redis.trim_start_matches("redis://").to_owned();
    let user = format!("u{}", &uuid::Uuid::new_v4().simple().to_string()[..10]);
    redis(
        &address,
        &format!("ACL SETUSER {user} on >first ~* &* +@all"),
    )
    .await?;
    put(&redis_secret.join("username"), &user)?;
    put(&redis_secret.join("password"), "first")?;
    let mut cluster = RealCluster::start(
        &servers,
        &RealOptions {
            gateways: 2,
            messages: 2,
            spec: QUICK.into(),
            redis_secret: Some(redis_secret.clone()),
            ..Default::default()
        },
    )
    .await?;
    let bases: Vec<String> = cluster
        .gateways
        .iter()
        .map(|role| role.base.clone())
        .collect();
    let mut early = Person::register(&bases[0], "early").await?;
    let mut traffic = Strict::start(&bases).await?;
    traffic.flow().await?;

    rotate_authority(&cluster, &mut traffic).await?;
    rotate_signing_key(&cluster, &mut traffic, &bases, &mut early).await?;

    // The password of Redis: the new one counts beside the old one first, as in any store whose clients aren't to notice.
    redis(&address, &format!("ACL SETUSER {user} >second")).await?;
    put(&redis_secret.join("password"), "second")?;
    traffic.flow().await?;
    redis(&address, &format!("ACL SETUSER {user} <first")).await?;
    traffic.flow().await?;
    let sent = traffic.end().await?;

    // Every connection is made anew: with new certificates, by the new password.
    redis(&address, &format!("CLIENT KILL USER {user}")).await?;
    let directory = cluster.directory.path().to_owned();
    for role in cluster
        .messages
        .iter_mut()
        .chain(&mut cluster.others)
        .chain(&mut cluster.gateways)
    {
        role.process.kill();
        role.restart(&directory).await?;
    }
    let late = Person::login(&bases[1], "late", &early.username).await?;
    let deadline = Instant::now() + Duration::from_secs(30);
    let room = json!({"name": "after", "description": "", "type": "public"});
    while let Err(error) = late
        .ask(&bases[1], Method::POST, "/rooms", Some(&room))
        .await
    {
        ensure!(Instant::now() < deadline, "{error:#}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    redis(&address, &format!("ACL DELUSER {user}")).await?;
    println!("{sent} requests of writers while everything rotated, none failed");
    Ok(())
}

/// First both authorities are believed, then certificates change, then the old one is forgotten.
async fn rotate_authority(cluster: &RealCluster, traffic: &mut Strict) -> Result<()> {
    let names = cluster.names().context("certificates")?;
    let directory = cluster.directory.path().join("certificates");
    let old = fs::read_to_string(directory.join("auth/ca.crt"))?;
    let new = Authority::new()?;
    let both = format!("{old}{}", new.pem());
    for trust in [&both, &new.pem()] {
        if *trust != both {
            for (role, name) in by_role(&names) {
                let draft = directory.join("draft");
                new.issue(name, &draft)?;
                for file in ["tls.key", "tls.crt"] {
                    put(
                        &directory.join(role).join(file),
                        &fs::read_to_string(draft.join(file))?,
                    )?;
                    traffic.flow().await?;
                }
            }
            in_use_everywhere(cluster, in_use::CERTIFICATE, |role| {
                let file = directory.join(role).join("tls.crt");
                fs::read_to_string(file).ok().map(|text| fingerprint(&text))
            })
            .await?;
        }
        for (role, _) in by_role(&names) {
            put(&directory.join(role).join("ca.crt"), trust)?;
        }
        in_use_everywhere(cluster, in_use::TRUST, |_| Some(fingerprint(trust))).await?;
        traffic.flow().await?;
    }
    Ok(())
}

/// First the new key is published, then it signs. The old one is kept for the writers' tokens, as it is by the operator until they end.
async fn rotate_signing_key(
    cluster: &RealCluster,
    traffic: &mut Strict,
    bases: &[String],
    early: &mut Person,
) -> Result<()> {
    let keys = cluster.directory.path().join("keys");
    let old = fs::read_to_string(keys.join("jwt.pem"))?;
    let (new, _) =
        carillon_auth::SigningKeys::generate().map_err(|error| anyhow::anyhow!("{error}"))?;
    let signing = carillon_auth::SigningKeys::from_pem([&new, &old])
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    let both = carillon_auth::jwks(&signing);
    put(&keys.join("jwks.json"), &both)?;
    in_use_everywhere(cluster, in_use::PUBLIC_KEYS, |_| Some(fingerprint(&both))).await?;
    traffic.flow().await?;
    put(&keys.join("jwt.pem"), &format!("{new}\n{old}"))?;
    in_use_everywhere(cluster, in_use::SIGNING_KEY, |role| {
        (role == "auth").then(|| signing.kid().to_owned())
    })
    .await?;
    traffic.flow().await?;

    // A session from before goes on: its access token counts, and its refresh token gives one by the new key.
    early.ask(&bases[0], Method::GET, "/auth/me", None).await?;
    let body = json!({"refresh_token": early.refresh_token});
    let refreshed = early
        .ask(&bases[0], Method::POST, "/auth/refresh", Some(&body))
        .await?;
    early.access_token = refreshed["access_token"]
        .as_str()
        .context("a token")?
        .to_owned();
    let published = client::request(
        &client::http(),
        Method::GET,
        &format!("{}/.well-known/jwks.json", bases[1]),
        None,
        None,
    )
    .await?;
    ensure!(published.body["keys"].as_array().map(Vec::len) == Some(2));
    traffic.flow().await?;

    Ok(())
}
