//! Bad input gets a clear answer and loses nothing: on the command line, over HTTP, and on the socket.

use std::{fs, net::TcpListener, time::Duration};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use reqwest::Method;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::world::{
    client::{Person, http, request},
    platform::{QUICK, Up},
    process::{Process, free_port},
    script::Stage,
};

const EX_USAGE: i32 = 64;
const EX_UNAVAILABLE: i32 = 69;

/// Runs `carillon up` to its end, which must come by itself.
fn ends_with(spec: &str, more: &[&str]) -> Result<(Option<i32>, String)> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("chatcluster.yaml");
    fs::write(
        &file,
        format!(
            "apiVersion: carillon.chat/v1alpha1\nkind: ChatCluster\nmetadata: {{name: test}}\n{spec}"
        ),
    )?;
    let (file, data) = (
        file.display().to_string(),
        directory.path().join("data").display().to_string(),
    );
    let ports = [free_port(), free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
    let mut arguments = vec!["up", "-f", &file];
    for (flag, default) in [
        ("--data-dir", &data),
        ("--listen", &ports[0]),
        ("--grpc-listen", &ports[1]),
        ("--admin-listen", &ports[2]),
    ] {
        if !more.contains(&flag) {
            arguments.extend([flag, default]);
        }
    }
    arguments.extend(more);
    let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
    let mut process = Process::start("bad", directory.path(), &arguments)?;
    let status = process.wait(Duration::from_secs(20))?;
    Ok((status, process.output()))
}

fn refused(status: i32, spec: &str, more: &[&str], needles: &[&str]) -> Result<()> {
    let (ended, output) = ends_with(spec, more)?;
    ensure!(
        ended == Some(status),
        "{spec} {more:?} ended with {ended:?}, expected {status}:\n{output}"
    );
    for needle in needles {
        ensure!(
            output.contains(needle),
            "{spec} {more:?}: nothing about {needle:?} in:\n{output}"
        );
    }
    ensure!(!output.contains("panicked"), "{output}");
    Ok(())
}

/// A ChatCluster that can't be used is refused with the field's name.
#[test]
fn bad_chat_clusters() -> Result<()> {
    refused(EX_USAGE, "spec: {gatewayy: {}}", &[], &["gatewayy"])?;
    refused(
        EX_USAGE,
        "spec: {auth: {accessTokenTtl: soon}}",
        &[],
        &["accessTokenTtl"],
    )?;
    refused(
        EX_USAGE,
        "spec: {auth: {accessTokenTtl: 8d, refreshTokenTtl: 7d}}",
        &[],
        &["TokenTtl"],
    )?;
    refused(EX_USAGE, "spec: {version: 99.0.0}", &[], &["version"])?;
    refused(EX_USAGE, "spec: [", &[], &["ChatCluster"])?;
    refused(
        EX_USAGE,
        "spec: {}",
        &["--data-dirr", "x"],
        &["--data-dirr"],
    )
}

/// A taken port names the port and the flag that chooses another.
#[test]
fn taken_ports() -> Result<()> {
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    for flag in ["--listen", "--grpc-listen", "--admin-listen"] {
        refused(
            EX_UNAVAILABLE,
            "spec: {}",
            &[flag, &address],
            &[&address, flag],
        )?;
    }
    Ok(())
}

/// A data directory that can't be written, isn't one, or is used by another process.
#[tokio::test(flavor = "multi_thread")]
async fn bad_data_directories() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("file");
    fs::write(&file, "")?;
    refused(
        EX_UNAVAILABLE,
        "spec: {}",
        &["--data-dir", file.to_str().context("path")?],
        &["file"],
    )?;
    refused(
        EX_UNAVAILABLE,
        "spec: {}",
        &["--data-dir", "/proc/carillon"],
        &["/proc/carillon"],
    )?;

    let up = Up::start(QUICK).await?;
    let data = up.directory.path().join("data").display().to_string();
    tokio::task::spawn_blocking(move || {
        refused(EX_UNAVAILABLE, "spec: {}", &["--data-dir", &data], &[&data])
    })
    .await?
}

/// Problem details for every kind of bad request (RFC 9457), naming the field.
#[tokio::test(flavor = "multi_thread")]
async fn bad_requests() -> Result<()> {
    let up = Up::start(QUICK).await?;
    let mut stage = Stage::new(vec![up.base.clone()]);
    stage.run("alice: register\nalice: create #r").await?;
    let room = stage.room("#r")?;
    let token = stage.person("alice")?.1.access_token.clone();
    let api = format!("{}/api/v1", up.base);
    let raw = async |method: Method,
                     path: &str,
                     content_type: &str,
                     body: Vec<u8>|
           -> Result<(u16, Value, String)> {
        let response = http()
            .request(method, format!("{api}{path}"))
            .bearer_auth(&token)
            .header("content-type", content_type)
            .body(body)
            .send()
            .await?;
        let kind = response
            .headers()
            .get("content-type")
            .map(|kind| kind.to_str().unwrap_or_default().to_owned())
            .unwrap_or_default();
        let status = response.status().as_u16();
        Ok((status, response.json().await.unwrap_or_default(), kind))
    };
    let messages = format!("/rooms/{room}/messages");
    let unknown = uuid::Uuid::now_v7();
    let json_type = "application/json";
    // Method, path, content type, body; status and what the answer must name.
    type Case = (Method, String, &'static str, Vec<u8>, u16, &'static str);
    let cases: Vec<Case> = vec![
        (
            Method::POST,
            messages.clone(),
            json_type,
            b"{\"client_message_id\": ".to_vec(),
            400,
            "invalid_request",
        ),
        (
            Method::POST,
            messages.clone(),
            json_type,
            b"{\"client_message_id\": 5, \"type\": \"text\", \"content\": \"x\"}".to_vec(),
            400,
            "client_message_id",
        ),
        (
            Method::POST,
            messages.clone(),
            json_type,
            b"{\"client_message_id\": \"a\", \"type\": \"text\", \"content\": \"x\", \"more\": 1}"
                .to_vec(),
            400,
            "more",
        ),
        (
            Method::POST,
            messages.clone(),
            json_type,
            b"{\"client_message_id\": \"a\", \"type\": \"poem\", \"content\": \"x\"}".to_vec(),
            400,
            "type",
        ),
        (
            Method::POST,
            messages.clone(),
            json_type,
            b"{\"client_message_id\": \"a\", \"type\": \"text\", \"content\": \"\"}".to_vec(),
            400,
            "content",
        ),
        (
            Method::POST,
            messages.clone(),
            "text/plain",
            b"hello".to_vec(),
            415,
            "unsupported_media_type",
        ),
        (
            Method::POST,
            messages.clone(),
            json_type,
            vec![b' '; 2 << 20],
            413,
            "payload_too_large",
        ),
        (
            Method::GET,
            format!("{messages}?limit=101"),
            json_type,
            vec![],
            400,
            "limit",
        ),
        (
            Method::GET,
            "/rooms/not-a-uuid".into(),
            json_type,
            vec![],
            400,
            "invalid_request",
        ),
        (
            Method::GET,
            format!("/rooms/{unknown}"),
            json_type,
            vec![],
            404,
            "not_found",
        ),
        (
            Method::GET,
            format!("/messages/{unknown}"),
            json_type,
            vec![],
            404,
            "not_found",
        ),
        (
            Method::GET,
            "/no/such/thing".into(),
            json_type,
            vec![],
            404,
            "not_found",
        ),
        (
            Method::PUT,
            "/auth/login".into(),
            json_type,
            b"{}".to_vec(),
            405,
            "",
        ),
        (
            Method::POST,
            "/auth/register".into(),
            json_type,
            b"{\"username\": \"a b\", \"email\": \"x\", \"password\": \"short\"}".to_vec(),
            400,
            "username",
        ),
    ];
    for (method, path, content_type, body, status, needle) in cases {
        let (answered, problem, kind) = raw(method.clone(), &path, content_type, body).await?;
        ensure!(
            answered == status,
            "{method} {path} was answered {answered}, expected {status}: {problem}"
        );
        ensure!(
            kind.starts_with("application/problem+json"),
            "{method} {path}: {kind}"
        );
        ensure!(
            problem.to_string().contains(needle),
            "{method} {path}: nothing about {needle:?} in {problem}"
        );
        ensure!(
            problem["trace_id"].is_string() && problem["status"] == status,
            "{problem}"
        );
    }
    stage.run("alice: history #r =").await
}

/// Tokens that must not be taken: none, expired ones aside (unit tests of the auth role move the clock), forged, `alg: none`, of
/// the wrong type, in the URL.
#[tokio::test(flavor = "multi_thread")]
async fn bad_tokens() -> Result<()> {
    let up = Up::start(QUICK).await?;
    let alice = Person::register(&up.base, "alice").await?;
    let me = format!("{}/api/v1/auth/me", up.base);
    let parts: Vec<&str> = alice.access_token.split('.').collect();
    let encode =
        |value: Value| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string());
    let none = format!(
        "{}.{}.",
        encode(json!({"alg": "none", "typ": "JWT"})),
        parts[1]
    );
    let mut claims: Value = serde_json::from_slice(
        &base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(parts[1])?,
    )?;
    claims["sub"] = json!(uuid::Uuid::now_v7());
    let forged = format!("{}.{}.{}", parts[0], encode(claims), parts[2]);
    for (what, token) in [
        ("nothing", ""),
        ("no JWT", "hello"),
        ("alg none", &none),
        ("other claims under the signature", &forged),
        ("a refresh token", &alice.refresh_token),
    ] {
        let answer = request(&http(), Method::GET, &me, Some(token), None).await?;
        ensure!(
            answer.status == 401 && answer.body["code"] == "unauthenticated",
            "{what}: {} {}",
            answer.status,
            answer.body
        );
    }
    let url = format!("{}/api/v1/auth/refresh", up.base);
    let swapped = request(
        &http(),
        Method::POST,
        &url,
        None,
        Some(&json!({"refresh_token": alice.access_token})),
    )
    .await?;
    ensure!(
        swapped.status == 401,
        "an access token refreshed: {}",
        swapped.body
    );
    for parameter in ["token", "access_token", "jwt"] {
        let url = format!(
            "{}/api/v1/ws?{parameter}={}",
            up.base.replacen("http", "ws", 1),
            alice.access_token
        );
        let Err(tokio_tungstenite::tungstenite::Error::Http(answer)) =
            tokio_tungstenite::connect_async(url).await
        else {
            anyhow::bail!("a token in the URL opened a socket");
        };
        ensure!(answer.status() == 400);
    }
    Ok(())
}

/// RT-01, RT-04, RT-07: bad frames are answered with a typed error or a close, and the next good frame still works.
#[tokio::test(flavor = "multi_thread")]
async fn bad_frames() -> Result<()> {
    let up = Up::start(QUICK).await?;
    let mut stage = Stage::new(vec![up.base.clone()]);
    stage.run("alice: register\neve: register\nalice: connect\nalice: create #p private\neve: connect").await?;
    let room = stage.room("#p")?;
    let (base, eve) = stage.person("eve")?;
    for (frame, code) in [
        ("{\"type\": \"send_message\"", "invalid_request"),
        ("[]", "invalid_request"),
        ("{\"type\": \"dance\", \"id\": \"1\"}", "invalid_request"),
        (
            "{\"type\": \"send_message\", \"id\": \"2\", \"payload\": {\"room_id\": 7}}",
            "invalid_request",
        ),
    ] {
        eve.send_raw(Message::text(frame)).await?;
        let answer = loop {
            let frame = eve
                .frame(Duration::from_secs(20))
                .await?
                .context("the socket closed")?;
            if frame["type"] == "error" {
                break frame;
            }
        };
        ensure!(answer["payload"]["code"] == code, "{frame}: {answer}");
    }
    let intrusion =
        json!({"room_id": room, "client_message_id": "x", "type": "text", "content": "let me in"});
    let answer = eve.socket_request("send_message", intrusion).await?;
    ensure!(
        answer["type"] == "error" && answer["payload"]["code"] == "not_found",
        "{answer}"
    );
    ensure!(eve.socket_request("ping", json!({})).await?["type"] == "pong");
    for (what, message) in [
        ("binary", Message::binary(vec![1, 2, 3])),
        ("oversize", Message::text("x".repeat(2 << 20))),
    ] {
        if !eve.is_connected() {
            eve.connect(&base, true).await?;
        }
        // The server may close while a large frame is still being written.
        let _ = eve.send_raw(message).await;
        while eve.is_connected() {
            if eve.frame(Duration::from_secs(20)).await?.is_none() {
                break;
            }
        }
        ensure!(
            matches!(eve.closed, Some(4003 | 1009) | None),
            "{what}: closed with {:?}",
            eve.closed
        );
    }
    stage.run("alice: history #p =").await
}
