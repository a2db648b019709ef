//! One role: how many pods are ordered, and how far they are.

use carillon_crds::{ComponentStatus, Role};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition};

use crate::build::VERSION_LABEL;

/// A role as it was seen.
#[derive(Clone, Debug)]
pub struct Component {
    /// The role.
    pub role: Role,
    /// Ready pods without which the role is not available: the ordered number, or an autoscaler's least; zero in hibernation.
    pub needed: i32,
    /// Whether the Deployment is as this order wants it.
    pub as_ordered: bool,
    /// The Deployment; `None` when there is none.
    pub deployment: Option<Deployment>,
}

impl Component {
    /// Pods that the Deployment is told to have.
    pub fn desired(&self) -> i32 {
        self.deployment.as_ref().map_or(self.needed, |deployment| {
            deployment.spec.replicas.unwrap_or(1)
        })
    }

    /// Pods that are ready.
    pub fn ready(&self) -> i32 {
        self.count(|status| status.ready_replicas)
    }

    /// Whether the numbers are about the Deployment as it is now, and not as it was before its last change.
    fn is_observed(&self) -> bool {
        self.deployment.as_ref().is_some_and(|deployment| {
            let observed = deployment
                .status
                .as_ref()
                .and_then(|status| status.observed_generation);
            observed.is_some() && observed >= deployment.metadata.generation
        })
    }

    /// Whether enough pods are ready, of whatever template. A change that the Deployment controller has not seen yet has
    /// not taken a pod away either.
    pub fn is_serving(&self) -> bool {
        self.needed > 0 && self.ready() >= self.needed
    }

    /// Whether all pods, and only those, are of the ordered template and ready.
    pub fn is_complete(&self) -> bool {
        let desired = self.desired();
        self.as_ordered
            && self.is_observed()
            && (self.needed == 0 || self.is_serving())
            && self.ready() >= desired
            && self.count(|status| status.updated_replicas) >= desired
            && self.count(|status| status.available_replicas) >= desired
            && self.count(|status| status.replicas) == desired
    }

    /// `auth 1/2`.
    pub fn describe(&self) -> String {
        format!(
            "{} {}/{}",
            self.role.name(),
            self.ready(),
            self.desired().max(self.needed)
        )
    }

    /// `auth 2/2 ready, 1/2 updated`.
    pub fn describe_progress(&self) -> String {
        format!(
            "{} ready, {}/{} updated",
            self.describe(),
            if self.as_ordered && self.is_observed() {
                self.count(|status| status.updated_replicas)
            } else {
                0
            },
            self.desired()
        )
    }

    /// What is wrong with the Deployment itself: its pods can't be made, or don't come up in time.
    pub fn trouble(&self) -> Option<(String, String)> {
        let conditions = self
            .deployment
            .as_ref()?
            .status
            .as_ref()?
            .conditions
            .as_ref()?;
        let find = |type_: &str, status: &str| {
            conditions.iter().find(|condition: &&DeploymentCondition| {
                condition.type_.as_deref() == Some(type_)
                    && condition.status.as_deref() == Some(status)
            })
        };
        if let Some(condition) = find("ReplicaFailure", "True") {
            let reason = condition
                .reason
                .clone()
                .unwrap_or_else(|| "ReplicaFailure".to_owned());
            return Some((reason, condition.message.clone().unwrap_or_default()));
        }
        if self.is_complete() {
            return None;
        }
        let condition = find("Progressing", "False")?;
        let reason = condition
            .reason
            .clone()
            .unwrap_or_else(|| "NotProgressing".to_owned());
        Some((reason, "its pods don't get ready in time".to_owned()))
    }

    /// Whether the Deployment, as this order wants it, says that its pods don't get ready in time.
    pub fn has_given_up(&self) -> bool {
        self.as_ordered
            && self.is_observed()
            && !self.is_complete()
            && self
                .deployment
                .iter()
                .filter_map(|deployment| deployment.status.as_ref()?.conditions.as_ref())
                .flatten()
                .any(|condition| {
                    condition.type_.as_deref() == Some("Progressing")
                        && condition.status.as_deref() == Some("False")
                })
    }

    pub(super) fn report(&self) -> ComponentStatus {
        ComponentStatus {
            name: self.role.name().to_owned(),
            version: self
                .deployment
                .as_ref()
                .and_then(|deployment| deployment.spec.template.metadata.as_ref())
                .and_then(|metadata| metadata.labels.as_ref())
                .and_then(|labels| labels.get(VERSION_LABEL).cloned()),
            desired_replicas: self.desired(),
            ready_replicas: self.ready(),
        }
    }

    fn count(&self, of: fn(&k8s_openapi::api::apps::v1::DeploymentStatus) -> Option<i32>) -> i32 {
        self.deployment
            .as_ref()
            .and_then(|deployment| deployment.status.as_ref())
            .and_then(of)
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::{component, deployment};
    use serde_json::json;

    #[test]
    fn complete_means_all_pods_new_and_ready() {
        assert!(component(Role::Auth, 2, 2, 2).is_complete());
        assert!(!component(Role::Auth, 2, 1, 2).is_complete());
        assert!(component(Role::Auth, 2, 1, 2).is_serving());
        assert!(!component(Role::Auth, 2, 2, 1).is_serving());
        let mut other_order = component(Role::Auth, 2, 2, 2);
        other_order.as_ordered = false;
        assert!(other_order.is_serving() && !other_order.is_complete());
    }

    #[test]
    fn a_role_that_is_to_have_no_pods_is_complete_when_the_last_one_is_gone() {
        let gone = component(Role::Auth, 0, 0, 0);
        assert!(gone.is_complete() && !gone.is_serving());
        let mut going = component(Role::Auth, 0, 0, 0);
        going.deployment = Some(deployment(
            json!({ "replicas": 1, "readyReplicas": 1, "updatedReplicas": 1, "availableReplicas": 1, "observedGeneration": 1 }),
            0,
        ));
        assert!(!going.is_complete());
    }

    #[test]
    fn an_old_pod_that_is_still_there_is_not_complete() {
        let mut seen = component(Role::Auth, 2, 2, 2);
        seen.deployment = Some(deployment(
            json!({ "replicas": 3, "updatedReplicas": 2, "readyReplicas": 3, "availableReplicas": 3, "observedGeneration": 1 }),
            2,
        ));
        assert!(seen.is_serving() && !seen.is_complete());
    }

    #[test]
    fn a_change_that_nobody_acted_on_yet_is_not_complete_and_takes_no_pod_away() {
        let mut seen = component(Role::Auth, 2, 2, 2);
        seen.deployment.as_mut().unwrap().metadata.generation = Some(2);
        assert!(seen.is_serving() && !seen.is_complete());
        assert_eq!(seen.describe_progress(), "auth 2/2 ready, 0/2 updated");
    }

    #[test]
    fn a_deployment_that_cannot_make_pods_says_why() {
        let mut seen = component(Role::Auth, 2, 0, 0);
        seen.deployment.as_mut().unwrap().status.as_mut().unwrap().conditions = Some(
            serde_json::from_value(json!([
                { "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota" },
            ]))
            .unwrap(),
        );
        assert_eq!(
            seen.trouble(),
            Some(("FailedCreate".to_owned(), "exceeded quota".to_owned()))
        );
    }
}
