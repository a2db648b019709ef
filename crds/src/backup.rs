//! The `ChatBackup` resource: a backup of a ChatCluster, now or by the clock.

#![allow(
    clippy::duplicated_attributes,
    reason = "printer columns are attributes that repeat their keys"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube_derive::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// A backup of a ChatCluster: one, or one after the other by a schedule.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "carillon.chat",
    version = "v1alpha1",
    kind = "ChatBackup",
    namespaced,
    status = "ChatBackupStatus",
    shortname = "cbk",
    category = "carillon",
    doc = "A backup of a ChatCluster into a bucket, once or one after the other by a schedule.",
    crates(kube_core = "::kube_core"),
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.cluster"),
    printcolumn(name = "Schedule", type_ = "string", json_path = ".spec.schedule"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Backup", type_ = "string", json_path = ".status.backup"),
    printcolumn(name = "Messages", type_ = "integer", json_path = ".status.messages"),
    printcolumn(name = "Finished", type_ = "date", json_path = ".status.finished")
)]
#[x_kube(
    crates(kube_core = "::kube_core"),
    validation = Rule::new("self.cluster == oldSelf.cluster").message("spec.cluster: a ChatBackup stays with its ChatCluster; make another one").field_path(".cluster"),
    validation = Rule::new("has(self.schedule) == has(oldSelf.schedule)").message("spec.schedule: a backup that is made once stays so; make another ChatBackup"),
    validation = Rule::new("!has(self.suspend) || has(self.schedule)").message("spec.suspend: only with a schedule").field_path(".suspend"),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChatBackupSpec {
    /// The ChatCluster, in the same namespace.
    #[schemars(length(min = 1, max = 40))]
    pub cluster: String,
    /// Where to.
    pub to: BackupPlace,
    /// When, in the five fields of cron and UTC, e.g. `0 3 * * *`. Default: none; one backup is made, now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 9, max = 100))]
    #[x_kube(validation = Rule::new("self.matches('^[^ ]+( [^ ]+){4}$')").message("spec.schedule: five fields, each after one space, e.g. 0 3 * * *"))]
    pub schedule: Option<String>,
    /// Makes no more backups for as long as it is true. Only with a schedule. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
    /// Which backups of this ChatCluster are kept in that place. Without it all are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<BackupRetention>,
    /// Leaves out the bytes of uploads, where their own store keeps them safe. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub without_media: Option<bool>,
}

/// Where backups are kept.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackupPlace {
    /// A bucket.
    pub s3: BackupBucket,
}

/// A bucket with backups.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackupBucket {
    /// The bucket; it must exist.
    #[schemars(
        length(min = 3, max = 63),
        regex(pattern = r"^[a-z0-9][a-z0-9.-]*[a-z0-9]$")
    )]
    pub bucket: String,
    /// Where the store is, e.g. `https://s3.example.com`.
    #[schemars(length(max = 500), regex(pattern = r"^https?://[^/ ]+"))]
    pub endpoint: String,
    /// The bucket's region. Default: `us-east-1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[a-z0-9-]+$"))]
    pub region: Option<String>,
    /// Names in the bucket begin with it. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 200), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._/-]*$"))]
    pub prefix: Option<String>,
    /// Secret with the keys `access_key_id` and `secret_access_key`.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
}

impl BackupBucket {
    /// As `carillon backup --to` wants it.
    pub fn place(&self) -> String {
        match self
            .prefix
            .as_deref()
            .map(|prefix| prefix.trim_matches('/'))
        {
            Some(prefix) if !prefix.is_empty() => format!("s3://{}/{prefix}", self.bucket),
            _ => format!("s3://{}", self.bucket),
        }
    }
}

/// Which backups are kept: those that fit any of them, and always the newest.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[x_kube(
    crates(kube_core = "::kube_core"),
    validation = Rule::new("has(self.keepLast) || has(self.maxAgeDays)").message("spec.retention: give keepLast, maxAgeDays, or both"),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackupRetention {
    /// So many of the newest. Default: none are kept for their number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub keep_last: Option<i32>,
    /// Those that aren't older than so many days. Default: none are kept for their age.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 36500))]
    pub max_age_days: Option<i32>,
}

/// A backup that a new ChatCluster begins with.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RestoreFrom {
    /// Where it is kept.
    pub s3: BackupBucket,
    /// Its name, as a ChatBackup's status and `carillon backup list` tell it.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9][a-z0-9-]*$"))]
    pub backup: String,
}

/// What became of a ChatBackup. Only the operator writes it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct ChatBackupStatus {
    /// The generation of the spec that the rest is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Pending`, `Scheduled`, `Running`, `Completed` or `Failed`; of several, the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Name of the newest backup that is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<String>,
    /// Where that is; its manifest is `manifest.json` in there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// When the newest attempt began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Time>,
    /// When the newest complete backup was finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Time>,
    /// Messages in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<i64>,
    /// Rooms in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rooms: Option<i64>,
    /// Bytes that it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
    /// `Ready`: whether the newest attempt made a backup; its message says what is in the way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
}

/// What `carillon backup` says to whoever started it: one line of JSON.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BackupReport {
    /// The backup's name.
    pub backup: String,
    /// Where it is.
    pub location: String,
    /// Messages in it.
    pub messages: u64,
    /// Rooms in it.
    pub rooms: u64,
    /// Accounts in it.
    pub accounts: u64,
    /// Bytes that it takes.
    pub bytes: u64,
}

impl BackupReport {
    /// The line.
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).expect("a plain struct with string keys always serializes")
    }

    /// The reverse of [`BackupReport::to_line`].
    pub fn from_line(line: &str) -> Option<Self> {
        serde_json::from_str(line.trim()).ok()
    }
}
