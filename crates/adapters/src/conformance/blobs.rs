//! [`BlobStore`] (MEDIA-03).

use std::sync::Arc;

use bytes::Bytes;
use carillon_domain::{ErrorCode, MediaId, ports::BlobStore};

/// Every clause.
pub async fn all(store: Arc<dyn BlobStore>) {
    what_was_stored_is_read_back(&*store).await;
    ranges_are_read(&*store).await;
    absent_bytes_are_not_found(&*store).await;
    deleted_bytes_are_gone(&*store).await;
    many_are_stored_at_once(store).await;
}

/// MEDIA-01: bytes come back as they were stored, none and many.
pub async fn what_was_stored_is_read_back(store: &dyn BlobStore) {
    for size in [0, 1, 4 * 1024 * 1024] {
        let (id, bytes) = (MediaId::new(), pattern(size));
        store.put(id, bytes.clone()).await.unwrap();
        let read = store.get(id, None).await.unwrap();
        assert!(read == bytes, "{size} bytes come back as they were");
    }
}

/// MEDIA-03: range requests.
pub async fn ranges_are_read(store: &dyn BlobStore) {
    let (id, bytes) = (MediaId::new(), pattern(100_000));
    store.put(id, bytes.clone()).await.unwrap();
    for range in [0..1, 0..100_000, 99_999..100_000, 500..70_000, 7..7] {
        let read = store.get(id, Some(range.clone())).await.unwrap();
        let expected = bytes.slice(range.start as usize..range.end as usize);
        assert!(read == expected, "the bytes {range:?}");
    }
}

/// MEDIA-03: nothing is `NotFound`, with and without a range.
pub async fn absent_bytes_are_not_found(store: &dyn BlobStore) {
    for range in [None, Some(0..10), Some(3..3)] {
        let error = store.get(MediaId::new(), range).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::NotFound);
    }
}

/// MSG-23: what was deleted is gone; deleting again is fine.
pub async fn deleted_bytes_are_gone(store: &dyn BlobStore) {
    let id = MediaId::new();
    store.put(id, pattern(10)).await.unwrap();
    store.delete(id).await.unwrap();
    let error = store.get(id, None).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
    store.delete(id).await.unwrap();
    store.delete(MediaId::new()).await.unwrap();
}

/// MEDIA-01: concurrent uploads don't disturb each other.
pub async fn many_are_stored_at_once(store: Arc<dyn BlobStore>) {
    let uploads: Vec<_> = (1..=16)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                let (id, bytes) = (MediaId::new(), pattern(n * 10_000));
                store.put(id, bytes.clone()).await.unwrap();
                assert!(store.get(id, None).await.unwrap() == bytes);
            })
        })
        .collect();
    for upload in uploads {
        upload.await.unwrap();
    }
}

fn pattern(size: usize) -> Bytes {
    (0..size).map(|n| (n * 31 + n / 251) as u8).collect()
}
