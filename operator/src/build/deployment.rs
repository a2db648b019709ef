//! The pods of a role.

use carillon_crds::Role;
use carillon_crds::config::CONFIG_FILE;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ResourceRequirements;
use serde_json::{Value, json};

use super::labels::{labels, match_labels, metadata, selector};
use super::pod::{Volumes, container_security, environment, image_pull_secrets, pod_security};
use super::service::port_name;
use super::{object, object_name, replicas, short_hash};
use crate::validate::Order;

/// Seconds a pod gets beyond its drain time to flush and close its stores.
const CLOSING_SECONDS: u64 = 20;

/// Annotation of a pod template with the hash of the configuration its pods were started with.
const CONFIG_HASH: &str = "carillon.chat/config-hash";

pub(super) fn build(order: &Order, role: Role) -> Deployment {
    let mut deployment: Deployment = object(json!({
        "metadata": metadata(order, object_name(order, role), Some(role.name())),
        "spec": {
            "selector": match_labels(selector(order, role.name())),
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": carillon_crds::progress_deadline_seconds(&order.spec),
            "strategy": strategy(order, role),
            "template": {
                "metadata": { "labels": labels(order, role.name()), "annotations": annotations(order) },
                "spec": pod(order, role),
            },
        },
    }));
    // Absent under an autoscaler: the field is then not ours.
    deployment.spec.replicas = replicas(order, role);
    deployment
}

/// New pods before old ones go, but for the one media pod on a claim: only one node may have a ReadWriteOnce volume, so
/// that a second pod would wait for the first to go, and the first for the second to be ready.
fn strategy(order: &Order, role: Role) -> Value {
    let on_claim = order
        .spec
        .media_directory()
        .is_some_and(|directory| directory.persistent_volume_claim.is_some());
    if role == Role::Media && on_claim && replicas(order, role) == Some(1) {
        return json!({ "type": "Recreate" });
    }
    json!({ "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 0, "maxSurge": 1 } })
}

fn annotations(order: &Order) -> Value {
    json!({
        CONFIG_HASH: short_hash(&order.config.to_yaml()),
        "prometheus.io/scrape": "true",
        "prometheus.io/port": order.config.admin_port.to_string(),
        "prometheus.io/path": "/metrics",
    })
}

fn pod(order: &Order, role: Role) -> Value {
    let volumes = Volumes::for_role(order, role);
    let mut pod = json!({
        "serviceAccountName": object_name(order, role),
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "securityContext": pod_security(),
        "terminationGracePeriodSeconds": order.config.gateway.drain_seconds + CLOSING_SECONDS,
        "topologySpreadConstraints": [
            spread(order, role, "kubernetes.io/hostname"),
            spread(order, role, "topology.kubernetes.io/zone"),
        ],
        "volumes": volumes.volumes,
        "containers": [{
            "name": role.name(),
            "image": order.image.reference,
            "imagePullPolicy": order.image.pull_policy,
            "args": ["serve", role.name(), "--config", CONFIG_FILE],
            "env": environment(),
            "ports": [
                { "name": port_name(role), "containerPort": role.port(), "protocol": "TCP" },
                { "name": "admin", "containerPort": order.config.admin_port, "protocol": "TCP" },
            ],
            // Until the first success of this one the others wait: a slow start is not a death.
            "startupProbe": probe("/health", 1, 60),
            "livenessProbe": probe("/health", 10, 3),
            "readinessProbe": probe("/ready", 5, 2),
            "resources": resources(order, role),
            "securityContext": container_security(),
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": volumes.mounts,
        }],
    });
    if !order.image.pull_secrets.is_empty() {
        pod["imagePullSecrets"] = image_pull_secrets(order);
    }
    pod
}

fn probe(path: &str, period_seconds: u32, failure_threshold: u32) -> Value {
    json!({
        "httpGet": { "path": path, "port": "admin", "scheme": "HTTP" },
        "periodSeconds": period_seconds,
        "timeoutSeconds": 3,
        "failureThreshold": failure_threshold,
    })
}

fn spread(order: &Order, role: Role, topology_key: &str) -> Value {
    json!({
        "maxSkew": 1,
        "topologyKey": topology_key,
        // Spread when there is room; run anyway when there isn't.
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": match_labels(selector(order, role.name())),
        "matchLabelKeys": ["pod-template-hash"],
    })
}

/// What the user ordered, or the default named in the field's description.
fn resources(order: &Order, role: Role) -> Value {
    let spec = &order.spec;
    let ordered: Option<&ResourceRequirements> = match role {
        Role::Gateway => spec
            .gateway
            .as_ref()
            .and_then(|gateway| gateway.resources.as_ref()),
        Role::Auth => spec.auth.as_ref().and_then(|auth| auth.resources.as_ref()),
        Role::Message => spec
            .message
            .as_ref()
            .and_then(|message| message.resources.as_ref()),
        Role::Presence => spec
            .presence
            .as_ref()
            .and_then(|presence| presence.resources.as_ref()),
        Role::Media => spec
            .media
            .as_ref()
            .and_then(|media| media.resources.as_ref()),
        Role::Notification => spec
            .notification
            .as_ref()
            .and_then(|notification| notification.resources.as_ref()),
    };
    if let Some(ordered) = ordered {
        return json!(ordered);
    }
    let (cpu, memory, memory_limit) = match role {
        Role::Gateway | Role::Message => ("100m", "128Mi", "1Gi"),
        // A password hash takes 64 MiB while it runs.
        Role::Auth => ("100m", "256Mi", "1Gi"),
        Role::Media => ("50m", "128Mi", "1Gi"),
        Role::Presence | Role::Notification => ("50m", "64Mi", "512Mi"),
    };
    // No CPU limit: throttling shows as latency, while memory without a limit takes the node down.
    json!({ "requests": { "cpu": cpu, "memory": memory }, "limits": { "memory": memory_limit } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::tests::{FULL, SMALL, order_of, yaml_of};

    #[test]
    fn gateway_under_an_autoscaler() {
        insta::assert_snapshot!(yaml_of(&build(&order_of(FULL), Role::Gateway)));
    }

    #[test]
    fn auth() {
        insta::assert_snapshot!(yaml_of(&build(&order_of(FULL), Role::Auth)));
    }

    #[test]
    fn message() {
        insta::assert_snapshot!(yaml_of(&build(&order_of(SMALL), Role::Message)));
    }

    #[test]
    fn presence() {
        insta::assert_snapshot!(yaml_of(&build(&order_of(SMALL), Role::Presence)));
    }

    #[test]
    fn media_on_an_ephemeral_directory() {
        insta::assert_snapshot!(yaml_of(&build(&order_of(SMALL), Role::Media)));
    }

    #[test]
    fn media_on_s3() {
        insta::assert_snapshot!(yaml_of(&build(&order_of(FULL), Role::Media)));
    }

    #[test]
    fn notification() {
        insta::assert_snapshot!(yaml_of(&build(&order_of(FULL), Role::Notification)));
    }

    #[test]
    fn a_pod_is_given_more_time_than_its_drain() {
        for spec in [SMALL, FULL] {
            let order = order_of(spec);
            let grace = build(&order, Role::Gateway)
                .spec
                .template
                .spec
                .unwrap()
                .termination_grace_period_seconds;
            assert!(grace.unwrap() > i64::try_from(order.config.gateway.drain_seconds).unwrap());
        }
    }

    #[test]
    fn one_media_pod_on_a_claim_goes_before_the_next_one_comes() {
        let order = order_of(&SMALL.replace(
            "{ephemeral: true}",
            "{persistentVolumeClaim: {claimName: files}}",
        ));
        let strategy = |role: Role| build(&order, role).spec.strategy.unwrap();
        assert_eq!(strategy(Role::Media).type_.as_deref(), Some("Recreate"));
        assert!(strategy(Role::Media).rolling_update.is_none());
        assert_eq!(
            strategy(Role::Message).type_.as_deref(),
            Some("RollingUpdate")
        );
    }

    #[test]
    fn media_on_a_claim() {
        let order = order_of(&FULL.replace(
            "media: {store: {s3: {bucket: town, endpoint: 'https://s3.example.com', secretName: s3}}}",
            "media: {store: {directory: {persistentVolumeClaim: {claimName: files}}}}",
        ));
        let deployment = build(&order, Role::Media);
        let strategy = deployment.spec.strategy.unwrap();
        assert_eq!(strategy.type_.as_deref(), Some("RollingUpdate"));
        let pod = deployment.spec.template.spec.unwrap();
        let volume = pod
            .volumes
            .unwrap()
            .into_iter()
            .find(|volume| volume.name == "media")
            .unwrap();
        assert_eq!(volume.persistent_volume_claim.unwrap().claim_name, "files");
    }
}
