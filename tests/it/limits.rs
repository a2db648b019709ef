//! EDGE-03, RT-09 on the real stores: several gateways are one to an address and to a person.
//!
//! What comes back meanwhile is reckoned with, so that a slow machine proves less and fails nothing.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{
    client::{Answer, Person, http, request},
    platform::{RealCluster, RealOptions, Role},
    proxy::Network,
    servers,
};

/// Small limits, where a test means to meet them: 12 tries of secrets, and 20 messages at once.
const SMALL: &str = "
  gateway:
    limits: {authPerMinute: 12, requestsPerMinute: 1000000, messagesPerSecond: 1}
  auth:
    devMode: true
    argon2: {memoryKib: 8192, iterations: 1, parallelism: 1}
";
const TRIES: f64 = 12.0;
const BURST: f64 = 20.0;

/// How long a change may take to be seen.
const PATIENCE: Duration = Duration::from_secs(60);

fn options(gateways: usize) -> RealOptions {
    RealOptions {
        gateways,
        messages: 1,
        spec: SMALL.into(),
        ..Default::default()
    }
}

/// A try of a secret that costs nobody much: a refresh token that isn't one.
async fn attempt(gateway: &Role) -> Result<Answer> {
    let url = format!("{}/api/v1/auth/refresh", gateway.base);
    let body = json!({"refresh_token": "no such token"});
    request(&http(), Method::POST, &url, None, Some(&body)).await
}

/// Takes that a gateway counted by itself, because Redis was away or slow.
async fn counted_alone(role: &Role) -> Result<f64> {
    let text = http()
        .get(format!("{}/metrics", role.admin))
        .send()
        .await?
        .text()
        .await?;
    let lines = text.lines();
    let lines = lines.filter(|line| line.starts_with("carillon_limits_unshared_total"));
    Ok(lines
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum())
}

fn is_refusal(answer: &Answer) -> Result<bool> {
    if answer.status != 429 {
        return Ok(false);
    }
    ensure!(answer.body["code"] == "rate_limited", "{}", answer.body);
    for header in ["retry-after", "ratelimit", "ratelimit-policy"] {
        ensure!(answer.headers.contains_key(header), "{header} is missing");
    }
    Ok(true)
}

/// EDGE-03, RT-09: an address has its tries, and a person their messages, once over both gateways.
#[tokio::test(flavor = "multi_thread")]
async fn gateways_share_limits() -> Result<()> {
    let Some(servers) = servers::stores("limits::gateways_share_limits") else {
        return Ok(());
    };
    let cluster = RealCluster::start(&servers, &options(2)).await?;
    let gateways = &cluster.gateways;

    // Three of the address's tries: an account, and two devices.
    let began = Instant::now();
    let mut phone = Person::register(&gateways[0].base, "alice").await?;
    let mut laptop = Person::login(&gateways[1].base, "alice", &phone.username).await?;
    let mut passed = 3.0;
    let mut refused = [false, false];
    for n in 0..40 {
        let answer = attempt(&gateways[n % 2]).await?;
        refused[n % 2] = is_refusal(&answer)?;
        if !refused[n % 2] {
            ensure!(answer.status == 401, "{}: {}", answer.status, answer.body);
            passed += 1.0;
        }
    }
    let back = began.elapsed().as_secs_f64() * TRIES / 60.0;
    let alone = self::alone(gateways).await?;
    ensure!(
        passed <= TRIES + back + 1.0 + alone,
        "{passed} tries passed, {back} came back, {alone} were not shared"
    );
    ensure!(passed >= TRIES, "only {passed} tries passed");
    ensure!(alone < 20.0, "{alone} tries of 43 were not shared");

    let room = phone
        .ask(
            &gateways[0].base,
            Method::POST,
            "/rooms",
            Some(&json!({"name": "r", "description": "", "type": "public"})),
        )
        .await?;
    let room = room["id"].as_str().context("id")?.to_owned();
    phone.connect(&gateways[0].base, false).await?;
    laptop.connect(&gateways[1].base, false).await?;
    let (began, before) = (Instant::now(), alone);
    let mut passed = 0.0;
    let mut refusals = [0, 0];
    for n in 0..60 {
        let device = if n % 2 == 0 { &mut phone } else { &mut laptop };
        let message = json!({
            "room_id": room, "client_message_id": n.to_string(), "type": "text", "content": "hi",
        });
        let answer = device.socket_request("send_message", message).await?;
        if answer["type"] == "error" {
            let payload = &answer["payload"];
            ensure!(payload["code"] == "rate_limited", "{answer}");
            ensure!(payload["retry_after_ms"].as_u64() > Some(0), "{answer}");
            refusals[n % 2] += 1;
        } else {
            passed += 1.0;
        }
    }
    // Permits at hand live for a second, and each gateway may be ahead of the store by one.
    let back = began.elapsed().as_secs_f64() + 1.0;
    let alone = self::alone(gateways).await? - before;
    ensure!(
        passed <= BURST + back + 2.0 + alone,
        "{passed} messages passed, {back} came back, {alone} were not shared"
    );
    ensure!(alone < 20.0, "{alone} messages of 60 were not shared");
    if back < 10.0 {
        ensure!(refusals.iter().all(|count| *count > 0), "{refusals:?}");
    }
    Ok(())
}

/// Of all gateways.
async fn alone(gateways: &[Role]) -> Result<f64> {
    let mut sum = 0.0;
    for gateway in gateways {
        sum += counted_alone(gateway).await?;
    }
    Ok(sum)
}

/// EDGE-03, promise 8: without Redis a gateway goes on counting by itself, and with Redis for all again.
#[tokio::test(flavor = "multi_thread")]
async fn without_redis_gateways_count_alone() -> Result<()> {
    let Some(servers) = servers::stores("limits::without_redis_gateways_count_alone") else {
        return Ok(());
    };
    let (servers, networks) = servers.behind_proxies().await?;
    let cluster = RealCluster::start(&servers, &options(1)).await?;
    let gateway = &cluster.gateways[0];
    ensure!(attempt(gateway).await?.status == 401);
    ensure!(counted_alone(gateway).await? == 0.0);

    networks.redis.set(Network::Cut);
    let began = Instant::now();
    // At once: what passes may have to wait for the auth role, which needs Redis too.
    const ATTEMPTS: usize = 40;
    let answers = futures::future::try_join_all((0..ATTEMPTS).map(|_| attempt(gateway))).await?;
    let mut passed = 0.0;
    for answer in &answers {
        if !is_refusal(answer)? {
            let status: Value = answer.status.as_u16().into();
            let answered = [401, 503, 504].iter().any(|known| status == *known);
            ensure!(answered, "{status}: {}", answer.body);
            passed += 1.0;
        }
    }
    let back = began.elapsed().as_secs_f64() * TRIES / 60.0;
    ensure!(
        passed >= TRIES && passed <= TRIES + back + 1.0,
        "{passed} tries passed, {back} came back"
    );
    ensure!(counted_alone(gateway).await? >= ATTEMPTS as f64);

    networks.redis.set(Network::Whole);
    let deadline = Instant::now() + PATIENCE;
    // Redis knows of one try, or two.
    while attempt(gateway).await?.status != 401 {
        ensure!(Instant::now() < deadline, "tries are not counted again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
