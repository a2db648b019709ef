//! Promise 8: without a store the platform says so, answers with clear retryable errors, and heals by itself. Nothing that
//! was acknowledged is lost, and what could not be acknowledged can be retried.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{
    client::{Answer, Person, http},
    platform::{QUICK, RealCluster, RealOptions, Up},
    proxy::{Network, Proxy},
    script::texts,
    servers::{self, Networks},
};

/// How long a change may take to be seen. Stores' drivers back off between attempts.
const PATIENCE: Duration = Duration::from_secs(60);

struct Outage {
    test: &'static str,
    /// The dependency's name in `/ready`.
    store: &'static str,
    network: fn(&Networks) -> &Proxy,
    kind: Network,
    /// Whether a message can be acknowledged without this store.
    sends_go_on: bool,
}

/// `/ready`: the status, and what it says of one dependency.
async fn ready(admin: &str, store: &str) -> Result<(u16, Value)> {
    let answer = http().get(format!("{admin}/ready")).send().await?;
    let status = answer.status().as_u16();
    let body: Value = answer.json().await?;
    let dependency = body["dependencies"]
        .as_array()
        .and_then(|all| all.iter().find(|one| one["name"] == store))
        .cloned()
        .unwrap_or(Value::Null);
    Ok((status, dependency))
}

/// Waits until a process says that the store is up or down.
async fn wait_for(admin: &str, store: &str, up: bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (status, dependency) = ready(admin, store).await?;
        let word = if up { "up" } else { "down" };
        let serves = up || dependency["required"] == false;
        if (status == 200) == serves && dependency["status"] == word {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{store} is not said to be {word}: {status} {dependency}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// An answer that a client may retry, that says nothing of what is inside.
fn is_clear(answer: &Answer) -> Result<()> {
    let code = answer.body["code"].as_str().unwrap_or_default();
    ensure!(
        matches!(
            (answer.status.as_u16(), code),
            (503, "unavailable") | (504, "deadline_exceeded")
        ),
        "answered {}: {}",
        answer.status,
        answer.body
    );
    let text = answer.body.to_string().to_lowercase();
    // Which store is away may be said, in the words of the ChatCluster; where it is, and what its driver said, may not.
    for inside in ["127.0.0.1", "socket", "tcp", "grpc", "refused", "cassandra"] {
        ensure!(!text.contains(inside), "{inside} leaked: {}", answer.body);
    }
    Ok(())
}

async fn outage(outage: &Outage) -> Result<()> {
    let Some(servers) = servers::stores(outage.test) else {
        return Ok(());
    };
    let (servers, networks) = servers.behind_proxies().await?;
    let options = RealOptions {
        gateways: 1,
        messages: 1,
        spec: QUICK.into(),
        ..Default::default()
    };
    let mut cluster = RealCluster::start(&servers, &options).await?;
    let base = cluster.gateways[0].base.clone();
    let alice = Person::register(&base, "alice").await?;
    let made = alice
        .ask(
            &base,
            Method::POST,
            "/rooms",
            Some(&json!({"name": "r", "description": "", "type": "public"})),
        )
        .await?;
    let room = made["id"].as_str().context("id")?.to_owned();
    let path = format!("/rooms/{room}/messages");
    let message = |id: &str| json!({"client_message_id": id, "type": "text", "content": id});
    alice
        .ask(&base, Method::POST, &path, Some(&message("before")))
        .await?;

    (outage.network)(&networks).set(outage.kind);
    wait_for(&cluster.messages[0].admin, outage.store, false).await?;
    // Alive: a restart would not bring the store back.
    let health = http().get(format!("{base}/health")).send().await?;
    ensure!(health.status() == 200);
    let mut expected = vec!["before".to_owned()];
    for n in 0..3 {
        let id = format!("during-{n}");
        let answer = alice
            .call(&base, Method::POST, &path, Some(&message(&id)))
            .await?;
        if outage.sends_go_on {
            ensure!(answer.status == 201, "{}: {}", answer.status, answer.body);
        } else {
            is_clear(&answer)?;
        }
        expected.push(id);
    }

    (outage.network)(&networks).set(Network::Whole);
    for role in cluster
        .messages
        .iter()
        .chain(&cluster.gateways)
        .chain(&cluster.others)
    {
        let (status, dependency) = ready(&role.admin, outage.store).await?;
        if dependency.is_null() {
            ensure!(status == 200, "a role without this store is not ready");
        } else {
            wait_for(&role.admin, outage.store, true).await?;
        }
    }
    // The same messages again: whatever became of the first attempts, each is there once.
    expected.push("after".to_owned());
    for id in &expected[1..] {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = alice
                .call(&base, Method::POST, &path, Some(&message(id)))
                .await?;
            if answer.status.is_success() {
                break;
            }
            is_clear(&answer)?;
            ensure!(Instant::now() < deadline, "sends did not heal");
        }
    }
    let seen = texts(&alice.history(&base, &room).await?);
    // A send that was given up by its caller may have been stored after the next one.
    let (mut sorted, mut wanted) = (seen.clone(), expected.clone());
    sorted.sort();
    wanted.sort();
    ensure!(
        sorted == wanted && seen.first() == expected.first() && seen.last() == expected.last(),
        "the room holds {seen:?}"
    );
    for role in cluster
        .messages
        .iter_mut()
        .chain(&mut cluster.gateways)
        .chain(&mut cluster.others)
    {
        ensure!(
            role.process.is_running(),
            "a role ended: {}",
            role.process.output()
        );
    }
    Ok(())
}

/// Promise 8, OPS-01.
#[tokio::test(flavor = "multi_thread")]
async fn scylla_is_gone() -> Result<()> {
    outage(&Outage {
        test: "stores_fail::scylla_is_gone",
        store: "scylla",
        network: |networks| networks.scylla.as_ref().expect("one node"),
        kind: Network::Cut,
        sends_go_on: false,
    })
    .await
}

/// Promise 8, OPS-01.
#[tokio::test(flavor = "multi_thread")]
async fn scylla_is_silent() -> Result<()> {
    outage(&Outage {
        test: "stores_fail::scylla_is_silent",
        store: "scylla",
        network: |networks| networks.scylla.as_ref().expect("one node"),
        kind: Network::Stalled,
        sends_go_on: false,
    })
    .await
}

/// Promise 8, OPS-01.
#[tokio::test(flavor = "multi_thread")]
async fn redis_is_gone() -> Result<()> {
    outage(&Outage {
        test: "stores_fail::redis_is_gone",
        store: "redis",
        network: |networks| &networks.redis,
        kind: Network::Cut,
        sends_go_on: false,
    })
    .await
}

/// Promise 8, OPS-01.
#[tokio::test(flavor = "multi_thread")]
async fn redis_is_silent() -> Result<()> {
    outage(&Outage {
        test: "stores_fail::redis_is_silent",
        store: "redis",
        network: |networks| &networks.redis,
        kind: Network::Stalled,
        sends_go_on: false,
    })
    .await
}

/// Promise 8, OPS-01: a push is no part of an acknowledgement.
#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_is_gone() -> Result<()> {
    outage(&Outage {
        test: "stores_fail::rabbitmq_is_gone",
        store: "rabbitmq",
        network: |networks| &networks.rabbitmq,
        kind: Network::Cut,
        sends_go_on: true,
    })
    .await
}

/// Promises 1 and 8, OPS-01: a full disk under the embedded store. It heals without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn the_disk_is_full() -> Result<()> {
    let mut up = Up::start_on_a_disk(QUICK).await?;
    let Some(disk) = up.disk.clone() else {
        println!("CARILLON-SKIPPED stores_fail::the_disk_is_full: this user may not mount a disk");
        return Ok(());
    };
    let alice = Person::register(&up.base, "alice").await?;
    let body = json!({"name": "r", "description": "", "type": "public"});
    let made = alice
        .ask(&up.base, Method::POST, "/rooms", Some(&body))
        .await?;
    let path = format!("/rooms/{}/messages", made["id"].as_str().context("id")?);
    let send = |id: String| {
        let (alice, base, path) = (&alice, &up.base, &path);
        async move {
            let body = json!({"client_message_id": id, "type": "text", "content": id});
            alice.call(base, Method::POST, path, Some(&body)).await
        }
    };
    let mut expected = Vec::new();
    for round in 0..3 {
        let before = format!("before-{round}");
        ensure!(send(before.clone()).await?.status == 201);
        expected.push(before);
        disk.fill()?;
        // What its last block has room for is still taken.
        let refused = loop {
            let id = format!("during-{}", expected.len());
            let answer = send(id.clone()).await?;
            expected.push(id.clone());
            if !answer.status.is_success() {
                is_clear(&answer)?;
                break id;
            }
        };
        wait_for(&up.admin, "embedded", false).await?;
        let public = http().get(format!("{}/ready", up.base)).send().await?;
        ensure!(public.status() == 503, "the gateway says that it is ready");
        disk.free()?;
        wait_for(&up.admin, "embedded", true).await?;
        let again = send(refused).await?;
        ensure!(
            again.status.is_success(),
            "{}: {}",
            again.status,
            again.body
        );
    }
    ensure!(up.process.is_running(), "it ended: {}", up.process.output());
    let room = made["id"].as_str().context("id")?;
    let seen = texts(&alice.history(&up.base, room).await?);
    ensure!(seen == expected, "the room holds {seen:?}");
    Ok(())
}

/// MEDIA-03, promise 8: without the store of files messages flow, uploads are refused in words that may be retried, and `/ready` names it.
#[tokio::test(flavor = "multi_thread")]
async fn files_are_away_and_come_back() -> Result<()> {
    let up = Up::start(QUICK).await?;
    let ann = Person::register(&up.base, "ann").await?;
    let room = json!({"name": "r", "description": "", "type": "public"});
    let made = ann
        .ask(&up.base, Method::POST, "/rooms", Some(&room))
        .await?;
    let room = made["id"].as_str().context("id")?.to_owned();
    let upload = async || -> Result<reqwest::Response> {
        let file = reqwest::multipart::Part::bytes(b"GIF89a\x01\x00\x01\x00\x00\x00\x00;".to_vec())
            .file_name("a.gif")
            .mime_str("image/gif")?;
        let form = reqwest::multipart::Form::new()
            .text("room_id", room.clone())
            .part("file", file);
        let request = http().post(format!("{}/api/v1/uploads", up.base));
        Ok(request
            .bearer_auth(&ann.access_token)
            .multipart(form)
            .send()
            .await?)
    };
    wait_for(&up.admin, "object_store", true).await?;
    let taken = upload().await?;
    ensure!(taken.status().is_success(), "{}", taken.text().await?);
    let files = up.directory.path().join("data/media");
    ensure!(files.is_dir(), "there is no {}", files.display());
    let away = up.directory.path().join("away");
    std::fs::rename(&files, &away)?;
    // A file where the directory was: it can't be made anew behind our back.
    std::fs::write(&files, "")?;
    wait_for(&up.admin, "object_store", false).await?;
    let refused = upload().await?;
    let status = refused.status().as_u16();
    let body: Value = refused.json().await?;
    ensure!(
        status == 503 && body["code"] == "unavailable",
        "{status} {body}"
    );
    let message = json!({"client_message_id": "a", "type": "text", "content": "no files"});
    let path = format!("/rooms/{room}/messages");
    ann.ask(&up.base, Method::POST, &path, Some(&message))
        .await?;
    std::fs::remove_file(&files)?;
    std::fs::rename(&away, &files)?;
    wait_for(&up.admin, "object_store", true).await?;
    let taken = upload().await?;
    ensure!(taken.status().is_success(), "{}", taken.text().await?);
    Ok(())
}
