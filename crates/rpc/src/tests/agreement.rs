//! A caller can't tell where a service runs: the same script, run against the service itself and through server and client, leads to
//! the same calls and the same answers.

use std::{fmt::Debug, sync::Arc};

use bytes::Bytes;
use carillon_domain::{
    DeviceId, MediaId, MessageId, Result, RoomId, Sequence, UserId,
    account::{ClientInfo, DeviceType, ProfileChange, Tokens},
    presence::{Lease, PresenceState},
    privacy::Audience,
    push::PushProvider,
    room::{Role, RoomKind, RoomRules},
    security::History,
    services::{
        AccountService, AuthService, HistoryQuery, Login, MediaService, MessageService, NewAccount,
        NewMedia, NewPushTarget, NewRoom, NotificationService, PeopleService, PresenceService,
        Restriction, RoomChange,
    },
    settings::SettingsChange,
    signal::Activity,
};

use super::{
    MAX_UPLOAD, all_of, credentials,
    fakes::{FakeServices, TIME, ann, draft, uuid},
    start,
};
use crate::{
    AccountClient, AuthClient, MediaClient, MediaServer, MessageClient, NotificationClient,
    PeopleClient, PresenceClient, RoleServices,
};

#[derive(Default)]
struct Transcript(Vec<String>);

impl Transcript {
    fn add<T: Debug>(&mut self, answer: Result<T>) {
        self.0.push(format!("{:?}", answer.unwrap()));
    }

    fn add_tokens(&mut self, answer: Result<Tokens>) {
        // Their own debug form hides them.
        self.add(answer.map(|t| {
            (
                t.access_token,
                t.refresh_token,
                t.expires_in,
                t.user,
                t.device,
            )
        }));
    }
}

async fn auth_script(service: &dyn AuthService) -> Transcript {
    let mut said = Transcript::default();
    let client = ClientInfo {
        device_name: Some("Ann's phone".into()),
        user_agent: Some("tests".into()),
        ip: Some("192.0.2.1".into()),
        device_type: Some(DeviceType::Phone),
        platform: Some("Android 16".into()),
    };
    let account = NewAccount {
        username: "ann".into(),
        email: "ann@example.com".into(),
        password: "secret 1".into(),
    };
    let login = Login {
        login: "ann".into(),
        password: "secret 1".into(),
    };
    said.add(service.register(account).await);
    said.add_tokens(service.login(login, client.clone()).await);
    said.add(service.send_otp("+491701234567").await);
    said.add_tokens(
        service
            .verify_otp("+491701234567", "123456", ClientInfo::default())
            .await,
    );
    said.add_tokens(service.refresh("old", client).await);
    said.add(service.logout(&ann()).await);
    said.add(service.logout_all(&ann()).await);
    said.add(service.sessions(&ann()).await);
    said.add(service.end_session(&ann(), DeviceId(uuid(77))).await);
    let viewer = Some(UserId(uuid(3)));
    said.add(
        service
            .users(viewer, &[UserId(uuid(1)), UserId(uuid(2))])
            .await,
    );
    said.add(service.users(None, &[]).await);
    said.add(service.user_by_name(viewer, "ann").await);
    said.add(service.user_by_name(None, "nobody").await);
    said.add(service.me(&ann()).await);
    said.add(service.issue_ticket(&ann()).await);
    said.add(service.redeem_ticket("ticket").await);
    said
}

async fn message_script(service: &dyn MessageService) -> Transcript {
    let mut said = Transcript::default();
    let (actor, peer) = (UserId(uuid(1)), UserId(uuid(2)));
    let (room, id) = (RoomId(uuid(30)), MessageId(uuid(41)));
    let new = NewRoom {
        kind: RoomKind::Channel,
        name: "news".into(),
        description: String::new(),
        rules: RoomRules {
            retention_seconds: Some(60),
            ..RoomRules::default()
        },
    };
    let change = RoomChange {
        name: Some("olds".into()),
        description: None,
        rules: Some(RoomRules::default()),
    };
    let query = HistoryQuery {
        limit: 100,
        before: Some(Sequence(9)),
        after: None,
    };
    said.add(service.create_room(actor, new).await);
    said.add(service.open_direct(actor, peer).await);
    said.add(service.public_rooms(Some(room), 1).await);
    said.add(service.public_rooms(None, 100).await);
    said.add(service.my_rooms(actor, Some(room), 100).await);
    said.add(service.room_ids(actor).await);
    said.add(service.room(actor, room).await);
    said.add(service.delete_room(actor, room).await);
    said.add(service.join(actor, room).await);
    said.add(service.leave(actor, room).await);
    said.add(service.members(actor, room, Some(peer), 1000).await);
    said.add(service.put_member(actor, room, peer, Role::Owner).await);
    said.add(service.remove_member(actor, room, peer).await);
    said.add(service.invite(actor, room, peer).await);
    said.add(service.invites(actor, Some(room), 100).await);
    for restriction in [
        Restriction::Ban,
        Restriction::Unban,
        Restriction::Mute { until: Some(TIME) },
        Restriction::Mute { until: None },
        Restriction::Unmute,
    ] {
        said.add(service.restrict(actor, room, peer, restriction).await);
    }
    said.add(service.restrictions(actor, room, Some(peer), 1000).await);
    said.add(service.change_room(actor, room, change).await);
    said.add(service.mark_delivered(actor, room, Sequence(8)).await);
    said.add(service.receipts(actor, room, None, 1000).await);
    said.add(service.send(actor, room, draft("hello")).await);
    said.add(service.locate(id).await);
    said.add(service.message(actor, room, id).await);
    said.add(service.revisions(actor, room, id).await);
    said.add(service.edit(actor, room, id, "better".into()).await);
    said.add(service.delete(actor, room, id).await);
    said.add(service.history(actor, room, query).await);
    // As large as a page gets: above tonic's default limit.
    said.add(service.events(actor, room, Sequence(3), 1000).await);
    said.add(service.heads(&[room, RoomId(uuid(31))]).await);
    said.add(service.overviews(actor, &[room]).await);
    said.add(service.tail(room, Sequence(0), 1000).await);
    said.add(service.mark_read(actor, room, Sequence(8)).await);
    said.add(
        service
            .activity(actor, room, Activity::Recording, true)
            .await,
    );
    said.add(service.activity(actor, room, Activity::Typing, false).await);
    said
}

async fn account_script(service: &dyn AccountService) -> Transcript {
    let mut said = Transcript::default();
    let who = ann();
    for history in [History::Logins, History::Security] {
        said.add(service.history(&who, history, None, 100).await);
        said.add(service.history(&who, history, Some(uuid(3)), 1).await);
    }
    let change = ProfileChange {
        display_name: None,
        bio: Some("about".into()),
        status: Some(String::new()),
    };
    for change in [change, ProfileChange::default()] {
        said.add(service.change_profile(&who, change).await);
    }
    said.add(service.search(&who, "ann", None, 50).await);
    said.add(service.search(&who, "ann", Some("place"), 1).await);
    for password in [None, Some("secret 1".to_owned())] {
        let changed = service.change_username(&who, "ann2", password.clone());
        said.add(changed.await);
        let changed = service.change_email(&who, "ann2@example.com", password.clone());
        said.add(changed.await);
        let changed = service.change_password(&who, password, "secret 2".into());
        said.add(changed.await);
    }
    let client = ClientInfo {
        ip: Some("192.0.2.7".into()),
        ..ClientInfo::default()
    };
    said.add(service.verify_email("token", client.clone()).await);
    said.add(service.forgot_password("ann@example.com").await);
    let reset = service.reset_password("token", "secret 3".into(), client);
    said.add(reset.await);
    said
}

async fn people_script(service: &dyn PeopleService) -> Transcript {
    let mut said = Transcript::default();
    let (user, other) = (ann().user, UserId(uuid(2)));
    said.add(service.put_contact(user, other).await);
    said.add(service.remove_contact(user, other).await);
    said.add(service.contact(user, other).await);
    said.add(service.contacts(user, Some(other), 1).await);
    said.add(service.contacts(user, None, 1000).await);
    said.add(service.block(user, other).await);
    said.add(service.unblock(user, other).await);
    said.add(service.blocks(user, Some(other), 1).await);
    said.add(service.blocks(user, None, 1000).await);
    said.add(service.sight(user).await);
    said.add(service.sight(other).await);
    said.add(service.settings(user).await);
    for change in [
        SettingsChange::default(),
        SettingsChange {
            last_seen: Some(Audience::Nobody),
            muted_until: Some(None),
            language: Some(Some("de".into())),
            ..SettingsChange::default()
        },
    ] {
        said.add(service.change_settings(user, change).await);
    }
    said
}

async fn presence_script(service: &dyn PresenceService) -> Transcript {
    let mut said = Transcript::default();
    let lease = Lease {
        user: UserId(uuid(1)),
        device: DeviceId(uuid(2)),
        state: PresenceState::Away,
    };
    said.add(service.renew(&[lease]).await);
    said.add(service.release(lease.user, lease.device).await);
    said.add(service.get(&[UserId(uuid(5)), UserId(uuid(4))]).await);
    said.add(service.visible(lease.user, &[UserId(uuid(5))]).await);
    said
}

async fn media_script(service: &dyn MediaService) -> Transcript {
    let mut said = Transcript::default();
    let (actor, id) = (UserId(uuid(1)), MediaId(uuid(50)));
    let file = NewMedia {
        room: RoomId(uuid(30)),
        file_name: "a.png".into(),
        bytes: Bytes::from(vec![1; MAX_UPLOAD]),
    };
    said.add(service.upload(actor, file).await);
    said.add(service.describe(actor, id).await);
    said.add(
        service
            .download(actor, id, None)
            .await
            .map(|(media, bytes)| (media, bytes.len())),
    );
    said.add(service.download(actor, id, Some(10..20)).await);
    said
}

async fn notification_script(service: &dyn NotificationService) -> Transcript {
    let mut said = Transcript::default();
    let target = NewPushTarget {
        provider: PushProvider::WebPush,
        token: "https://push.example.com/1".into(),
        p256dh: Some("key".into()),
        auth: Some("secret".into()),
    };
    said.add(service.register(&ann(), target).await);
    said.add(service.unregister(&ann()).await);
    said
}

/// A local fake, and a remote one behind a server.
async fn both() -> (FakeServices, Arc<FakeServices>, super::Running) {
    let remote = Arc::new(FakeServices::default());
    let server = start(all_of(&remote)).await;
    (FakeServices::default(), remote, server)
}

fn assert_agreement(
    (local_answers, local): (Transcript, &FakeServices),
    (remote_answers, remote): (Transcript, &FakeServices),
) {
    assert!(!local_answers.0.is_empty());
    assert_eq!(remote_answers.0, local_answers.0);
    assert_eq!(remote.calls(), local.calls());
}

/// AUTH-03, AUTH-05, AUTH-06: every call of the auth service.
#[tokio::test]
async fn auth_is_the_same_over_grpc() {
    let (local, remote, server) = both().await;
    let client = AuthClient::connect_lazy(&server.address, credentials()).unwrap();
    let answers = auth_script(&client).await;
    assert_agreement((auth_script(&local).await, &local), (answers, &remote));
}

#[tokio::test]
async fn messages_are_the_same_over_grpc() {
    let (local, remote, server) = both().await;
    let client = MessageClient::connect_lazy(&server.address, credentials()).unwrap();
    let answers = message_script(&client).await;
    assert_agreement((message_script(&local).await, &local), (answers, &remote));
}

/// AUTH-09, AUTH-12: every call of the account service.
#[tokio::test]
async fn accounts_are_the_same_over_grpc() {
    let (local, remote, server) = both().await;
    let client = AccountClient::connect_lazy(&server.address, credentials()).unwrap();
    let answers = account_script(&client).await;
    assert_agreement((account_script(&local).await, &local), (answers, &remote));
}

/// USER-04, USER-05: every call of the people service.
#[tokio::test]
async fn people_are_the_same_over_grpc() {
    let (local, remote, server) = both().await;
    let client = PeopleClient::connect_lazy(&server.address, credentials()).unwrap();
    let answers = people_script(&client).await;
    assert_agreement((people_script(&local).await, &local), (answers, &remote));
}

#[tokio::test]
async fn presence_is_the_same_over_grpc() {
    let (local, remote, server) = both().await;
    let client = PresenceClient::connect_lazy(&server.address, credentials()).unwrap();
    let answers = presence_script(&client).await;
    assert_agreement((presence_script(&local).await, &local), (answers, &remote));
}

#[tokio::test]
async fn media_are_the_same_over_grpc() {
    let (local, remote, server) = both().await;
    let client = MediaClient::connect_lazy(&server.address, credentials()).unwrap();
    let answers = media_script(&client).await;
    assert_agreement((media_script(&local).await, &local), (answers, &remote));
}

/// MEDIA-03: a file that came under a larger limit than today's is still given out.
#[tokio::test]
async fn files_outlive_their_upload_limit() {
    let fake = Arc::new(FakeServices::default());
    let services = RoleServices {
        media: Some(MediaServer::new(fake, 1024)),
        ..Default::default()
    };
    let server = start(services).await;
    let client = MediaClient::connect_lazy(&server.address, credentials()).unwrap();
    let id = MediaId(uuid(50));
    let (media, bytes) = client.download(UserId(uuid(1)), id, None).await.unwrap();
    assert_eq!((media.size, bytes.len()), (5_000_000, 5_000_000));
}

#[tokio::test]
async fn notifications_are_the_same_over_grpc() {
    let (local, remote, server) = both().await;
    let client = NotificationClient::connect_lazy(&server.address, credentials()).unwrap();
    let answers = notification_script(&client).await;
    assert_agreement(
        (notification_script(&local).await, &local),
        (answers, &remote),
    );
}
