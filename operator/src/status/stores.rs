//! `ScyllaReady`, `RedisReady`, `RabbitmqReady`, `ObjectStoreReady`: whether the store answers the roles that use it.
//!
//! A pod is ready only while the dependencies that it requires answer it, so ready pods vouch for those stores; what pods
//! say themselves, ready or not, is the truth about all of them.

use super::{Observation, Verdict};

/// The stores that the roles use.
const STORES: &[&str] = &["scylla", "redis", "rabbitmq", "object_store"];
/// Those without which no pod that uses them is ready. RabbitMQ is none, nor is the object store: messages flow without pushes and files.
const REQUIRED: &[&str] = &["scylla", "redis"];

/// The reason while a managed store comes up and no pod has said that it answers: nothing is wrong yet.
pub(super) const STARTING: &str = "Starting";

/// The stores that a pod says doesn't answer it, each with what is reported of it.
pub(super) fn unreachable(seen: &Observation) -> impl Iterator<Item = Verdict> {
    STORES
        .iter()
        .map(|store| verdict(seen, store))
        .filter(|verdict| verdict.status == "False")
}

pub(super) fn verdict(seen: &Observation, store: &str) -> Verdict {
    let mut complaining: Vec<&str> = seen
        .readiness
        .iter()
        .filter(|pod| {
            pod.dependencies
                .iter()
                .any(|dependency| dependency.name == store && !dependency.ready)
        })
        .map(|pod| pod.pod.as_str())
        .collect();
    complaining.sort_unstable();
    if let Some(first) = complaining.first() {
        return Verdict::no("Unreachable", format!("{store} doesn't answer {first}"));
    }
    let satisfied = seen.readiness.iter().any(|pod| {
        pod.dependencies
            .iter()
            .any(|dependency| dependency.name == store && dependency.ready)
    });
    let waiting = seen.waiting_stores.iter().find(|(name, _)| *name == store);
    if let Some((_, what)) = waiting.filter(|_| !satisfied) {
        return Verdict::no(STARTING, what.clone());
    }
    if satisfied
        || (REQUIRED.contains(&store)
            && !seen.components.is_empty()
            && seen
                .components
                .iter()
                .all(|component| component.is_serving()))
    {
        return Verdict::yes(
            "Reachable",
            format!("{store} answers the roles that use it"),
        );
    }
    Verdict::unknown("NotKnown", "no pod that uses it has said yet")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readiness::{Dependency, PodReadiness};
    use crate::status::tests::{component, settled};
    use carillon_crds::Role;

    fn pod(name: &str, dependencies: &[(&str, bool)]) -> PodReadiness {
        PodReadiness {
            in_use: Default::default(),
            pod: name.to_owned(),
            dependencies: dependencies
                .iter()
                .map(|(name, ready)| Dependency {
                    name: (*name).to_owned(),
                    ready: *ready,
                })
                .collect(),
        }
    }

    #[test]
    fn ready_pods_vouch_for_the_stores_they_need() {
        let mut seen = settled();
        seen.readiness.clear();
        assert_eq!(verdict(&seen, "scylla").status, "True");
        assert_eq!(verdict(&seen, "redis").status, "True");
        assert_eq!(verdict(&seen, "rabbitmq").status, "Unknown");
    }

    /// All pods are ready, and yet the broker is gone.
    #[test]
    fn a_ready_pod_tells_of_a_store_that_it_can_do_without() {
        let mut seen = settled();
        seen.readiness = vec![pod("town-message-1", &[("rabbitmq", false)])];
        assert_eq!(
            verdict(&seen, "rabbitmq").message,
            "rabbitmq doesn't answer town-message-1"
        );
        assert_eq!(unreachable(&seen).count(), 1);
        assert!(!seen.is_settled());
        seen.readiness = vec![pod("town-message-1", &[("rabbitmq", true)])];
        assert_eq!(verdict(&seen, "rabbitmq").status, "True");
        assert!(seen.is_settled());
    }

    #[test]
    fn a_pod_that_misses_a_store_names_it() {
        let mut seen = settled();
        seen.components[1] = component(Role::Message, 2, 2, 0);
        seen.readiness = vec![pod("town-message-1", &[("scylla", false), ("redis", true)])];
        assert_eq!(
            (
                verdict(&seen, "scylla").status,
                verdict(&seen, "redis").status
            ),
            ("False", "True")
        );
        assert_eq!(
            verdict(&seen, "scylla").message,
            "scylla doesn't answer town-message-1"
        );
        assert_eq!(verdict(&seen, "rabbitmq").status, "Unknown");
    }

    #[test]
    fn a_managed_store_that_comes_up_is_waited_for() {
        let mut seen = settled();
        seen.components.clear();
        seen.readiness.clear();
        seen.waiting_stores = vec![(
            "scylla",
            "StatefulSet town-scylla has no ready pod".to_owned(),
        )];
        assert_eq!(verdict(&seen, "scylla").reason, STARTING);
        assert_eq!(verdict(&seen, "redis").status, "Unknown");
        assert!(seen.waits_for_schema_store() && !seen.is_settled());
        // A pod that says so knows better.
        seen.readiness = vec![pod("town-auth-1", &[("scylla", true)])];
        assert_eq!(verdict(&seen, "scylla").status, "True");
        seen.readiness = vec![pod("town-auth-1", &[("scylla", false)])];
        assert_eq!(verdict(&seen, "scylla").reason, "Unreachable");
    }

    #[test]
    fn nothing_is_claimed_before_a_pod_has_said() {
        let mut seen = settled();
        seen.components = vec![component(Role::Message, 2, 2, 0)];
        assert_eq!(verdict(&seen, "scylla").status, "Unknown");
        seen.components.clear();
        assert_eq!(verdict(&seen, "scylla").status, "Unknown");
    }
}
