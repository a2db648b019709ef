//! What a backup carries out of ScyllaDB, into it, and to and from the embedded store.

use carillon_adapters::{
    conformance::archive::{Ports, assert_same, fill, goes_on, seen},
    embedded::{self, Options},
    scylla::{ScyllaOptions, connect, connect_to_load, migrate_with},
};
use carillon_domain::ErrorCode;

use super::{
    carry::{carry, of_embedded, of_scylla},
    guarded,
    scylla::{SCHEMA, drop_keyspace, options},
};

/// A new keyspace that a backup may be loaded into.
async fn keyspace(options: &ScyllaOptions) -> Ports {
    let _one = SCHEMA.lock().await;
    migrate_with(options).await.unwrap();
    of_scylla(&connect_to_load(options).await.unwrap())
}

/// Fills one store, carries it to the other, and compares.
async fn carried(from: Ports, to: Ports) {
    let filled = fill(&from).await;
    carry(&from, &to).await;
    let before = seen(&from, &filled).await;
    assert_same(&before, &seen(&to, &filled).await);
    goes_on(&to, &filled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scylla_is_carried_to_scylla() {
    let test = "scylla_is_carried_to_scylla";
    let (Some(one), Some(other)) = (options(test), options(test)) else {
        return;
    };
    let body = {
        let (one, other) = (one.clone(), other.clone());
        async move { carried(keyspace(&one).await, keyspace(&other).await).await }
    };
    guarded(body, async {
        drop_keyspace(&one).await;
        drop_keyspace(&other).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_is_carried_to_scylla() {
    let Some(options) = options("embedded_is_carried_to_scylla") else {
        return;
    };
    let body = {
        let options = options.clone();
        async move {
            let folder = tempfile::tempdir().unwrap();
            let from = embedded::open(folder.path()).unwrap();
            carried(of_embedded(&from), keyspace(&options).await).await;
        }
    };
    guarded(body, drop_keyspace(&options)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scylla_is_carried_to_embedded() {
    let Some(options) = options("scylla_is_carried_to_embedded") else {
        return;
    };
    let body = {
        let options = options.clone();
        async move {
            let folder = tempfile::tempdir().unwrap();
            let to = embedded::open_to_load(folder.path(), Options::default()).unwrap();
            carried(keyspace(&options).await, of_embedded(&to)).await;
        }
    };
    guarded(body, drop_keyspace(&options)).await;
}

/// Roles wait while a backup is being loaded, and a keyspace that holds anything takes none.
#[tokio::test(flavor = "multi_thread")]
async fn scylla_is_closed_while_it_is_loaded() {
    let Some(options) = options("scylla_is_closed_while_it_is_loaded") else {
        return;
    };
    let body = {
        let options = options.clone();
        async move {
            let ports = keyspace(&options).await;
            ports.archive.begin_load("b-1").await.unwrap();
            let Err(refused) = connect(&options).await else {
                panic!("half a backup was opened");
            };
            assert_eq!(refused.code, ErrorCode::FailedPrecondition);
            assert!(refused.detail.contains("backup b-1"), "{}", refused.detail);
            let other = ports.archive.begin_load("b-2").await.unwrap_err();
            assert_eq!(other.code, ErrorCode::FailedPrecondition);
            fill(&ports).await;
            assert!(ports.archive.begin_load("b-1").await.unwrap());
            ports.archive.end_load("b-1").await.unwrap();
            connect(&options).await.unwrap();
            assert!(!ports.archive.begin_load("b-1").await.unwrap());
            let full = ports.archive.begin_load("b-2").await.unwrap_err();
            assert_eq!(full.code, ErrorCode::FailedPrecondition);
        }
    };
    guarded(body, drop_keyspace(&options)).await;
}
