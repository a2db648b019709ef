//! The configuration that every role reads, and the public keys.
//!
//! The configuration's ConfigMap is named by its content and immutable: a change makes a new one, pods of the old
//! template keep the one they were started with, and a roll-back finds it again.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;

use super::labels::metadata;
use super::short_hash;
use crate::validate::Order;

pub(super) const CONFIG_KEY: &str = "config.yaml";
pub(super) const JWKS_KEY: &str = "jwks.json";

pub(super) fn build(order: &Order, jwks: &str) -> Vec<ConfigMap> {
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
            data: Some(BTreeMap::from([(JWKS_KEY.to_owned(), jwks.to_owned())])),
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
    use crate::build::tests::{FULL, SMALL, order_of, yaml_of};

    #[test]
    fn config_maps() {
        insta::assert_snapshot!(yaml_of(&super::build(&order_of(FULL), r#"{"keys":[]}"#)));
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
