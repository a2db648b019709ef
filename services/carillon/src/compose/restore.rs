//! `carillon restore`: a backup into an empty platform, which nobody can start until all of it is there.

use carillon_adapters::{embedded, scylla};
use carillon_backup::Target;
use carillon_crds::config::StoresConfig;

use super::{
    backup::{Progress, amounts, media, patiently, place, platform, report},
    stores,
};
use crate::{cli::Restore, failure::Failure};

/// Checks a backup and restores it.
pub async fn restore(options: Restore) -> Result<(), Failure> {
    let platform = platform(&options.platform)?;
    let store = place(&options.from, &options.s3, false)?;
    let manifest = carillon_backup::find(&*store, options.backup.as_deref()).await?;
    println!(
        "restoring {} of {}: {}",
        manifest.backup,
        manifest.cluster,
        amounts(&manifest)
    );
    let blobs = media(&platform.config, true)?;
    let mut opened = None;
    let target = if let Some(data_dir) = &platform.data_dir {
        let stores = embedded::open_to_load(data_dir, embedded::Options::default())?;
        opened = Some(stores.clone());
        Target {
            archive: stores.archive,
            accounts: stores.accounts,
            people_index: stores.people_index,
            person_keys: stores.person_keys,
            people: stores.people,
            push_targets: stores.push_targets,
            media: stores.media_index,
            blobs,
        }
    } else {
        let StoresConfig::External(external) = &platform.config.stores else {
            return Err(Failure::software("a store that is neither here nor there"));
        };
        let scylla_options = stores::scylla_options(&external.scylla)?;
        patiently(options.patience, || scylla::migrate_with(&scylla_options)).await?;
        let stores = patiently(options.patience, || {
            scylla::connect_to_load(&scylla_options)
        })
        .await?;
        Target {
            archive: stores.archive,
            accounts: stores.accounts,
            people_index: stores.people_index,
            person_keys: stores.person_keys,
            people: stores.people,
            push_targets: stores.push_targets,
            media: stores.media_index,
            blobs,
        }
    };
    let mut progress = Progress::new();
    carillon_backup::restore(&*store, &manifest, &target, |what, done, all| {
        progress.say(|| format!("{done} of {all} chunks {what}"));
    })
    .await?;
    if let Some(stores) = opened {
        stores.close().await?;
    }
    println!(
        "{} is restored. Signing keys and sessions are no part of a backup: everybody logs in again.",
        manifest.backup
    );
    report(options.report.as_deref(), &options.from, &manifest)
}
