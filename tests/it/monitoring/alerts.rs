//! Alerts for real: something is broken, what names it fires, it is mended, and all is quiet.
//!
//! Windows and waiting times are shortened (`quick_rules`). What can't be broken within a test's time (a store that reads and doesn't
//! write, partitions that move for a quarter of an hour, many slow clients, watches of an API server) is in `rules.test.yaml` only.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use reqwest::Method;
use serde_json::json;
use tokio::task::AbortHandle;

use super::prometheus::{Prometheus, Target};
use crate::{
    push::Endpoint,
    world::{
        client::Person,
        platform::{RealCluster, RealOptions},
        proxy::Network,
        script::Stage,
        servers,
    },
};

/// People who never rest: they chat, log in, upload, and are told when they are away.
pub struct Town {
    bases: Vec<String>,
    alice: Person,
    bob: Person,
    room: String,
    direct: String,
}

impl Town {
    /// Cheap hashes, few limits but one that a flood of frames meets, and pushes to the endpoint.
    pub fn spec(endpoint: &Endpoint) -> String {
        format!(
            "
  gateway:
    limits: {{authPerMinute: 100000, requestsPerMinute: 1000000, userRequestsPerMinute: 1000000, messagesPerSecond: 20}}
  auth:
    devMode: true
    argon2: {{memoryKib: 8192, iterations: 1, parallelism: 1}}
{}",
            endpoint.spec()
        )
    }

    /// People come, make a room and a conversation; Carol, in it, goes away and has a device.
    pub async fn settle(bases: Vec<String>, endpoint: &Endpoint) -> Result<Self> {
        let mut stage = Stage::new(bases.clone());
        stage
            .run(include_str!("../scripts/conversation.chat"))
            .await?;
        let mut stage = Stage::new(bases.clone());
        stage
            .run("ann: register\ncarol: register\nann: dm carol")
            .await?;
        endpoint.register(&mut stage, "carol").await?;
        let direct = stage.room("@ann+carol")?;
        let (base, ann) = stage.person("ann")?;
        let login = ann.username.clone();
        let body = json!({"name": "square", "description": "", "type": "public"});
        let room = ann.ask(&base, Method::POST, "/rooms", Some(&body)).await?;
        let room = room["id"].as_str().context("id")?.to_owned();
        Ok(Self {
            alice: Person::login(&base, "ann", &login).await?,
            bob: Person::login(bases.last().context("a gateway")?, "ann", &login).await?,
            bases,
            room,
            direct,
        })
    }

    /// Starts the town's work, which goes on whatever fails, until it is aborted.
    pub fn work(self) -> AbortHandle {
        tokio::spawn(self.live()).abort_handle()
    }

    async fn live(mut self) {
        let mut round = 0u64;
        loop {
            round += 1;
            let took = Instant::now();
            // Failures are what the alerts are for.
            let _ = tokio::time::timeout(Duration::from_secs(5), self.round(round)).await;
            let rest = Duration::from_millis(1100).saturating_sub(took.elapsed());
            tokio::time::sleep(rest).await;
        }
    }

    async fn round(&mut self, round: u64) -> Result<()> {
        let (first, last) = (
            self.bases[0].clone(),
            self.bases[self.bases.len() - 1].clone(),
        );
        let message = |n: usize| json!({"client_message_id": format!("{round}-{n}"), "type": "text", "content": "hello"});
        let (room, direct) = (
            format!("/rooms/{}/messages", self.room),
            format!("/rooms/{}/messages", self.direct),
        );
        let alice = &self.alice;
        let (one, two) = (message(1), message(2));
        let upload = upload(&first, alice, &self.room);
        let _ = tokio::join!(
            alice.call(&first, Method::POST, &room, Some(&one)),
            alice.call(&first, Method::POST, &direct, Some(&two)),
            Person::login(&first, "ann", &alice.username),
            upload,
        );
        if !self.bob.is_connected() {
            self.bob.connect(&last, false).await?;
        }
        let typing = json!({"type": "typing", "payload": {"room_id": self.room}});
        self.bob.send_frame(&typing).await?;
        if round.is_multiple_of(4) {
            // More messages at once than the limit has.
            for n in 0..60 {
                let mut payload = message(100 + n);
                payload["room_id"] = json!(self.room);
                let frame =
                    json!({"type": "send_message", "id": n.to_string(), "payload": payload});
                self.bob.send_frame(&frame).await?;
            }
        }
        while let Ok(Some(_)) = self.bob.frame(Duration::from_millis(50)).await {}
        if round.is_multiple_of(5) {
            self.bob.drop_socket();
        }
        Ok(())
    }
}

async fn upload(base: &str, person: &Person, room: &str) -> Result<()> {
    // The smallest valid PNG header and a body.
    let png = [
        &b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x06\0\0\0"[..],
        &[7; 500],
    ]
    .concat();
    let part = reqwest::multipart::Part::bytes(png).file_name("cat.png");
    let form = reqwest::multipart::Form::new()
        .text("room_id", room.to_owned())
        .part("file", part);
    crate::world::client::http()
        .post(format!("{base}/api/v1/uploads"))
        .bearer_auth(&person.access_token)
        .multipart(form)
        .send()
        .await?;
    Ok(())
}

/// A town at work behind networks that can be cut, and a Prometheus that looks at it.
struct Watched {
    cluster: RealCluster,
    networks: servers::Networks,
    endpoint: Endpoint,
    prometheus: Prometheus,
    work: AbortHandle,
}

impl Watched {
    /// All is quiet; `None` after saying that `test` is skipped.
    async fn start(test: &str) -> Result<Option<Self>> {
        let Some(programs) = servers::variable(test, "CARILLON_TEST_PROMETHEUS") else {
            return Ok(None);
        };
        let Some(servers) = servers::stores(test) else {
            return Ok(None);
        };
        let (servers, networks) = servers.behind_proxies().await?;
        let endpoint = Endpoint::start().await?;
        let options = RealOptions {
            gateways: 2,
            messages: 1,
            spec: Town::spec(&endpoint),
            secrets: Some(endpoint.secrets().into()),
            ..Default::default()
        };
        let cluster = RealCluster::start(&servers, &options).await?;
        let prometheus = Prometheus::start(&programs, &Target::of_cluster(&cluster)).await?;
        let bases = cluster.gateways.iter().map(|role| role.base.clone());
        let work = Town::settle(bases.collect(), &endpoint).await?.work();
        prometheus.wait_quiet().await?;
        Ok(Some(Self {
            cluster,
            networks,
            endpoint,
            prometheus,
            work,
        }))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.work.abort();
    }
}

/// OP-04, promise 8: stores that are away or slow are named, with what fails for it; when they are back all is quiet.
#[tokio::test(flavor = "multi_thread")]
async fn stores_that_break_are_told() -> Result<()> {
    let Some(watched) = Watched::start("monitoring::alerts::stores_that_break_are_told").await?
    else {
        return Ok(());
    };
    let Watched {
        networks,
        prometheus,
        ..
    } = &watched;
    let scylla = networks.scylla.as_ref().context("one node")?;
    let outages = [
        (
            scylla,
            Network::Cut,
            &[
                "CarillonStoreAway",
                "CarillonPodUnready",
                "CarillonSendsFailing",
                "CarillonHttpErrors",
                "CarillonLoginsFailing",
                "CarillonUploadsFailing",
            ][..],
        ),
        (
            scylla,
            Network::Slow(Duration::from_millis(400)),
            &["CarillonAppendsSlow"],
        ),
        (
            // How many signals are dropped depends on what is committed before the owners' leases end: too few, sometimes, for
            // that alert.
            &networks.redis,
            Network::Cut,
            &["CarillonStoreAway", "CarillonLimitsUnshared"],
        ),
        (
            &networks.rabbitmq,
            Network::Cut,
            &["CarillonStoreAway", "CarillonPushJobsDropped"],
        ),
    ];
    for (network, kind, alerts) in outages {
        let since = Instant::now();
        network.set(kind);
        prometheus.wait_fired(since, alerts).await?;
        println!("{alerts:?} fired after {} s", since.elapsed().as_secs());
        network.set(Network::Whole);
        let mended = Instant::now();
        prometheus.wait_quiet().await?;
        println!("quiet {} s after it was mended", mended.elapsed().as_secs());
    }
    Ok(())
}

/// OP-04, promise 8: a push provider that refuses, a gateway that is late and a role that is gone are named; mended, all is quiet.
#[tokio::test(flavor = "multi_thread")]
async fn processes_that_break_are_told() -> Result<()> {
    let test = "monitoring::alerts::processes_that_break_are_told";
    let Some(mut watched) = Watched::start(test).await? else {
        return Ok(());
    };
    let Watched {
        cluster,
        endpoint,
        prometheus,
        ..
    } = &mut watched;
    let since = Instant::now();
    endpoint.answer(400);
    prometheus
        .wait_fired(since, &["CarillonPushesFailing"])
        .await?;
    endpoint.answer(201);
    prometheus.wait_quiet().await?;

    // A gateway that stands still for moments is late with everything.
    let since = Instant::now();
    while !prometheus
        .firing(Some(since))
        .await?
        .contains("CarillonDeliveriesSlow")
    {
        anyhow::ensure!(
            since.elapsed() < super::prometheus::PATIENCE,
            "CarillonDeliveriesSlow did not fire"
        );
        cluster.gateways[1].process.signal("STOP");
        tokio::time::sleep(Duration::from_millis(1800)).await;
        cluster.gateways[1].process.signal("CONT");
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    prometheus.wait_quiet().await?;

    let since = Instant::now();
    let presence = cluster
        .others
        .iter()
        .position(|role| role.name == "presence")
        .context("presence")?;
    cluster.others[presence].process.kill();
    prometheus
        .wait_fired(since, &["CarillonTargetDown", "CarillonRoleGone"])
        .await?;
    let directory = cluster.directory.path().to_owned();
    cluster.others[presence].restart(&directory).await?;
    prometheus.wait_quiet().await?;
    Ok(())
}
