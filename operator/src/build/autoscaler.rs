//! HorizontalPodAutoscalers for the roles that are autoscaled.
//!
//! `target.connections` is the number of live sockets of the whole cluster per replica: an external metric, since for the
//! message role the sockets are other pods'. Removal of pods is slowed down: each one moves sockets or partitions.

use carillon_crds::{Autoscaling, AutoscalingTarget, Role};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use serde_json::{Value, json};

use super::labels::metadata;
use super::{autoscaling, object, object_name};
use crate::validate::Order;

const DEFAULT_MIN_REPLICAS: i32 = 2;
const DEFAULT_CPU_PERCENT: i32 = 70;

pub(super) fn build(order: &Order) -> Vec<HorizontalPodAutoscaler> {
    Role::ALL
        .iter()
        .filter_map(|role| {
            let autoscaling = autoscaling(order, *role)?;
            Some(object(json!({
                "metadata": metadata(order, object_name(order, *role), Some(role.name())),
                "spec": {
                    "minReplicas": least_replicas(autoscaling),
                    "maxReplicas": autoscaling.max_replicas,
                    "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": object_name(order, *role) },
                    "metrics": metrics(order, autoscaling.target.clone().unwrap_or_default()),
                    "behavior": {
                        "scaleDown": {
                            "stabilizationWindowSeconds": 300,
                            "policies": [{ "type": "Pods", "value": 1, "periodSeconds": 60 }],
                        },
                    },
                },
            })))
        })
        .collect()
}

/// Fewest replicas the autoscaler may choose.
pub(super) fn least_replicas(autoscaling: &Autoscaling) -> i32 {
    autoscaling
        .min_replicas
        .unwrap_or(DEFAULT_MIN_REPLICAS.min(autoscaling.max_replicas))
}

fn metrics(order: &Order, target: AutoscalingTarget) -> Vec<Value> {
    let cpu_percent = match (target.cpu_percent, target.connections) {
        (None, None) => Some(DEFAULT_CPU_PERCENT),
        (given, _) => given,
    };
    let connections = target.connections.map(|connections| {
        json!({
            "type": "External",
            "external": {
                "metric": {
                    "name": "carillon_gateway_sockets",
                    "selector": { "matchLabels": { "namespace": order.namespace, "cluster": order.name } },
                },
                "target": { "type": "AverageValue", "averageValue": connections.to_string() },
            },
        })
    });
    let cpu = cpu_percent.map(|percent| {
        json!({
            "type": "Resource",
            "resource": { "name": "cpu", "target": { "type": "Utilization", "averageUtilization": percent } },
        })
    });
    connections.into_iter().chain(cpu).collect()
}

#[cfg(test)]
mod tests {
    use crate::build::tests::{FULL, SMALL, order_of, yaml_of};

    #[test]
    fn autoscalers() {
        insta::assert_snapshot!(yaml_of(&super::build(&order_of(FULL))));
    }

    #[test]
    fn none_is_made_unordered() {
        assert!(super::build(&order_of(SMALL)).is_empty());
    }
}
