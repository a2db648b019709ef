//! Backups of running platforms, and what comes back: `carillon backup`, everything deleted, `carillon restore`.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{
    client::Person,
    platform::{QUICK, RealCluster, RealOptions, Up},
    process::Process,
    script::Stage,
    servers,
};

/// How long a backup or restore may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(120);

/// What everybody did before, on a platform at these addresses.
const BEFORE: &str = "alice: register
bob: register
carol: register
alice: create #r
bob: join #r
carol: join #r
alice: post #r \"first\" as c-first
alice: post #r \"to be changed\" as c-changed
alice: edit #r \"to be changed\" \"changed\"
bob: post #r \"to be deleted\" as c-deleted
bob: delete #r \"to be deleted\"
bob: read #r
alice: post #r \"unread by bob\" as c-unread
alice: dm bob
carol: leave #r";

/// A send as its sender knows it: client id and answer.
type Sent = (String, Value);

/// Runs the binary to its end; what it said.
fn run(directory: &Path, name: &str, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
    let mut process = Process::start(name, directory, &arguments)?;
    let status = process.wait(PATIENCE)?;
    Ok((status, process.output()))
}

fn run_well(directory: &Path, name: &str, arguments: &[&str]) -> Result<String> {
    let (status, said) = run(directory, name, arguments)?;
    ensure!(status == Some(0), "{name} ended with {status:?}:\n{said}");
    Ok(said)
}

async fn post(person: &Person, base: &str, room: &str, id: &str, text: &str) -> Result<Value> {
    let body = json!({"client_message_id": id, "type": "text", "content": text});
    let path = format!("/rooms/{room}/messages");
    person.ask(base, Method::POST, &path, Some(&body)).await
}

/// Sends until told to stop; answers what was acknowledged.
fn keep_sending(
    person: Person,
    base: String,
    room: String,
    stop: Arc<AtomicBool>,
) -> tokio::task::JoinHandle<Result<Vec<Sent>>> {
    tokio::spawn(async move {
        let mut sent = Vec::new();
        while !stop.load(Ordering::SeqCst) {
            let n = sent.len();
            let id = format!("load-{n}");
            let answer = post(&person, &base, &room, &id, &format!("load {n}")).await?;
            sent.push((id, answer));
        }
        Ok(sent)
    })
}

/// What a person's devices show: rooms with counts, histories, receipts.
async fn view(person: &Person, base: &str, room: &str) -> Result<Value> {
    let members = format!("/rooms/{room}/members");
    let history = person.history(base, room).await?;
    let first = history.first().context("a message")?;
    let id = first["id"].as_str().context("an id")?;
    let receipts = format!("/messages/{id}/receipts");
    Ok(json!({
        "rooms": person.ask(base, Method::GET, "/rooms", None).await?,
        "history": history,
        "members": person.ask(base, Method::GET, &members, None).await?,
        "receipts": person.ask(base, Method::GET, &receipts, None).await?,
    }))
}

/// Who was there before, with what they know.
struct Before {
    room: String,
    alice: String,
    bob: String,
    /// Acknowledged before the backup began.
    acknowledged: Vec<Sent>,
    /// And while it ran.
    later: Vec<Sent>,
    history: Vec<Value>,
}

/// Lets people write, before a backup that `back_up` makes and during it.
async fn write_and_back_up(
    bases: Vec<String>,
    back_up: impl AsyncFnOnce() -> Result<()>,
) -> Result<Before> {
    let base = bases[0].clone();
    let mut stage = Stage::new(bases);
    stage.run(BEFORE).await?;
    let room = stage.room("#r")?;
    let (alice, bob) = (
        stage.person("alice")?.1.username.clone(),
        stage.person("bob")?.1.username.clone(),
    );
    let mut acknowledged = Vec::new();
    {
        let (base, person) = stage.person("alice")?;
        for n in 0..30 {
            let id = format!("before-{n}");
            let answer = post(person, &base, &room, &id, &format!("before {n}")).await?;
            acknowledged.push((id, answer));
        }
    }
    let stop = Arc::new(AtomicBool::new(false));
    let sender = Person::login(&base, "alice", &alice).await?;
    let sending = keep_sending(sender, base.clone(), room.clone(), stop.clone());
    let made = back_up().await;
    stop.store(true, Ordering::SeqCst);
    let later = sending.await??;
    made?;
    ensure!(!later.is_empty(), "nothing was written during the backup");
    let (base, person) = stage.person("bob")?;
    let history = person.history(&base, &room).await?;
    Ok(Before {
        room,
        alice,
        bob,
        acknowledged,
        later,
        history,
    })
}

/// Everything that was acknowledged before the backup is there, of what came during it a beginning, each message as it was, and
/// retries give first results; then the room goes on.
async fn check_restored(base: &str, before: &Before) -> Result<()> {
    let room = &before.room;
    let alice = Person::login(base, "alice", &before.alice).await?;
    let bob = Person::login(base, "bob", &before.bob).await?;
    let history = bob.history(base, room).await?;
    ensure!(history.len() <= before.history.len());
    for (restored, original) in history.iter().zip(&before.history) {
        ensure!(restored == original, "{restored} was {original}");
    }
    let last = history.last().context("a history")?["sequence"].as_u64();
    for (_, answer) in &before.acknowledged {
        ensure!(answer["sequence"].as_u64() <= last, "{answer} is gone");
    }
    for (id, first) in before.acknowledged.iter().chain(&before.later) {
        let text = first["content"].as_str().context("content")?;
        if first["sequence"].as_u64() > last {
            continue;
        }
        let again = post(&alice, base, room, id, text).await?;
        ensure!(
            again == *first,
            "a retry of {id} gives {again}, not {first}"
        );
    }
    let other = json!({"client_message_id": "before-0", "type": "text", "content": "other"});
    let path = format!("/rooms/{room}/messages");
    let refused = alice.call(base, Method::POST, &path, Some(&other)).await?;
    ensure!(
        refused.status == 409,
        "other content under an old id was taken"
    );
    let next = post(&alice, base, room, "after", "and on").await?;
    ensure!(next["sequence"].as_u64() > last);
    Ok(())
}

/// A backup of a running `carillon up`, taken while people write; the data directory deleted; restored.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_running_platform_saved_comes_back() -> Result<()> {
    let mut up = Up::start(QUICK).await?;
    let directory = up.directory.path().to_path_buf();
    let text = |name: &str| directory.join(name).display().to_string();
    let (file, data, place) = (text("chatcluster.yaml"), text("data"), text("backups"));
    let backup = ["backup", "-f", &file, "--data-dir", &data, "--to", &place];
    let before = write_and_back_up(vec![up.base.clone()], async || {
        run_well(&directory, "backup", &backup).map(drop)
    })
    .await?;
    // Nobody writes now: this one has all there is.
    let whole = run_well(&directory, "backup-2", &backup)?;
    let whole = whole
        .lines()
        .find_map(|line| line.split_once(" in "))
        .context("a name")?
        .0
        .to_owned();
    let bob = Person::login(&up.base, "bob", &before.bob).await?;
    let shown = view(&bob, &up.base, &before.room).await?;
    up.process.stop().await?;

    // Into what isn't empty: refused.
    let restore = [
        "restore",
        "-f",
        &file,
        "--data-dir",
        &data,
        "--from",
        &place,
    ];
    let (status, said) = run(&directory, "restore-refused", &restore)?;
    ensure!(status != Some(0) && said.contains("isn't empty"), "{said}");

    let list = run_well(&directory, "list", &["backup", "list", "--at", &place])?;
    ensure!(list.lines().count() == 2, "{list}");
    let first = list.split_whitespace().next().context("a name")?.to_owned();
    for backup in [&first, &whole] {
        fs::remove_dir_all(directory.join("data"))?;
        let one = [&restore[..], &["--backup", backup]].concat();
        run_well(&directory, "restore", &one)?;
        up.restart().await?;
        if *backup == whole {
            let bob = Person::login(&up.base, "bob", &before.bob).await?;
            let restored = view(&bob, &up.base, &before.room).await?;
            ensure!(restored == shown, "{restored}\nwas\n{shown}");
        }
        check_restored(&up.base, &before).await?;
        up.process.stop().await?;
    }

    // Without a process, by hand; then only so many are kept.
    let kept = [&backup[..], &["--keep-last", "2"]].concat();
    run_well(&directory, "backup-3", &kept)?;
    let list = run_well(&directory, "list-2", &["backup", "list", "--at", &place])?;
    ensure!(
        list.lines().count() == 2 && !list.contains(&first),
        "{list}"
    );

    // Damage is named, and nothing of it is served.
    let folder = directory.join("backups").join(&whole);
    let chunk = fs::read_dir(&folder)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(|name| name.starts_with("rooms-"))
        .context("a chunk")?;
    let mut bytes = fs::read(folder.join(&chunk))?;
    bytes[10] ^= 1;
    fs::write(folder.join(&chunk), bytes)?;
    let verify = ["backup", "verify", "--at", &place, &whole];
    let (status, said) = run(&directory, "verify", &verify)?;
    ensure!(status != Some(0) && said.contains(&chunk), "{said}");
    fs::remove_dir_all(directory.join("data"))?;
    let damaged = [&restore[..], &["--backup", &whole]].concat();
    let (status, said) = run(&directory, "restore-damaged", &damaged)?;
    ensure!(status != Some(0) && said.contains(&chunk), "{said}");
    up.restart().await?;
    if Person::login(&up.base, "bob", &before.bob).await.is_ok() {
        bail!("a part of a damaged backup is served");
    }
    Ok(())
}

/// The same on the real stores: into another keyspace, and a laptop's platform from the same backup.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_cluster_saved_comes_back() -> Result<()> {
    let Some(servers) = servers::stores("backup::what_a_cluster_saved_comes_back") else {
        return Ok(());
    };
    let options = RealOptions {
        gateways: 2,
        messages: 2,
        spec: QUICK.into(),
        ..Default::default()
    };
    let place = tempfile::tempdir()?;
    let at = place.path().display().to_string();
    let cluster = RealCluster::start(&servers, &options).await?;
    let config = cluster.directory.path().join("migrate.yaml");
    let config = config.display().to_string();
    let bases = cluster
        .gateways
        .iter()
        .map(|gateway| gateway.base.clone())
        .collect();
    let before = write_and_back_up(bases, async || {
        let backup = ["backup", "--config", &config, "--to", &at];
        run_well(place.path(), "backup", &backup).map(drop)
    })
    .await?;
    drop(cluster);

    let options = RealOptions {
        restore: Some(place.path().to_path_buf()),
        ..options
    };
    let restored = RealCluster::start(&servers, &options).await?;
    check_restored(&restored.gateways[0].base, &before).await?;
    drop(restored);

    let mut up = Up::start(QUICK).await?;
    up.process.stop().await?;
    let directory = up.directory.path().to_path_buf();
    let text = |name: &str| directory.join(name).display().to_string();
    fs::remove_dir_all(directory.join("data"))?;
    let (file, data) = (text("chatcluster.yaml"), text("data"));
    let restore = ["restore", "-f", &file, "--data-dir", &data, "--from", &at];
    run_well(&directory, "restore", &restore)?;
    up.restart().await?;
    check_restored(&up.base, &before).await
}
