//! A node's drain evicts pods: budgets let one of each role go at a time, and never stand in the way for good.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{EvictParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::plane::{Plane, eventually};
use crate::stage::{Stage, first_order};

/// The pods of one role, made by hand, as its Deployment's controller would.
struct Pods<'a> {
    stage: &'a Stage,
    api: Api<Pod>,
    role: &'static str,
    owner: Value,
    template: Value,
}

impl<'a> Pods<'a> {
    async fn of(stage: &'a Stage, role: &'static str) -> Result<Self> {
        let name = format!("town-{role}");
        let deployment = stage.objects("apps", "v1", "Deployment").get(&name).await?;
        let template = deployment.data["spec"]["template"].clone();
        let set = json!({
            "metadata": {
                "name": name,
                "labels": template["metadata"]["labels"],
                "ownerReferences": [owner("Deployment", &name, &deployment.metadata.uid)],
            },
            "spec": {
                "replicas": deployment.data["spec"]["replicas"],
                "selector": { "matchLabels": template["metadata"]["labels"] },
                "template": template,
            },
        });
        let set = stage
            .objects("apps", "v1", "ReplicaSet")
            .create(&PostParams::default(), &serde_json::from_value(set)?)
            .await?;
        Ok(Pods {
            stage,
            api: Api::namespaced(stage.plane.admin.clone(), &stage.namespace),
            role,
            owner: owner("ReplicaSet", &name, &set.metadata.uid),
            template,
        })
    }

    async fn make(&self, name: &str) -> Result<()> {
        let pod = json!({
            "metadata": {
                "name": name,
                "labels": self.template["metadata"]["labels"],
                "ownerReferences": [self.owner],
            },
            "spec": self.template["spec"],
        });
        let pod: Pod = serde_json::from_value(pod)?;
        self.api.create(&PostParams::default(), &pod).await?;
        self.set_ready(name, true).await
    }

    async fn set_ready(&self, name: &str, ready: bool) -> Result<()> {
        let status = if ready { "True" } else { "False" };
        let patch = Patch::Merge(json!({ "status": {
            "phase": "Running",
            "conditions": [{ "type": "Ready", "status": status }],
        } }));
        self.api
            .patch_status(name, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    /// Waits until the budget's controller has counted that many ready pods.
    async fn counted(&self, healthy: i64) -> Result<()> {
        let budgets = self.stage.objects("policy", "v1", "PodDisruptionBudget");
        let name = format!("town-{}", self.role);
        eventually(
            &format!("{healthy} pods of {name} are counted"),
            async || {
                let status = budgets.get(&name).await?.data["status"].clone();
                Ok(
                    status["currentHealthy"] == healthy
                        && status["expectedPods"].as_i64() > Some(0),
                )
            },
        )
        .await
    }

    /// Asks for the removal of a pod, as a drain does; whether the budget lets it go.
    async fn evict(&self, name: &str) -> Result<bool> {
        match self.api.evict(name, &EvictParams::default()).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 429 => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

fn owner(kind: &str, name: &str, uid: &Option<String>) -> Value {
    json!({ "apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid, "controller": true })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_is_never_blocked() -> Result<()> {
    let Some(plane) = Plane::from_environment("drains::a_drain_is_never_blocked").await? else {
        return Ok(());
    };
    let stage = Stage::set(&plane).await?;
    let operator = stage.replica("carillon-operator-0").await?;
    operator.start()?;
    stage
        .order(&format!("{}presence: {{replicas: 1}}\n", first_order()))
        .await?;
    stage.settled(&operator).await?;

    // A role's only pod.
    let presence = Pods::of(&stage, "presence").await?;
    presence.make("presence-1").await?;
    presence.counted(1).await?;
    ensure!(presence.evict("presence-1").await?, "the only pod is held");

    // One of two at a time: the budget counts.
    let message = Pods::of(&stage, "message").await?;
    message.make("message-1").await?;
    message.make("message-2").await?;
    message.counted(2).await?;
    ensure!(message.evict("message-1").await?);
    ensure!(
        !message.evict("message-2").await?,
        "both pods of a role went at once"
    );

    // Pods that are not ready protect nobody, not even when none is ready.
    let notification = Pods::of(&stage, "notification").await?;
    for name in ["notification-1", "notification-2"] {
        notification.make(name).await?;
        notification.set_ready(name, false).await?;
    }
    notification.counted(0).await?;
    for name in ["notification-1", "notification-2"] {
        ensure!(
            notification
                .evict(name)
                .await
                .with_context(|| name.to_owned())?,
            "{name} isn't ready and is held"
        );
    }
    stage.strike().await
}
