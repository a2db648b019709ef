//! Finding the owner of a room among replicas.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use carillon_domain::{
    Error, ErrorCode, ReplicaId, Result, RoomId, UserId,
    partition::{Partition, preferred_owner},
    ports::{Replica, ReplicaRegistry},
    room::RoomKind,
    services::{MessageService, NewRoom},
};

use super::{
    Running, credentials,
    fakes::{FakeServices, draft, uuid},
    start,
};
use crate::{MessageServer, RoleServices, RoutedMessages, RoutedOptions};

const ACTOR: UserId = UserId(uuid::Uuid::from_u128(1));

/// A registry that says what it's told to.
#[derive(Default)]
struct FakeRegistry {
    live: Mutex<Vec<Replica>>,
    broken: Mutex<bool>,
}

#[async_trait]
impl ReplicaRegistry for FakeRegistry {
    async fn announce(&self, _: &str, replica: &Replica, _: Duration) -> Result<()> {
        self.live.lock().unwrap().push(replica.clone());
        Ok(())
    }

    async fn withdraw(&self, _: &str, replica: &ReplicaId) -> Result<()> {
        self.live.lock().unwrap().retain(|one| one.id != *replica);
        Ok(())
    }

    async fn live(&self, role: &str) -> Result<Vec<Replica>> {
        assert_eq!(role, "message");
        if *self.broken.lock().unwrap() {
            return Err(Error::new(ErrorCode::Unavailable, "redis is not available"));
        }
        Ok(self.live.lock().unwrap().clone())
    }
}

struct Node {
    id: ReplicaId,
    fake: Arc<FakeServices>,
    server: Running,
}

async fn node(id: &'static str, fake: FakeServices) -> Node {
    let fake = Arc::new(fake);
    let server = start(RoleServices {
        message: Some(MessageServer::new(fake.clone())),
        ..Default::default()
    })
    .await;
    Node {
        id: ReplicaId(id.into()),
        fake,
        server,
    }
}

struct Town {
    registry: Arc<FakeRegistry>,
    nodes: Vec<Node>,
    router: RoutedMessages,
}

async fn town(nodes: Vec<Node>, options: RoutedOptions) -> Town {
    let registry = Arc::new(FakeRegistry::default());
    for node in &nodes {
        let replica = Replica {
            id: node.id.clone(),
            address: node.server.address.clone(),
        };
        registry
            .announce("message", &replica, Duration::ZERO)
            .await
            .unwrap();
    }
    Town {
        router: RoutedMessages::new(registry.clone(), credentials(), options),
        registry,
        nodes,
    }
}

async fn two() -> Town {
    two_with(RoutedOptions::default()).await
}

async fn two_with(options: RoutedOptions) -> Town {
    let nodes = vec![
        node("a", FakeServices::named("a")).await,
        node("b", FakeServices::named("b")).await,
    ];
    town(nodes, options).await
}

impl Town {
    fn fake(&self, node: usize) -> &FakeServices {
        &self.nodes[node].fake
    }

    /// A room that this node should own.
    fn room_of(&self, node: usize) -> RoomId {
        self.rooms_of(node).next().unwrap()
    }

    fn rooms_of(&self, node: usize) -> impl Iterator<Item = RoomId> {
        let ids: Vec<_> = self.nodes.iter().map(|node| node.id.clone()).collect();
        (100..).map(|n| RoomId(uuid(n))).filter(move |room| {
            preferred_owner(Partition::of_room(*room), &ids) == Some(&ids[node])
        })
    }

    async fn withdraw(&self, node: usize) {
        let id = &self.nodes[node].id;
        self.registry.withdraw("message", id).await.unwrap();
    }
}

fn not_owner() -> Error {
    Error::new(ErrorCode::NotOwner, "not mine")
}

fn reroutes(reason: &str) -> u64 {
    let line = format!("carillon_rpc_reroutes_total{{reason=\"{reason}\"}} ");
    carillon_telemetry::metrics::render()
        .lines()
        .find_map(|it| it.strip_prefix(&line)?.parse().ok())
        .unwrap_or(0)
}

#[tokio::test]
async fn a_rooms_calls_go_to_its_owner() {
    let town = two().await;
    for owner in [0, 1] {
        for room in town.rooms_of(owner).take(5) {
            let view = town.router.room(ACTOR, room).await.unwrap();
            assert_eq!(view.room.name, town.fake(owner).name);
        }
    }
    assert_eq!(town.fake(0).calls().len(), 5);
    assert_eq!(town.fake(1).calls().len(), 5);
}

#[tokio::test]
async fn calls_without_a_room_take_turns() {
    let town = two().await;
    let mut names = Vec::new();
    for _ in 0..4 {
        let rooms = town.router.public_rooms(None, 10).await.unwrap();
        names.push(rooms[0].name.clone());
    }
    names.sort();
    assert_eq!(names, ["a", "a", "b", "b"]);
}

/// Ownership moves: the call is routed again by a fresh view, with the same draft.
#[tokio::test]
async fn not_owner_leads_to_the_new_owner() {
    // Only a failed call makes the view fresh in this test.
    let town = two_with(RoutedOptions {
        refresh: Duration::from_secs(3600),
        ..Default::default()
    })
    .await;
    let room = town.room_of(0);
    town.router.room(ACTOR, room).await.unwrap();
    let before = reroutes("not_owner");
    town.withdraw(0).await;
    town.fake(0).fail_next(std::iter::repeat_n(not_owner(), 20));
    let sent = town.router.send(ACTOR, room, draft("hello")).await.unwrap();
    assert_eq!(sent.message.content, "hello");
    assert_eq!(
        town.fake(1).calls(),
        [format!("send {ACTOR} {room} {:?}", draft("hello"))]
    );
    assert!(reroutes("not_owner") > before);
}

/// An owner that is still opening the partition is asked again.
#[tokio::test]
async fn the_same_replica_is_asked_again_until_it_owns_the_room() {
    let town = two().await;
    let room = town.room_of(1);
    town.fake(1).fail_next([not_owner(), not_owner()]);
    town.router.join(ACTOR, room).await.unwrap();
    assert_eq!(town.fake(1).calls().len(), 3);
    assert!(town.fake(0).calls().is_empty());
}

/// A replica that is gone, though the registry still names it for a while.
#[tokio::test]
async fn a_gone_replica_is_routed_around_once_the_registry_knows() {
    let mut town = two().await;
    let room = town.room_of(0);
    town.router.room(ACTOR, room).await.unwrap();
    town.nodes[0].server.stop.cancel();
    (&mut town.nodes[0].server.task).await.unwrap().unwrap();
    let before = reroutes("unavailable");
    let (answer, ()) = tokio::join!(town.router.room(ACTOR, room), async {
        while reroutes("unavailable") == before {
            tokio::task::yield_now().await;
        }
        town.withdraw(0).await;
    });
    assert_eq!(answer.unwrap().room.name, "b");
}

/// A replica that doesn't answer costs one try, not the call.
#[tokio::test]
async fn a_silent_replica_costs_one_try() {
    let nodes = vec![
        node("a", FakeServices::hanging()).await,
        node("b", FakeServices::named("b")).await,
    ];
    let town = town(
        nodes,
        RoutedOptions {
            call_deadline: Duration::from_millis(100),
            ..Default::default()
        },
    )
    .await;
    for _ in 0..2 {
        let rooms = town.router.public_rooms(None, 10).await.unwrap();
        assert_eq!(rooms[0].name, "b");
    }
}

/// Promise 8: a replica that is paused for longer than its lease holds up its calls no longer than that.
#[tokio::test]
async fn a_call_leaves_a_silent_replica_whose_lease_ended() {
    let never = Duration::from_secs(3600);
    let nodes = vec![
        node("a", FakeServices::hanging()).await,
        node("b", FakeServices::named("b")).await,
    ];
    let town = town(
        nodes,
        RoutedOptions {
            refresh: Duration::from_millis(10),
            call_deadline: never,
            total_deadline: never,
            ..Default::default()
        },
    )
    .await;
    let room = town.room_of(0);
    let lease_ends = async {
        while town.fake(0).calls().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        town.withdraw(0).await;
    };
    let both = async { tokio::join!(town.router.room(ACTOR, room), lease_ends) };
    let (view, ()) = tokio::time::timeout(Duration::from_secs(60), both)
        .await
        .expect("the call goes to the next owner");
    assert_eq!(view.unwrap().room.name, "b");
}

/// MSG-01: a replica that doesn't answer may have made the room all the same: another one isn't asked to make a second. One that
/// can't be connected to has made nothing.
#[tokio::test]
async fn a_room_is_not_made_twice() {
    let nodes = vec![
        node("a", FakeServices::hanging()).await,
        node("b", FakeServices::hanging()).await,
    ];
    let mut town = town(
        nodes,
        RoutedOptions {
            call_deadline: Duration::from_millis(100),
            ..Default::default()
        },
    )
    .await;
    let new = || NewRoom {
        kind: RoomKind::Private,
        name: "garden".into(),
        description: String::new(),
        rules: carillon_domain::room::RoomRules::default(),
    };
    let error = town.router.create_room(ACTOR, new()).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::DeadlineExceeded);
    let made = town.fake(0).calls().len() + town.fake(1).calls().len();
    assert_eq!(made, 1);

    town.nodes[0].server.stop.cancel();
    (&mut town.nodes[0].server.task).await.unwrap().unwrap();
    town.fake(1).open_door();
    for _ in 0..2 {
        let made = town.router.create_room(ACTOR, new()).await.unwrap();
        assert_eq!(made.room.name, "garden");
    }
}

/// What the service itself says is the answer: a store that is down isn't asked for eight seconds.
#[tokio::test]
async fn the_services_own_errors_are_not_routed_again() {
    let town = two().await;
    let room = town.room_of(0);
    let own = [
        Error::new(ErrorCode::Unavailable, "scylla is not available"),
        Error::new(ErrorCode::DeadlineExceeded, "too slow"),
        Error::not_found("room"),
    ];
    for error in own {
        town.fake(0).fail_next([error.clone()]);
        let got = town.router.room(ACTOR, room).await.unwrap_err();
        assert_eq!((got.code, &got.detail), (error.code, &error.detail));
    }
    assert_eq!(town.fake(0).calls().len(), 3);
}

#[tokio::test]
async fn rooms_of_many_owners_are_asked_at_once_and_put_together() {
    let town = two().await;
    let mut rooms: Vec<_> = town.rooms_of(0).take(3).collect();
    rooms.extend(town.rooms_of(1).take(2));
    town.fake(1).fail_next([not_owner()]);
    let mut heads = town.router.heads(&rooms).await.unwrap();
    heads.sort_by_key(|head| rooms.iter().position(|room| *room == head.room));
    let answered: Vec<_> = heads.iter().map(|head| head.room).collect();
    assert_eq!(answered, rooms);
    // Who had answered wasn't asked again.
    assert_eq!(town.fake(0).calls(), [format!("heads {:?}", &rooms[..3])]);
    assert_eq!(town.fake(1).calls().len(), 2);

    let overviews = town.router.overviews(UserId::new(), &rooms).await.unwrap();
    assert_eq!(overviews.len(), rooms.len());
    assert!(town.router.heads(&[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn without_replicas_a_call_ends_as_unavailable_at_its_deadline() {
    let total_deadline = Duration::from_millis(300);
    let town = town(
        Vec::new(),
        RoutedOptions {
            total_deadline,
            ..Default::default()
        },
    )
    .await;
    let started = Instant::now();
    let error = town.router.room(ACTOR, RoomId(uuid(1))).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    let error = town.router.heads(&[RoomId(uuid(1))]).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(started.elapsed() < Duration::from_secs(3));
}

/// The total deadline also ends a try that is under way.
#[tokio::test]
async fn a_try_under_way_ends_at_the_total_deadline() {
    let nodes = vec![node("a", FakeServices::hanging()).await];
    let town = town(
        nodes,
        RoutedOptions {
            total_deadline: Duration::from_millis(200),
            ..Default::default()
        },
    )
    .await;
    let error = town.router.room_ids(ACTOR).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
}

/// The registry is a hint: without it the last view goes on.
#[tokio::test]
async fn a_registry_out_of_reach_changes_nothing() {
    let town = two().await;
    let room = town.room_of(0);
    town.router.room(ACTOR, room).await.unwrap();
    *town.registry.broken.lock().unwrap() = true;
    // Routed again, so the registry was asked.
    town.fake(0).fail_next([not_owner(), not_owner()]);
    let view = town.router.room(ACTOR, room).await.unwrap();
    assert_eq!(view.room.name, "a");
}

/// A restarted pod: the same address may come back under another id, and an id under another address.
#[tokio::test]
async fn an_address_that_changed_is_called_where_it_is_now() {
    let town = two().await;
    let room = town.room_of(0);
    town.router.room(ACTOR, room).await.unwrap();
    let moved = node("a", FakeServices::named("a elsewhere")).await;
    town.registry.live.lock().unwrap()[0].address = moved.server.address.clone();
    town.fake(0).fail_next(std::iter::repeat_n(not_owner(), 20));
    let view = town.router.room(ACTOR, room).await.unwrap();
    assert_eq!(view.room.name, "a elsewhere");
}
