//! What [`ReplicaRegistry`] promises.

use std::{sync::Arc, time::Duration};

use carillon_domain::{
    ReplicaId, RoomId,
    ports::{Replica, ReplicaRegistry},
};

const LONG: Duration = Duration::from_secs(600);
/// How long an end may take to show. Waiting ends as soon as it did.
const PATIENCE: Duration = Duration::from_secs(20);

/// Every clause.
pub async fn all(registry: Arc<dyn ReplicaRegistry>) {
    announced_replicas_are_live_in_order(&*registry).await;
    roles_are_apart(&*registry).await;
    announcing_again_replaces_the_address(&*registry).await;
    a_withdrawn_replica_is_gone_at_once(&*registry).await;
    a_silent_replica_ends_and_a_renewed_one_stays(&*registry).await;
}

fn role() -> String {
    format!("role-{}", RoomId::new())
}

fn replica(name: &str) -> Replica {
    Replica {
        id: ReplicaId(name.into()),
        address: format!("http://{name}:50052"),
    }
}

/// MSG-20: every process sees the same replicas in the same order.
pub async fn announced_replicas_are_live_in_order(registry: &dyn ReplicaRegistry) {
    let role = role();
    assert_eq!(registry.live(&role).await.unwrap(), []);
    for name in ["message-b", "message-c", "message-a", "message-10"] {
        registry
            .announce(&role, &replica(name), LONG)
            .await
            .unwrap();
    }
    let expected = ["message-10", "message-a", "message-b", "message-c"].map(replica);
    assert_eq!(registry.live(&role).await.unwrap(), expected);
}

/// MSG-20: a replica of one role is none of another.
pub async fn roles_are_apart(registry: &dyn ReplicaRegistry) {
    let (one, other) = (role(), role());
    registry.announce(&one, &replica("a"), LONG).await.unwrap();
    assert_eq!(registry.live(&other).await.unwrap(), []);
}

/// MSG-20: an announcement renews, and says where the replica is now.
pub async fn announcing_again_replaces_the_address(registry: &dyn ReplicaRegistry) {
    let role = role();
    let mut moved = replica("a");
    registry.announce(&role, &moved, LONG).await.unwrap();
    moved.address = "http://elsewhere:1".into();
    registry.announce(&role, &moved, LONG).await.unwrap();
    assert_eq!(registry.live(&role).await.unwrap(), [moved]);
}

/// OPS-02: a clean stop is seen at once; withdrawing again, or who never was, is fine.
pub async fn a_withdrawn_replica_is_gone_at_once(registry: &dyn ReplicaRegistry) {
    let role = role();
    registry.announce(&role, &replica("a"), LONG).await.unwrap();
    registry.announce(&role, &replica("b"), LONG).await.unwrap();
    for name in ["a", "a", "never"] {
        registry
            .withdraw(&role, &ReplicaId(name.into()))
            .await
            .unwrap();
    }
    assert_eq!(registry.live(&role).await.unwrap(), [replica("b")]);
}

/// MSG-20: a crashed replica ends with its lease; one that goes on announcing doesn't.
pub async fn a_silent_replica_ends_and_a_renewed_one_stays(registry: &dyn ReplicaRegistry) {
    let role = role();
    let short = Duration::from_millis(500);
    let began = std::time::Instant::now();
    registry
        .announce(&role, &replica("silent"), short)
        .await
        .unwrap();
    registry
        .announce(&role, &replica("renewed"), short)
        .await
        .unwrap();
    registry
        .announce(&role, &replica("renewed"), LONG)
        .await
        .unwrap();
    let wait = async {
        while registry.live(&role).await.unwrap() != [replica("renewed")] {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let ended = tokio::time::timeout(PATIENCE, wait).await;
    assert!(ended.is_ok(), "the silent one ends, the renewed one stays");
    // Clocks of milliseconds may cut one.
    assert!(
        began.elapsed() + Duration::from_millis(5) >= short,
        "not before its time"
    );
}
