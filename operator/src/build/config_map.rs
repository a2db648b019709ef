//! The configuration that every role reads, the public keys, and the authorities that integrators know the gRPC servers by.
//!
//! The configuration's ConfigMap is named by its content and immutable: a change makes a new one, pods of the old
//! template keep the one they were started with, and a roll-back finds it again.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;

use super::labels::metadata;
use super::{Keys, short_hash};
use crate::validate::Order;

pub(super) const CONFIG_KEY: &str = "config.yaml";
/// What integrators mount to know the gRPC servers by; `docs/api.md` names it.
const TRUST_KEY: &str = "ca.crt";
pub(super) const JWKS_KEY: &str = "jwks.json";

pub(super) fn build(order: &Order, keys: &Keys) -> Vec<ConfigMap> {
    vec![
        ConfigMap {
            metadata: metadata(order, config_name(order), None),
            data: Some(BTreeMap::from([(
                CONFIG_KEY.to_owned(),
                order.config.to_yaml(),
            )])),
            immutable: Some(true),
            ..ConfigMap::default()
        },
        ConfigMap {
            metadata: metadata(order, jwks_name(order), None),
            data: Some(BTreeMap::from([(JWKS_KEY.to_owned(), keys.jwks.clone())])),
            ..ConfigMap::default()
        },
        ConfigMap {
            metadata: metadata(order, format!("{}-ca", order.name), None),
            data: Some(BTreeMap::from([(TRUST_KEY.to_owned(), keys.trust.clone())])),
            ..ConfigMap::default()
        },
    ]
}

/// Name of the ConfigMap with the configuration.
pub(super) fn config_name(order: &Order) -> String {
    format!(
        "{}-config-{}",
        order.name,
        short_hash(&order.config.to_yaml())
    )
}

/// Name of the ConfigMap with the public keys.
pub(super) fn jwks_name(order: &Order) -> String {
    format!("{}-jwks", order.name)
}

#[cfg(test)]
mod tests {
    use crate::build::tests::{FULL, SMALL, keys, order_of, yaml_of};

    #[test]
    fn config_maps() {
        insta::assert_snapshot!(yaml_of(&super::build(&order_of(FULL), &keys())));
    }

    #[test]
    fn another_configuration_has_another_name() {
        assert_ne!(
            super::config_name(&order_of(SMALL)),
            super::config_name(&order_of(FULL))
        );
        assert_eq!(
            super::config_name(&order_of(SMALL)),
            super::config_name(&order_of(SMALL))
        );
    }
}
