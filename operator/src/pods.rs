//! What the pods of a cluster say they have in use of its keys and certificates. Pure.

use std::collections::BTreeMap;

use carillon_crds::Role;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::build::COMPONENT_LABEL;

/// What one pod has in use, by the names of [`carillon_crds::config::in_use`].
pub type InUse = BTreeMap<String, String>;

/// Every pod that may talk to others, and its answer; none when it didn't give one.
#[derive(Clone, Debug, Default)]
pub struct PodsInUse(Vec<(Role, String, Option<InUse>)>);

impl PodsInUse {
    /// Of these pods: role, name, answer.
    pub fn new(answers: Vec<(Role, String, Option<InUse>)>) -> Self {
        PodsInUse(answers)
    }

    /// Whether every pod uses what is expected of its role; roles of which nothing is expected don't count. Of no pods it is true.
    pub fn all_use(&self, name: &str, expected: impl Fn(Role) -> Option<String>) -> bool {
        self.behind(name, expected).next().is_none()
    }

    /// Names of the pods that use something else, or didn't answer.
    pub fn behind<'a>(
        &'a self,
        name: &'a str,
        expected: impl Fn(Role) -> Option<String> + 'a,
    ) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter_map(move |(role, pod, answer)| {
            let expected = expected(*role)?;
            let used = answer.as_ref().and_then(|answer| answer.get(name));
            (used != Some(&expected)).then_some(pod.as_str())
        })
    }
}

/// Role, name and address of a pod that talks to others or is about to: all that a node has taken and that haven't ended, those that are
/// starting or stopping too, since they may have been given what was stored a moment ago.
pub fn talking(pod: &Pod) -> Option<(Role, String, Option<String>)> {
    let component = pod.labels().get(COMPONENT_LABEL)?;
    let role = *Role::ALL.iter().find(|role| role.name() == component)?;
    let on_a_node = pod
        .spec
        .as_ref()
        .is_some_and(|spec| spec.node_name.as_ref().is_some_and(|name| !name.is_empty()));
    let status = pod.status.as_ref();
    let ended = matches!(
        status.and_then(|status| status.phase.as_deref()),
        Some("Succeeded" | "Failed")
    );
    if !on_a_node || ended {
        return None;
    }
    let address = status.and_then(|status| status.pod_ip.clone());
    Some((role, pod.name_any(), address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_that_didnt_answer_is_behind() {
        let of = |value: &str| Some(InUse::from([("k".to_owned(), value.to_owned())]));
        let pods = PodsInUse::new(vec![
            (Role::Auth, "auth-1".into(), of("a")),
            (Role::Media, "media-1".into(), of("m")),
            (Role::Media, "media-2".into(), None),
            (Role::Gateway, "gateway-1".into(), Some(InUse::new())),
        ]);
        let own = |role: Role| Some(role.name()[..1].to_owned());
        let behind: Vec<&str> = pods.behind("k", own).collect();
        assert_eq!(behind, ["media-2", "gateway-1"]);
        assert!(pods.all_use("k", |role| (role == Role::Auth).then(|| "a".to_owned())));
        assert!(PodsInUse::default().all_use("k", own));
    }

    #[test]
    fn starting_and_stopping_pods_talk_and_ended_ones_dont() {
        let pod = |component: &str, node: Option<&str>, phase: &str| {
            let pod = json!({
                "metadata": { "name": "p", "labels": { "app.kubernetes.io/component": component } },
                "spec": { "containers": [], "nodeName": node },
                "status": { "phase": phase, "podIP": "10.0.0.1" },
            });
            talking(&serde_json::from_value(pod).unwrap()).is_some()
        };
        assert!(pod("auth", Some("n"), "Running"));
        assert!(pod("auth", Some("n"), "Pending"));
        assert!(!pod("auth", None, "Pending"));
        assert!(!pod("auth", Some("n"), "Succeeded"));
        assert!(!pod("auth", Some("n"), "Failed"));
        assert!(!pod("migrate", Some("n"), "Running"));
    }
}
