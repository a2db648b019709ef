//! [`MediaIndex`] (MEDIA-01).

use std::sync::Arc;

use carillon_domain::{MediaId, RoomId, Timestamp, UserId, media::Media, ports::MediaIndex};

/// Every clause.
pub async fn all(index: Arc<dyn MediaIndex>) {
    what_was_stored_is_read_back(&*index).await;
    unknown_media_is_none(&*index).await;
    uploads_are_found_by_their_owner(&*index).await;
}

fn upload(owner: UserId) -> Media {
    Media {
        id: MediaId::new(),
        room: RoomId::new(),
        owner,
        file_name: "Zoë's 👋.png".into(),
        content_type: "image/png".into(),
        size: 5_000_000_000,
        sha256: "ab".repeat(32),
        created_at: Timestamp(1_700_000_000_123),
    }
}

/// MEDIA-01: an entry comes back as it was stored.
pub async fn what_was_stored_is_read_back(index: &dyn MediaIndex) {
    let media = upload(UserId::new());
    index.put(&media).await.unwrap();
    assert_eq!(index.get(media.id).await.unwrap(), Some(media.clone()));
    index.put(&media).await.unwrap();
    assert_eq!(
        index.get(media.id).await.unwrap(),
        Some(media),
        "storing it again changes nothing"
    );
}

/// MEDIA-04: an unknown id is no error.
pub async fn unknown_media_is_none(index: &dyn MediaIndex) {
    assert_eq!(index.get(MediaId::new()).await.unwrap(), None);
}

/// AUTH-15: page by page, until they are removed.
pub async fn uploads_are_found_by_their_owner(index: &dyn MediaIndex) {
    let (ann, bob) = (UserId::new(), UserId::new());
    let mut uploads = Vec::new();
    for owner in [ann, bob, ann, ann] {
        let media = upload(owner);
        index.put(&media).await.unwrap();
        uploads.push(media);
    }
    let mut anns: Vec<MediaId> = [0, 2, 3].map(|place: usize| uploads[place].id).to_vec();
    anns.sort_unstable();
    let first = index.of_owner(ann, None, 2).await.unwrap();
    assert_eq!(first, anns[..2]);
    let rest = index.of_owner(ann, Some(first[1]), 2).await.unwrap();
    assert_eq!(rest, anns[2..]);
    for _ in 0..2 {
        index.remove(ann, uploads[0].id).await.unwrap();
        assert_eq!(index.get(uploads[0].id).await.unwrap(), None);
    }
    anns.retain(|id| *id != uploads[0].id);
    assert_eq!(index.of_owner(ann, None, 10).await.unwrap(), anns);
    assert_eq!(
        index.of_owner(bob, None, 10).await.unwrap(),
        [uploads[1].id]
    );
}
