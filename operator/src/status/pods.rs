//! Why a pod doesn't run, in words that don't change from one back-off to the next.

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};

use crate::build::COMPONENT_LABEL;

/// Why one pod doesn't run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodTrouble {
    /// The role, or `migrate`.
    pub(super) component: String,
    /// CamelCase, e.g. `ImagePullBackOff`.
    pub(super) reason: String,
    /// With the pod's name.
    pub(super) message: String,
}

/// The trouble of each pod that has one, by component and pod name.
pub(super) fn troubles(pods: &[Pod]) -> Vec<PodTrouble> {
    let mut troubles: Vec<PodTrouble> = pods.iter().filter_map(trouble).collect();
    troubles.sort_by(|a, b| (&a.component, &a.message).cmp(&(&b.component, &b.message)));
    troubles
}

fn trouble(pod: &Pod) -> Option<PodTrouble> {
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let component = pod.metadata.labels.as_ref()?.get(COMPONENT_LABEL)?.clone();
    let status = pod.status.as_ref()?;
    let containers = status.container_statuses.iter().flatten();
    let found = containers.clone().find_map(container_trouble).or_else(|| {
        let unscheduled = status.conditions.iter().flatten().find(|condition| {
            condition.type_ == "PodScheduled"
                && condition.status == "False"
                && condition.reason.as_deref() == Some("Unschedulable")
        })?;
        Some((
            "Unschedulable".to_owned(),
            unscheduled.message.clone().unwrap_or_default(),
        ))
    });
    let (reason, detail) = found?;
    let message = if detail.is_empty() {
        format!("pod {name}")
    } else {
        format!("pod {name}: {detail}")
    };
    Some(PodTrouble {
        component,
        reason,
        message,
    })
}

/// What a role exits with when its configuration is wrong: then its last line says what, the same each time.
const BAD_CONFIGURATION: i32 = 64;

/// Waiting reasons that time alone does not mend.
const STUCK: &[&str] = &[
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
];

fn container_trouble(container: &ContainerStatus) -> Option<(String, String)> {
    let state = container.state.as_ref();
    if let Some(waiting) = state.and_then(|state| state.waiting.as_ref())
        && let Some(reason) = waiting
            .reason
            .as_deref()
            .filter(|reason| STUCK.contains(reason))
    {
        // The kubelet alternates between the two while it retries.
        let reason = if reason == "ErrImagePull" {
            "ImagePullBackOff"
        } else {
            reason
        };
        return Some((reason.to_owned(), format!("image {}", container.image)));
    }
    if container.ready || container.restart_count == 0 {
        return None;
    }
    // Between two crashes the container is running or waiting or terminated: all three are one trouble.
    let last = container
        .last_state
        .as_ref()
        .and_then(|state| state.terminated.as_ref());
    let now = state.and_then(|state| state.terminated.as_ref());
    let ended = now.or(last)?;
    let why = ended
        .reason
        .as_deref()
        .filter(|reason| *reason != "Error" && *reason != "Completed");
    let words = last_line(ended).filter(|_| ended.exit_code == BAD_CONFIGURATION);
    Some((
        "CrashLoopBackOff".to_owned(),
        match (why, words) {
            (_, Some(words)) => words,
            (Some(why), None) => format!("restarts after {why} (exit code {})", ended.exit_code),
            (None, None) => format!("restarts after exit code {}", ended.exit_code),
        },
    ))
}

/// The end of what the last container of a failed pod said, for a Job that failed.
pub(super) fn last_words(pods: &[Pod], component: &str) -> Option<String> {
    pods.iter()
        .filter(|pod| {
            pod.metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(COMPONENT_LABEL))
                .is_some_and(|of| of == component)
        })
        .filter_map(|pod| {
            let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
            let ended = containers
                .iter()
                .find_map(|container| container.state.as_ref()?.terminated.as_ref())
                .filter(|ended| ended.exit_code != 0)?;
            Some((pod.metadata.creation_timestamp.clone(), last_line(ended)?))
        })
        .max_by(|a, b| a.0.cmp(&b.0))
        .map(|(_, line)| line)
}

/// The last line that a container said before it ended.
fn last_line(ended: &ContainerStateTerminated) -> Option<String> {
    let message = ended.message.as_deref()?;
    let line = message.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(line.trim().chars().take(500).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::pod;
    use serde_json::{Value, json};

    fn of(container: Value) -> Vec<PodTrouble> {
        let mut container = container;
        container["name"] = json!("auth");
        container["image"] = json!("carillon:x");
        container["imageID"] = json!("");
        troubles(&[pod(
            "auth",
            "town-auth-1",
            json!({ "containerStatuses": [container] }),
        )])
    }

    #[test]
    fn an_image_that_is_not_there() {
        for reason in ["ErrImagePull", "ImagePullBackOff"] {
            let found = of(
                json!({ "ready": false, "restartCount": 0, "state": { "waiting": { "reason": reason, "message": "Back-off 20s" } } }),
            );
            assert_eq!(
                found,
                [PodTrouble {
                    component: "auth".to_owned(),
                    reason: "ImagePullBackOff".to_owned(),
                    message: "pod town-auth-1: image carillon:x".to_owned(),
                }]
            );
        }
    }

    /// The three states that a crashing container goes through are reported in the same words.
    #[test]
    fn a_crash_loop_reads_the_same_in_every_state() {
        let ended = json!({ "terminated": { "exitCode": 64, "reason": "Error" } });
        let states = [
            json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off 40s" } }),
            json!({ "running": {} }),
            ended.clone(),
        ];
        let reports: Vec<_> = states
            .iter()
            .map(|state| {
                of(json!({ "ready": false, "restartCount": 2, "state": state, "lastState": ended }))
            })
            .collect();
        assert_eq!(reports[0][0].reason, "CrashLoopBackOff");
        assert_eq!(
            reports[0][0].message,
            "pod town-auth-1: restarts after exit code 64"
        );
        assert!(
            reports.iter().all(|report| *report == reports[0]),
            "{reports:?}"
        );
    }

    #[test]
    fn a_role_that_refuses_its_configuration_is_quoted() {
        let ended = json!({ "terminated": { "exitCode": 64, "reason": "Error", "message": "carillon: can't read a credential\n" } });
        let found =
            of(json!({ "ready": false, "restartCount": 1, "state": ended, "lastState": ended }));
        assert_eq!(
            found[0].message,
            "pod town-auth-1: carillon: can't read a credential"
        );
    }

    #[test]
    fn a_container_that_starts_or_runs_is_no_trouble() {
        assert!(of(json!({ "ready": false, "restartCount": 0, "state": { "waiting": { "reason": "ContainerCreating" } } })).is_empty());
        assert!(
            of(json!({ "ready": false, "restartCount": 0, "state": { "running": {} } })).is_empty()
        );
        assert!(of(json!({ "ready": true, "restartCount": 3, "state": { "running": {} }, "lastState": { "terminated": { "exitCode": 1 } } })).is_empty());
    }

    #[test]
    fn a_pod_without_a_node_says_what_the_scheduler_says() {
        let found = troubles(&[pod(
            "media",
            "m",
            json!({ "conditions": [
            { "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available" },
        ] }),
        )]);
        assert_eq!(
            (found[0].reason.as_str(), found[0].message.as_str()),
            ("Unschedulable", "pod m: 0/3 nodes are available")
        );
    }

    #[test]
    fn last_words_are_the_last_line() {
        let pods = [pod(
            "migrate",
            "x",
            json!({ "containerStatuses": [{
            "name": "migrate", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "terminated": { "exitCode": 1, "message": "one\nscylla: no contact point answers\n\n" } },
        }] }),
        )];
        assert_eq!(
            last_words(&pods, "migrate").as_deref(),
            Some("scylla: no contact point answers")
        );
        assert_eq!(last_words(&pods, "auth"), None);
    }
}
