//! Deleting an account (AUTH-15, MSG-23) through the public API, on embedded and on real stores: what is left, and what isn't.

use std::{collections::BTreeMap, io::Read as _};

use anyhow::{Context as _, Result, ensure};
use carillon_rpc::proto::auth::{
    EraseAccountRequest, account_service_client::AccountServiceClient,
};
use reqwest::Method;
use serde_json::{Value, json};
use tonic::{Code, Request};

use crate::world::{
    client::{PATIENCE, Person, http, request},
    platform::{QUICK, RealCluster, RealOptions, Up},
    servers,
};

const PASSWORD: &str = "correct horse battery";

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_erased() -> Result<()> {
    let up = Up::start(QUICK).await?;
    let bob = story([&up.base, &up.base]).await?;
    over_grpc(&up.grpc, &bob).await
}

/// The same with every role a process of its own, the people on different gateways, and two owners of rooms.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_erased_over_two_gateways() -> Result<()> {
    let test = "erasure::an_account_is_erased_over_two_gateways";
    let Some(servers) = servers::stores(test) else {
        return Ok(());
    };
    let options = RealOptions {
        gateways: 2,
        messages: 2,
        spec: QUICK.into(),
        ..Default::default()
    };
    let cluster = RealCluster::start(&servers, &options).await?;
    let [one, two] = [&cluster.gateways[0].base, &cluster.gateways[1].base];
    story([one, two]).await.map(drop)
}

async fn post(person: &Person, base: &str, room: &str, text: &str) -> Result<Value> {
    send(person, base, room, "text", text).await
}

async fn send(person: &Person, base: &str, room: &str, kind: &str, text: &str) -> Result<Value> {
    // It stays, and says nothing of what was written.
    let id = format!("c-{}-{}", &room[28..], text.len());
    let body = json!({"client_message_id": id, "type": kind, "content": text});
    let path = format!("/rooms/{room}/messages");
    person.ask(base, Method::POST, &path, Some(&body)).await
}

async fn room(person: &Person, base: &str, kind: &str) -> Result<String> {
    let body = json!({"name": "a room", "description": "", "type": kind});
    let made = person
        .ask(base, Method::POST, "/rooms", Some(&body))
        .await?;
    Ok(made["id"].as_str().context("id")?.to_owned())
}

async fn upload(person: &Person, base: &str, room: &str) -> Result<String> {
    let bytes = b"a secret of alice in a file".to_vec();
    let part = reqwest::multipart::Part::bytes(bytes).file_name("secret.txt");
    let form = reqwest::multipart::Form::new()
        .text("room_id", room.to_owned())
        .part("file", part);
    let response = http()
        .post(format!("{base}/api/v1/uploads"))
        .bearer_auth(&person.access_token)
        .multipart(form)
        .send()
        .await?;
    let made: Value = response.json().await?;
    Ok(made["id"].as_str().context("id of an upload")?.to_owned())
}

/// MSG-23: the entries of a person's archive.
async fn export(person: &Person, base: &str) -> Result<BTreeMap<String, String>> {
    let response = http()
        .get(format!("{base}/api/v1/auth/me/export"))
        .bearer_auth(&person.access_token)
        .send()
        .await?
        .error_for_status()?;
    ensure!(response.headers()["content-type"] == "application/gzip");
    let bytes = response.bytes().await?;
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&bytes[..]));
    let mut entries = BTreeMap::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.to_string_lossy().into_owned();
        let mut text = String::new();
        entry.read_to_string(&mut text)?;
        entries.insert(name, text);
    }
    Ok(entries)
}

/// Asks again until it is so.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let patient = async {
        while !is_so().await? {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, patient)
        .await
        .with_context(|| format!("{what} did not come"))?
}

/// Alice goes; Bob stays.
async fn story([one, two]: [&str; 2]) -> Result<Person> {
    let mut alice = Person::register(one, "alice").await?;
    let mut bob = Person::register(two, "bob").await?;
    let group = room(&alice, one, "public").await?;
    let join = format!("/rooms/{group}/join");
    bob.ask(two, Method::POST, &join, None).await?;
    let peer = json!({"recipient_id": bob.id});
    let direct = alice.ask(one, Method::POST, "/dm", Some(&peer)).await?;
    let direct = direct["id"].as_str().context("id")?.to_owned();
    for (room, text) in [(&group, "secret one"), (&direct, "secret two")] {
        post(&alice, one, room, text).await?;
        post(&bob, two, room, "of bob").await?;
    }
    let left = room(&bob, two, "public").await?;
    let join = format!("/rooms/{left}/join");
    alice.ask(one, Method::POST, &join, None).await?;
    post(&alice, one, &left, "secret three").await?;
    let leave = format!("/rooms/{left}/leave");
    alice.ask(one, Method::POST, &leave, None).await?;
    let file = upload(&alice, one, &group).await?;
    send(&alice, one, &group, "file", &file).await?;
    let archive = export(&alice, one).await?;
    for (name, part) in [
        ("account.json", alice.username.as_str()),
        ("rooms.ndjson", &group),
        (&format!("messages/{group}-1.ndjson"), "secret one"),
        (&format!("messages/{direct}-1.ndjson"), "secret two"),
        (
            &format!("media/{file}/secret.txt"),
            "a secret of alice in a file",
        ),
        ("end", ""),
    ] {
        let entry = archive.get(name).with_context(|| format!("no {name}"))?;
        ensure!(entry.contains(part), "{name}: {entry}");
    }
    let all = archive.values().map(String::as_str).collect::<String>();
    ensure!(!all.contains("of bob") && !all.contains("secret three"));
    let before = bob.history(two, &group).await?;
    alice.connect(one, false).await?;
    bob.connect(two, false).await?;

    let wrong = json!({"password": "wrong horse"});
    let refused = alice
        .call(one, Method::DELETE, "/auth/me", Some(&wrong))
        .await?;
    ensure!(refused.status == 403 && refused.body["errors"][0]["field"] == "password");
    let refused = alice.call(one, Method::DELETE, "/auth/me", None).await?;
    ensure!(refused.status == 400, "{}", refused.body);
    let right = json!({"password": PASSWORD});
    let gone = alice
        .call(one, Method::DELETE, "/auth/me", Some(&right))
        .await?;
    ensure!(gone.status == 204, "{}", gone.body);

    // She is out, everywhere, and nobody finds her.
    while alice.is_connected() {
        let Some(frame) = alice.frame(PATIENCE).await? else {
            break;
        };
        alice.take(frame)?;
    }
    ensure!(alice.closed == Some(4002), "{:?}", alice.closed);
    let refused = alice.call(two, Method::GET, "/auth/me", None).await?;
    ensure!(refused.status == 401, "{}", refused.body);
    let login = json!({"username": alice.username, "password": PASSWORD});
    let url = format!("{two}/api/v1/auth/login");
    let answer = request(&http(), Method::POST, &url, None, Some(&login)).await?;
    ensure!(answer.status == 401, "{}", answer.body);
    for path in [
        format!("/users/{}", alice.id),
        format!("/users/by-username/{}", alice.username),
    ] {
        let answer = bob.call(two, Method::GET, &path, None).await?;
        ensure!(answer.status == 404, "{path}: {}", answer.body);
    }
    let found = format!("/users/search?q={}", alice.username);
    let found = bob.ask(two, Method::GET, &found, None).await?;
    ensure!(found["items"] == json!([]), "{found}");

    // Bob is told by an event of each room that she was in.
    let erased = |room: &str, person: &Person| {
        let events = person.seen.get(room);
        events
            .into_iter()
            .flat_map(|events| events.values())
            .any(|frame| frame["type"] == "user_left" && frame["payload"]["reason"] == "erased")
    };
    for room in [&group, &direct] {
        bob.wait_until("user_left", |bob| erased(room, bob)).await?;
        ensure!(bob.is_dense(room));
    }
    // What she wrote can't be read; what he wrote is where it was.
    for room in [&group, &direct, &left] {
        until("what she wrote goes", async || {
            let history = bob.history(two, room).await?;
            Ok(!json!(history).to_string().contains("secret"))
        })
        .await?;
        let events = format!("/rooms/{room}/events?after=0");
        let events = bob.ask(two, Method::GET, &events, None).await?;
        ensure!(!events.to_string().contains("secret"), "{events}");
    }
    let after = bob.history(two, &group).await?;
    ensure!(after.len() == before.len());
    for (was, is) in before.iter().zip(&after) {
        ensure!(is["sequence"] == was["sequence"] && is["id"] == was["id"]);
        if was["sender_id"] == bob.id.as_str() {
            ensure!(is == was);
        } else {
            ensure!(is["content"] == "" && is["deleted_at"].is_string(), "{is}");
        }
    }
    until("the upload goes", async || {
        let media = format!("/media/{file}");
        Ok(bob.call(two, Method::GET, &media, None).await?.status == 404)
    })
    .await?;
    let members = format!("/rooms/{group}/members");
    let members = bob.ask(two, Method::GET, &members, None).await?;
    ensure!(!members.to_string().contains(&alice.id), "{members}");

    // Her name is free, and is somebody else now.
    let body = json!({
        "username": alice.username,
        "email": format!("{}@example.com", alice.username),
        "password": PASSWORD,
    });
    let url = format!("{one}/api/v1/auth/register");
    let again = request(&http(), Method::POST, &url, None, Some(&body)).await?;
    ensure!(again.status == 201, "{}", again.body);
    ensure!(again.body["id"] != alice.id.as_str());
    Ok(bob)
}

/// The same by gRPC.
async fn over_grpc(address: &str, bob: &Person) -> Result<()> {
    let mut client = AccountServiceClient::connect(address.to_owned()).await?;
    let asking = |password: Option<&str>| -> Result<Request<EraseAccountRequest>> {
        let mut request = Request::new(EraseAccountRequest {
            password: password.map(str::to_owned),
        });
        let token = format!("Bearer {}", bob.access_token);
        request
            .metadata_mut()
            .insert("authorization", token.parse()?);
        Ok(request)
    };
    let refused = client.erase_account(asking(Some("wrong"))?).await;
    ensure!(refused.is_err_and(|status| status.code() == Code::PermissionDenied));
    client.erase_account(asking(Some(PASSWORD))?).await?;
    let again = client.erase_account(asking(Some(PASSWORD))?).await;
    ensure!(again.is_err_and(|status| status.code() == Code::Unauthenticated));
    Ok(())
}
