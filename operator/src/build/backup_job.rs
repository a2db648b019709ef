//! The Job that makes a ChatBackup's backup, or the CronJob that makes one after the other; and the Job that restores one into a new
//! ChatCluster before any of its roles starts.
//!
//! A backup's pods aren't the ChatCluster's: they carry its configuration and no label of it, so that nothing takes them for a role.

use carillon_crds::config::{CONFIG_FILE, SECRETS_DIR};
use carillon_crds::{BackupBucket, ChatBackup, RestoreFrom};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::labels::{MANAGED_BY, MANAGED_BY_LABEL, RESTORE_COMPONENT, labels, metadata};
use super::migration_job::service_account_name;
use super::pod::{
    MIGRATED_STORES, Volumes, container_security, environment, image_pull_secrets, pod_security,
};
use super::{object, short_hash};
use crate::validate::Order;

/// Label with the ChatBackup's name, of its Jobs and their pods.
pub const BACKUP_LABEL: &str = "carillon.chat/backup";

/// Where the pod finds the bucket's credentials, below the other Secrets.
const CREDENTIALS: &str = "backup";
/// What the pod writes its report to: the kubelet puts it into the pod's status.
const REPORT: &str = "/dev/termination-log";
/// How long one attempt waits for the database.
const PATIENCE_SECONDS: &str = "60";

/// Name of the Job or CronJob of a ChatBackup.
pub fn backup_job_name(backup: &ChatBackup) -> String {
    format!("{}-backup", backup.name_any())
}

/// The Job that makes a backup once.
pub fn backup_job(order: &Order, backup: &ChatBackup, owner: &OwnerReference) -> Job {
    object(json!({
        "metadata": backup_metadata(order, backup, owner),
        "spec": backup_job_spec(order, backup),
    }))
}

/// The CronJob of a ChatBackup with a schedule.
pub fn backup_cron_job(order: &Order, backup: &ChatBackup, owner: &OwnerReference) -> CronJob {
    object(json!({
        "metadata": backup_metadata(order, backup, owner),
        "spec": {
            "schedule": backup.spec.schedule,
            "timeZone": "Etc/UTC",
            "suspend": backup.spec.suspend.unwrap_or(false),
            // A backup that takes longer than the time between two is finished, and the next one left out.
            "concurrencyPolicy": "Forbid",
            // What was missed while nobody could start it is made up for within the hour.
            "startingDeadlineSeconds": 3600,
            "successfulJobsHistoryLimit": 2,
            "failedJobsHistoryLimit": 2,
            "jobTemplate": {
                "metadata": { "labels": backup_labels(backup) },
                "spec": backup_job_spec(order, backup),
            },
        },
    }))
}

fn backup_labels(backup: &ChatBackup) -> Value {
    json!({
        "app.kubernetes.io/name": "carillon-backup",
        MANAGED_BY_LABEL: MANAGED_BY,
        BACKUP_LABEL: backup.name_any(),
    })
}

fn backup_metadata(order: &Order, backup: &ChatBackup, owner: &OwnerReference) -> Value {
    json!({
        "name": backup_job_name(backup),
        "namespace": order.namespace,
        "labels": backup_labels(backup),
        "ownerReferences": [owner],
    })
}

fn backup_job_spec(order: &Order, backup: &ChatBackup) -> Value {
    let spec = &backup.spec;
    let mut arguments = vec!["backup".to_owned()];
    arguments.extend(bucket_arguments("--to", &spec.to.s3));
    if spec.without_media == Some(true) {
        arguments.push("--without-media".to_owned());
    }
    if let Some(retention) = &spec.retention {
        for (argument, number) in [
            ("--keep-last", retention.keep_last),
            ("--keep-days", retention.max_age_days),
        ] {
            if let Some(number) = number {
                arguments.extend([argument.to_owned(), number.to_string()]);
            }
        }
    }
    let mut template = pod(order, "backup", &spec.to.s3, arguments);
    template["metadata"] = json!({ "labels": backup_labels(backup) });
    json!({ "backoffLimit": 2, "template": template })
}

/// The Job that restores a backup into a new ChatCluster.
pub(super) fn restore(order: &Order) -> Option<Job> {
    let from = order.spec.restore_from.as_ref()?;
    let mut arguments = vec!["restore".to_owned()];
    arguments.extend(bucket_arguments("--from", &from.s3));
    arguments.extend(["--backup".to_owned(), from.backup.clone()]);
    let mut template = pod(order, RESTORE_COMPONENT, &from.s3, arguments);
    template["metadata"] = json!({ "labels": labels(order, RESTORE_COMPONENT) });
    Some(object(json!({
        "metadata": metadata(order, restore_job_name(order, from), Some(RESTORE_COMPONENT)),
        "spec": { "backoffLimit": 3, "template": template },
    })))
}

/// Another backup is another Job; another image is not: the one that began goes on.
fn restore_job_name(order: &Order, from: &RestoreFrom) -> String {
    let decides =
        serde_json::to_string(from).expect("plain structs with string keys always serialize");
    format!("{}-restore-{}", order.name, short_hash(&decides))
}

fn bucket_arguments(place: &str, bucket: &BackupBucket) -> Vec<String> {
    let mut arguments: Vec<String> = [
        "--config",
        CONFIG_FILE,
        place,
        &bucket.place(),
        "--endpoint",
        &bucket.endpoint,
        "--credentials-dir",
        &format!("{SECRETS_DIR}/{CREDENTIALS}"),
        "--patience",
        PATIENCE_SECONDS,
        "--report",
        REPORT,
    ]
    .map(str::to_owned)
    .to_vec();
    if let Some(region) = &bucket.region {
        arguments.extend(["--region".to_owned(), region.clone()]);
    }
    arguments
}

/// A pod's template, without labels.
fn pod(order: &Order, name: &str, bucket: &BackupBucket, arguments: Vec<String>) -> Value {
    let mut volumes = Volumes::with_configuration(order);
    volumes.add_store_credentials(order, MIGRATED_STORES);
    if let Some(s3) = order.spec.s3() {
        volumes.add_secret("s3", &s3.secret_name);
    }
    volumes.add_secret(CREDENTIALS, &bucket.secret_name);
    let mut pod = json!({
        "serviceAccountName": service_account_name(order),
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "securityContext": pod_security(),
        "restartPolicy": "Never",
        "volumes": volumes.volumes,
        "containers": [{
            "name": name,
            "image": order.image.reference,
            "imagePullPolicy": order.image.pull_policy,
            "args": arguments,
            "env": environment(),
            "resources": { "requests": { "cpu": "100m", "memory": "128Mi" }, "limits": { "memory": "1Gi" } },
            "securityContext": container_security(),
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": volumes.mounts,
        }],
    });
    if !order.image.pull_secrets.is_empty() {
        pod["imagePullSecrets"] = image_pull_secrets(order);
    }
    json!({ "spec": pod })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::tests::{FULL, order_of, yaml_of};

    const BUCKET: &str =
        "{bucket: backups, endpoint: 'https://s3.example.com', prefix: town, secretName: backups}";

    fn owner() -> OwnerReference {
        OwnerReference {
            api_version: "carillon.chat/v1alpha1".into(),
            kind: "ChatBackup".into(),
            name: "nightly".into(),
            uid: "77777777-2222-3333-4444-555555555555".into(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }

    fn backup(more: &str) -> ChatBackup {
        let spec = format!("{{cluster: town, to: {{s3: {BUCKET}}}{more}}}");
        ChatBackup::new("nightly", serde_saphyr::from_str(&spec).unwrap())
    }

    #[test]
    fn backup_once() {
        insta::assert_snapshot!(yaml_of(&backup_job(&order_of(FULL), &backup(""), &owner())));
    }

    #[test]
    fn backup_by_the_clock() {
        let backup = backup(
            ", schedule: '0 3 * * *', withoutMedia: true, retention: {keepLast: 7, maxAgeDays: 30}",
        );
        insta::assert_snapshot!(yaml_of(&backup_cron_job(
            &order_of(FULL),
            &backup,
            &owner()
        )));
    }

    #[test]
    fn restore_job() {
        assert!(restore(&order_of(FULL)).is_none());
        let spec =
            format!("{FULL}restoreFrom: {{s3: {BUCKET}, backup: 20260101t030000z-0a0b0c0d}}\n");
        insta::assert_snapshot!(yaml_of(&restore(&order_of(&spec))));
    }

    /// As every other pod: see [`crate::build`].
    #[test]
    fn its_pods_are_restricted_and_have_no_token() {
        let job = backup_job(&order_of(FULL), &backup(""), &owner());
        let pod = job.spec.unwrap().template.spec.unwrap();
        assert_eq!(pod.automount_service_account_token, Some(false));
        let security = pod.security_context.unwrap();
        assert_eq!(security.run_as_non_root, Some(true));
        let container = pod.containers[0].security_context.clone().unwrap();
        assert_eq!(container.read_only_root_filesystem, Some(true));
        assert_eq!(container.allow_privilege_escalation, Some(false));
        assert_eq!(container.capabilities.unwrap().drop.unwrap(), ["ALL"]);
    }
}
