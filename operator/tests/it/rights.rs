//! The chart's Roles allow what the operator does, all of it is used, and nothing else is allowed anywhere.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::plane::{OTHERS, Plane, RELEASE, eventually};
use crate::proxy::Record;
use crate::rotation::rotate;
use crate::stage::{NAME, Stage, first_order, second_order};
use crate::{backups, managed};

/// A right: group, resource, verb.
type Right = (String, String, String);

/// What the operator may do in its namespace, written out once more: a Role that grows must be changed here too.
const ALLOWED: &[(&str, &str, &str)] = &[
    ("carillon.chat", "chatbackups", "get list watch"),
    ("carillon.chat", "chatbackups/status", "patch"),
    ("carillon.chat", "chatclusters", "get list watch"),
    ("carillon.chat", "chatclusters/status", "patch"),
    ("", "configmaps", "get list watch create patch delete"),
    ("", "serviceaccounts", "get list watch create patch delete"),
    ("", "services", "get list watch create patch delete"),
    ("apps", "deployments", "get list watch create patch delete"),
    ("apps", "statefulsets", "get list watch create patch delete"),
    (
        "scylla.scylladb.com",
        "scyllaclusters",
        "get list watch create patch",
    ),
    (
        "rabbitmq.com",
        "rabbitmqclusters",
        "get list watch create patch",
    ),
    (
        "autoscaling",
        "horizontalpodautoscalers",
        "get list watch create patch delete",
    ),
    (
        "networking.k8s.io",
        "ingresses",
        "get list watch create patch delete",
    ),
    (
        "networking.k8s.io",
        "networkpolicies",
        "get list watch create patch delete",
    ),
    (
        "policy",
        "poddisruptionbudgets",
        "get list watch create patch delete",
    ),
    (
        "monitoring.coreos.com",
        "podmonitors",
        "get list watch create patch delete",
    ),
    (
        "monitoring.coreos.com",
        "prometheusrules",
        "get list watch create patch delete",
    ),
    ("batch", "jobs", "get list watch create patch delete"),
    ("batch", "cronjobs", "get list watch create patch"),
    ("", "secrets", "get create update"),
    ("", "pods", "list"),
    ("events.k8s.io", "events", "create patch"),
    ("coordination.k8s.io", "leases", "create"),
];

/// Verbs of objects.
const VERBS: &[&str] = &[
    "get",
    "list",
    "watch",
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
];

/// Verbs by which rights grow; asked of what they are about.
const POWERS: &[&str] = &[
    "bind",
    "escalate",
    "impersonate",
    "approve",
    "sign",
    "attest",
    "use",
    "*",
];

/// What discovery doesn't list, and a thief would ask for.
const HIDDEN: &[(&str, &str)] = &[
    ("", "users"),
    ("", "groups"),
    ("", "userextras"),
    ("", "nodes/proxy"),
    ("", "nodes/metrics"),
    ("", "pods/exec"),
    ("", "pods/attach"),
    ("", "pods/portforward"),
    ("", "pods/ephemeralcontainers"),
    ("", "serviceaccounts/token"),
    ("", "secrets/status"),
    ("carillon.chat", "chatclusters/finalizers"),
    ("certificates.k8s.io", "signers"),
    // Of operators that may not be installed.
    ("scylla.scylladb.com", "scyllaclusters"),
    ("scylla.scylladb.com", "scyllaclusters/status"),
    ("rabbitmq.com", "rabbitmqclusters"),
    ("rabbitmq.com", "rabbitmqclusters/status"),
    ("policy", "podsecuritypolicies"),
    ("*", "*"),
];

fn allowed() -> BTreeSet<Right> {
    ALLOWED
        .iter()
        .flat_map(|(group, resource, verbs)| {
            verbs
                .split(' ')
                .map(|verb| ((*group).to_owned(), (*resource).to_owned(), verb.to_owned()))
        })
        .collect()
}

/// Everything that the API server has: group and resource.
async fn resources(client: &Client) -> Result<BTreeSet<(String, String)>> {
    let mut found: BTreeSet<(String, String)> = HIDDEN
        .iter()
        .map(|(group, resource)| ((*group).to_owned(), (*resource).to_owned()))
        .collect();
    for resource in client.list_core_api_resources("v1").await?.resources {
        found.insert((String::new(), resource.name));
    }
    for group in client.list_api_groups().await?.groups {
        for version in &group.versions {
            let list = client
                .list_api_group_resources(&version.group_version)
                .await?;
            for resource in list.resources {
                found.insert((group.name.clone(), resource.name));
            }
        }
    }
    Ok(found)
}

/// What the ServiceAccount `account` of `namespace` may do in `place` (cluster-wide when that is empty), asked one by one.
async fn rights(
    client: &Client,
    (namespace, account): (&str, &str),
    place: &str,
    resources: &BTreeSet<(String, String)>,
) -> Result<BTreeSet<Right>> {
    let api: Api<SubjectAccessReview> = Api::all(client.clone());
    let mut questions = Vec::new();
    for (group, resource) in resources {
        let powerful = ["rbac.authorization.k8s.io", "certificates.k8s.io", "*"]
            .contains(&group.as_str())
            || HIDDEN.contains(&(group, resource))
            || resource == "serviceaccounts";
        let powers = if powerful { POWERS } else { &[] };
        for verb in VERBS.iter().chain(powers) {
            questions.push((group.clone(), resource.clone(), (*verb).to_owned()));
        }
    }
    let answers: Vec<Option<Right>> = futures::stream::iter(questions)
        .map(|(group, resource, verb)| {
            let api = api.clone();
            async move {
                let (plain, subresource) = resource.split_once('/').unwrap_or((&resource, ""));
                let review: SubjectAccessReview = serde_json::from_value(json!({ "spec": {
                    "user": format!("system:serviceaccount:{namespace}:{account}"),
                    "groups": ["system:serviceaccounts", format!("system:serviceaccounts:{namespace}"), "system:authenticated"],
                    "resourceAttributes": { "namespace": place, "group": group, "resource": plain, "subresource": subresource, "verb": verb },
                } }))?;
                let answer = api.create(&PostParams::default(), &review).await?;
                let allowed = answer.status.context("a status")?.allowed;
                anyhow::Ok(allowed.then_some((group, resource, verb)))
            }
        })
        .buffer_unordered(16)
        .try_collect()
        .await?;
    Ok(answers.into_iter().flatten().collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_else_is_allowed_anywhere() -> Result<()> {
    let Some(plane) = Plane::from_environment("rights::nothing_else_is_allowed_anywhere").await?
    else {
        return Ok(());
    };
    let own = plane.namespace().await?;
    let other = plane.namespace().await?;
    let resources = resources(&plane.admin).await?;
    // What everybody may do, such as asking for his own rights.
    let mut everybodys = rights(&plane.admin, (&own, "default"), &own, &resources).await?;
    everybodys.extend(rights(&plane.admin, (&own, "default"), "", &resources).await?);
    for (place, expected) in [
        (own.as_str(), allowed()),
        (other.as_str(), BTreeSet::new()),
        ("kube-system", BTreeSet::new()),
        ("", BTreeSet::new()),
    ] {
        let found = rights(&plane.admin, (&own, RELEASE), place, &resources).await?;
        let found: BTreeSet<Right> = found.difference(&everybodys).cloned().collect();
        let more: Vec<&Right> = found.difference(&expected).collect();
        let less: Vec<&Right> = expected.difference(&found).collect();
        ensure!(
            more.is_empty() && less.is_empty(),
            "in {place:?} too much: {more:?}, too little: {less:?}"
        );
    }
    // By name, its own Lease alone.
    for (name, verb, expected) in [
        (RELEASE, "get", true),
        (RELEASE, "update", true),
        (RELEASE, "delete", false),
        ("kube-scheduler", "get", false),
        ("kube-scheduler", "update", false),
    ] {
        let api: Api<SubjectAccessReview> = Api::all(plane.admin.clone());
        let review: SubjectAccessReview = serde_json::from_value(json!({ "spec": {
            "user": format!("system:serviceaccount:{own}:{RELEASE}"),
            "resourceAttributes": { "namespace": own, "group": "coordination.k8s.io", "resource": "leases", "name": name, "verb": verb },
        } }))?;
        let answer = api.create(&PostParams::default(), &review).await?;
        ensure!(
            answer.status.context("a status")?.allowed == expected,
            "{verb} of the Lease {name}"
        );
    }
    println!("{} resources", resources.len());
    plane.remove(&own).await?;
    plane.remove(&other).await
}

/// What a record's request needed. An apply that makes something needs two rights.
fn needed(records: &[Record]) -> BTreeSet<Right> {
    let mut needed = BTreeSet::new();
    for record in records {
        let mut need = |verb: &str| {
            needed.insert((
                record.group.clone(),
                record.resource.clone(),
                verb.to_owned(),
            ));
        };
        need(record.verb);
        if record.verb == "patch" && record.status == 201 {
            need("create");
        }
    }
    needed
}

/// The rules of the chart's Roles.
fn granted(chart: &[Value]) -> BTreeSet<Right> {
    let texts = |list: &Value| -> Vec<String> {
        list.as_array()
            .into_iter()
            .flatten()
            .filter_map(|text| text.as_str().map(str::to_owned))
            .collect()
    };
    let mut granted = BTreeSet::new();
    for role in chart.iter().filter(|object| object["kind"] == "Role") {
        for rule in role["rules"].as_array().into_iter().flatten() {
            for group in texts(&rule["apiGroups"]) {
                for resource in texts(&rule["resources"]) {
                    for verb in texts(&rule["verbs"]) {
                        granted.insert((group.clone(), resource.clone(), verb));
                    }
                }
            }
        }
    }
    granted
}

#[tokio::test(flavor = "multi_thread")]
async fn every_right_is_used() -> Result<()> {
    let Some(plane) = Plane::from_environment("rights::every_right_is_used").await? else {
        return Ok(());
    };
    let _others = OTHERS.lock().await;
    plane.define_others().await?;
    let stage = Stage::set(&plane).await?;
    let operator = stage.replica("carillon-operator-0").await?;
    operator.start()?;
    // A life: made, changed, damaged twice in the same way, relieved of what an earlier version left, deleted.
    stage.order(&first_order()).await?;
    stage.settled(&operator).await?;
    stage.order(&second_order()).await?;
    stage.settled(&operator).await?;
    backups::life(&stage).await?;
    let services = stage.objects("", "v1", "Service");
    for _ in 0..2 {
        services
            .delete("town-auth", &DeleteParams::default())
            .await?;
        eventually("it is back", async || {
            Ok(services.get_opt("town-auth").await?.is_some())
        })
        .await?;
        stage.quiet(&operator).await?;
    }
    rotate(&stage).await?;
    stage.quiet(&operator).await?;
    leave_something_behind(&stage).await?;
    eventually("it is gone", async || {
        Ok(stage
            .children()
            .await?
            .keys()
            .all(|name| !name.ends_with(" town-earlier")))
    })
    .await?;
    stage.delete().await?;
    stage.emptied().await?;
    // Another one, with stores that are managed, one of which is replaced.
    stage.order(managed::ORDER).await?;
    managed::play_others(&stage).await?;
    stage.settled(&operator).await?;
    let other = managed::ORDER.replace(
        "redis: {managed: {}}",
        "redis: {external: {url: 'redis://redis:6379'}}",
    );
    stage.order(&other).await?;
    stage.settled(&operator).await?;
    eventually("its StatefulSet is gone", async || {
        let children = stage.children().await?;
        Ok(!children.contains_key("StatefulSet town-redis"))
    })
    .await?;
    stage.delete().await?;
    let records = operator.proxy.since(0);
    let refused: Vec<String> = records
        .iter()
        .filter(|record| record.status == 403)
        .map(Record::describe)
        .collect();
    ensure!(refused.is_empty(), "refused: {refused:?}");
    let granted = granted(&plane.chart(&stage.namespace)?);
    let needed = needed(&records);
    let unused: Vec<&Right> = granted.difference(&needed).collect();
    ensure!(unused.is_empty(), "granted and never used: {unused:?}");
    println!("{} rights, all used", granted.len());
    stage.strike().await?;
    plane.forget_others().await
}

/// Children of kinds whose names never change, as a version that had others would leave them.
async fn leave_something_behind(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster().await?;
    let labels = json!({
        "app.kubernetes.io/name": "carillon",
        "app.kubernetes.io/instance": NAME,
        "app.kubernetes.io/managed-by": "carillon-operator",
    });
    let pod = json!({ "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "a", "image": "a" }] } });
    let selector = json!({ "matchLabels": { "a": "b" } });
    let specs = BTreeMap::from([
        ("ServiceAccount", ("", json!(null))),
        ("Service", ("", json!({ "ports": [{ "port": 1 }] }))),
        (
            "NetworkPolicy",
            ("networking.k8s.io", json!({ "podSelector": {} })),
        ),
        (
            "PodDisruptionBudget",
            ("policy", json!({ "selector": selector })),
        ),
        (
            "Deployment",
            (
                "apps",
                json!({ "replicas": 0, "selector": selector, "template": pod }),
            ),
        ),
    ]);
    for (kind, (group, spec)) in specs {
        let mut object = json!({
            "metadata": {
                "name": "town-earlier",
                "labels": labels,
                "ownerReferences": [{
                    "apiVersion": "carillon.chat/v1alpha1", "kind": "ChatCluster", "name": NAME,
                    "uid": cluster.metadata.uid, "controller": true,
                }],
            },
        });
        if !spec.is_null() {
            object["spec"] = spec;
        }
        stage
            .objects(group, "v1", kind)
            .create(&PostParams::default(), &serde_json::from_value(object)?)
            .await
            .with_context(|| kind.to_owned())?;
    }
    Ok(())
}

/// Every pod that the operator orders is taken by a namespace that takes restricted ones only, and is given no token.
#[tokio::test(flavor = "multi_thread")]
async fn pods_are_restricted_and_have_no_token() -> Result<()> {
    let Some(plane) =
        Plane::from_environment("rights::pods_are_restricted_and_have_no_token").await?
    else {
        return Ok(());
    };
    let stage = Stage::set(&plane).await?;
    let operator = stage.replica("carillon-operator-0").await?;
    operator.start()?;
    stage.order(&first_order()).await?;
    stage.settled(&operator).await?;
    let pods: Api<Pod> = Api::namespaced(plane.admin.clone(), &stage.namespace);
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let mut seen = 0;
    for (name, child) in stage.children().await? {
        if !name.starts_with("Deployment ") && !name.starts_with("Job ") {
            continue;
        }
        seen += 1;
        let template = &child.data["spec"]["template"];
        let pod = |spec: &Value| -> Result<Pod> {
            Ok(serde_json::from_value(json!({
                "metadata": { "name": "tried", "labels": template["metadata"]["labels"] },
                "spec": spec,
            }))?)
        };
        let made = pods
            .create(&dry_run, &pod(&template["spec"])?)
            .await
            .with_context(|| name.clone())?;
        let volumes = serde_json::to_string(&made.spec.and_then(|spec| spec.volumes))?;
        ensure!(
            !volumes.contains("serviceAccountToken"),
            "{name} is given a token: {volumes}"
        );
        // Else the namespace would take anything.
        let mut worse = template["spec"].clone();
        worse["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = json!(true);
        ensure!(
            pods.create(&dry_run, &pod(&worse)?).await.is_err(),
            "{name} is taken whatever it may do"
        );
    }
    ensure!(seen == 7, "{seen} kinds of pods");
    // Nor do the accounts hand one out by themselves.
    let accounts = stage.objects("", "v1", "ServiceAccount");
    for (name, child) in stage.children().await? {
        if name.starts_with("ServiceAccount ") {
            ensure!(
                child.data["automountServiceAccountToken"] == false,
                "{name}"
            );
        }
    }
    let patch = Patch::Merge(json!({ "automountServiceAccountToken": true }));
    accounts
        .patch("town-auth", &PatchParams::default(), &patch)
        .await?;
    eventually("that is taken back", async || {
        let account = accounts.get("town-auth").await?;
        Ok(account.data["automountServiceAccountToken"] == false)
    })
    .await?;
    stage.strike().await
}
