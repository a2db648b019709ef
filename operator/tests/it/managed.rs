//! Stores that are managed: by StatefulSets, or by their own operators' resources under the definitions that those publish.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use carillon_crds::ChatCluster;
use carillon_operator::build::{self, Keys, Maker};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams, ValidationDirective};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::plane::{OTHERS, Plane, eventually};
use crate::stage::{NAME, Stage};

/// An order with everything managed.
pub const ORDER: &str = "
media: {replicas: 1, store: {directory: {ephemeral: true}}}
scylla: {managed: {}}
redis: {managed: {}}
rabbitmq: {managed: {}}
";

/// The same in fewer words.
const ABSENT: &str = "media: {replicas: 1, store: {directory: {ephemeral: true}}}";

const STORES: [&str; 3] = ["scylla", "redis", "rabbitmq"];

fn scyllas(stage: &Stage) -> Api<DynamicObject> {
    stage.objects("scylla.scylladb.com", "v1", "ScyllaCluster")
}

fn rabbitmqs(stage: &Stage) -> Api<DynamicObject> {
    stage.objects("rabbitmq.com", "v1beta1", "RabbitmqCluster")
}

/// What the operators of ScyllaDB and RabbitMQ do when they are asked: a password, and in the end a status.
pub async fn play_others(stage: &Stage) -> Result<()> {
    let is = |type_: &str| {
        let time = "2026-01-01T00:00:00Z";
        Patch::Merge(json!({ "status": { "conditions": [{
            "type": type_, "status": "True", "reason": "Played", "message": "", "lastTransitionTime": time,
        }] } }))
    };
    for (api, name, type_) in [
        (scyllas(stage), "town-scylla", "Available"),
        (rabbitmqs(stage), "town-rabbitmq", "AllReplicasReady"),
    ] {
        eventually(&format!("{name} is asked for"), async || {
            Ok(api.get_opt(name).await?.is_some())
        })
        .await?;
        api.patch_status(name, &PatchParams::default(), &is(type_))
            .await?;
    }
    let secrets: Api<Secret> = Api::namespaced(stage.plane.admin.clone(), &stage.namespace);
    let secret: Secret = serde_json::from_value(json!({
        "metadata": { "name": "town-rabbitmq-default-user" },
        "stringData": { "username": "u", "password": "p" },
    }))?;
    secrets.create(&PostParams::default(), &secret).await?;
    Ok(())
}

/// The Secrets of stores that there are.
async fn secrets(stage: &Stage) -> Result<Vec<String>> {
    let own = [
        "Secret town-scylla",
        "Secret town-redis",
        "Secret town-rabbitmq-default-user",
    ];
    let children = stage.children().await?;
    let found = own.iter().filter(|name| children.contains_key(**name));
    Ok(found.map(|name| (*name).to_owned()).collect())
}

async fn sets(stage: &Stage) -> Result<Vec<String>> {
    let children = stage.children().await?;
    let sets = children
        .into_keys()
        .filter(|name| name.starts_with("StatefulSet "));
    Ok(sets.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn small_stores_are_stateful_sets_and_stay_so() -> Result<()> {
    let test = "managed::small_stores_are_stateful_sets_and_stay_so";
    let Some(plane) = Plane::from_environment(test).await? else {
        return Ok(());
    };
    let _others = OTHERS.lock().await;
    plane.forget_others().await?;
    let stage = Stage::set(&plane).await?;
    let operator = stage.replica("carillon-operator-0").await?;
    operator.start()?;
    stage.order(ABSENT).await?;
    stage.settled(&operator).await?;
    let expected: Vec<String> = ["rabbitmq", "redis", "scylla"]
        .map(|store| format!("StatefulSet town-{store}"))
        .to_vec();
    ensure!(sets(&stage).await? == expected, "{:?}", sets(&stage).await?);
    ensure!(secrets(&stage).await?.len() == 3);
    their_pods_are_restricted(&stage).await?;

    // Mended as every other child.
    let api = stage.objects("apps", "v1", "StatefulSet");
    api.delete("town-redis", &DeleteParams::default()).await?;
    eventually("it is back", async || {
        Ok(api.get_opt("town-redis").await?.is_some())
    })
    .await?;
    let patch =
        json!({ "spec": { "template": { "spec": { "terminationGracePeriodSeconds": 1 } } } });
    api.patch("town-redis", &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    eventually("it is mended", async || {
        let set = api.get("town-redis").await?;
        Ok(set.data["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 30)
    })
    .await?;

    // Who sleeps has no store either, once nobody is left who needs it.
    stage.order(&format!("hibernated: true\n{ABSENT}")).await?;
    eventually("the stores sleep", async || {
        for store in STORES {
            let set = api.get(&format!("town-{store}")).await?;
            if set.data["spec"]["replicas"] != 0 {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .await?;
    stage.order(ABSENT).await?;
    stage.settled(&operator).await?;
    ensure!(api.get("town-scylla").await?.data["spec"]["replicas"] == 1);

    // Other operators come: what is there isn't exchanged under its data.
    plane.define_others().await?;
    stage
        .order(&format!("{ABSENT}\nauth: {{accessTokenTtl: 5m}}"))
        .await?;
    stage.settled(&operator).await?;
    ensure!(sets(&stage).await? == expected);
    ensure!(scyllas(&stage).get_opt("town-scylla").await?.is_none());

    // What can't be changed is said by field; what would hide the messages is refused at once.
    let grown = format!("{ABSENT}\nscylla: {{managed: {{storage: {{size: 20Gi}}, members: 3}}}}");
    stage.order(&grown).await?;
    stage
        .wait_condition("SpecValid", "False", "Invalid")
        .await?;
    let status = stage.cluster().await?.status.context("a status")?;
    let message = serde_json::to_string(&status.conditions)?;
    for field in [
        "spec.scylla.managed.storage.size",
        "spec.scylla.managed.members",
    ] {
        ensure!(message.contains(field), "{field} isn't in {message}");
    }
    let refused = stage.order(crate::stage::STORES).await;
    let refused = format!("{:#}", refused.err().context("taken")?);
    ensure!(refused.contains("spec.scylla"), "{refused}");
    stage.order(ABSENT).await?;
    stage.settled(&operator).await?;

    // Data outlive the ChatCluster with what opens them, and a new one finds them.
    let uid = password_of(&stage).await?;
    stage.delete().await?;
    eventually("only Secrets are left", async || {
        let left = stage.children().await?;
        Ok(left.len() == 3 && secrets(&stage).await?.len() == 3)
    })
    .await?;
    stage.order(ABSENT).await?;
    stage.settled(&operator).await?;
    ensure!(sets(&stage).await? == expected, "others were asked");
    ensure!(password_of(&stage).await? == uid, "another password");

    // Unless it was ordered otherwise.
    let policies =
        STORES.map(|store| format!("{store}: {{managed: {{deletionPolicy: Delete}}}}\n"));
    stage
        .order(&format!("{ABSENT}\n{}", policies.concat()))
        .await?;
    stage.settled(&operator).await?;
    let set = api.get("town-scylla").await?;
    let policy = &set.data["spec"]["persistentVolumeClaimRetentionPolicy"];
    ensure!(policy["whenDeleted"] == "Delete" && policy["whenScaled"] == "Retain");
    stage.delete().await?;
    stage.emptied().await?;
    stage.strike().await?;
    plane.forget_others().await
}

async fn password_of(stage: &Stage) -> Result<Value> {
    let secret = stage.objects("", "v1", "Secret").get("town-scylla").await?;
    Ok(secret.data["data"]["password"].clone())
}

/// The namespace takes restricted pods only.
async fn their_pods_are_restricted(stage: &Stage) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(stage.plane.admin.clone(), &stage.namespace);
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    for (name, child) in stage.children().await? {
        if !name.starts_with("StatefulSet ") {
            continue;
        }
        let mut spec = child.data["spec"]["template"]["spec"].clone();
        ensure!(spec["containers"][0]["securityContext"]["readOnlyRootFilesystem"] == true);
        let claims = &child.data["spec"]["volumeClaimTemplates"];
        ensure!(claims[0]["spec"]["resources"]["requests"]["storage"] == "10Gi");
        let volumes = spec["volumes"].as_array_mut().context("volumes")?;
        volumes.push(json!({ "name": "data", "emptyDir": {} }));
        let pod: Pod =
            serde_json::from_value(json!({ "metadata": { "name": "tried" }, "spec": spec }))?;
        let made = pods.create(&dry_run, &pod).await.context(name.clone())?;
        let text = serde_json::to_string(&made.spec)?;
        ensure!(
            !text.contains("serviceAccountToken"),
            "{name} is given a token"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_own_operators_are_asked_where_they_are_installed() -> Result<()> {
    let test = "managed::stores_own_operators_are_asked_where_they_are_installed";
    let Some(plane) = Plane::from_environment(test).await? else {
        return Ok(());
    };
    let _others = OTHERS.lock().await;
    plane.define_others().await?;
    let stage = Stage::set(&plane).await?;
    let operator = stage.replica("carillon-operator-0").await?;
    operator.start()?;
    stage.order(ORDER).await?;
    let (scyllas, rabbitmqs) = (scyllas(&stage), rabbitmqs(&stage));
    eventually("both are asked for", async || {
        Ok(scyllas.get_opt("town-scylla").await?.is_some()
            && rabbitmqs.get_opt("town-rabbitmq").await?.is_some())
    })
    .await?;
    stage
        .wait_condition("ScyllaReady", "False", "Starting")
        .await?;
    let jobs = |children: &std::collections::BTreeMap<String, DynamicObject>| {
        children.keys().any(|name| name.starts_with("Job "))
    };
    ensure!(!jobs(&stage.children().await?), "migrated without a store");
    play_others(&stage).await?;
    stage.settled(&operator).await?;
    ensure!(sets(&stage).await? == ["StatefulSet town-redis"]);

    // Mended as every other child.
    let patch = json!({ "spec": { "replicas": 5 } });
    rabbitmqs
        .patch(
            "town-rabbitmq",
            &PatchParams::default(),
            &Patch::Merge(patch),
        )
        .await?;
    eventually("it is mended", async || {
        Ok(rabbitmqs.get("town-rabbitmq").await?.data["spec"]["replicas"] == 1)
    })
    .await?;
    let more = ORDER.replace("scylla: {managed: {}}", "scylla: {managed: {members: 3}}");
    stage.order(&more).await?;
    eventually("there are more nodes", async || {
        let spec = &scyllas.get("town-scylla").await?.data["spec"];
        Ok(spec["datacenter"]["racks"][0]["members"] == 3)
    })
    .await?;

    // They hold data: they stay, and a new ChatCluster takes them.
    let uid = scyllas.get("town-scylla").await?.uid();
    stage.delete().await?;
    eventually("the ChatCluster's own is gone", async || {
        let left = stage.children().await?;
        Ok(left
            .keys()
            .all(|name| !name.starts_with("Deployment ") && !name.starts_with("StatefulSet ")))
    })
    .await?;
    stage.order(&more).await?;
    stage.settled(&operator).await?;
    ensure!(
        scyllas.get("town-scylla").await?.uid() == uid,
        "another one"
    );

    // Unless it was ordered otherwise.
    let policies = more
        .replace("members: 3", "members: 3, deletionPolicy: Delete")
        .replace(
            "rabbitmq: {managed: {}}",
            "rabbitmq: {managed: {deletionPolicy: Delete}}",
        );
    stage.order(&policies).await?;
    stage.settled(&operator).await?;
    stage.delete().await?;
    eventually("both are gone", async || {
        Ok(scyllas.get_opt("town-scylla").await?.is_none()
            && rabbitmqs.get_opt("town-rabbitmq").await?.is_none())
    })
    .await?;
    stage.strike().await?;
    plane.forget_others().await
}

/// The order as the operator builds it, with the stores' own operators or without.
fn children(stage: &Stage, spec: &str, maker: Maker) -> Result<build::Children> {
    let mut cluster = ChatCluster::new(NAME, serde_saphyr::from_str(spec)?);
    cluster.metadata.namespace = Some(stage.namespace.clone());
    cluster.metadata.uid = Some("1".to_owned());
    let order = carillon_operator::validate::order(&cluster, "carillon");
    let mut order = order.map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
    order.managed.scylla = maker;
    order.managed.rabbitmq = maker;
    let keys = Keys {
        jwks: String::new(),
        trust: String::new(),
    };
    Ok(build::children(&order, &keys))
}

/// A real server takes the settings, wants the password, and finds its data again.
#[tokio::test(flavor = "multi_thread")]
async fn redis_takes_its_settings() -> Result<()> {
    let Some(plane) = Plane::from_environment("managed::redis_takes_its_settings").await? else {
        return Ok(());
    };
    let stage = Stage::set(&plane).await?;
    let children = children(&stage, ABSENT, Maker::StatefulSet)?;
    let settings = children
        .config_maps
        .iter()
        .filter_map(|map| map.data.as_ref()?.get("redis.conf"))
        .next()
        .context("redis.conf")?;
    let folder = tempfile::TempDir::new()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let settings = settings
        .replace("/etc/carillon-credentials/login.conf", &path("login.conf"))
        .replace("dir /data", &format!("dir {}", folder.path().display()))
        // So that it meets no other.
        .replace(
            "port 6379",
            &format!("port 0\nunixsocket {}", path("socket")),
        );
    std::fs::write(path("login.conf"), "requirepass opensesame\n")?;
    std::fs::write(path("redis.conf"), settings)?;
    let ask = |password: &str, words: &[&str]| -> Result<String> {
        let output = Command::new("redis-cli")
            .args(["-s", &path("socket")])
            .args(words)
            .env("REDISCLI_AUTH", password)
            .stderr(Stdio::null())
            .output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    for (words, expected) in [
        (["set", "a", "b"].as_slice(), "OK"),
        (["get", "a"].as_slice(), "b"),
    ] {
        let mut server = Command::new("redis-server")
            .arg(path("redis.conf"))
            .stdout(Stdio::null())
            .spawn()
            .context("redis-server")?;
        let up = eventually("it answers", async || {
            Ok(ask("opensesame", &["ping"])? == "PONG")
        });
        let said = match up.await {
            Ok(()) => ask("opensesame", words),
            Err(error) => Err(error),
        };
        let refused = ask("another", &["ping"]);
        ask("opensesame", &["shutdown", "nosave"])?;
        if said.is_err() {
            server.kill()?;
        }
        server.wait()?;
        ensure!(said? == expected, "{words:?}");
        ensure!(refused?.starts_with("NOAUTH"));
    }
    stage.strike().await
}

/// Every field that is asked of another operator is one that it publishes.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_is_what_other_operators_publish() -> Result<()> {
    let test = "managed::what_is_asked_for_is_what_other_operators_publish";
    let Some(plane) = Plane::from_environment(test).await? else {
        return Ok(());
    };
    let _others = OTHERS.lock().await;
    plane.define_others().await?;
    let stage = Stage::set(&plane).await?;
    let full = "
media: {replicas: 1, store: {directory: {ephemeral: true}}}
image: {pullSecrets: [registry]}
scylla: {managed: {members: 3, version: 2025.1.5, storage: {size: 100Gi, storageClassName: fast}, resources: {requests: {cpu: 2, memory: 8Gi}, limits: {cpu: 2, memory: 8Gi}}}}
rabbitmq: {managed: {replicas: 3, image: 'mirror/rabbitmq:4.1', storage: {size: 5Gi, storageClassName: fast}, resources: {limits: {memory: 2Gi}}}}
";
    for spec in [ABSENT, full] {
        let children = children(&stage, spec, Maker::Operator)?;
        let objects = [
            (
                scyllas(&stage),
                serde_json::to_value(children.scylla_cluster.context("one")?)?,
            ),
            (
                rabbitmqs(&stage),
                serde_json::to_value(children.rabbitmq_cluster.context("one")?)?,
            ),
        ];
        for (api, object) in objects {
            let strict = PatchParams {
                dry_run: true,
                force: true,
                field_manager: Some("test".to_owned()),
                field_validation: Some(ValidationDirective::Strict),
            };
            let name = object["metadata"]["name"]
                .as_str()
                .context("name")?
                .to_owned();
            api.patch(&name, &strict, &Patch::Apply(&object))
                .await
                .with_context(|| object.to_string())?;
            // Else anything would be taken.
            let mut other = object.clone();
            other["spec"]["unheardOf"] = json!(true);
            ensure!(
                api.patch(&name, &strict, &Patch::Apply(&other))
                    .await
                    .is_err()
            );
        }
    }
    stage.strike().await?;
    plane.forget_others().await
}
