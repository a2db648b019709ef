//! ChatBackups, and a ChatCluster that begins with a backup.

use anyhow::{Context as _, Result, ensure};
use carillon_crds::{ChatBackup, ChatBackupStatus};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::plane::{Plane, eventually};
use crate::stage::{NAME, Stage, first_order};

const PLACE: &str =
    "{s3: {bucket: backups, endpoint: 'https://s3.example.com', secretName: backups}}";
const BACKUP: &str = "20260101t030000000z-0a0b0c0d";

fn api(stage: &Stage) -> Api<ChatBackup> {
    Api::namespaced(stage.plane.admin.clone(), &stage.namespace)
}

/// `kubectl apply --server-side` of a ChatBackup; `more` is YAML of a map.
async fn order(stage: &Stage, name: &str, more: &str) -> Result<(), kube::Error> {
    let spec = format!("{{cluster: {NAME}, to: {PLACE}{more}}}");
    let spec: Value = serde_saphyr::from_str(&spec).expect("YAML");
    let backup = json!({
        "apiVersion": "carillon.chat/v1alpha1", "kind": "ChatBackup",
        "metadata": { "name": name }, "spec": spec,
    });
    let parameters = PatchParams::apply("user").force();
    api(stage)
        .patch(name, &parameters, &Patch::Apply(backup))
        .await
        .map(drop)
}

async fn status(stage: &Stage, name: &str) -> Result<ChatBackupStatus> {
    Ok(api(stage).get(name).await?.status.unwrap_or_default())
}

async fn wait_phase(stage: &Stage, name: &str, phase: &str) -> Result<ChatBackupStatus> {
    eventually(&format!("{name} is {phase}"), async || {
        Ok(status(stage, name).await?.phase.as_deref() == Some(phase))
    })
    .await?;
    status(stage, name).await
}

/// Plays the Job controller: a pod that ended, and the Job's end.
async fn end_job(stage: &Stage, name: &str, code: i32, message: &str) -> Result<()> {
    let jobs: Api<Job> = Api::namespaced(stage.plane.admin.clone(), &stage.namespace);
    let job = jobs.get(name).await?;
    let template = job.spec.context("a spec")?.template;
    let owner = json!({
        "apiVersion": "batch/v1", "kind": "Job", "name": name, "controller": true,
        "uid": job.metadata.uid,
    });
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {
            "generateName": format!("{name}-"),
            "labels": template.metadata.and_then(|metadata| metadata.labels),
            "ownerReferences": [owner],
        },
        "spec": template.spec,
    }))?;
    let pods: Api<Pod> = Api::namespaced(stage.plane.admin.clone(), &stage.namespace);
    let pod = pods.create(&PostParams::default(), &pod).await?;
    let time = "2026-01-01T00:00:00Z";
    let ended = json!({ "status": { "phase": "Succeeded", "containerStatuses": [{
        "name": "backup", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
        "state": { "terminated": { "exitCode": code, "message": message, "finishedAt": time } },
    }] } });
    let parameters = PatchParams::default();
    pods.patch_status(&pod.name_any(), &parameters, &Patch::Merge(ended))
        .await?;
    let condition = |type_: &str| json!({ "type": type_, "status": "True", "lastTransitionTime": time, "lastProbeTime": time });
    let status = match code {
        0 => json!({
            "startTime": time, "completionTime": time, "succeeded": 1,
            "conditions": [condition("SuccessCriteriaMet"), condition("Complete")],
        }),
        _ => json!({
            "startTime": time, "failed": 1,
            "conditions": [condition("FailureTarget"), condition("Failed")],
        }),
    };
    let patch = Patch::Merge(json!({ "status": status }));
    jobs.patch_status(name, &parameters, &patch).await?;
    Ok(())
}

async fn wait_job(stage: &Stage, name: &str) -> Result<()> {
    let jobs = stage.objects("batch", "v1", "Job");
    eventually(&format!("Job {name} is there"), async || {
        Ok(jobs.get_opt(name).await?.is_some())
    })
    .await
}

/// A ChatBackup by the clock, made and changed: every right that the operator has for them.
pub async fn life(stage: &Stage) -> Result<()> {
    let cron_jobs = stage.objects("batch", "v1", "CronJob");
    for schedule in ["0 3 * * *", "30 4 * * 0"] {
        order(
            stage,
            "nightly",
            &format!(", schedule: '{schedule}', retention: {{keepLast: 7}}"),
        )
        .await?;
        eventually("the CronJob has the schedule", async || {
            let found = cron_jobs.get_opt("nightly-backup").await?;
            Ok(found.is_some_and(|found| found.data["spec"]["schedule"] == schedule))
        })
        .await?;
    }
    wait_phase(stage, "nightly", "Scheduled").await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_made_once_and_told() -> Result<()> {
    let Some(plane) = Plane::from_environment("backups::a_backup_is_made_once_and_told").await?
    else {
        return Ok(());
    };
    let stage = Stage::set(&plane).await?;
    let operator = stage.replica("carillon-operator-0").await?;
    operator.start()?;
    // Without its ChatCluster it waits, and says so.
    order(&stage, "before-upgrade", "").await?;
    let pending = wait_phase(&stage, "before-upgrade", "Pending").await?;
    ensure!(pending.conditions[0].reason == "ClusterMissing");
    stage.order(&first_order()).await?;
    stage.settled(&operator).await?;
    wait_job(&stage, "before-upgrade-backup").await?;
    wait_phase(&stage, "before-upgrade", "Running").await?;
    let report = format!(
        r#"{{"backup":"{BACKUP}","location":"s3://backups/{BACKUP}","messages":12,"rooms":3,"accounts":4,"bytes":5678}}"#
    );
    end_job(&stage, "before-upgrade-backup", 0, &report).await?;
    let done = wait_phase(&stage, "before-upgrade", "Completed").await?;
    ensure!(done.backup.as_deref() == Some(BACKUP), "{done:?}");
    ensure!(done.messages == Some(12) && done.bytes == Some(5678));
    ensure!(done.conditions[0].status == "True");
    // It is no child of the ChatCluster, which is unmoved; its Job may go, and isn't made again.
    stage.settled(&operator).await?;
    ensure!(stage.condition("Available").await?.0 == "True");
    let jobs = stage.objects("batch", "v1", "Job");
    jobs.delete("before-upgrade-backup", &DeleteParams::background())
        .await?;
    eventually("the Job is gone", async || {
        Ok(jobs.get_opt("before-upgrade-backup").await?.is_none())
    })
    .await?;
    stage.quiet(&operator).await?;
    ensure!(jobs.get_opt("before-upgrade-backup").await?.is_none());
    ensure!(status(&stage, "before-upgrade").await?.phase.as_deref() == Some("Completed"));

    // One that fails says why.
    order(&stage, "broken", "").await?;
    wait_job(&stage, "broken-backup").await?;
    end_job(
        &stage,
        "broken-backup",
        69,
        "carillon: bucket backups can't be used",
    )
    .await?;
    let failed = wait_phase(&stage, "broken", "Failed").await?;
    ensure!(
        failed.conditions[0].message.contains("can't be used"),
        "{failed:?}"
    );
    stage.strike().await
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_by_the_clock_are_the_api_servers_to_start() -> Result<()> {
    let test = "backups::backups_by_the_clock_are_the_api_servers_to_start";
    let Some(plane) = Plane::from_environment(test).await? else {
        return Ok(());
    };
    let stage = Stage::set(&plane).await?;
    let operator = stage.replica("carillon-operator-0").await?;
    operator.start()?;
    stage.order(&first_order()).await?;
    life(&stage).await?;
    let cron_jobs = stage.objects("batch", "v1", "CronJob");
    let cron_job = cron_jobs.get("nightly-backup").await?;
    ensure!(cron_job.data["spec"]["concurrencyPolicy"] == "Forbid");
    ensure!(cron_job.data["spec"]["suspend"] == false);
    stage.quiet(&operator).await?;
    order(&stage, "nightly", ", schedule: '30 4 * * 0', suspend: true").await?;
    eventually("it is suspended", async || {
        let found = cron_jobs.get("nightly-backup").await?;
        Ok(found.data["spec"]["suspend"] == true)
    })
    .await?;
    // A schedule that has five fields and means nothing.
    order(&stage, "never", ", schedule: '99 99 * * *'").await?;
    let refused = wait_phase(&stage, "never", "Pending").await?;
    ensure!(refused.conditions[0].reason == "Refused", "{refused:?}");

    for (more, about) in [
        (", suspend: true", "spec.suspend"),
        (", schedule: 'daily at noon'", "spec.schedule"),
        (", retention: {}", "spec.retention"),
        (", retention: {keepLast: 0}", "spec.retention.keepLast"),
    ] {
        let Err(kube::Error::Api(error)) = order(&stage, "wrong", more).await else {
            anyhow::bail!("{more} was taken");
        };
        ensure!(error.message.contains(about), "{more}: {}", error.message);
    }
    let Err(kube::Error::Api(error)) = order(&stage, "nightly", "").await else {
        anyhow::bail!("the schedule was taken out");
    };
    ensure!(error.message.contains("made once"), "{}", error.message);
    stage.strike().await
}

/// No role starts, and the cluster isn't Available, until all of the backup is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_cluster_is_never_available_before_it_is_whole() -> Result<()> {
    let test = "backups::a_restored_cluster_is_never_available_before_it_is_whole";
    let Some(plane) = Plane::from_environment(test).await? else {
        return Ok(());
    };
    let stage = Stage::set(&plane).await?;
    let operator = stage.replica("carillon-operator-0").await?;
    operator.start()?;
    let from = format!(
        "restoreFrom: {{s3: {{bucket: backups, endpoint: 'https://s3.example.com', secretName: backups}}, backup: {BACKUP}}}\n"
    );
    let restored = format!("{}{from}", first_order());
    // Asleep from the beginning: nothing that could pass for a cluster that was restored.
    stage
        .order(&format!("{restored}hibernated: true\n"))
        .await?;
    stage
        .wait_condition("Available", "False", "Hibernated")
        .await?;
    stage.quiet(&operator).await?;
    let deployments = stage.objects("apps", "v1", "Deployment");
    ensure!(
        deployments
            .list(&Default::default())
            .await?
            .items
            .is_empty()
    );
    stage.order(&restored).await?;
    stage
        .wait_condition("Available", "False", "Restoring")
        .await?;
    let jobs: Api<Job> = Api::namespaced(plane.admin.clone(), &stage.namespace);
    let restore_job = async || -> Result<Option<Job>> {
        let list = jobs.list(&Default::default()).await?;
        let mut found = list
            .items
            .into_iter()
            .filter(|job| job.name_any().starts_with("town-restore-"));
        Ok(found.next())
    };
    let job = restore_job().await?.context("the Job")?;
    let arguments = job.spec.as_ref().and_then(|spec| {
        let pod = spec.template.spec.as_ref()?;
        pod.containers[0].args.clone()
    });
    ensure!(arguments.context("arguments")?.contains(&BACKUP.to_owned()));
    stage.quiet(&operator).await?;
    ensure!(
        deployments
            .list(&Default::default())
            .await?
            .items
            .is_empty()
    );

    // An attempt that gave up is told, and made anew after a while.
    end_job(&stage, &job.name_any(), 69, "carillon: chunk 7 is missing").await?;
    stage
        .wait_condition("Available", "False", "RestoreFailed")
        .await?;
    ensure!(
        deployments
            .list(&Default::default())
            .await?
            .items
            .is_empty()
    );
    let first = job.metadata.uid.clone();
    eventually("the Job is made anew", async || {
        let job = restore_job().await?;
        Ok(job.is_some_and(|job| job.metadata.uid != first))
    })
    .await?;
    let job = restore_job().await?.context("the Job")?;
    end_job(&stage, &job.name_any(), 0, "").await?;
    stage.settled(&operator).await?;
    ensure!(stage.condition("Available").await?.0 == "True");

    // Once it runs, neither the Job nor the field is needed any more.
    jobs.delete(&job.name_any(), &DeleteParams::background())
        .await?;
    stage
        .order(&format!("{restored}auth: {{accessTokenTtl: 6m}}\n"))
        .await?;
    stage.settled(&operator).await?;
    ensure!(stage.condition("Available").await?.0 == "True");
    stage.order(&first_order()).await?;
    stage.settled(&operator).await?;
    let Err(error) = stage.order(&restored).await else {
        anyhow::bail!("a running cluster was told to begin with a backup");
    };
    ensure!(
        format!("{error:#}").contains("spec.restoreFrom"),
        "{error:#}"
    );
    stage.strike().await
}
