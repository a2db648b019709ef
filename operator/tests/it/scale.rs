//! Many ChatClusters: how long they take, what the operator holds, what one change costs; and orders at random, of which none
//! may stop the others.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use carillon_crds::ChatCluster;
use futures::{StreamExt, TryStreamExt, stream};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::plane::{Plane, is_long};
use crate::process::Replica;
use crate::stage::{STORES, Stage};

/// What the operator may hold, bytes. The pages of the program itself are not counted: those of a debug build are many.
const ONE: u64 = 20 << 20;
const MANY: u64 = 64 << 20;

/// Requests of this test that are under way at once.
const AT_ONCE: usize = 8;

fn name(number: usize) -> String {
    format!("town-{number:04}")
}

struct Crowd {
    stage: Stage,
    operator: Replica,
    clusters: Api<ChatCluster>,
}

impl Crowd {
    async fn new(plane: &Plane) -> Result<Self> {
        let stage = Stage::set(plane).await?;
        let operator = stage.replica("carillon-operator-0").await?;
        let clusters = Api::namespaced(stage.plane.admin.clone(), &stage.namespace);
        Ok(Crowd {
            stage,
            operator,
            clusters,
        })
    }

    /// Applies a spec; the API server may refuse it, which is an answer too.
    async fn order(&self, name: &str, spec: &Value) -> Result<bool> {
        let cluster = json!({
            "apiVersion": "carillon.chat/v1alpha1",
            "kind": "ChatCluster",
            "metadata": { "name": name },
            "spec": spec,
        });
        let parameters = PatchParams::apply("user").force();
        match self
            .clusters
            .patch(name, &parameters, &Patch::Apply(cluster))
            .await
        {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if [400, 422].contains(&status.code) => Ok(false),
            // So it answers a server-side apply of a field that it doesn't know.
            Err(kube::Error::Api(status)) if status.message.contains("not declared in schema") => {
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn add(&self, numbers: std::ops::Range<usize>) -> Result<()> {
        let spec: Value = serde_saphyr::from_str(STORES)?;
        let spec = &spec;
        stream::iter(numbers)
            .map(Ok)
            .try_for_each_concurrent(AT_ONCE, |number| async move {
                let name = name(number);
                let pod = format!("{name}-gateway-first");
                self.stage.add_gateway_of(&name, &pod).await?;
                ensure!(self.order(&name, spec).await?, "a good spec was refused");
                anyhow::Ok(())
            })
            .await
    }

    /// Waits until the operator's last word on every cluster is about its present spec, and `holds`.
    async fn all(&self, holds: impl Fn(&ChatCluster) -> bool) -> Result<()> {
        // A generous limit: as long as one more gets there, it goes on.
        let mut best = (0, Instant::now());
        loop {
            let list = self.clusters.list(&ListParams::default()).await?;
            let waits = list.items.iter().find(|cluster| !holds(cluster));
            let Some(waits) = waits else { return Ok(()) };
            let there = list.items.iter().filter(|cluster| holds(cluster)).count();
            if there > best.0 {
                best = (there, Instant::now());
            }
            ensure!(
                best.1.elapsed() < Duration::from_secs(180),
                "{there} of {} are there; {}: {:?}\n{}",
                list.items.len(),
                waits.name_any(),
                waits.status,
                self.operator.said()
            );
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    fn passes(&self, since: usize) -> (usize, usize, usize) {
        let records = self.operator.proxy.since(since);
        let passes = records
            .iter()
            .filter(|record| record.describe().starts_with("get chatclusters"))
            .count();
        let writes = records.iter().filter(|record| record.is_write()).count();
        (passes, records.len(), writes)
    }
}

fn says(cluster: &ChatCluster, type_: &str, wanted: &str) -> bool {
    let Some(status) = &cluster.status else {
        return false;
    };
    status.observed_generation == cluster.metadata.generation
        && status
            .conditions
            .iter()
            .any(|condition| condition.type_ == type_ && condition.status == wanted)
}

fn is_settled(cluster: &ChatCluster) -> bool {
    says(cluster, "Available", "True") && says(cluster, "Progressing", "False")
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clusters_are_brought_up_and_one_is_changed() -> Result<()> {
    let Some(plane) =
        Plane::from_environment("scale::many_clusters_are_brought_up_and_one_is_changed").await?
    else {
        return Ok(());
    };
    let many = match std::env::var("CARILLON_TEST_CLUSTERS") {
        Ok(number) => number.parse().context("CARILLON_TEST_CLUSTERS")?,
        Err(_) if is_long() => 1000,
        Err(_) => 20,
    };
    let crowd = Crowd::new(&plane).await?;
    crowd.operator.start()?;
    crowd.add(0..1).await?;
    crowd.all(is_settled).await?;
    crowd.stage.quiet(&crowd.operator).await?;
    let (one, one_resident) = crowd.operator.memory()?;
    ensure!(one < ONE, "{one} bytes with one cluster");

    let mark = crowd.operator.proxy.mark();
    let started = Instant::now();
    crowd.add(1..many).await?;
    let ordered = started.elapsed();
    crowd.all(is_settled).await?;
    let up = started.elapsed();
    let (passes, requests, writes) = crowd.passes(mark);
    let (memory, resident) = crowd.operator.memory()?;

    let mark = crowd.operator.proxy.mark();
    let started = Instant::now();
    let mut spec: Value = serde_saphyr::from_str(STORES)?;
    spec["auth"] = json!({ "replicas": 3 });
    let changed = name(many / 2);
    ensure!(crowd.order(&changed, &spec).await?, "refused");
    crowd.all(is_settled).await?;
    let change = started.elapsed();
    let (_, _, change_writes) = crowd.passes(mark);
    println!(
        "{many} clusters: ordered within {:.0} s, all up after {:.0} s; {:.1} passes, {:.1} requests, {:.1} writes for each; \
         {:.1} requests for a pass; it holds {:.1} MiB with one (RSS {:.1}), {:.1} MiB with all (RSS {:.1}); one change settled after {:.1} s with {change_writes} writes",
        ordered.as_secs_f64(),
        up.as_secs_f64(),
        per(passes, many - 1),
        per(requests, many - 1),
        per(writes, many - 1),
        per(requests, passes),
        mebibytes(one),
        mebibytes(one_resident),
        mebibytes(memory),
        mebibytes(resident),
        change.as_secs_f64(),
    );
    ensure!(memory < MANY, "{memory} bytes with {many} clusters");
    // The Deployment, its status twice at most, and Events.
    ensure!(
        change_writes <= 12,
        "one change made {change_writes} writes"
    );
    crowd.stage.strike().await
}

fn per(count: usize, of: usize) -> f64 {
    #[allow(clippy::cast_precision_loss)]
    let result = count as f64 / of.max(1) as f64;
    result
}

fn mebibytes(bytes: u64) -> f64 {
    #[allow(clippy::cast_precision_loss)]
    let result = bytes as f64 / f64::from(1 << 20);
    result
}

/// A part of a spec, in some of its forms: good ones, such that the API server refuses, and such that only the operator can.
const PARTS: &[(&str, &[&str])] = &[
    (
        "version",
        &["0.1.0", "0.1.4", "0.1.5", "0.2.0", "0.0.1", "one"],
    ),
    (
        "image",
        &[
            "{tag: a}",
            "{tag: b}",
            "{tag: broken-media}",
            "{tag: broken-migrate}",
            "{tag: ''}",
        ],
    ),
    (
        "auth",
        &[
            "{replicas: 1}",
            "{replicas: 3, accessTokenTtl: 5m}",
            "{accessTokenTtl: soon}",
            "{replicas: -1}",
            "{devMode: true, otp: {twilio: {secretName: t}}}",
        ],
    ),
    (
        "gateway",
        &[
            "{replicas: 3}",
            "{host: chat.example.com, ingressClassName: nginx}",
            "{autoscaling: {minReplicas: 2, maxReplicas: 4}}",
            "{tls: {secretName: t}}",
            "{autoscaling: {minReplicas: 5, maxReplicas: 4}}",
            "{host: 'not a host'}",
            "{allowedOrigins: [7]}",
        ],
    ),
    (
        "message",
        &[
            "{replicas: 1}",
            "{autoscaling: {minReplicas: 3, maxReplicas: 6}}",
            "{replicas: 2, autoscaling: {minReplicas: 1, maxReplicas: 2}}",
            "{resources: {requests: {cpu: lots}}}",
        ],
    ),
    (
        "media",
        &[
            "{replicas: 1, store: {directory: {ephemeral: true}}}",
            "{replicas: 2, store: {directory: {ephemeral: true}}}",
            "{store: {}}",
            "{maxUploadBytes: 1Ti, store: {directory: {ephemeral: true}}}",
        ],
    ),
    (
        "scylla",
        &[
            "{external: {contactPoints: ['scylla:9042'], datacenter: dc1}}",
            "{external: {contactPoints: ['other:9042'], datacenter: dc2, secretName: scylla}}",
            "{external: {contactPoints: [], datacenter: dc1}}",
            "{external: {contactPoints: ['scylla:9042'], datacenter: dc1, secretName: missing}}",
        ],
    ),
    (
        "telemetry",
        &[
            "{traceRatio: 0.5}",
            "{traceRatio: 7}",
            "{otlpEndpoint: 'not a url'}",
        ],
    ),
    ("paused", &["true", "false"]),
    ("hibernated", &["true", "false"]),
    (
        "upgrade",
        &["{progressDeadline: 10s}", "{progressDeadline: 1s}"],
    ),
    ("unknown", &["{}"]),
];

/// Changes one to three parts of a spec, or takes them away.
fn change(random: &mut StdRng, spec: &mut Value) -> Result<()> {
    for _ in 0..random.random_range(1..=3) {
        let (part, forms) = PARTS.choose(random).context("parts")?;
        let form = match random.random_range(0..4) {
            0 => None,
            _ => forms.choose(random),
        };
        let map = spec.as_object_mut().context("a map")?;
        match form {
            Some(form) => map.insert((*part).to_owned(), serde_saphyr::from_str(form)?),
            None => map.remove(*part),
        };
    }
    Ok(())
}

/// Whatever was ordered: an answer about it comes, and a good order after it is carried out.
#[tokio::test(flavor = "multi_thread")]
async fn orders_at_random_wedge_nothing() -> Result<()> {
    let Some(plane) = Plane::from_environment("scale::orders_at_random_wedge_nothing").await?
    else {
        return Ok(());
    };
    let seed = match std::env::var("CARILLON_TEST_SEED") {
        Ok(seed) => seed.parse().context("CARILLON_TEST_SEED")?,
        Err(_) if is_long() => rand::random(),
        Err(_) => 7,
    };
    let (clusters, rounds, in_a_round) = if is_long() { (10, 100, 30) } else { (3, 3, 10) };
    println!("CARILLON_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let crowd = Crowd::new(&plane).await?;
    crowd.operator.start()?;
    crowd.add(0..clusters).await?;
    crowd.all(is_settled).await?;
    let good: Value = serde_saphyr::from_str(STORES)?;
    let mut specs = vec![good.clone(); clusters];
    let mut refused = 0;
    for round in 0..rounds {
        for _ in 0..in_a_round {
            let at = random.random_range(0..clusters);
            let mut spec = specs[at].clone();
            change(&mut random, &mut spec)?;
            match crowd.order(&name(at), &spec).await? {
                true => specs[at] = spec,
                false => refused += 1,
            }
        }
        crowd
            .all(|cluster| {
                says(cluster, "SpecValid", "True") || says(cluster, "SpecValid", "False")
            })
            .await
            .with_context(|| format!("round {round} of seed {seed}"))?;
    }
    for at in 0..clusters {
        // What a failed upgrade waits for is another order.
        let mut spec = good.clone();
        spec["image"] = json!({ "tag": "good" });
        ensure!(crowd.order(&name(at), &spec).await?, "refused");
    }
    crowd
        .all(is_settled)
        .await
        .with_context(|| format!("the good orders after seed {seed}"))?;
    println!(
        "{} changes, of which the API server refused {refused}; every cluster carries out the next good one",
        rounds * in_a_round
    );
    crowd.stage.strike().await
}
