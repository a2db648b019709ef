//! Whatever is done to a child behind the operator's back is mended with an Event; what isn't the operator's is left alone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::plane::{Plane, eventually, is_long};
use crate::stage::{KINDS, Stage, first_order};

/// Of how many fields one is edited, in the short form.
const STRIDE: usize = 6;

/// The API of a child by its name among [`Stage::children`], and its name there.
fn place(stage: &Stage, child: &str) -> Result<(Api<DynamicObject>, String)> {
    let (kind, name) = child.split_once(' ').context("kind and name")?;
    let (group, version, kind) = KINDS
        .iter()
        .find(|(_, _, known)| *known == kind)
        .context("a kind")?;
    Ok((stage.objects(group, version, kind), name.to_owned()))
}

/// How often the operator told of a child, by `Kind name`.
async fn told(stage: &Stage) -> Result<BTreeMap<String, i32>> {
    let events: Api<Event> = Api::namespaced(stage.plane.admin.clone(), &stage.namespace);
    let mut told = BTreeMap::new();
    for event in events.list(&ListParams::default()).await? {
        let times = event.series.map_or(1, |series| series.count);
        for child in event.note.unwrap_or_default().split(", ") {
            *told.entry(child.to_owned()).or_default() += times;
        }
    }
    Ok(told)
}

/// Every child of every kind is deleted; each comes back, and an Event says so.
#[tokio::test(flavor = "multi_thread")]
async fn deleted_children_come_back() -> Result<()> {
    let Some(plane) = Plane::from_environment("drift::deleted_children_come_back").await? else {
        return Ok(());
    };
    let stage = Stage::set(&plane).await?;
    let operator = stage.replica("carillon-operator-0").await?;
    operator.start()?;
    stage.order(&first_order()).await?;
    stage.settled(&operator).await?;
    let before = told(&stage).await?;
    let children = stage.children().await?;
    let mut longest = Duration::ZERO;
    for (child, object) in &children {
        // Secrets aren't watched, for that would mean to read them all: they are looked for once a minute.
        if child.starts_with("Secret ") {
            continue;
        }
        let (api, name) = place(&stage, child)?;
        let deleted = Instant::now();
        let parameters = DeleteParams::background();
        api.delete(&name, &parameters).await?;
        eventually(&format!("{child} is back"), async || {
            let found = api.get_opt(&name).await?;
            Ok(found.is_some_and(|found| found.uid() != object.uid()))
        })
        .await
        .with_context(|| operator.said())?;
        longest = longest.max(deleted.elapsed());
    }
    stage.settled(&operator).await?;
    let after = told(&stage).await?;
    for child in children
        .keys()
        .filter(|child| !child.starts_with("Secret "))
    {
        ensure!(
            after.get(child) > before.get(child),
            "no Event tells of {child}: {after:?}"
        );
    }
    println!(
        "{} children deleted; the longest was away for {} ms",
        children.len(),
        longest.as_millis()
    );

    // A key that is gone is made anew, and the pods stay: they follow.
    let template = |deployment: DynamicObject| deployment.data["spec"]["template"].clone();
    let deployments = stage.objects("apps", "v1", "Deployment");
    let before = template(deployments.get("town-auth").await?);
    let secrets = stage.objects("", "v1", "Secret");
    let published = stage.objects("", "v1", "ConfigMap");
    let jwks = published.get("town-jwks").await?.data["data"].clone();
    secrets.delete("town-jwt", &DeleteParams::default()).await?;
    eventually("the new key is published", async || {
        Ok(published.get("town-jwks").await?.data["data"] != jwks)
    })
    .await?;
    ensure!(template(deployments.get("town-auth").await?) == before);
    stage.settled(&operator).await?;
    stage.strike().await
}

/// The fields of `object` that the operator owns: their paths in words, with their JSON pointers and values.
fn owned(object: &DynamicObject) -> BTreeMap<String, (String, Value)> {
    let value = serde_json::to_value(object).unwrap_or_default();
    let mut fields = BTreeMap::new();
    for entry in object.managed_fields() {
        let owner = entry.manager.as_deref() == Some(carillon_operator::FIELD_MANAGER);
        if let Some(owned) = entry.fields_v1.as_ref().filter(|_| owner) {
            walk(&owned.0, &value, "", "", &mut fields);
        }
    }
    fields
}

fn walk(
    owned: &Value,
    value: &Value,
    path: &str,
    pointer: &str,
    fields: &mut BTreeMap<String, (String, Value)>,
) {
    let below: Vec<(&String, &Value)> = owned
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| *key != ".")
        .collect();
    if below.is_empty() {
        fields.insert(path.to_owned(), (pointer.to_owned(), value.clone()));
    }
    for (key, owned) in below {
        let step = match key.split_at(2) {
            ("f:", name) => Some(name.replace('~', "~0").replace('/', "~1")),
            ("k:", keys) => {
                let keys: Value = serde_json::from_str(keys).unwrap_or_default();
                value
                    .as_array()
                    .and_then(|items| {
                        items.iter().position(|item| {
                            keys.as_object().is_some_and(|keys| {
                                keys.iter().all(|(key, value)| item[key] == *value)
                            })
                        })
                    })
                    .map(|index| index.to_string())
            }
            _ => None,
        };
        let path = format!("{path}/{key}");
        match step {
            Some(step) => {
                let inner = value.pointer(&format!("/{step}")).unwrap_or(&Value::Null);
                walk(owned, inner, &path, &format!("{pointer}/{step}"), fields);
            }
            None => {
                fields.insert(path, (pointer.to_owned(), Value::Null));
            }
        }
    }
}

/// Whether every planned field has its value, and the operator owns no other one. A field that somebody removed and the API server
/// put back by itself has the right value and is nobody's: there is nothing to mend.
fn is_as_planned(plan: &BTreeMap<String, (String, Value)>, object: &DynamicObject) -> bool {
    let found = owned(object);
    let now = serde_json::to_value(object).unwrap_or_default();
    found.keys().all(|path| plan.contains_key(path))
        && plan
            .iter()
            .all(|(path, (pointer, value))| match found.get(path) {
                Some((_, found)) => found == value,
                None => now
                    .pointer(pointer)
                    .is_some_and(|found| value.is_null() || found == value),
            })
}

/// What somebody might make of a field: other values first, then nothing at all.
fn edits(value: &Value) -> Vec<Option<Value>> {
    let mut edits = Vec::new();
    match value {
        Value::String(text) => {
            let others = [
                ("ScheduleAnyway", "DoNotSchedule"),
                ("IfNotPresent", "Always"),
                ("AlwaysAllow", "IfHealthyBudget"),
                ("ClusterIP", "NodePort"),
                ("Prefix", "Exact"),
                ("FallbackToLogsOnError", "File"),
                ("OnRootMismatch", "Always"),
                ("RuntimeDefault", "Unconfined"),
                ("HTTP", "HTTPS"),
            ];
            if let Some((_, other)) = others.iter().find(|(known, _)| known == text) {
                edits.push(Some(json!(other)));
            }
            edits.push(Some(json!(format!("{text}x"))));
        }
        Value::Number(number) => {
            let number = number.as_i64().unwrap_or(0);
            edits.push(Some(json!(number + 1)));
            edits.push(Some(json!(number - 1)));
        }
        Value::Bool(yes) => edits.push(Some(json!(!yes))),
        Value::Array(items) if items.len() > 1 => edits.push(Some(json!(&items[1..]))),
        _ => {}
    }
    edits.push(None);
    edits
}

/// Makes the first edit of the field at `pointer` that the API server takes and that changes anything; whether there was one.
async fn edit(api: &Api<DynamicObject>, name: &str, pointer: &str, value: &Value) -> Result<bool> {
    let before = api.get(name).await?.resource_version();
    for edit in edits(value) {
        let operation = match edit {
            Some(value) => json!([{ "op": "replace", "path": pointer, "value": value }]),
            None => json!([{ "op": "remove", "path": pointer }]),
        };
        let patch: Patch<Value> = Patch::Json(serde_json::from_value(operation)?);
        let parameters = PatchParams {
            field_manager: Some("kubectl-edit".to_owned()),
            ..PatchParams::default()
        };
        match api.patch(name, &parameters, &patch).await {
            Ok(edited) if edited.resource_version() != before => {
                // It may have put back the value, and taken only our mark from the field.
                let now = serde_json::to_value(&edited)?;
                if value.is_null() || now.pointer(pointer) != Some(value) {
                    return Ok(true);
                }
            }
            // Refused, or put back by the API server itself: a field with a default, for example.
            Ok(_) | Err(kube::Error::Api(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// Each field that the operator owns is edited, in all children at the same time, one field of each at a time.
#[tokio::test(flavor = "multi_thread")]
async fn edited_fields_are_mended() -> Result<()> {
    let Some(plane) = Plane::from_environment("drift::edited_fields_are_mended").await? else {
        return Ok(());
    };
    let stage = Stage::set(&plane).await?;
    let operator = stage.replica("carillon-operator-0").await?;
    operator.start()?;
    stage.order(&first_order()).await?;
    stage.settled(&operator).await?;
    let children = stage.children().await?;
    let mut plans = BTreeMap::new();
    for (child, object) in &children {
        // Immutable, but for labels that nothing goes by.
        if !child.starts_with("Secret ") {
            plans.insert(child.clone(), owned(object));
        }
    }
    let rounds = plans.values().map(BTreeMap::len).max().unwrap_or(0);
    let (mut edited, mut fixed) = (0, 0);
    let mut longest = Duration::ZERO;
    for round in (0..rounds).step_by(if is_long() { 1 } else { STRIDE }) {
        let events = told(&stage).await?;
        let mut broken = Vec::new();
        for (child, fields) in &plans {
            let Some((path, (pointer, value))) = fields.iter().nth(round) else {
                continue;
            };
            let (api, name) = place(&stage, child)?;
            // An item that was renamed stays beside the one that was put back, which may have another place then.
            let now = owned(&api.get(&name).await?);
            let pointer = now.get(path).map_or(pointer, |(pointer, _)| pointer);
            if edit(&api, &name, pointer, value).await? {
                broken.push((child, path, Instant::now()));
            } else {
                fixed += 1;
            }
        }
        edited += broken.len();
        for (child, path, since) in &broken {
            let (api, name) = place(&stage, child)?;
            eventually(&format!("{child} {path} is mended"), async || {
                Ok(is_as_planned(&plans[*child], &api.get(&name).await?))
            })
            .await
            .with_context(|| operator.said().lines().rev().take(5).collect::<String>())?;
            longest = longest.max(since.elapsed());
        }
        let mut silent = Vec::new();
        eventually("Events tell of all", async || {
            let now = told(&stage).await?;
            let is_told = |child: &String| now.get(child) > events.get(child);
            silent = broken.clone();
            silent.retain(|(child, ..)| !is_told(child));
            Ok(silent.is_empty())
        })
        .await
        .with_context(|| format!("{silent:?}\n{}", operator.said()))?;
    }
    println!(
        "{edited} fields edited and mended, the longest after {} ms; {fixed} can't be edited",
        longest.as_millis()
    );
    ensure!(edited > 100, "{edited} fields only");
    stage.strike().await
}

/// Annotations and labels of others, a restart by hand, a scaled Deployment under an autoscaler.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_the_operators_is_left_alone() -> Result<()> {
    let Some(plane) =
        Plane::from_environment("drift::what_is_not_the_operators_is_left_alone").await?
    else {
        return Ok(());
    };
    let stage = Stage::set(&plane).await?;
    let operator = stage.replica("carillon-operator-0").await?;
    operator.start()?;
    stage.order(&first_order()).await?;
    stage.settled(&operator).await?;
    let mark = operator.proxy.mark();
    let parameters = PatchParams::default();
    for child in stage.children().await?.keys() {
        let (api, name) = place(&stage, child)?;
        let patch = json!({ "metadata": { "labels": { "theirs": "a" }, "annotations": { "example.com/theirs": "b" } } });
        api.patch(&name, &parameters, &Patch::Merge(patch)).await?;
    }
    let deployments: Api<Deployment> = Api::namespaced(plane.admin.clone(), &stage.namespace);
    let injected = json!({ "spec": { "template": { "metadata": {
        "annotations": { "kubectl.kubernetes.io/restartedAt": "2026-01-01T00:00:00Z" },
        "labels": { "sidecar.example.com/inject": "true" },
    } } } });
    deployments
        .patch("town-auth", &parameters, &Patch::Merge(injected))
        .await?;
    let scale = Patch::Merge(json!({ "spec": { "replicas": 7 } }));
    deployments
        .patch_scale("town-gateway", &parameters, &scale)
        .await?;
    stage.quiet(&operator).await?;
    stage.settled(&operator).await?;
    let looked = operator.proxy.since(mark);
    ensure!(
        looked
            .iter()
            .any(|record| record.describe().starts_with("list deployments")),
        "it didn't look"
    );
    let writes: Vec<String> = looked
        .iter()
        .filter(|record| record.is_write() && record.resource != "chatclusters/status")
        .map(|record| record.describe())
        .collect();
    // A Deployment that somebody restarts rolls, which the status tells, and Events of its conditions.
    let others: Vec<&String> = writes
        .iter()
        .filter(|write| !write.contains(" events "))
        .collect();
    ensure!(others.is_empty(), "{others:?}");
    for (child, object) in stage.children().await? {
        ensure!(
            object
                .labels()
                .get("theirs")
                .is_some_and(|value| value == "a")
                && object.annotations().contains_key("example.com/theirs"),
            "{child}"
        );
    }
    let auth = deployments.get("town-auth").await?;
    let template = serde_json::to_value(auth.spec.template.metadata)?;
    ensure!(template["labels"]["sidecar.example.com/inject"] == "true");
    ensure!(template["annotations"]["kubectl.kubernetes.io/restartedAt"].is_string());
    let gateway = deployments.get("town-gateway").await?;
    ensure!(gateway.spec.replicas == Some(7));
    stage.strike().await
}
