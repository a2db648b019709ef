//! One ServiceAccount per role and one for the migration. None has a token: the roles never talk to the API server.

use carillon_crds::Role;
use k8s_openapi::api::core::v1::ServiceAccount;

use super::labels::{MIGRATION_COMPONENT, metadata};
use super::{migration_job, object_name};
use crate::validate::Order;

pub(super) fn build(order: &Order) -> Vec<ServiceAccount> {
    let mut names: Vec<(String, &str)> = Role::ALL
        .iter()
        .map(|role| (object_name(order, *role), role.name()))
        .collect();
    names.push((
        migration_job::service_account_name(order),
        MIGRATION_COMPONENT,
    ));
    names
        .into_iter()
        .map(|(name, component)| ServiceAccount {
            metadata: metadata(order, name, Some(component)),
            automount_service_account_token: Some(false),
            ..ServiceAccount::default()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::build::tests::{SMALL, order_of, yaml_of};

    #[test]
    fn service_accounts() {
        insta::assert_snapshot!(yaml_of(&super::build(&order_of(SMALL))));
    }
}
