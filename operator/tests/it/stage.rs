//! A namespace with a ChatCluster in it, and everybody around the operator: the user who orders, and the controllers that would
//! bring pods up.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use carillon_crds::ChatCluster;
use futures::StreamExt;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams,
};
use kube::core::GroupVersionKind;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::edge::Edge;
use crate::plane::{Plane, RELEASE, eventually};
use crate::process::Replica;
use crate::proxy::Log;

/// Name of the ChatCluster of every test.
pub const NAME: &str = "town";

/// An order with what everybody must bring.
pub const STORES: &str = "
media: {replicas: 1, store: {directory: {ephemeral: true}}}
scylla: {external: {contactPoints: ['scylla:9042'], datacenter: dc1, secretName: scylla}}
redis: {external: {url: 'redis://redis:6379'}}
rabbitmq: {external: {url: 'amqp://rabbitmq:5672'}}
";

/// An order with every kind of child.
pub fn first_order() -> String {
    format!(
        "{STORES}
gateway: {{host: chat.example.com, ingressClassName: nginx, autoscaling: {{minReplicas: 2, maxReplicas: 8}}}}
message: {{replicas: 2}}
monitoring: {{podMonitor: {{}}, prometheusRule: {{}}, dashboards: {{}}}}
"
    )
}

/// An order that rolls every pod of the first one, migrates anew, and takes away an autoscaler, the Ingress and the monitors.
pub fn second_order() -> String {
    format!(
        "{STORES}
image: {{tag: other}}
auth: {{accessTokenTtl: 5m}}
gateway: {{replicas: 3}}
message: {{autoscaling: {{minReplicas: 3, maxReplicas: 6}}}}
"
    )
}

/// Every kind that the operator makes: group, version, kind.
pub const KINDS: &[(&str, &str, &str)] = &[
    ("", "v1", "ServiceAccount"),
    ("", "v1", "ConfigMap"),
    ("", "v1", "Service"),
    ("", "v1", "Secret"),
    ("networking.k8s.io", "v1", "NetworkPolicy"),
    ("networking.k8s.io", "v1", "Ingress"),
    ("policy", "v1", "PodDisruptionBudget"),
    ("batch", "v1", "Job"),
    ("apps", "v1", "Deployment"),
    ("apps", "v1", "StatefulSet"),
    ("autoscaling", "v2", "HorizontalPodAutoscaler"),
    ("monitoring.coreos.com", "v1", "PodMonitor"),
    ("monitoring.coreos.com", "v1", "PrometheusRule"),
];

/// A namespace and who plays in it.
pub struct Stage {
    pub plane: Plane,
    pub namespace: String,
    /// What answers at the gateway pods' address.
    pub edge: Edge,
    /// The role whose new pods don't get ready, nor say that they won't.
    slow: Arc<Mutex<Option<&'static str>>>,
    _players: JoinSet<()>,
}

impl Stage {
    /// A new namespace in which pods "come up" as fast as they are ordered.
    pub async fn set(plane: &Plane) -> Result<Self> {
        let namespace = plane.namespace().await?;
        let secrets: Api<Secret> = Api::namespaced(plane.admin.clone(), &namespace);
        let secret: Secret = serde_json::from_value(json!({ "metadata": { "name": "scylla" } }))?;
        secrets.create(&PostParams::default(), &secret).await?;
        let mut players = JoinSet::new();
        let slow = Arc::default();
        players.spawn(play_deployments(
            plane.admin.clone(),
            namespace.clone(),
            Arc::clone(&slow),
        ));
        players.spawn(play_stateful_sets(plane.admin.clone(), namespace.clone()));
        players.spawn(play_autoscalers(plane.admin.clone(), namespace.clone()));
        players.spawn(play_jobs(plane.admin.clone(), namespace.clone()));
        let stage = Stage {
            plane: plane.clone(),
            namespace,
            edge: Edge::start().await?,
            slow,
            _players: players,
        };
        stage.add_gateway("town-gateway-first").await?;
        Ok(stage)
    }

    /// A pod that says that it is a ready gateway. The labels by which budgets and Services find their pods it has not.
    pub async fn add_gateway(&self, name: &str) -> Result<()> {
        self.add_gateway_of(NAME, name).await
    }

    /// The same, of a ChatCluster of another name.
    pub async fn add_gateway_of(&self, cluster: &str, name: &str) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.plane.admin.clone(), &self.namespace);
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": name, "labels": {
                "app.kubernetes.io/instance": cluster,
                "app.kubernetes.io/managed-by": "carillon-operator",
                "app.kubernetes.io/component": "gateway",
            } },
            "spec": {
                "serviceAccountName": RELEASE,
                "automountServiceAccountToken": false,
                "securityContext": {
                    "runAsNonRoot": true,
                    "seccompProfile": { "type": "RuntimeDefault" },
                },
                "containers": [{
                    "name": "gateway",
                    "image": "carillon",
                    "ports": [{ "name": "http", "containerPort": self.edge.address.port() }],
                    "securityContext": {
                        "allowPrivilegeEscalation": false,
                        "capabilities": { "drop": ["ALL"] },
                    },
                }],
            },
        }))?;
        pods.create(&PostParams::default(), &pod).await?;
        let status = json!({ "status": {
            "phase": "Running",
            "podIP": self.edge.address.ip(),
            "podIPs": [{ "ip": self.edge.address.ip() }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        } });
        pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await?;
        Ok(())
    }

    /// A replica of the operator for this namespace; it doesn't run yet.
    pub async fn replica(&self, identity: &str) -> Result<Replica> {
        self.replica_with(identity, Log::default()).await
    }

    /// The same, with a record that is shared.
    pub async fn replica_with(&self, identity: &str, log: Log) -> Result<Replica> {
        Replica::new(&self.plane, &self.namespace, identity, log).await
    }

    fn clusters(&self) -> Api<ChatCluster> {
        Api::namespaced(self.plane.admin.clone(), &self.namespace)
    }

    /// From now on pods of `role` that are ordered don't get ready, until another one or none is named.
    pub async fn slow_down(&self, role: Option<&'static str>) -> Result<()> {
        let before = std::mem::replace(&mut *self.slow.lock().unwrap(), role);
        if let Some(before) = before {
            // So that the player looks at it again.
            let note = json!({ "metadata": { "annotations": { "test/look": "again" } } });
            self.objects("apps", "v1", "Deployment")
                .patch(
                    &format!("{NAME}-{before}"),
                    &PatchParams::default(),
                    &Patch::Merge(note),
                )
                .await?;
        }
        Ok(())
    }

    /// `kubectl apply --server-side` of a ChatCluster with this spec.
    pub async fn order(&self, spec: &str) -> Result<()> {
        let spec: Value = serde_saphyr::from_str(spec)?;
        let cluster = json!({
            "apiVersion": "carillon.chat/v1alpha1",
            "kind": "ChatCluster",
            "metadata": { "name": NAME },
            "spec": spec,
        });
        self.clusters()
            .patch(
                NAME,
                &PatchParams::apply("user").force(),
                &Patch::Apply(cluster),
            )
            .await?;
        Ok(())
    }

    /// The ChatCluster as it is.
    pub async fn cluster(&self) -> Result<ChatCluster> {
        Ok(self.clusters().get(NAME).await?)
    }

    /// Begins the removal of the ChatCluster.
    pub async fn delete(&self) -> Result<()> {
        self.clusters()
            .delete(NAME, &DeleteParams::background())
            .await?;
        Ok(())
    }

    /// Whether the operator says of the current spec that there is nothing left to do.
    pub async fn is_settled(&self) -> Result<bool> {
        let cluster = self.cluster().await?;
        let status = cluster.status.unwrap_or_default();
        let progressing = status
            .conditions
            .iter()
            .find(|condition| condition.type_ == "Progressing");
        Ok(status.observed_generation == cluster.metadata.generation
            && progressing.is_some_and(|condition| {
                ["Complete", "Hibernated", "Paused", "RolledBack"]
                    .contains(&condition.reason.as_str())
            }))
    }

    /// Waits until everything is as ordered; an error tells what the operator said.
    pub async fn settled(&self, replica: &Replica) -> Result<()> {
        let waited = eventually("everything is as ordered", async || self.is_settled().await).await;
        if let Err(error) = waited {
            let status = self.cluster().await?.status;
            bail!(
                "{error:#}\n{}\n{}",
                serde_json::to_string_pretty(&status)?,
                replica.said()
            );
        }
        self.quiet(replica).await
    }

    /// Waits until the operator has written nothing for a while.
    pub async fn quiet(&self, replica: &Replica) -> Result<()> {
        eventually("the operator is quiet", async || {
            let before = replica.proxy.writes();
            tokio::time::sleep(Duration::from_millis(700)).await;
            Ok(replica.proxy.writes() == before)
        })
        .await
    }

    /// A condition's status and reason.
    pub async fn condition(&self, type_: &str) -> Result<(String, String)> {
        let status = self.cluster().await?.status.unwrap_or_default();
        let condition = status
            .conditions
            .into_iter()
            .find(|condition| condition.type_ == type_)
            .with_context(|| format!("no condition {type_}"))?;
        Ok((condition.status, condition.reason))
    }

    /// Waits for a condition's status and reason.
    pub async fn wait_condition(&self, type_: &str, status: &str, reason: &str) -> Result<()> {
        let wanted = (status.to_owned(), reason.to_owned());
        eventually(&format!("{type_} is {status}, {reason}"), async || {
            Ok(self
                .condition(type_)
                .await
                .is_ok_and(|found| found == wanted))
        })
        .await
    }

    /// Objects of one kind.
    pub fn objects(&self, group: &str, version: &str, kind: &str) -> Api<DynamicObject> {
        let mut resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        if kind == "NetworkPolicy" {
            resource.plural = "networkpolicies".to_owned();
        }
        if kind == "Ingress" {
            resource.plural = "ingresses".to_owned();
        }
        Api::namespaced_with(self.plane.admin.clone(), &self.namespace, &resource)
    }

    /// Everything of the operator's kinds that is in the namespace and was not there before it, as `Kind name`: labels don't
    /// matter, so that what lost them is found too.
    pub async fn children(&self) -> Result<BTreeMap<String, DynamicObject>> {
        let mut children = BTreeMap::new();
        for (group, version, kind) in KINDS {
            let list = self
                .objects(group, version, kind)
                .list(&ListParams::default())
                .await?;
            for object in list {
                let name = object.name_any();
                let given = ["default", "kube-root-ca.crt", "scylla", RELEASE];
                if !given.contains(&name.as_str()) {
                    children.insert(format!("{kind} {name}"), object);
                }
            }
        }
        Ok(children)
    }

    /// The children, without what differs between two lives of the same order.
    pub async fn picture(&self) -> Result<BTreeMap<String, String>> {
        let children = self.children().await?;
        let uid = self.cluster().await?.metadata.uid.context("a uid")?;
        let pem = children
            .get("Secret town-jwt")
            .and_then(|secret| secret.data["data"]["signing.pem"].as_str())
            .context("the signing key")?;
        let keys = carillon_operator::keys::SigningKeys {
            signing: decoded(pem)?,
            ..Default::default()
        };
        let trust = children
            .get("Secret town-certificates")
            .and_then(|secret| secret.data["data"]["ca.crt"].as_str())
            .context("the authority")?;
        let public = [("jwks.json", keys.jwks()?), ("ca.crt", decoded(trust)?)];
        let mut picture = BTreeMap::new();
        for (name, child) in children {
            let mut child = serde_json::to_value(child)?;
            let kind = name.split(' ').next().unwrap_or_default();
            normalise(kind, &mut child, &public);
            picture.insert(name, child.to_string().replace(&uid, "THE-CHATCLUSTER"));
        }
        Ok(picture)
    }

    /// Waits until nothing of the operator's kinds is left.
    pub async fn emptied(&self) -> Result<()> {
        let mut left = Vec::new();
        let waited = eventually("nothing is left", async || {
            left = self.children().await?.into_keys().collect();
            Ok(left.is_empty() && self.clusters().get_opt(NAME).await?.is_none())
        })
        .await;
        waited.with_context(|| format!("{left:?}"))
    }

    /// Gives the namespace up.
    pub async fn strike(self) -> Result<()> {
        self.plane.remove(&self.namespace).await
    }
}

/// Takes out what the API server or chance decides, and what is somebody else's.
fn decoded(base64: &str) -> Result<String> {
    let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, base64)?;
    Ok(String::from_utf8(bytes)?)
}

fn normalise(kind: &str, child: &mut Value, public: &[(&str, String)]) {
    let metadata = child["metadata"].as_object_mut().expect("metadata");
    let ours: Vec<Value> = metadata
        .remove("managedFields")
        .and_then(|entries| entries.as_array().cloned())
        .into_iter()
        .flatten()
        .filter(|entry| entry["manager"] == carillon_operator::FIELD_MANAGER)
        .map(|entry| entry["fieldsV1"].clone())
        .collect();
    for key in ["uid", "resourceVersion", "creationTimestamp", "generation"] {
        metadata.remove(key);
    }
    child["ours"] = Value::Array(ours);
    child["status"] = Value::Null;
    match kind {
        "Secret" => {
            let keys: Vec<String> = child["data"]
                .as_object()
                .map(|data| data.keys().cloned().collect())
                .unwrap_or_default();
            child["data"] = json!(keys);
        }
        "Service" if child["spec"]["clusterIP"] != "None" => {
            child["spec"]["clusterIP"] = Value::Null;
            child["spec"]["clusterIPs"] = Value::Null;
        }
        "ConfigMap" => {
            for (key, text) in public {
                if child["data"][*key] == **text {
                    child["data"][*key] = json!("of the Secret");
                }
            }
        }
        _ => {}
    }
    forget(child);
}

/// Hashes of random keys, and the Job's own mark.
fn forget(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, _| !key.ends_with("controller-uid"));
            if let Some(hash) = map.get_mut("carillon.chat/order-hash") {
                *hash = json!("HASH");
            }
            map.values_mut().for_each(forget);
        }
        Value::Array(items) => items.iter_mut().for_each(forget),
        _ => {}
    }
}

/// The names of what differs, with both versions of the first.
pub fn differences(
    expected: &BTreeMap<String, String>,
    found: &BTreeMap<String, String>,
) -> Option<String> {
    let names: Vec<&String> = expected
        .keys()
        .chain(found.keys())
        .filter(|name| expected.get(*name) != found.get(*name))
        .collect();
    let first = names.first()?;
    Some(format!(
        "{names:?} differ; {first}:\n{}\n{}",
        expected.get(*first).map_or("-", String::as_str),
        found.get(*first).map_or("-", String::as_str)
    ))
}

/// Deployments that are played at once.
const PLAYED_AT_ONCE: usize = 8;

/// Whether the image of a role is made not to work: `broken-media` for media.
fn is_broken(deployment: &Deployment) -> bool {
    let pod = deployment.spec.template.spec.as_ref();
    pod.iter().flat_map(|pod| &pod.containers).any(|container| {
        container
            .image
            .as_ref()
            .is_some_and(|image| image.ends_with(&format!(":broken-{}", container.name)))
    })
}

async fn play_deployments(
    client: Client,
    namespace: String,
    slow: Arc<Mutex<Option<&'static str>>>,
) {
    let api: Api<Deployment> = Api::namespaced(client.clone(), &namespace);
    let stream = watcher(api.clone(), watcher::Config::default()).applied_objects();
    stream
        .for_each_concurrent(PLAYED_AT_ONCE, |event| async {
            if let Ok(deployment) = event {
                play_deployment(&client, &api, &slow, deployment).await;
            }
        })
        .await;
}

async fn play_deployment(
    client: &Client,
    api: &Api<Deployment>,
    slow: &Mutex<Option<&'static str>>,
    deployment: Deployment,
) {
    let name = deployment.name_any();
    let namespace = deployment.namespace().unwrap_or_default();
    raise_to_least(client, &namespace, &name).await;
    let is_slow = slow
        .lock()
        .unwrap()
        .is_some_and(|role| name == format!("{NAME}-{role}"));
    if is_slow {
        return;
    }
    let replicas = deployment.spec.replicas.unwrap_or(1);
    let is_broken = is_broken(&deployment);
    let gave_up = json!([{
        "type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded",
    }]);
    // A broken one has a new pod beside the old ones.
    let status = json!({
        "observedGeneration": deployment.metadata.generation,
        "replicas": replicas + i32::from(is_broken),
        "updatedReplicas": if is_broken { 1 } else { replicas },
        "readyReplicas": replicas,
        "availableReplicas": replicas,
        "conditions": if is_broken { gave_up } else { Value::Null },
    });
    let current = serde_json::to_value(&deployment.status).unwrap_or_default();
    let is_so = status
        .as_object()
        .expect("a map")
        .iter()
        .all(|(key, value)| match key.as_str() {
            "conditions" => current.get(key).is_some() == value.is_array(),
            _ => current.get(key).unwrap_or(&json!(0)) == value,
        });
    if !is_so {
        let patch = Patch::Merge(json!({ "status": status }));
        // It may be gone by now; whatever else went wrong shows as a cluster that doesn't settle.
        let _ = api
            .patch_status(&name, &PatchParams::default(), &patch)
            .await;
    }
}

async fn play_stateful_sets(client: Client, namespace: String) {
    let api: Api<StatefulSet> = Api::namespaced(client, &namespace);
    let stream = watcher(api.clone(), watcher::Config::default()).applied_objects();
    let mut stream = std::pin::pin!(stream);
    while let Some(event) = stream.next().await {
        let Ok(set) = event else { continue };
        let replicas = set.spec.replicas.unwrap_or(1);
        let status = set.status.as_ref();
        let is_so = status.is_some_and(|status| {
            status.ready_replicas.unwrap_or(0) == replicas
                && status.observed_generation == set.metadata.generation
        });
        if !is_so {
            let patch = Patch::Merge(json!({ "status": {
                "observedGeneration": set.metadata.generation,
                "replicas": replicas,
                "readyReplicas": replicas,
            } }));
            // It may be gone by now; whatever else went wrong shows as a cluster that doesn't settle.
            let _ = api
                .patch_status(&set.name_any(), &PatchParams::default(), &patch)
                .await;
        }
    }
}

async fn play_autoscalers(client: Client, namespace: String) {
    let api: Api<HorizontalPodAutoscaler> = Api::namespaced(client.clone(), &namespace);
    let stream = watcher(api, watcher::Config::default()).applied_objects();
    let mut stream = std::pin::pin!(stream);
    while let Some(event) = stream.next().await {
        if let Ok(autoscaler) = event {
            raise_to_least(&client, &namespace, &autoscaler.name_any()).await;
        }
    }
}

/// What an autoscaler without metrics does: it keeps to its bounds, and leaves a Deployment of no pods alone.
async fn raise_to_least(client: &Client, namespace: &str, name: &str) {
    let autoscalers: Api<HorizontalPodAutoscaler> = Api::namespaced(client.clone(), namespace);
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let Ok(Some(autoscaler)) = autoscalers.get_opt(name).await else {
        return;
    };
    let Ok(scale) = deployments.get_scale(name).await else {
        return;
    };
    let least = autoscaler.spec.min_replicas.unwrap_or(1);
    let current = scale.spec.and_then(|spec| spec.replicas).unwrap_or(0);
    if current > 0 && current < least {
        let patch = Patch::Merge(json!({ "spec": { "replicas": least } }));
        let parameters = PatchParams {
            field_manager: Some("autoscaler".to_owned()),
            ..PatchParams::default()
        };
        let _ = deployments.patch_scale(name, &parameters, &patch).await;
    }
}

async fn play_jobs(client: Client, namespace: String) {
    let api: Api<Job> = Api::namespaced(client, &namespace);
    let stream = watcher(api.clone(), watcher::Config::default()).applied_objects();
    let mut stream = std::pin::pin!(stream);
    while let Some(event) = stream.next().await {
        let Ok(job) = event else { continue };
        // Backups and restores are ended by who tests them.
        let labels = job.labels();
        if labels.contains_key(carillon_operator::build::BACKUP_LABEL)
            || labels
                .get(carillon_operator::build::COMPONENT_LABEL)
                .is_some_and(|component| component == carillon_operator::build::RESTORE_COMPONENT)
        {
            continue;
        }
        let has_ended = job
            .status
            .as_ref()
            .is_some_and(|status| status.conditions.is_some());
        if has_ended {
            continue;
        }
        let time = "2026-01-01T00:00:00Z";
        let condition = |type_: &str| json!({ "type": type_, "status": "True", "lastTransitionTime": time, "lastProbeTime": time });
        let template = job
            .spec
            .as_ref()
            .and_then(|spec| spec.template.spec.as_ref());
        let is_broken = template.is_some_and(|pod| {
            let image = pod.containers[0].image.as_deref().unwrap_or_default();
            image.ends_with(":broken-migrate")
        });
        let status = match is_broken {
            true => json!({
                "startTime": time,
                "failed": 4,
                "conditions": [condition("FailureTarget"), condition("Failed")],
            }),
            false => json!({
                "startTime": time,
                "completionTime": time,
                "succeeded": 1,
                "conditions": [condition("SuccessCriteriaMet"), condition("Complete")],
            }),
        };
        let patch = Patch::Merge(json!({ "status": status }));
        if let Err(error) = api
            .patch_status(&job.name_any(), &PatchParams::default(), &patch)
            .await
        {
            println!("a Job was not completed: {error}");
        }
    }
}
