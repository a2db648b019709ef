//! Carries one of everything from a store to another one by a backup.

use std::sync::Arc;

use carillon_adapters::{backups, conformance::archive::Ports, embedded, scylla};
use carillon_backup::{Options, Source, Target, Writer, restore, save};
use carillon_domain::time::SystemClock;

pub fn of_embedded(stores: &embedded::Stores) -> Ports {
    Ports {
        archive: stores.archive.clone(),
        accounts: stores.accounts.clone(),
        people_index: stores.people_index.clone(),
        person_keys: stores.person_keys.clone(),
        people: stores.people.clone(),
        rooms: stores.rooms.clone(),
        log: stores.log.clone(),
        push_targets: stores.push_targets.clone(),
        media: stores.media_index.clone(),
    }
}

#[allow(dead_code, reason = "one of the two binaries has no ScyllaDB")]
pub fn of_scylla(stores: &scylla::Stores) -> Ports {
    Ports {
        archive: stores.archive.clone(),
        accounts: stores.accounts.clone(),
        people_index: stores.people_index.clone(),
        person_keys: stores.person_keys.clone(),
        people: stores.people.clone(),
        rooms: stores.rooms.clone(),
        log: stores.log.clone(),
        push_targets: stores.push_targets.clone(),
        media: stores.media_index.clone(),
    }
}

/// Saves one store and restores it into the other.
pub async fn carry(from: &Ports, to: &Ports) -> carillon_backup::Manifest {
    let place = tempfile::tempdir().unwrap();
    let backups = backups::directory(place.path(), true).unwrap();
    let options = Options {
        cluster: "town".into(),
        version: "0.0.0".into(),
        blobs: None,
    };
    let mut writer =
        Writer::begin(backups.clone(), Arc::new(SystemClock), options, |_| {}).unwrap();
    let source = Source {
        archive: from.archive.clone(),
        accounts: from.accounts.clone(),
        person_keys: from.person_keys.clone(),
        people: from.people.clone(),
        rooms: from.rooms.clone(),
        log: from.log.clone(),
        push_targets: from.push_targets.clone(),
        media: from.media.clone(),
    };
    save(&source, &mut writer).await.unwrap();
    let manifest = writer.end().await.unwrap();
    let target = Target {
        archive: to.archive.clone(),
        accounts: to.accounts.clone(),
        people_index: to.people_index.clone(),
        person_keys: to.person_keys.clone(),
        people: to.people.clone(),
        push_targets: to.push_targets.clone(),
        media: to.media.clone(),
        blobs: None,
    };
    restore(&*backups, &manifest, &target, |_, _, _| {})
        .await
        .unwrap();
    // Everybody is found by the names they had.
    let found = to.people_index.find("zoë", None, 100).await.unwrap();
    assert_eq!(found.len(), 7);
    manifest
}
