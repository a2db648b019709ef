//! How the roles are found: one Service each; for the message role also a headless one, through which the replica that
//! owns a partition is reached even while it is not ready.

use carillon_crds::Role;
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};

use super::labels::{metadata, selector};
use super::{object, object_name};
use crate::validate::Order;

pub(super) fn build(order: &Order) -> Vec<Service> {
    let mut services: Vec<Service> = Role::ALL.iter().map(|role| service(order, *role)).collect();
    services.push(message_headless(order));
    services
}

/// The port at which clients inside Kubernetes reach the gateway.
pub(super) fn gateway_port(order: &Order) -> u16 {
    order
        .spec
        .gateway
        .as_ref()
        .and_then(|gateway| gateway.port)
        .unwrap_or(Role::Gateway.port())
}

/// Name of the port of `role` in pods and Services.
pub(super) fn port_name(role: Role) -> &'static str {
    if role == Role::Gateway {
        "http"
    } else {
        "grpc"
    }
}

fn service(order: &Order, role: Role) -> Service {
    object(json!({
        "metadata": metadata(order, object_name(order, role), Some(role.name())),
        "spec": {
            "type": "ClusterIP",
            "selector": selector(order, role.name()),
            "ports": [port(order, role)],
        },
    }))
}

fn message_headless(order: &Order) -> Service {
    let role = Role::Message;
    object(json!({
        "metadata": metadata(order, format!("{}-headless", object_name(order, role)), Some(role.name())),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "selector": selector(order, role.name()),
            "ports": [port(order, role)],
        },
    }))
}

fn port(order: &Order, role: Role) -> Value {
    let (port, protocol) = match role {
        Role::Gateway => (gateway_port(order), "http"),
        // HTTP/2 over TLS.
        _ => (role.port(), "https"),
    };
    json!({
        "name": port_name(role),
        "port": port,
        "protocol": "TCP",
        "targetPort": port_name(role),
        "appProtocol": protocol,
    })
}

#[cfg(test)]
mod tests {
    use crate::build::tests::{FULL, order_of, yaml_of};

    #[test]
    fn services() {
        insta::assert_snapshot!(yaml_of(&super::build(&order_of(FULL))));
    }
}
