//! The way in from outside, when the gateway has a host.

use carillon_crds::Role;
use k8s_openapi::api::networking::v1::Ingress;
use serde_json::json;

use super::labels::metadata;
use super::service::port_name;
use super::{object, object_name};
use crate::validate::Order;

pub(super) fn build(order: &Order) -> Vec<Ingress> {
    let Some(gateway) = &order.spec.gateway else {
        return Vec::new();
    };
    let Some(host) = &gateway.host else {
        return Vec::new();
    };
    let name = object_name(order, Role::Gateway);
    let mut ingress: Ingress = object(json!({
        "metadata": metadata(order, name.clone(), Some(Role::Gateway.name())),
        "spec": {
            "rules": [{
                "host": host,
                "http": { "paths": [{
                    "path": "/",
                    "pathType": "Prefix",
                    "backend": { "service": { "name": name, "port": { "name": port_name(Role::Gateway) } } },
                }] },
            }],
        },
    }));
    if let Some(spec) = &mut ingress.spec {
        spec.ingress_class_name = gateway.ingress_class_name.clone();
        spec.tls = gateway.tls.as_ref().map(|tls| {
            vec![object(
                json!({ "hosts": [host], "secretName": tls.secret_name }),
            )]
        });
    }
    vec![ingress]
}

#[cfg(test)]
mod tests {
    use crate::build::tests::{FULL, SMALL, order_of, yaml_of};

    #[test]
    fn ingresses() {
        insta::assert_snapshot!(yaml_of(&super::build(&order_of(FULL))));
    }

    #[test]
    fn none_is_made_without_a_host() {
        assert!(super::build(&order_of(SMALL)).is_empty());
    }
}
