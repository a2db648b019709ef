//! [`carillon_domain::ports::Archive`] of the embedded store: what a backup carries, and who may open a store that is being loaded.

mod carry;

use carillon_adapters::{
    conformance::archive::{assert_same, fill, goes_on, seen},
    embedded::{self, Options},
};
use carillon_domain::ErrorCode;
use carry::{carry, of_embedded};

/// What was written to one store is in the other, and that goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_carries_everything() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let from = embedded::open(folders[0].path()).unwrap();
    let to = embedded::open_to_load(folders[1].path(), Options::default()).unwrap();
    let filled = fill(&of_embedded(&from)).await;
    let manifest = carry(&of_embedded(&from), &of_embedded(&to)).await;
    assert_eq!(manifest.counts.accounts, 7);
    assert_eq!(manifest.counts.rooms, 6);
    to.close().await.unwrap();
    drop(to);
    let to = embedded::open(folders[1].path()).unwrap();
    let before = seen(&of_embedded(&from), &filled).await;
    assert_same(&before, &seen(&of_embedded(&to), &filled).await);
    goes_on(&of_embedded(&to), &filled).await;
}

/// A store that holds a part of a backup can't be opened but to load one, and then that part is gone; one that holds anything else takes
/// none.
#[tokio::test(flavor = "multi_thread")]
async fn half_a_backup_is_never_open() {
    let folder = tempfile::tempdir().unwrap();
    let open = || embedded::open_to_load(folder.path(), Options::default()).unwrap();
    let stores = open();
    assert!(stores.archive.begin_load("b-1").await.unwrap());
    let filled = fill(&of_embedded(&stores)).await;
    assert!(stores.archive.begin_load("b-1").await.unwrap());
    stores.close().await.unwrap();
    drop(stores);
    let Err(refused) = embedded::open(folder.path()) else {
        panic!("half a backup was opened");
    };
    assert_eq!(refused.code, ErrorCode::FailedPrecondition);
    assert!(refused.detail.contains("backup b-1"), "{}", refused.detail);

    let stores = open();
    let nobody = stores.accounts.by_ids(&filled.users).await.unwrap();
    assert!(nobody.is_empty());
    stores.archive.begin_load("b-2").await.unwrap();
    stores.archive.end_load("b-2").await.unwrap();
    assert!(!stores.archive.begin_load("b-2").await.unwrap());
    fill(&of_embedded(&stores)).await;
    let refused = stores.archive.begin_load("b-3").await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::FailedPrecondition);
    stores.close().await.unwrap();
    drop(stores);
    embedded::open(folder.path()).unwrap();
}
