//! Who may talk to whom. Without a rule here, nobody may reach a pod of the cluster:
//! * the roles reach each other's gRPC ports, and so do pods of any namespace that carry a label, so that an app's server
//!   can call them with bearer tokens;
//! * everybody reaches the gateway's HTTP port;
//! * the admin port (probes, metrics) is open to pods of any namespace, so that Prometheus and the operator can read it.
//!
//! Egress is left open: the stores are outside, at addresses the operator doesn't know.

use carillon_crds::Role;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};

use super::labels::{instance, match_labels, metadata, selector};
use super::object;
use super::service::port_name;
use crate::validate::Order;

/// Label by which a pod that is not ours asks to reach the gRPC ports; `docs/api.md` names it. It opens a way, and no more:
/// who may call what is decided by the token.
const GRPC_CLIENT_LABEL: &str = "carillon.chat/grpc-client";

pub(super) fn build(order: &Order) -> Vec<NetworkPolicy> {
    vec![internal(order), gateway(order)]
}

fn internal(order: &Order) -> NetworkPolicy {
    let grpc_ports: Vec<Value> = Role::ALL
        .iter()
        .filter(|role| **role != Role::Gateway)
        .map(|role| json!({ "port": role.port(), "protocol": "TCP" }))
        .collect();
    object(json!({
        "metadata": metadata(order, format!("{}-internal", order.name), None),
        "spec": {
            "podSelector": match_labels(instance(order)),
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [
                        { "podSelector": match_labels(instance(order)) },
                        {
                            "namespaceSelector": {},
                            "podSelector": { "matchLabels": { GRPC_CLIENT_LABEL: "true" } },
                        },
                    ],
                    "ports": grpc_ports,
                },
                {
                    "from": [{ "namespaceSelector": {} }],
                    "ports": [{ "port": order.config.admin_port, "protocol": "TCP" }],
                },
            ],
        },
    }))
}

fn gateway(order: &Order) -> NetworkPolicy {
    object(json!({
        "metadata": metadata(order, format!("{}-edge", order.name), Some(Role::Gateway.name())),
        "spec": {
            "podSelector": match_labels(selector(order, Role::Gateway.name())),
            "policyTypes": ["Ingress"],
            "ingress": [{ "ports": [{ "port": port_name(Role::Gateway), "protocol": "TCP" }] }],
        },
    }))
}

#[cfg(test)]
mod tests {
    use crate::build::tests::{SMALL, order_of, yaml_of};

    #[test]
    fn network_policies() {
        insta::assert_snapshot!(yaml_of(&super::build(&order_of(SMALL))));
    }
}
