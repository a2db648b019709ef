//! At most one pod of a role leaves at a time by somebody's wish. `maxUnavailable` and not `minAvailable`, so that a node
//! can be drained even when a role has one replica.

use carillon_crds::Role;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::json;

use super::labels::{match_labels, metadata, selector};
use super::{object, object_name};
use crate::validate::Order;

pub(super) fn build(order: &Order) -> Vec<PodDisruptionBudget> {
    Role::ALL
        .iter()
        .map(|role| {
            object(json!({
                "metadata": metadata(order, object_name(order, *role), Some(role.name())),
                "spec": {
                    "maxUnavailable": 1,
                    "selector": match_labels(selector(order, role.name())),
                    // A pod that is not ready protects nobody.
                    "unhealthyPodEvictionPolicy": "AlwaysAllow",
                },
            }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::build::tests::{SMALL, order_of, yaml_of};

    #[test]
    fn pod_disruption_budgets() {
        insta::assert_snapshot!(yaml_of(&super::build(&order_of(SMALL))));
    }
}
