//! Scripted services: they note what they were called with, and answer what follows from it.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::Mutex,
};

use async_trait::async_trait;
use bytes::Bytes;
use carillon_domain::{
    ClientMessageId, DeviceId, Error, ErrorCode, MediaId, MessageId, Result, RoomId, Sequence,
    Timestamp, UserId,
    account::{
        ClientInfo, DeviceType, Identity, ProfileChange, Session, SessionView, Tokens, User,
    },
    event::{Draft, EventBody, Mentions, Message, MessageType, Revision, RoomEvent},
    limit::{Grant, Policy, Subject, Usage},
    media::Media,
    people::{Hidden, Related, Sight},
    ports::{RateLimiter, Reached, ReadMark, Receipt, Restricted},
    presence::{Lease, Presence, PresenceState},
    privacy::{Audience, Privacy},
    room::{Member, Restrictions, Role, Room, RoomKind, RoomRules},
    security::{History, SecurityEvent, SecurityEventKind},
    services::{
        AccountService, AuthService, EventPage, FoundUsers, HistoryQuery, Login, MediaService,
        MessageService, NewAccount, NewMedia, NewPushTarget, NewRoom, NotificationService,
        PeopleService, PresenceService, ResolvedRoom, Restriction, RoomChange, RoomHead,
        RoomOverview, RoomSummary, RoomView, SendOutcome, TokenVerifier,
    },
    settings::{Settings, SettingsChange},
    signal::Activity,
};
use tokio::sync::Semaphore;
use uuid::Uuid;

pub const TIME: Timestamp = Timestamp(1_700_000_000_123);

pub fn uuid(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

/// The identity of the access token "good".
pub fn ann() -> Identity {
    Identity {
        user: UserId(uuid(1)),
        device: DeviceId(uuid(2)),
        token_id: uuid(3),
        expires_at: TIME,
    }
}

/// Knows one token.
pub struct FakeVerifier;

#[async_trait]
impl TokenVerifier for FakeVerifier {
    async fn verify_access(&self, token: &str) -> Result<Identity> {
        match token {
            "good" => Ok(ann()),
            "probe" => Ok(Identity {
                user: UserId::PROBE,
                ..ann()
            }),
            "store-down" => Err(Error::new(ErrorCode::Unavailable, "redis is not available")),
            _ => Err(Error::unauthenticated("the token is not valid")),
        }
    }

    async fn check_revocation(&self, _who: &Identity) -> Result<()> {
        Ok(())
    }
}

/// Counts at a time that stands still.
#[derive(Default)]
pub struct FakeLimiter(Mutex<HashMap<Subject, Usage>>);

#[async_trait]
impl RateLimiter for FakeLimiter {
    async fn take(
        &self,
        policy: &Policy,
        subject: Subject,
        wanted: u32,
        owed: u32,
    ) -> Result<Grant> {
        let mut usages = self.0.lock().unwrap();
        let usage = usages.entry(subject).or_default();
        Ok(usage.take(policy, 0, wanted, owed))
    }

    // As if the answer were far away.
    fn take_now(&self, _: &Policy, _: Subject, _: u32) -> Option<Grant> {
        None
    }
}

/// All services at once.
pub struct FakeServices {
    /// Distinguishes replicas: part of every summary's name.
    pub name: &'static str,
    calls: Mutex<Vec<String>>,
    failures: Mutex<VecDeque<Error>>,
    /// Calls that may pass; a closed door holds every call.
    door: Semaphore,
    /// The trace id that the last call was made in.
    pub trace_id: Mutex<Option<String>>,
}

impl Default for FakeServices {
    fn default() -> Self {
        Self::named("fake")
    }
}

impl FakeServices {
    pub fn named(name: &'static str) -> Self {
        Self {
            name,
            calls: Mutex::default(),
            failures: Mutex::default(),
            door: Semaphore::new(Semaphore::MAX_PERMITS),
            trace_id: Mutex::default(),
        }
    }

    /// One that never answers until [`FakeServices::open_door`].
    pub fn hanging() -> Self {
        Self {
            door: Semaphore::new(0),
            ..Self::default()
        }
    }

    pub fn open_door(&self) {
        self.door.add_permits(1000);
    }

    /// The next calls fail so, in this order.
    pub fn fail_next(&self, errors: impl IntoIterator<Item = Error>) {
        self.failures.lock().unwrap().extend(errors);
    }

    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    async fn note(&self, call: String) -> Result<()> {
        *self.trace_id.lock().unwrap() = carillon_telemetry::propagation::trace_id();
        self.calls.lock().unwrap().push(call);
        self.door.acquire().await.unwrap().forget();
        match self.failures.lock().unwrap().pop_front() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

fn user(id: UserId, name: &str) -> User {
    User {
        id,
        username: name.into(),
        display_name: format!("{name}!"),
        created_at: TIME,
        about: Default::default(),
    }
}

fn tokens(name: &str) -> Tokens {
    Tokens {
        access_token: format!("access-{name}"),
        refresh_token: format!("refresh-{name}"),
        expires_in: 900,
        user: user(UserId(uuid(9)), name),
        device: DeviceId(uuid(8)),
    }
}

#[async_trait]
impl AuthService for FakeServices {
    async fn register(&self, new: NewAccount) -> Result<User> {
        let NewAccount {
            username,
            email,
            password,
        } = new;
        self.note(format!("register {username} {email} {password}"))
            .await?;
        Ok(user(UserId(uuid(4)), &username))
    }

    async fn login(&self, login: Login, client: ClientInfo) -> Result<Tokens> {
        let Login { login, password } = login;
        self.note(format!("login {login} {password} {client:?}"))
            .await?;
        Ok(tokens(&login))
    }

    async fn send_otp(&self, phone: &str) -> Result<()> {
        self.note(format!("send_otp {phone}")).await
    }

    async fn verify_otp(&self, phone: &str, code: &str, client: ClientInfo) -> Result<Tokens> {
        self.note(format!("verify_otp {phone} {code} {client:?}"))
            .await?;
        Ok(tokens(phone))
    }

    async fn refresh(&self, token: &str, client: ClientInfo) -> Result<Tokens> {
        self.note(format!("refresh {token} {client:?}")).await?;
        Ok(tokens(token))
    }

    async fn logout(&self, who: &Identity) -> Result<()> {
        self.note(format!("logout {who:?}")).await
    }

    async fn logout_all(&self, who: &Identity) -> Result<u64> {
        self.note(format!("logout_all {who:?}")).await?;
        Ok(3)
    }

    async fn sessions(&self, who: &Identity) -> Result<Vec<SessionView>> {
        self.note(format!("sessions {who:?}")).await?;
        let session = Session {
            user: who.user,
            device: who.device,
            refresh_hash: [0; 32],
            access_token_id: Uuid::nil(),
            access_expires_at: TIME,
            expires_at: Timestamp(TIME.0 + 1),
            created_at: Timestamp(TIME.0 + 2),
            last_seen_at: Timestamp(TIME.0 + 3),
            client: ClientInfo {
                device_name: Some("phone".into()),
                user_agent: None,
                ip: Some("192.0.2.1".into()),
                device_type: Some(DeviceType::Phone),
                platform: Some("Android 16".into()),
            },
        };
        Ok(vec![SessionView {
            session,
            has_push: true,
        }])
    }

    async fn end_session(&self, who: &Identity, device: DeviceId) -> Result<()> {
        self.note(format!("end_session {who:?} {device}")).await
    }

    async fn users(&self, viewer: Option<UserId>, ids: &[UserId]) -> Result<Vec<User>> {
        self.note(format!("users {viewer:?} {ids:?}")).await?;
        Ok(ids.iter().map(|id| user(*id, "somebody")).collect())
    }

    async fn user_by_name(&self, viewer: Option<UserId>, name: &str) -> Result<Option<User>> {
        self.note(format!("user_by_name {viewer:?} {name}")).await?;
        Ok((name != "nobody").then(|| user(UserId(uuid(5)), name)))
    }

    async fn me(&self, who: &Identity) -> Result<(User, Option<String>)> {
        self.note(format!("me {who:?}")).await?;
        Ok((user(who.user, "me"), Some("me@example.com".into())))
    }

    async fn issue_ticket(&self, who: &Identity) -> Result<String> {
        self.note(format!("issue_ticket {who:?}")).await?;
        Ok("ticket".into())
    }

    async fn redeem_ticket(&self, ticket: &str) -> Result<Identity> {
        self.note(format!("redeem_ticket {ticket}")).await?;
        Ok(ann())
    }
}

pub fn room(id: RoomId, name: &str) -> Room {
    Room {
        id,
        kind: RoomKind::Group,
        name: name.into(),
        description: "described".into(),
        created_by: UserId(uuid(1)),
        created_at: TIME,
        pair: Some([UserId(uuid(1)), UserId(uuid(2))]),
        deleted_at: None,
        rules: RoomRules {
            edit_window_seconds: Some(60),
            edit_unread_only: true,
            retention_seconds: Some(3600),
        },
    }
}

fn view(id: RoomId, name: &str) -> RoomView {
    RoomView {
        room: room(id, name),
        role: Some(Role::Admin),
        head: Sequence(7),
    }
}

pub fn draft(content: &str) -> Draft {
    Draft {
        client_message_id: ClientMessageId("c1".into()),
        message_type: MessageType::Text,
        content: content.into(),
        reply_to: Some(MessageId(uuid(40))),
    }
}

fn message(room: RoomId, sender: UserId, draft: Draft) -> Message {
    Message {
        id: MessageId(uuid(41)),
        room,
        sequence: Sequence(5),
        messages_before: 4,
        sender,
        time: TIME,
        client_message_id: draft.client_message_id,
        message_type: draft.message_type,
        content: draft.content,
        reply_to: draft.reply_to,
        edited_at: Some(TIME),
        deleted_at: None,
        revision: Sequence(6),
        mentions: Mentions {
            users: vec![UserId(uuid(2))],
            room: true,
        },
    }
}

/// A page of messages after a place, each as large as they get.
fn events(room: RoomId, after: Sequence, limit: usize) -> EventPage {
    let first = after.0 + 1;
    let events = (first..first + limit as u64).map(|n| RoomEvent {
        room,
        sequence: Sequence(n),
        messages_before: n - 1,
        time: TIME,
        actor: UserId(uuid(1)),
        body: EventBody::Message {
            id: MessageId(uuid(u128::from(n))),
            draft: draft(&"x".repeat(16 * 1024)),
            mentions: Mentions::default(),
        },
    });
    EventPage {
        events: events.collect(),
        head: Sequence(after.0 + 5000),
        first_available: Sequence(1),
    }
}

#[async_trait]
impl MessageService for FakeServices {
    async fn create_room(&self, actor: UserId, new: NewRoom) -> Result<RoomView> {
        self.note(format!("create_room {actor} {new:?}")).await?;
        Ok(view(RoomId(uuid(30)), &new.name))
    }

    async fn open_direct(&self, actor: UserId, peer: UserId) -> Result<(RoomView, bool)> {
        self.note(format!("open_direct {actor} {peer}")).await?;
        Ok((view(RoomId(uuid(31)), ""), true))
    }

    async fn public_rooms(&self, after: Option<RoomId>, limit: usize) -> Result<Vec<Room>> {
        self.note(format!("public_rooms {after:?} {limit}")).await?;
        Ok(vec![room(RoomId(uuid(32)), self.name)])
    }

    async fn my_rooms(
        &self,
        actor: UserId,
        after: Option<RoomId>,
        limit: usize,
    ) -> Result<Vec<RoomSummary>> {
        self.note(format!("my_rooms {actor} {after:?} {limit}"))
            .await?;
        let id = RoomId(uuid(33));
        Ok(vec![RoomSummary {
            room: room(id, self.name),
            peer: Some(UserId(uuid(2))),
            head: Sequence(9),
            last_message: Some(message(id, actor, draft("last"))),
            read: ReadMark {
                sequence: Sequence(3),
                messages: 2,
                time: TIME,
            },
            unread: 4,
            mentions: 1,
        }])
    }

    async fn room_ids(&self, actor: UserId) -> Result<Vec<RoomId>> {
        self.note(format!("room_ids {actor}")).await?;
        Ok(vec![RoomId(uuid(30)), RoomId(uuid(31))])
    }

    async fn room(&self, actor: UserId, room: RoomId) -> Result<RoomView> {
        self.note(format!("room {actor} {room}")).await?;
        Ok(view(room, self.name))
    }

    async fn delete_room(&self, actor: UserId, room: RoomId) -> Result<()> {
        self.note(format!("delete_room {actor} {room}")).await
    }

    async fn join(&self, actor: UserId, room: RoomId) -> Result<Sequence> {
        self.note(format!("join {actor} {room}")).await?;
        Ok(Sequence(11))
    }

    async fn leave(&self, actor: UserId, room: RoomId) -> Result<()> {
        self.note(format!("leave {actor} {room}")).await
    }

    async fn members(
        &self,
        actor: UserId,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Member>> {
        self.note(format!("members {actor} {room} {after:?} {limit}"))
            .await?;
        Ok(vec![Member {
            user: actor,
            role: Role::Moderator,
            since: Sequence(2),
            joined_at: TIME,
        }])
    }

    async fn put_member(
        &self,
        actor: UserId,
        room: RoomId,
        user: UserId,
        role: Role,
    ) -> Result<Member> {
        self.note(format!("put_member {actor} {room} {user} {role:?}"))
            .await?;
        Ok(Member {
            user,
            role,
            since: Sequence(12),
            joined_at: TIME,
        })
    }

    async fn remove_member(&self, actor: UserId, room: RoomId, user: UserId) -> Result<()> {
        self.note(format!("remove_member {actor} {room} {user}"))
            .await
    }

    async fn invite(&self, actor: UserId, room: RoomId, user: UserId) -> Result<()> {
        self.note(format!("invite {actor} {room} {user}")).await
    }

    async fn invites(
        &self,
        actor: UserId,
        after: Option<RoomId>,
        limit: usize,
    ) -> Result<Vec<Room>> {
        self.note(format!("invites {actor} {after:?} {limit}"))
            .await?;
        Ok(vec![room(RoomId(uuid(9)), "asked")])
    }

    async fn restrict(
        &self,
        actor: UserId,
        room: RoomId,
        user: UserId,
        restriction: Restriction,
    ) -> Result<()> {
        self.note(format!("restrict {actor} {room} {user} {restriction:?}"))
            .await
    }

    async fn restrictions(
        &self,
        actor: UserId,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Restricted>> {
        self.note(format!("restrictions {actor} {room} {after:?} {limit}"))
            .await?;
        Ok(vec![Restricted {
            user: actor,
            restrictions: Restrictions {
                banned: true,
                muted_until: Some(Timestamp(5_000)),
                invited: false,
            },
        }])
    }

    async fn change_room(
        &self,
        actor: UserId,
        room: RoomId,
        change: RoomChange,
    ) -> Result<RoomView> {
        self.note(format!("change_room {actor} {room} {change:?}"))
            .await?;
        Ok(view(room, "changed"))
    }

    async fn mark_delivered(
        &self,
        actor: UserId,
        room: RoomId,
        sequence: Sequence,
    ) -> Result<Reached> {
        self.note(format!("mark_delivered {actor} {room} {sequence}"))
            .await?;
        Ok(Reached {
            sequence,
            time: Timestamp(6_000),
        })
    }

    async fn receipts(
        &self,
        actor: UserId,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Receipt>> {
        self.note(format!("receipts {actor} {room} {after:?} {limit}"))
            .await?;
        let reached = Reached {
            sequence: Sequence(3),
            time: Timestamp(7_000),
        };
        Ok(vec![
            Receipt {
                user: actor,
                delivered: Some(reached),
                read: None,
            },
            Receipt {
                user: actor,
                delivered: Some(reached),
                read: Some(reached),
            },
        ])
    }

    async fn send(&self, actor: UserId, room: RoomId, draft: Draft) -> Result<SendOutcome> {
        self.note(format!("send {actor} {room} {draft:?}")).await?;
        Ok(SendOutcome {
            message: message(room, actor, draft),
            duplicate: true,
        })
    }

    async fn locate(&self, message: MessageId) -> Result<ResolvedRoom> {
        self.note(format!("locate {message}")).await?;
        Ok(ResolvedRoom {
            room: RoomId(uuid(30)),
            sequence: Sequence(13),
        })
    }

    async fn message(&self, actor: UserId, room: RoomId, id: MessageId) -> Result<Message> {
        self.note(format!("message {actor} {room} {id}")).await?;
        Ok(message(room, actor, draft("found")))
    }

    async fn revisions(&self, actor: UserId, room: RoomId, id: MessageId) -> Result<Vec<Revision>> {
        self.note(format!("revisions {actor} {room} {id}")).await?;
        Ok(vec![Revision {
            sequence: Sequence(1),
            time: TIME,
            content: "before".into(),
        }])
    }

    async fn edit(
        &self,
        actor: UserId,
        room: RoomId,
        id: MessageId,
        content: String,
    ) -> Result<Message> {
        self.note(format!("edit {actor} {room} {id} {content}"))
            .await?;
        Ok(message(room, actor, draft(&content)))
    }

    async fn delete(&self, actor: UserId, room: RoomId, id: MessageId) -> Result<Message> {
        self.note(format!("delete {actor} {room} {id}")).await?;
        Ok(message(room, actor, draft("")))
    }

    async fn history(
        &self,
        actor: UserId,
        room: RoomId,
        query: HistoryQuery,
    ) -> Result<Vec<Message>> {
        self.note(format!("history {actor} {room} {query:?}"))
            .await?;
        Ok(vec![message(room, actor, draft("old"))])
    }

    async fn events(
        &self,
        actor: UserId,
        room: RoomId,
        after: Sequence,
        limit: usize,
    ) -> Result<EventPage> {
        self.note(format!("events {actor} {room} {after} {limit}"))
            .await?;
        Ok(events(room, after, limit))
    }

    async fn heads(&self, rooms: &[RoomId]) -> Result<Vec<RoomHead>> {
        self.note(format!("heads {rooms:?}")).await?;
        let head = |room: &RoomId| RoomHead {
            room: *room,
            head: Sequence(21),
        };
        Ok(rooms.iter().map(head).collect())
    }

    async fn overviews(&self, reader: UserId, rooms: &[RoomId]) -> Result<Vec<RoomOverview>> {
        self.note(format!("overviews {reader} {rooms:?}")).await?;
        let overview = |room: &RoomId| RoomOverview {
            room: *room,
            head: Sequence(22),
            last_message: Some(message(*room, UserId(uuid(1)), draft("last"))),
            read: ReadMark {
                sequence: Sequence(9),
                messages: 8,
                time: Timestamp(7),
            },
            unread: 12,
            mentions: 1,
        };
        Ok(rooms.iter().map(overview).collect())
    }

    async fn tail(&self, room: RoomId, after: Sequence, limit: usize) -> Result<EventPage> {
        self.note(format!("tail {room} {after} {limit}")).await?;
        Ok(events(room, after, limit))
    }

    async fn mark_read(&self, actor: UserId, room: RoomId, sequence: Sequence) -> Result<ReadMark> {
        self.note(format!("mark_read {actor} {room} {sequence}"))
            .await?;
        Ok(ReadMark {
            sequence,
            messages: 3,
            time: TIME,
        })
    }

    async fn activity(
        &self,
        actor: UserId,
        room: RoomId,
        activity: Activity,
        active: bool,
    ) -> Result<()> {
        self.note(format!("activity {actor} {room} {activity:?} {active}"))
            .await
    }
}

#[async_trait]
impl AccountService for FakeServices {
    async fn history(
        &self,
        who: &Identity,
        history: History,
        before: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<SecurityEvent>> {
        self.note(format!("history {who:?} {history:?} {before:?} {limit}"))
            .await?;
        Ok(vec![SecurityEvent {
            id: uuid(90),
            time: TIME,
            kind: SecurityEventKind::TokenReused,
            device: Some(who.device),
            client: ClientInfo::default(),
        }])
    }

    async fn change_profile(&self, who: &Identity, change: ProfileChange) -> Result<User> {
        self.note(format!("change_profile {who:?} {change:?}"))
            .await?;
        let mut user = user(who.user, "me");
        change.apply(&mut user);
        Ok(user)
    }

    async fn search(
        &self,
        who: &Identity,
        query: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<FoundUsers> {
        self.note(format!("search {who:?} {query} {after:?} {limit}"))
            .await?;
        Ok(FoundUsers {
            users: vec![user(UserId(uuid(6)), query)],
            next: after.map(|after| format!("{after}+")),
        })
    }

    async fn change_username(
        &self,
        who: &Identity,
        username: &str,
        password: Option<String>,
    ) -> Result<User> {
        self.note(format!("change_username {who:?} {username} {password:?}"))
            .await?;
        Ok(user(who.user, username))
    }

    async fn change_email(
        &self,
        who: &Identity,
        email: &str,
        password: Option<String>,
    ) -> Result<()> {
        self.note(format!("change_email {who:?} {email} {password:?}"))
            .await
    }

    async fn change_password(
        &self,
        who: &Identity,
        current: Option<String>,
        new: String,
    ) -> Result<()> {
        self.note(format!("change_password {who:?} {current:?} {new}"))
            .await
    }

    async fn verify_email(&self, token: &str, client: ClientInfo) -> Result<()> {
        self.note(format!("verify_email {token} {client:?}")).await
    }

    async fn forgot_password(&self, email: &str) -> Result<()> {
        self.note(format!("forgot_password {email}")).await
    }

    async fn reset_password(&self, token: &str, new: String, client: ClientInfo) -> Result<()> {
        self.note(format!("reset_password {token} {new} {client:?}"))
            .await
    }

    async fn erase(&self, who: &Identity, password: Option<String>) -> Result<()> {
        self.note(format!("erase {who:?} {password:?}")).await
    }
}

#[async_trait]
impl PeopleService for FakeServices {
    async fn put_contact(&self, user: UserId, other: UserId) -> Result<()> {
        self.note(format!("put_contact {user} {other}")).await
    }

    async fn remove_contact(&self, user: UserId, other: UserId) -> Result<()> {
        self.note(format!("remove_contact {user} {other}")).await
    }

    async fn contact(&self, user: UserId, other: UserId) -> Result<Related> {
        self.note(format!("contact {user} {other}")).await?;
        Ok(Related {
            user: other,
            since: TIME,
        })
    }

    async fn contacts(
        &self,
        user: UserId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Related>> {
        self.note(format!("contacts {user} {after:?} {limit}"))
            .await?;
        Ok(vec![Related { user, since: TIME }])
    }

    async fn block(&self, user: UserId, other: UserId) -> Result<()> {
        self.note(format!("block {user} {other}")).await
    }

    async fn unblock(&self, user: UserId, other: UserId) -> Result<()> {
        self.note(format!("unblock {user} {other}")).await
    }

    async fn blocks(
        &self,
        user: UserId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Related>> {
        self.note(format!("blocks {user} {after:?} {limit}"))
            .await?;
        Ok(vec![Related { user, since: TIME }])
    }

    async fn sight(&self, user: UserId) -> Result<Sight> {
        self.note(format!("sight {user}")).await?;
        let hidden = match user == ann().user {
            true => Hidden::Everybody,
            false => Hidden::People(vec![ann().user, user]),
        };
        Ok(Sight {
            hidden,
            privacy: Privacy {
                last_seen: Audience::Contacts,
                ..Privacy::default()
            },
            contacts: vec![user],
            contact_of: vec![ann().user],
        })
    }

    async fn settings(&self, user: UserId) -> Result<Settings> {
        self.note(format!("settings {user}")).await?;
        Ok(Settings {
            muted_until: Some(TIME),
            ..Settings::default()
        })
    }

    async fn change_settings(&self, user: UserId, change: SettingsChange) -> Result<Settings> {
        self.note(format!("change_settings {user} {change:?}"))
            .await?;
        let mut settings = Settings::default();
        change.apply(&mut settings);
        Ok(settings)
    }
}

#[async_trait]
impl PresenceService for FakeServices {
    async fn renew(&self, leases: &[Lease]) -> Result<()> {
        self.note(format!("renew {leases:?}")).await
    }

    async fn release(&self, user: UserId, device: DeviceId) -> Result<()> {
        self.note(format!("release {user} {device}")).await
    }

    async fn get(&self, users: &[UserId]) -> Result<Vec<Presence>> {
        self.note(format!("get {users:?}")).await?;
        let presence = |user: &UserId| Presence {
            user: *user,
            state: PresenceState::Away,
            last_seen: Some(TIME),
        };
        Ok(users.iter().map(presence).collect())
    }

    async fn visible(&self, viewer: UserId, users: &[UserId]) -> Result<Vec<Presence>> {
        self.note(format!("visible {viewer} {users:?}")).await?;
        let presence = |user: &UserId| Presence {
            user: *user,
            state: PresenceState::Online,
            last_seen: Some(TIME),
        };
        Ok(users.iter().map(presence).collect())
    }
}

fn media(id: MediaId, owner: UserId, room: RoomId, file_name: String, size: u64) -> Media {
    Media {
        id,
        room,
        owner,
        file_name,
        content_type: "image/png".into(),
        size,
        sha256: "00".into(),
        created_at: TIME,
    }
}

#[async_trait]
impl MediaService for FakeServices {
    async fn upload(&self, actor: UserId, new: NewMedia) -> Result<Media> {
        let size = new.bytes.len() as u64;
        self.note(format!(
            "upload {actor} {} {} {size}",
            new.room, new.file_name
        ))
        .await?;
        Ok(media(
            MediaId(uuid(50)),
            actor,
            new.room,
            new.file_name,
            size,
        ))
    }

    async fn describe(&self, actor: UserId, id: MediaId) -> Result<Media> {
        self.note(format!("describe {actor} {id}")).await?;
        Ok(media(id, actor, RoomId(uuid(30)), "a.png".into(), 1))
    }

    async fn download(
        &self,
        actor: UserId,
        id: MediaId,
        range: Option<Range<u64>>,
    ) -> Result<(Media, Bytes)> {
        self.note(format!("download {actor} {id} {range:?}"))
            .await?;
        let size = range.map_or(5_000_000, |range| range.end - range.start);
        let bytes = Bytes::from(vec![7; size as usize]);
        Ok((
            media(id, actor, RoomId(uuid(30)), "a.png".into(), size),
            bytes,
        ))
    }
}

#[async_trait]
impl NotificationService for FakeServices {
    async fn register(&self, who: &Identity, target: NewPushTarget) -> Result<()> {
        let NewPushTarget {
            provider,
            token,
            p256dh,
            auth,
        } = target;
        self.note(format!(
            "push {who:?} {provider:?} {token} {p256dh:?} {auth:?}"
        ))
        .await
    }

    async fn unregister(&self, who: &Identity) -> Result<()> {
        self.note(format!("unpush {who:?}")).await
    }
}
