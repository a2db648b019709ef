//! [`MediaIndex`] (MEDIA-01).

use std::sync::Arc;

use carillon_domain::{MediaId, RoomId, Timestamp, UserId, media::Media, ports::MediaIndex};

/// Every clause.
pub async fn all(index: Arc<dyn MediaIndex>) {
    what_was_stored_is_read_back(&*index).await;
    unknown_media_is_none(&*index).await;
}

/// MEDIA-01: an entry comes back as it was stored.
pub async fn what_was_stored_is_read_back(index: &dyn MediaIndex) {
    let media = Media {
        id: MediaId::new(),
        room: RoomId::new(),
        owner: UserId::new(),
        file_name: "Zoë's 👋.png".into(),
        content_type: "image/png".into(),
        size: 5_000_000_000,
        sha256: "ab".repeat(32),
        created_at: Timestamp(1_700_000_000_123),
    };
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
