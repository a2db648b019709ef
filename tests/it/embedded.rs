//! Ring 3 on embedded stores: `carillon up`.

use std::{
    fs,
    io::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{
    client::{Person, http},
    platform::{QUICK, Up},
    script::{Stage, texts},
};

async fn play(script: &str) -> Result<()> {
    let up = Up::start(QUICK).await?;
    Stage::new(vec![up.base.clone()]).run(script).await
}

/// MSG-01, MSG-02, MSG-07, RT-01 to RT-04, AUTH-01, AUTH-02, PRES-02.
#[tokio::test(flavor = "multi_thread")]
async fn conversation() -> Result<()> {
    play(include_str!("scripts/conversation.chat")).await
}

/// MSG-18, MSG-19, MSG-20.
#[tokio::test(flavor = "multi_thread")]
async fn away_and_back() -> Result<()> {
    play(include_str!("scripts/away.chat")).await
}

/// MSG-01, MSG-08.
#[tokio::test(flavor = "multi_thread")]
async fn changes_and_permissions() -> Result<()> {
    play(include_str!("scripts/changes.chat")).await
}

/// RT-05.
#[tokio::test(flavor = "multi_thread")]
async fn several_devices() -> Result<()> {
    play(include_str!("scripts/devices.chat")).await
}

/// MSG-03, MSG-08.
#[tokio::test(flavor = "multi_thread")]
async fn moderation() -> Result<()> {
    play(include_str!("scripts/moderation.chat")).await
}

/// MSG-05, MSG-06, MSG-09, MSG-11.
#[tokio::test(flavor = "multi_thread")]
async fn receipts_and_counts() -> Result<()> {
    play(include_str!("scripts/receipts.chat")).await
}

/// USER-05, USER-06, USER-07: presence and receipts are shown to whom they are to be shown, and settings are checked.
#[tokio::test(flavor = "multi_thread")]
async fn privacy() -> Result<()> {
    play(include_str!("scripts/privacy.chat")).await
}

/// MSG-21.
#[tokio::test(flavor = "multi_thread")]
async fn disappearing_messages() -> Result<()> {
    play(include_str!("scripts/disappearing.chat")).await
}

/// Promise 1 and OPS-02: what was acknowledged before a kill -9 or a clean stop is there after it, once, in order, and sockets
/// resume over it.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_loses_nothing() -> Result<()> {
    let mut up = Up::start(QUICK).await?;
    let mut stage = Stage::new(vec![up.base.clone()]);
    stage.run("alice: register\nbob: register\nalice: connect\nbob: connect\nalice: create #r\nbob: join #r\nbob: sees_kind #r user_joined").await?;
    let room = stage.room("#r")?;
    let mut expected = Vec::new();
    for round in 0..3 {
        for n in 0..40 {
            let text = format!("{round}-{n}");
            stage
                .run(&format!("alice: send #r \"{text}\" as c-{round}-{n}"))
                .await?;
            expected.push(text);
        }
        if round == 1 {
            let status = up.process.terminate(Duration::from_secs(20))?;
            ensure!(
                status == Some(0),
                "a clean stop ended with {status:?}: {}",
                up.process.output()
            );
            up.restart().await?;
        } else {
            up.kill_and_restart().await?;
        }
        // A retry after the restart finds the first result.
        stage
            .run(&format!(
                "alice: post #r \"{round}-39\" as c-{round}-39\nalice: resume\nbob: resume"
            ))
            .await?;
        let last = expected.last().context("sent")?.clone();
        stage.run(&format!("bob: sees #r \"{last}\"")).await?;
    }
    let (base, bob) = stage.person("bob")?;
    ensure!(texts(&bob.history(&base, &room).await?) == expected);
    ensure!(
        bob.texts(&room) == expected,
        "bob's sockets saw something else"
    );
    stage.run("all: agree #r").await
}

/// A laptop's user waits less than a second from process start (issue: ready within 1 s). Reported, not asserted as a time:
/// the assertion is that the process itself says so in its greeting.
#[tokio::test(flavor = "multi_thread")]
async fn the_greeting_says_where_and_what() -> Result<()> {
    let up = Up::start(QUICK).await?;
    let output = up.process.output();
    for needed in ["is ready", &up.base, "/api/v1/ws", "Ctrl-C", "123456"] {
        ensure!(
            output.contains(needed),
            "the greeting lacks {needed:?}:\n{output}"
        );
    }
    ensure!(!output.contains('\x1b'), "colours in a pipe");
    Ok(())
}

/// OPS-01, OPS-03, EDGE-01: alive, ready with each dependency, metrics on the admin port only.
#[tokio::test(flavor = "multi_thread")]
async fn health_and_metrics() -> Result<()> {
    let up = Up::start(QUICK).await?;
    let get = async |url: String| -> Result<(u16, String)> {
        let response = http().get(url).send().await?;
        Ok((response.status().as_u16(), response.text().await?))
    };
    ensure!(get(format!("{}/health", up.base)).await?.0 == 200);
    let (status, ready) = get(format!("{}/ready", up.base)).await?;
    let ready: Value = serde_json::from_str(&ready)?;
    ensure!(
        status == 200
            && ready["status"] == "ready"
            && ready["dependencies"][0]["name"] == "embedded",
        "{ready}"
    );
    ensure!(
        ready["dependencies"][0]["latency_ms"].is_number(),
        "{ready}"
    );
    ensure!(
        get(format!("{}/metrics", up.base)).await?.0 == 404,
        "metrics on the public port"
    );
    let (status, metrics) = get(format!("{}/metrics", up.admin)).await?;
    ensure!(
        status == 200 && metrics.contains("carillon_http_requests_total"),
        "{metrics}"
    );
    let (status, jwks) = get(format!("{}/.well-known/jwks.json", up.base)).await?;
    let jwks: Value = serde_json::from_str(&jwks)?;
    ensure!(
        status == 200 && jwks["keys"][0]["kty"] == "OKP" && jwks["keys"][0]["kid"].is_string(),
        "{jwks}"
    );
    ensure!(
        jwks["keys"][0]["d"].is_null(),
        "the private key is published"
    );
    Ok(())
}

/// AUTH-05, AUTH-07: refresh once, reuse ends the device; logout closes its sockets and refuses its token at once.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_logout() -> Result<()> {
    let up = Up::start(QUICK).await?;
    let mut alice = Person::register(&up.base, "alice").await?;
    let refresh = json!({"refresh_token": alice.refresh_token});
    let fresh = alice
        .ask(&up.base, Method::POST, "/auth/refresh", Some(&refresh))
        .await?;
    alice.access_token = fresh["access_token"]
        .as_str()
        .context("access_token")?
        .to_owned();
    alice.connect(&up.base, false).await?;
    ensure!(
        alice
            .call(&up.base, Method::POST, "/auth/refresh", Some(&refresh))
            .await?
            .status
            == 401,
        "an old refresh token worked"
    );
    // Its reuse ended the device: the socket closes with "session revoked", the access token is refused.
    while alice.is_connected() {
        let Some(frame) = alice.frame(Duration::from_secs(20)).await? else {
            break;
        };
        alice.take(frame)?;
    }
    ensure!(alice.closed == Some(4002), "closed with {:?}", alice.closed);
    ensure!(
        alice
            .call(&up.base, Method::GET, "/auth/me", None)
            .await?
            .status
            == 401
    );

    let bob = Person::register(&up.base, "bob").await?;
    bob.ask(&up.base, Method::POST, "/auth/logout", None)
        .await?;
    let refused = bob.call(&up.base, Method::GET, "/auth/me", None).await?;
    ensure!(
        refused.status == 401 && refused.headers.contains_key("www-authenticate"),
        "{}",
        refused.body
    );
    Ok(())
}

/// MEDIA-01, MEDIA-04: an upload is fetched by readers of its room only; a lie about its type is refused.
#[tokio::test(flavor = "multi_thread")]
async fn uploads() -> Result<()> {
    let up = Up::start(QUICK).await?;
    let mut stage = Stage::new(vec![up.base.clone()]);
    stage.run("alice: register\nbob: register\neve: register\nalice: create #p private\nalice: add #p bob").await?;
    let room = stage.room("#p")?;
    // The smallest valid PNG header and a body.
    let png: Vec<u8> = [
        &b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x06\0\0\0"[..],
        &[7; 500],
    ]
    .concat();
    let upload = async |token: &str, name: &str, bytes: Vec<u8>| -> Result<(u16, Value)> {
        let part = reqwest::multipart::Part::bytes(bytes).file_name(name.to_owned());
        let form = reqwest::multipart::Form::new()
            .text("room_id", room.clone())
            .part("file", part);
        let response = http()
            .post(format!("{}/api/v1/uploads", up.base))
            .bearer_auth(token)
            .multipart(form)
            .send()
            .await?;
        Ok((response.status().as_u16(), response.json().await?))
    };
    let token = stage.person("alice")?.1.access_token.clone();
    let (status, made) = upload(&token, "cat.png", png.clone()).await?;
    ensure!(status == 201, "{status}: {made}");
    let url = format!(
        "{}/api/v1/media/{}",
        up.base,
        made["id"].as_str().context("id")?
    );
    let fetched = http()
        .get(&url)
        .bearer_auth(&stage.person("bob")?.1.access_token)
        .send()
        .await?;
    ensure!(
        fetched.headers()["content-type"] == "image/png"
            && fetched.headers()["x-content-type-options"] == "nosniff"
    );
    ensure!(fetched.bytes().await? == png);
    let eve = stage.person("eve")?.1.access_token.clone();
    ensure!(http().get(&url).bearer_auth(&eve).send().await?.status() == 404);
    ensure!(upload(&eve, "cat.png", png.clone()).await?.0 == 404);
    ensure!(upload(&token, "cat.jpg", png.clone()).await?.0 == 415);
    ensure!(upload(&token, "run.exe", b"MZ\x90\0".to_vec()).await?.0 == 415);
    ensure!(
        upload(&token, "big.png", [png, vec![0; 5 << 20]].concat())
            .await?
            .0
            == 413
    );
    Ok(())
}

/// A half-written store: what a crash tore off at the end is repaired; damage in the middle is named, and the process
/// doesn't start over with an empty store.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_is_repaired_or_refused() -> Result<()> {
    let mut up = Up::start(QUICK).await?;
    let mut stage = Stage::new(vec![up.base.clone()]);
    stage
        .run("alice: register\nalice: create #r\nalice: post #r \"kept\"")
        .await?;
    up.process.kill();
    let data = up.directory.path().join("data");
    let mut journals = Vec::new();
    collect(&data, &mut journals)?;
    let journal = journals
        .iter()
        .max_by_key(|(_, size)| *size)
        .context("the store has files")?
        .0
        .clone();
    // A torn tail: half a record after the last whole one.
    fs::File::options()
        .append(true)
        .open(&journal)?
        .write_all(&[0xff; 37])?;
    up.restart().await.context("after a torn write")?;
    stage.run("alice: history #r = \"kept\"").await?;
    stage.run("alice: post #r \"more\"").await?;
    up.process.kill();

    let whole = fs::read(&journal)?;
    let mut damaged = whole.clone();
    let middle = damaged
        .iter()
        .rposition(|byte| *byte != 0)
        .context("data")?
        / 2;
    damaged[middle..middle + 64].fill(0xff);
    fs::write(&journal, damaged)?;
    let mut refused = up.start_again()?;
    let status = refused.wait(Duration::from_secs(20))?;
    ensure!(status == Some(69), "{status:?}: {}", refused.output());
    let said = refused.output();
    ensure!(
        said.contains(&data.display().to_string()) && !said.contains("panicked"),
        "{said}"
    );
    // Nothing was thrown away: with the journal as it was, all is there.
    fs::write(&journal, whole)?;
    up.restart().await?;
    stage.run("alice: history #r = \"kept\" \"more\"").await
}

fn collect(directory: &std::path::Path, files: &mut Vec<(std::path::PathBuf, u64)>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), files)?;
        } else if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "jnl")
            || entry.path().to_string_lossy().contains("journal")
        {
            files.push((entry.path(), entry.metadata()?.len()));
        }
    }
    Ok(())
}

/// PRES-01: a person is online while a device is connected, and offline with a last-seen time after it went.
#[tokio::test(flavor = "multi_thread")]
async fn presence_follows_sockets() -> Result<()> {
    let up = Up::start(QUICK).await?;
    let mut stage = Stage::new(vec![up.base.clone()]);
    stage.run("alice: register\nbob: register\nalice: connect\nalice: dm bob\nbob: connect\nalice: hears user_online").await?;
    stage.run("bob: drop\nalice: hears user_offline").await?;
    let bob = stage.person("bob")?.1.id.clone();
    let (base, alice) = stage.person("alice")?;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let seen = alice
            .ask(&base, Method::GET, &format!("/presence?users={bob}"), None)
            .await?;
        if seen["items"][0]["state"] == "offline" && seen["items"][0]["last_seen"].is_string() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{seen}");
    }
}
