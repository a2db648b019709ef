//! From one release to another: what comes next, and when to go back. Pure.
//!
//! The schema first, then the roles in [`Role::ALL`]'s order, each when all pods of the one before are new and ready, last a
//! probe message. What doesn't get on within the deadline, and a migration that gives up, is taken back: every role runs the
//! release again that was last available. That is kept until another release is ordered, so that nothing is tried twice by
//! itself. How far an upgrade is is read off the children at every pass; the status remembers what they can't say: where it
//! came from, since when it stands where it stands, and that it failed.
//!
//! Not here: whether a version may follow another (`carillon_crds::may_follow`), and the writes.

use std::time::Duration;

use carillon_crds::{ChatClusterStatus, Release, Role, UpgradeStatus, UpgradeStep};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::probe::Probe;
use crate::status::{Component, Migration, Observation, verdict_of_schema};

/// Which release the children are to be of.
#[derive(Clone, Debug, PartialEq)]
pub enum Course {
    /// The ordered one, all roles at once: nothing else was ever available, or it is this one.
    Straight,
    /// The ordered one, one role after the other.
    Forward(UpgradeStatus),
    /// The one before: the ordered one failed.
    Back(UpgradeStatus),
}

/// The course for `ordered`, given what was reported before.
pub fn course(ordered: &Release, status: Option<&ChatClusterStatus>, now: &Time) -> Course {
    let Some(from) = status.and_then(|status| status.release.as_ref()) else {
        return Course::Straight;
    };
    if from == ordered {
        return Course::Straight;
    }
    let begun = status
        .and_then(|status| status.upgrade.as_ref())
        .filter(|upgrade| upgrade.from == *from && upgrade.to == *ordered);
    match begun {
        Some(upgrade) if upgrade.step.is_failed() => Course::Back(upgrade.clone()),
        Some(upgrade) if upgrade.step.is_under_way() => Course::Forward(upgrade.clone()),
        _ => Course::Forward(UpgradeStatus {
            from: from.clone(),
            to: ordered.clone(),
            step: UpgradeStep::Migrating,
            component: None,
            started_at: now.clone(),
            step_started_at: now.clone(),
            message: None,
        }),
    }
}

/// How many roles may have pods of the new release: those that are complete, and the next one.
pub fn reached(components: &[Component]) -> usize {
    components
        .iter()
        .position(|component| !component.is_complete())
        .map_or(components.len(), |place| place + 1)
}

/// What to report of an upgrade after a pass.
pub fn advance(
    course: Course,
    seen: &Observation,
    deadline: Duration,
    now: &Time,
) -> Option<UpgradeStatus> {
    match course {
        Course::Straight => None,
        Course::Back(upgrade) => Some(go_back(upgrade, seen, now)),
        Course::Forward(upgrade) => Some(go_on(upgrade, seen, deadline, now)),
    }
}

fn go_back(upgrade: UpgradeStatus, seen: &Observation, now: &Time) -> UpgradeStatus {
    let is_back = seen.failure.is_none() && seen.components.iter().all(Component::is_complete);
    match upgrade.step {
        UpgradeStep::RollingBack if is_back => at(upgrade, UpgradeStep::RolledBack, None, now),
        _ => upgrade,
    }
}

fn go_on(
    upgrade: UpgradeStatus,
    seen: &Observation,
    deadline: Duration,
    now: &Time,
) -> UpgradeStatus {
    // Neither says anything about the release.
    if seen.failure.is_some() || seen.lacks_mounted_secret() {
        return upgrade;
    }
    let unfinished = seen.components.iter().find(|role| !role.is_complete());
    let (step, role) = match (&seen.migration, unfinished) {
        (Migration::Succeeded, Some(component)) => (UpgradeStep::RollingOut, Some(component.role)),
        (Migration::Succeeded, None) if seen.probe == Probe::Passed => (UpgradeStep::Done, None),
        (Migration::Succeeded, None) => (UpgradeStep::Probing, None),
        _ => (UpgradeStep::Migrating, None),
    };
    let upgrade = at(upgrade, step, role, now);
    let is_late = |since: &Time| {
        let stood = Duration::try_from(now.0.duration_since(since.0));
        stood.unwrap_or_default() >= deadline
    };
    let why = match (step, unfinished) {
        (UpgradeStep::Migrating, _) => {
            // The Job may have waited for something, such as a Secret, before it was made.
            why_not_migrated(seen, seen.migration_began.as_ref().is_some_and(is_late))
        }
        (UpgradeStep::RollingOut, Some(component)) => why_not_rolled_out(component, seen),
        (UpgradeStep::Probing, _) => why_not_probed(seen, is_late(&upgrade.step_started_at)),
        _ => None,
    };
    match why {
        Some(why) => {
            let mut failed = at(upgrade, UpgradeStep::RollingBack, None, now);
            failed.message = Some(why);
            failed
        }
        None => upgrade,
    }
}

fn why_not_migrated(seen: &Observation, is_late: bool) -> Option<String> {
    let gave_up = matches!(seen.migration, Migration::Failed(_));
    (gave_up || is_late).then(|| format!("migration: {}", verdict_of_schema(seen)))
}

/// The Deployment's own deadline begins anew with each pod that gets ready, so that many pods may take long.
fn why_not_rolled_out(component: &Component, seen: &Observation) -> Option<String> {
    if !component.has_given_up() {
        return None;
    }
    let role = component.role.name();
    let trouble = crate::status::trouble_of(role, &seen.pods);
    Some(format!(
        "{role}: {}",
        trouble.unwrap_or_else(|| "its pods don't get ready in time".to_owned())
    ))
}

fn why_not_probed(seen: &Observation, is_late: bool) -> Option<String> {
    match &seen.probe {
        Probe::Failed(failure) if is_late => Some(format!("a probe message: {failure}")),
        _ => None,
    }
}

/// The same upgrade at another step; a step that goes on keeps its time.
fn at(upgrade: UpgradeStatus, step: UpgradeStep, role: Option<Role>, now: &Time) -> UpgradeStatus {
    let component = role.map(|role| role.name().to_owned());
    if upgrade.step == step && upgrade.component == component {
        return upgrade;
    }
    UpgradeStatus {
        step,
        component,
        step_started_at: now.clone(),
        ..upgrade
    }
}

/// `0.1.0 → 0.1.1`, with the images when the versions are the same.
pub fn describe(upgrade: &UpgradeStatus) -> String {
    let (from, to) = (&upgrade.from, &upgrade.to);
    match from.version == to.version {
        true => format!("{} → {}", from.image, to.image),
        false => format!("{} → {}", from.version, to.version),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::ProbeFailure;
    use crate::status::tests::{component, pod, settled};
    use serde_json::json;

    const DEADLINE: Duration = Duration::from_secs(300);

    fn time(seconds: u32) -> Time {
        let (minutes, seconds) = (seconds / 60, seconds % 60);
        Time(
            format!("2026-01-01T00:{minutes:02}:{seconds:02}Z")
                .parse()
                .unwrap(),
        )
    }

    fn release(version: &str) -> Release {
        Release {
            version: version.to_owned(),
            image: format!("carillon:{version}"),
        }
    }

    fn status(upgrade: Option<UpgradeStatus>) -> ChatClusterStatus {
        ChatClusterStatus {
            release: Some(release("0.1.0")),
            upgrade,
            ..ChatClusterStatus::default()
        }
    }

    fn begun() -> UpgradeStatus {
        match course(&release("0.1.1"), Some(&status(None)), &time(0)) {
            Course::Forward(upgrade) => upgrade,
            other => panic!("{other:?}"),
        }
    }

    fn next(upgrade: &UpgradeStatus, seen: &Observation, seconds: u32) -> UpgradeStatus {
        let course = course(
            &release("0.1.1"),
            Some(&status(Some(upgrade.clone()))),
            &time(seconds),
        );
        advance(course, seen, DEADLINE, &time(seconds)).unwrap()
    }

    /// All roles of the new release but those from `role` on.
    fn rolled_out_before(role: Role) -> Observation {
        let mut seen = settled();
        for component in &mut seen.components {
            component.as_ordered = component.role < role;
        }
        seen
    }

    fn given_up(role: Role) -> Observation {
        let mut seen = rolled_out_before(role);
        let place = Role::ALL.iter().position(|of| *of == role).unwrap();
        seen.components[place] = component(role, 2, 1, 2);
        let deployment = seen.components[place].deployment.as_mut().unwrap();
        deployment.status.as_mut().unwrap().conditions = Some(
            serde_json::from_value(json!([
                { "type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded" },
            ]))
            .unwrap(),
        );
        seen
    }

    #[test]
    fn a_first_release_and_the_same_one_are_no_upgrade() {
        assert_eq!(course(&release("0.1.0"), None, &time(0)), Course::Straight);
        assert_eq!(
            course(&release("0.1.0"), Some(&status(None)), &time(0)),
            Course::Straight
        );
        assert_eq!(
            course(&release("0.1.0"), Some(&status(Some(begun()))), &time(0)),
            Course::Straight,
            "whoever orders the old one again stops the upgrade"
        );
    }

    #[test]
    fn steps_come_in_order_and_keep_their_times() {
        let mut seen = rolled_out_before(Role::Auth);
        seen.migration = Migration::Running;
        let mut upgrade = next(&begun(), &seen, 1);
        assert_eq!(upgrade.step, UpgradeStep::Migrating);
        assert_eq!(upgrade.step_started_at, time(0));
        for (second, role) in Role::ALL.iter().enumerate() {
            let second = 10 + u32::try_from(second).unwrap();
            upgrade = next(&upgrade, &rolled_out_before(*role), second);
            assert_eq!(upgrade.component.as_deref(), Some(role.name()));
            assert_eq!(upgrade, next(&upgrade, &rolled_out_before(*role), 100));
            assert_eq!(upgrade.step_started_at, time(second));
        }
        let mut seen = settled();
        seen.probe = Probe::Doubted;
        upgrade = next(&upgrade, &seen, 30);
        assert_eq!(
            (upgrade.step, &upgrade.component),
            (UpgradeStep::Probing, &None)
        );
        upgrade = next(&upgrade, &settled(), 31);
        assert_eq!(upgrade.step, UpgradeStep::Done);
        assert_eq!(upgrade.started_at, time(0));
    }

    #[test]
    fn one_role_at_a_time() {
        assert_eq!(reached(&rolled_out_before(Role::Auth).components), 1);
        assert_eq!(reached(&rolled_out_before(Role::Media).components), 4);
        assert_eq!(reached(&settled().components), 6);
        // A role that was done and lost a pod is waited for.
        let mut seen = rolled_out_before(Role::Media);
        seen.components[0] = component(Role::Auth, 2, 2, 1);
        assert_eq!(reached(&seen.components), 1);
    }

    #[test]
    fn a_migration_that_gives_up_or_hangs_is_taken_back() {
        let mut seen = rolled_out_before(Role::Auth);
        seen.migration = Migration::Failed(None);
        seen.pods = vec![pod(
            "migrate",
            "x",
            json!({ "containerStatuses": [{
            "name": "migrate", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "terminated": { "exitCode": 1, "message": "scylla: no such table" } },
        }] }),
        )];
        let failed = next(&begun(), &seen, 5);
        assert_eq!(failed.step, UpgradeStep::RollingBack);
        assert_eq!(
            failed.message.as_deref(),
            Some("migration: scylla: no such table")
        );
        seen.migration = Migration::Running;
        seen.migration_began = Some(time(0));
        seen.pods.clear();
        assert_eq!(next(&begun(), &seen, 299).step, UpgradeStep::Migrating);
        let late = next(&begun(), &seen, 300);
        assert_eq!(late.step, UpgradeStep::RollingBack);
        assert_eq!(
            late.message.as_deref(),
            Some("migration: the migration runs")
        );
    }

    #[test]
    fn a_role_whose_pods_do_not_come_up_is_taken_back() {
        let mut seen = given_up(Role::Media);
        seen.pods = vec![pod(
            "media",
            "town-media-7",
            json!({ "containerStatuses": [{
            "name": "media", "image": "carillon:0.1.1", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "waiting": { "reason": "ImagePullBackOff" } },
        }] }),
        )];
        let failed = next(&begun(), &seen, 5);
        assert_eq!(failed.step, UpgradeStep::RollingBack);
        assert_eq!(
            failed.message.as_deref(),
            Some("media: ImagePullBackOff: pod town-media-7: image carillon:0.1.1")
        );
        // However long it takes while the Deployment says that it gets on.
        let slow = next(&begun(), &rolled_out_before(Role::Media), 5);
        let slower = next(&slow, &rolled_out_before(Role::Media), 3000);
        assert_eq!(slower.step, UpgradeStep::RollingOut);
    }

    #[test]
    fn messages_that_do_not_get_through_are_waited_for_and_then_it_is_taken_back() {
        let mut seen = settled();
        seen.probe = Probe::Failed(ProbeFailure {
            step: "send",
            detail: "gateway g: HTTP 500 internal".to_owned(),
        });
        let probing = next(&begun(), &seen, 5);
        assert_eq!(probing.step, UpgradeStep::Probing);
        assert_eq!(next(&probing, &seen, 304).step, UpgradeStep::Probing);
        let failed = next(&probing, &seen, 305);
        assert_eq!(failed.step, UpgradeStep::RollingBack);
        assert_eq!(
            failed.message.as_deref(),
            Some("a probe message: send: gateway g: HTTP 500 internal")
        );
    }

    #[test]
    fn what_was_taken_back_stays_so_until_something_else_is_ordered() {
        let failed = next(&begun(), &given_up(Role::Auth), 5);
        assert_eq!(next(&failed, &rolled_out_before(Role::Auth), 6), failed);
        let back = next(&failed, &settled(), 7);
        assert_eq!(back.step, UpgradeStep::RolledBack);
        assert_eq!(back.message, failed.message);
        assert_eq!(next(&back, &settled(), 3000), back);
        let other = course(&release("0.1.2"), Some(&status(Some(back))), &time(8));
        assert!(matches!(other, Course::Forward(upgrade) if upgrade.started_at == time(8)));
    }

    /// Neither is the new release's fault.
    #[test]
    fn an_api_server_that_fails_and_a_missing_secret_take_nothing_back() {
        let mut seen = given_up(Role::Auth);
        seen.failure = Some("x".to_owned());
        assert_eq!(next(&begun(), &seen, 3000), begun());
        seen.failure = None;
        seen.missing_secrets = vec![crate::status::tests::missing("scylla", "f", true)];
        assert_eq!(next(&begun(), &seen, 3000), begun());
    }

    #[test]
    fn versions_are_named_or_else_images() {
        assert_eq!(describe(&begun()), "0.1.0 → 0.1.1");
        let mut same = begun();
        same.to.version = "0.1.0".to_owned();
        assert_eq!(describe(&same), "carillon:0.1.0 → carillon:0.1.1");
    }
}
