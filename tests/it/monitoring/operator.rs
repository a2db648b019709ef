//! The operator's dashboard and alerts, with the operator at work on a real API server.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::{
    dashboards::wait_data,
    prometheus::{Prometheus, Target},
};
use crate::world::{
    control_plane::{ControlPlane, Operator},
    process::free_port,
    servers,
};

/// Nobody may make ConfigMaps in the test's namespace, until this is dropped.
struct Refusal<'a>(&'a ControlPlane);

impl<'a> Refusal<'a> {
    async fn of_config_maps(plane: &'a ControlPlane) -> Result<Self> {
        let name = &plane.namespace;
        let refusal = Self(plane);
        plane.apply(&format!(
            "apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {{name: {name}}}
spec:
  matchConstraints:
    namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {name}}}}}
    resourceRules: [{{apiGroups: [\"\"], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}}]
  validations: [{{expression: \"false\", message: nothing new}}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {{name: {name}}}
spec: {{policyName: {name}, validationActions: [Deny]}}
"
        ))?;
        let attempt = ["create", "configmap", "attempt", "--dry-run=server"];
        plane
            .wait("the refusal", || plane.kubectl(&attempt).is_err())
            .await?;
        let said = plane.kubectl(&attempt).err().map(|error| error.to_string());
        ensure!(
            said.as_ref()
                .is_some_and(|said| said.contains("nothing new")),
            "{said:?}"
        );
        Ok(refusal)
    }
}

impl Drop for Refusal<'_> {
    fn drop(&mut self) {
        for kind in [
            "validatingadmissionpolicybinding",
            "validatingadmissionpolicy",
        ] {
            let deleted = self.0.kubectl(&["delete", kind, &self.0.namespace]);
            if let Err(error) = deleted {
                eprintln!("{kind} may be left behind: {error:#}");
            }
        }
    }
}

/// OP-04: its panels show what it does; an operator that can't carry out an order, or is gone, is named, and back it is quiet.
#[tokio::test(flavor = "multi_thread")]
async fn cluster_operator_is_watched() -> Result<()> {
    let test = "monitoring::operator::cluster_operator_is_watched";
    let Some(programs) = servers::variable(test, "CARILLON_TEST_PROMETHEUS") else {
        return Ok(());
    };
    let Some(plane) = ControlPlane::from_environment(test).await? else {
        return Ok(());
    };
    let port = free_port();
    let operator = Operator::start(&plane, port).await?;
    let target = Target {
        address: operator.address.clone(),
        labels: vec![("namespace", "test".into())],
    };
    let prometheus = Prometheus::start(&programs, &[target]).await?;
    plane.order("town")?;
    wait_data(&prometheus, &["operator"]).await?;
    prometheus.wait_quiet().await?;

    // The API server refuses what the order needs.
    let refusal = Refusal::of_config_maps(&plane).await?;
    plane.kubectl(&["delete", "chatcluster", "town"])?;
    let since = Instant::now();
    plane.order("village")?;
    prometheus
        .wait_fired(since, &["CarillonReconcilesFailing"])
        .await?;
    drop(refusal);
    prometheus.wait_quiet().await?;

    let since = Instant::now();
    drop(operator);
    prometheus
        .wait_fired(since, &["CarillonOperatorGone"])
        .await?;
    let _operator = Operator::start(&plane, port).await?;
    prometheus.wait_quiet().await
}
