//! Rooms, members, messages and events, to the wire and back.

use carillon_domain::{
    ClientMessageId, Error, Result, Sequence, UserId,
    event::{Draft, EventBody, Mentions, Message, MessageType, Revision, RoomEvent},
    ports::{Reached, ReadMark, Receipt, Restricted},
    room::{Member, Restrictions, Role, Room, RoomKind, RoomRules},
    services::{
        EventPage, Restriction, RoomHead, RoomOverview, RoomSummary, RoomView, SendOutcome,
    },
    signal::Activity,
};

use crate::{
    proto::message as pb,
    values::{id, ids, optional_id, optional_timestamp, required, timestamp, timestamp_to_proto},
};

// === enums ===

pub(super) fn kind_to_proto(kind: RoomKind) -> i32 {
    let kind = match kind {
        RoomKind::Public => pb::RoomKind::Public,
        RoomKind::Private => pb::RoomKind::Private,
        RoomKind::Direct => pb::RoomKind::Direct,
        RoomKind::Group => pb::RoomKind::Group,
        RoomKind::Channel => pb::RoomKind::Channel,
    };
    kind.into()
}

pub(super) fn kind(field: &str, kind: i32) -> Result<RoomKind> {
    match pb::RoomKind::try_from(kind) {
        Ok(pb::RoomKind::Public) => Ok(RoomKind::Public),
        Ok(pb::RoomKind::Private) => Ok(RoomKind::Private),
        Ok(pb::RoomKind::Direct) => Ok(RoomKind::Direct),
        Ok(pb::RoomKind::Group) => Ok(RoomKind::Group),
        Ok(pb::RoomKind::Channel) => Ok(RoomKind::Channel),
        Ok(pb::RoomKind::Unspecified) | Err(_) => Err(Error::invalid(
            field,
            "public, private, direct, group or channel",
        )),
    }
}

pub(super) fn role_to_proto(role: Role) -> i32 {
    let role = match role {
        Role::Member => pb::Role::Member,
        Role::Moderator => pb::Role::Moderator,
        Role::Admin => pb::Role::Admin,
        Role::Owner => pb::Role::Owner,
    };
    role.into()
}

pub(super) fn role(field: &str, role: i32) -> Result<Role> {
    match pb::Role::try_from(role) {
        Ok(pb::Role::Member) => Ok(Role::Member),
        Ok(pb::Role::Moderator) => Ok(Role::Moderator),
        Ok(pb::Role::Admin) => Ok(Role::Admin),
        Ok(pb::Role::Owner) => Ok(Role::Owner),
        Ok(pb::Role::Unspecified) | Err(_) => {
            Err(Error::invalid(field, "member, moderator, admin or owner"))
        }
    }
}

fn message_type_to_proto(message_type: MessageType) -> i32 {
    let message_type = match message_type {
        MessageType::Text => pb::MessageType::Text,
        MessageType::Image => pb::MessageType::Image,
        MessageType::Video => pb::MessageType::Video,
        MessageType::Audio => pb::MessageType::Audio,
        MessageType::File => pb::MessageType::File,
        MessageType::Location => pb::MessageType::Location,
        MessageType::System => pb::MessageType::System,
    };
    message_type.into()
}

fn message_type(field: &str, message_type: i32) -> Result<MessageType> {
    match pb::MessageType::try_from(message_type) {
        Ok(pb::MessageType::Text) => Ok(MessageType::Text),
        Ok(pb::MessageType::Image) => Ok(MessageType::Image),
        Ok(pb::MessageType::Video) => Ok(MessageType::Video),
        Ok(pb::MessageType::Audio) => Ok(MessageType::Audio),
        Ok(pb::MessageType::File) => Ok(MessageType::File),
        Ok(pb::MessageType::Location) => Ok(MessageType::Location),
        Ok(pb::MessageType::System) => Ok(MessageType::System),
        Ok(pb::MessageType::Unspecified) | Err(_) => Err(Error::invalid(
            field,
            "text, image, video, audio, file or location",
        )),
    }
}

pub(super) fn activity_to_proto(activity: Activity) -> i32 {
    let activity = match activity {
        Activity::Typing => pb::Activity::Typing,
        Activity::Recording => pb::Activity::Recording,
    };
    activity.into()
}

pub(super) fn activity(field: &str, activity: i32) -> Result<Activity> {
    match pb::Activity::try_from(activity) {
        Ok(pb::Activity::Typing) => Ok(Activity::Typing),
        Ok(pb::Activity::Recording) => Ok(Activity::Recording),
        Ok(pb::Activity::Unspecified) | Err(_) => Err(Error::invalid(field, "typing or recording")),
    }
}

// === rooms ===

pub(super) fn room_to_proto(room: Room) -> pb::Room {
    pb::Room {
        id: room.id.to_string(),
        kind: kind_to_proto(room.kind),
        name: room.name,
        description: room.description,
        created_by: room.created_by.to_string(),
        created_at: Some(timestamp_to_proto(room.created_at)),
        deleted_at: room.deleted_at.map(timestamp_to_proto),
        pair: room.pair.map(|[first, second]| pb::DirectPair {
            first_user_id: first.to_string(),
            second_user_id: second.to_string(),
        }),
        rules: Some(rules_to_proto(room.rules)),
    }
}

pub(super) fn rules_to_proto(rules: RoomRules) -> pb::RoomRules {
    pb::RoomRules {
        edit_window_seconds: rules.edit_window_seconds,
        edit_unread_only: rules.edit_unread_only,
        retention_seconds: rules.retention_seconds,
    }
}

pub(super) fn rules(rules: pb::RoomRules) -> RoomRules {
    RoomRules {
        edit_window_seconds: rules.edit_window_seconds,
        edit_unread_only: rules.edit_unread_only,
        retention_seconds: rules.retention_seconds,
    }
}

pub(super) fn room(room: pb::Room) -> Result<Room> {
    Ok(Room {
        id: id("room.id", &room.id)?,
        kind: kind("room.kind", room.kind)?,
        name: room.name,
        description: room.description,
        created_by: id("room.created_by", &room.created_by)?,
        created_at: timestamp("room.created_at", room.created_at)?,
        deleted_at: optional_timestamp("room.deleted_at", room.deleted_at)?,
        pair: room.pair.map(pair).transpose()?,
        rules: room.rules.map(rules).unwrap_or_default(),
    })
}

fn pair(pair: pb::DirectPair) -> Result<[UserId; 2]> {
    Ok([
        id("room.pair.first_user_id", &pair.first_user_id)?,
        id("room.pair.second_user_id", &pair.second_user_id)?,
    ])
}

pub(super) fn view_to_proto(view: RoomView) -> pb::RoomView {
    pb::RoomView {
        room: Some(room_to_proto(view.room)),
        role: view.role.map(role_to_proto),
        head: view.head.0,
    }
}

pub(super) fn view(view: Option<pb::RoomView>) -> Result<RoomView> {
    let view = required("room", view)?;
    Ok(RoomView {
        room: room(required("room.room", view.room)?)?,
        role: view.role.map(|it| role("room.role", it)).transpose()?,
        head: Sequence(view.head),
    })
}

pub(super) fn mark_to_proto(mark: ReadMark) -> pb::ReadMark {
    pb::ReadMark {
        sequence: mark.sequence.0,
        messages: mark.messages,
        time: Some(timestamp_to_proto(mark.time)),
    }
}

pub(super) fn mark(mark: Option<pb::ReadMark>) -> Result<ReadMark> {
    let mark = required("read", mark)?;
    Ok(ReadMark {
        sequence: Sequence(mark.sequence),
        messages: mark.messages,
        time: timestamp("read.time", mark.time)?,
    })
}

pub(super) fn summary_to_proto(summary: RoomSummary) -> pb::RoomSummary {
    pb::RoomSummary {
        room: Some(room_to_proto(summary.room)),
        peer_id: summary.peer.map(|peer| peer.to_string()),
        head: summary.head.0,
        last_message: summary.last_message.map(message_to_proto),
        read: Some(mark_to_proto(summary.read)),
        unread: summary.unread,
        mentions: summary.mentions,
    }
}

pub(super) fn summary(summary: pb::RoomSummary) -> Result<RoomSummary> {
    Ok(RoomSummary {
        room: room(required("rooms.room", summary.room)?)?,
        peer: optional_id("rooms.peer_id", summary.peer_id.as_deref())?,
        head: Sequence(summary.head),
        last_message: optional_message(summary.last_message)?,
        read: mark(summary.read)?,
        unread: summary.unread,
        mentions: summary.mentions,
    })
}

pub(super) fn head_to_proto(head: RoomHead) -> pb::RoomHead {
    pb::RoomHead {
        room_id: head.room.to_string(),
        head: head.head.0,
    }
}

pub(super) fn head(head: pb::RoomHead) -> Result<RoomHead> {
    Ok(RoomHead {
        room: id("heads.room_id", &head.room_id)?,
        head: Sequence(head.head),
    })
}

pub(super) fn overview_to_proto(overview: RoomOverview) -> pb::RoomOverview {
    pb::RoomOverview {
        room_id: overview.room.to_string(),
        head: overview.head.0,
        last_message: overview.last_message.map(message_to_proto),
        read: Some(mark_to_proto(overview.read)),
        unread: overview.unread,
        mentions: overview.mentions,
    }
}

pub(super) fn overview(overview: pb::RoomOverview) -> Result<RoomOverview> {
    Ok(RoomOverview {
        room: id("overviews.room_id", &overview.room_id)?,
        head: Sequence(overview.head),
        last_message: optional_message(overview.last_message)?,
        read: mark(overview.read)?,
        unread: overview.unread,
        mentions: overview.mentions,
    })
}

pub(super) fn member_to_proto(member: Member) -> pb::Member {
    pb::Member {
        user_id: member.user.to_string(),
        role: role_to_proto(member.role),
        since: member.since.0,
        joined_at: Some(timestamp_to_proto(member.joined_at)),
    }
}

pub(super) fn member(member: pb::Member) -> Result<Member> {
    Ok(Member {
        user: id("member.user_id", &member.user_id)?,
        role: role("member.role", member.role)?,
        since: Sequence(member.since),
        joined_at: timestamp("member.joined_at", member.joined_at)?,
    })
}

pub(super) fn reached_to_proto(reached: Reached) -> pb::Reached {
    pb::Reached {
        sequence: reached.sequence.0,
        time: Some(timestamp_to_proto(reached.time)),
    }
}

pub(super) fn reached(field: &str, reached: Option<pb::Reached>) -> Result<Reached> {
    let reached = required(field, reached)?;
    Ok(Reached {
        sequence: Sequence(reached.sequence),
        time: timestamp(field, reached.time)?,
    })
}

pub(super) fn receipt_to_proto(receipt: Receipt) -> pb::Receipt {
    pb::Receipt {
        user_id: receipt.user.to_string(),
        delivered: receipt.delivered.map(reached_to_proto),
        read: receipt.read.map(reached_to_proto),
    }
}

pub(super) fn receipt(receipt: pb::Receipt) -> Result<Receipt> {
    let optional =
        |field, mark: Option<pb::Reached>| mark.map(|mark| reached(field, Some(mark))).transpose();
    Ok(Receipt {
        user: id("receipts.user_id", &receipt.user_id)?,
        delivered: optional("receipts.delivered", receipt.delivered)?,
        read: optional("receipts.read", receipt.read)?,
    })
}

pub(super) fn restricted_to_proto(restricted: Restricted) -> pb::Restricted {
    pb::Restricted {
        user_id: restricted.user.to_string(),
        banned: restricted.restrictions.banned,
        muted_until: restricted.restrictions.muted_until.map(timestamp_to_proto),
    }
}

pub(super) fn restricted(restricted: pb::Restricted) -> Result<Restricted> {
    Ok(Restricted {
        user: id("restricted.user_id", &restricted.user_id)?,
        restrictions: Restrictions {
            banned: restricted.banned,
            muted_until: optional_timestamp("restricted.muted_until", restricted.muted_until)?,
            invited: false,
        },
    })
}

pub(super) fn restriction_to_proto(restriction: Restriction) -> pb::restrict_request::Restriction {
    use pb::restrict_request::Restriction as Proto;
    match restriction {
        Restriction::Ban => Proto::Ban(pb::Ban {}),
        Restriction::Unban => Proto::Unban(pb::Unban {}),
        Restriction::Mute { until } => Proto::Mute(pb::Mute {
            until: until.map(timestamp_to_proto),
        }),
        Restriction::Unmute => Proto::Unmute(pb::Unmute {}),
    }
}

pub(super) fn restriction(
    restriction: Option<pb::restrict_request::Restriction>,
) -> Result<Restriction> {
    use pb::restrict_request::Restriction as Proto;
    Ok(match required("restriction", restriction)? {
        Proto::Ban(_) => Restriction::Ban,
        Proto::Unban(_) => Restriction::Unban,
        Proto::Mute(mute) => Restriction::Mute {
            until: optional_timestamp("mute.until", mute.until)?,
        },
        Proto::Unmute(_) => Restriction::Unmute,
    })
}

// === messages ===

pub(super) fn draft_to_proto(draft: Draft) -> pb::Draft {
    pb::Draft {
        client_message_id: draft.client_message_id.0,
        r#type: message_type_to_proto(draft.message_type),
        content: draft.content,
        reply_to: draft.reply_to.map(|id| id.to_string()),
    }
}

/// A draft of a request: its client message id is checked here, since a bad one has no form in the domain.
pub(super) fn checked_draft(draft: Option<pb::Draft>) -> Result<Draft> {
    let draft = self::draft(draft)?;
    if ClientMessageId::parse(&draft.client_message_id.0).is_none() {
        return Err(Error::invalid(
            "client_message_id",
            "1 to 64 visible ASCII characters",
        ));
    }
    Ok(draft)
}

fn draft(draft: Option<pb::Draft>) -> Result<Draft> {
    let draft = required("draft", draft)?;
    Ok(Draft {
        client_message_id: ClientMessageId(draft.client_message_id),
        message_type: message_type("type", draft.r#type)?,
        content: draft.content,
        reply_to: optional_id("reply_to", draft.reply_to.as_deref())?,
    })
}

pub(super) fn message_to_proto(message: Message) -> pb::Message {
    pb::Message {
        id: message.id.to_string(),
        room_id: message.room.to_string(),
        sequence: message.sequence.0,
        messages_before: message.messages_before,
        sender_id: message.sender.to_string(),
        time: Some(timestamp_to_proto(message.time)),
        client_message_id: message.client_message_id.0,
        r#type: message_type_to_proto(message.message_type),
        content: message.content,
        reply_to: message.reply_to.map(|id| id.to_string()),
        edited_at: message.edited_at.map(timestamp_to_proto),
        deleted_at: message.deleted_at.map(timestamp_to_proto),
        revision: message.revision.0,
        mentioned_user_ids: mentioned(&message.mentions),
        mentions_room: message.mentions.room,
    }
}

fn mentioned(mentions: &Mentions) -> Vec<String> {
    mentions.users.iter().map(ToString::to_string).collect()
}

fn mentions(users: &[String], room: bool) -> Result<Mentions> {
    Ok(Mentions {
        users: ids("mentioned_user_ids", users, Mentions::MAX)?,
        room,
    })
}

pub(super) fn message(message: Option<pb::Message>) -> Result<Message> {
    let message = required("message", message)?;
    Ok(Message {
        id: id("message.id", &message.id)?,
        room: id("message.room_id", &message.room_id)?,
        sequence: Sequence(message.sequence),
        messages_before: message.messages_before,
        sender: id("message.sender_id", &message.sender_id)?,
        time: timestamp("message.time", message.time)?,
        client_message_id: ClientMessageId(message.client_message_id),
        message_type: message_type("message.type", message.r#type)?,
        content: message.content,
        reply_to: optional_id("message.reply_to", message.reply_to.as_deref())?,
        edited_at: optional_timestamp("message.edited_at", message.edited_at)?,
        deleted_at: optional_timestamp("message.deleted_at", message.deleted_at)?,
        revision: Sequence(message.revision),
        mentions: mentions(&message.mentioned_user_ids, message.mentions_room)?,
    })
}

fn optional_message(message: Option<pb::Message>) -> Result<Option<Message>> {
    message.map(|it| self::message(Some(it))).transpose()
}

pub(super) fn outcome_to_proto(outcome: SendOutcome) -> pb::SendResponse {
    pb::SendResponse {
        message: Some(message_to_proto(outcome.message)),
        duplicate: outcome.duplicate,
    }
}

pub(super) fn outcome(sent: pb::SendResponse) -> Result<SendOutcome> {
    Ok(SendOutcome {
        message: message(sent.message)?,
        duplicate: sent.duplicate,
    })
}

pub(super) fn revision_to_proto(revision: Revision) -> pb::Revision {
    pb::Revision {
        sequence: revision.sequence.0,
        time: Some(timestamp_to_proto(revision.time)),
        content: revision.content,
    }
}

pub(super) fn revision(revision: pb::Revision) -> Result<Revision> {
    Ok(Revision {
        sequence: Sequence(revision.sequence),
        time: timestamp("revisions.time", revision.time)?,
        content: revision.content,
    })
}

// === events ===

pub(super) fn event_to_proto(event: RoomEvent) -> pb::RoomEvent {
    pb::RoomEvent {
        room_id: event.room.to_string(),
        sequence: event.sequence.0,
        messages_before: event.messages_before,
        time: Some(timestamp_to_proto(event.time)),
        actor_id: event.actor.to_string(),
        body: Some(body_to_proto(event.body)),
    }
}

fn body_to_proto(body: EventBody) -> pb::room_event::Body {
    match body {
        EventBody::Message {
            id,
            draft,
            mentions,
        } => pb::room_event::Body::Message(pb::MessageSent {
            message_id: id.to_string(),
            draft: Some(draft_to_proto(draft)),
            mentioned_user_ids: mentioned(&mentions),
            mentions_room: mentions.room,
        }),
        EventBody::Edited {
            id,
            target,
            content,
        } => pb::room_event::Body::Edited(pb::MessageEdited {
            message_id: id.to_string(),
            target: target.0,
            content,
        }),
        EventBody::Deleted { id, target } => pb::room_event::Body::Deleted(pb::MessageDeleted {
            message_id: id.to_string(),
            target: target.0,
        }),
        EventBody::Joined { user, role } => pb::room_event::Body::Joined(pb::MemberJoined {
            user_id: user.to_string(),
            role: role_to_proto(role),
        }),
        EventBody::Left { user, erased } => pb::room_event::Body::Left(pb::MemberLeft {
            user_id: user.to_string(),
            erased,
        }),
        EventBody::Invited { user } => pb::room_event::Body::Invited(pb::MemberInvited {
            user_id: user.to_string(),
        }),
        EventBody::Banned { user } => pb::room_event::Body::Banned(pb::MemberBanned {
            user_id: user.to_string(),
        }),
        EventBody::Unbanned { user } => pb::room_event::Body::Unbanned(pb::MemberUnbanned {
            user_id: user.to_string(),
        }),
        EventBody::Muted { user, until } => pb::room_event::Body::Muted(pb::MemberMuted {
            user_id: user.to_string(),
            until: Some(timestamp_to_proto(until)),
        }),
        EventBody::Unmuted { user } => pb::room_event::Body::Unmuted(pb::MemberUnmuted {
            user_id: user.to_string(),
        }),
        EventBody::Changed {
            name,
            description,
            rules,
        } => pb::room_event::Body::Changed(pb::RoomChanged {
            name,
            description,
            rules: Some(rules_to_proto(rules)),
        }),
        EventBody::RoomDeleted => pb::room_event::Body::RoomDeleted(pb::RoomDeleted {}),
    }
}

pub(super) fn event(event: pb::RoomEvent) -> Result<RoomEvent> {
    Ok(RoomEvent {
        room: id("events.room_id", &event.room_id)?,
        sequence: Sequence(event.sequence),
        messages_before: event.messages_before,
        time: timestamp("events.time", event.time)?,
        actor: id("events.actor_id", &event.actor_id)?,
        body: body(required("events.body", event.body)?)?,
    })
}

fn body(body: pb::room_event::Body) -> Result<EventBody> {
    Ok(match body {
        pb::room_event::Body::Message(sent) => EventBody::Message {
            id: id("events.message_id", &sent.message_id)?,
            draft: draft(sent.draft)?,
            mentions: mentions(&sent.mentioned_user_ids, sent.mentions_room)?,
        },
        pb::room_event::Body::Edited(edited) => EventBody::Edited {
            id: id("events.message_id", &edited.message_id)?,
            target: Sequence(edited.target),
            content: edited.content,
        },
        pb::room_event::Body::Deleted(deleted) => EventBody::Deleted {
            id: id("events.message_id", &deleted.message_id)?,
            target: Sequence(deleted.target),
        },
        pb::room_event::Body::Joined(joined) => EventBody::Joined {
            user: id("events.user_id", &joined.user_id)?,
            role: role("events.role", joined.role)?,
        },
        pb::room_event::Body::Left(left) => EventBody::Left {
            user: id("events.user_id", &left.user_id)?,
            erased: left.erased,
        },
        pb::room_event::Body::Invited(invited) => EventBody::Invited {
            user: id("events.user_id", &invited.user_id)?,
        },
        pb::room_event::Body::Banned(banned) => EventBody::Banned {
            user: id("events.user_id", &banned.user_id)?,
        },
        pb::room_event::Body::Unbanned(unbanned) => EventBody::Unbanned {
            user: id("events.user_id", &unbanned.user_id)?,
        },
        pb::room_event::Body::Muted(muted) => EventBody::Muted {
            user: id("events.user_id", &muted.user_id)?,
            until: timestamp("events.until", muted.until)?,
        },
        pb::room_event::Body::Unmuted(unmuted) => EventBody::Unmuted {
            user: id("events.user_id", &unmuted.user_id)?,
        },
        pb::room_event::Body::Changed(changed) => EventBody::Changed {
            name: changed.name,
            description: changed.description,
            rules: changed.rules.map(rules).unwrap_or_default(),
        },
        pb::room_event::Body::RoomDeleted(_) => EventBody::RoomDeleted,
    })
}

pub(super) fn page_to_proto(page: EventPage) -> pb::EventPage {
    pb::EventPage {
        events: page.events.into_iter().map(event_to_proto).collect(),
        head: page.head.0,
        first_available: page.first_available.0,
    }
}

pub(super) fn page(page: Option<pb::EventPage>) -> Result<EventPage> {
    let page = required("page", page)?;
    Ok(EventPage {
        events: page.events.into_iter().map(event).collect::<Result<_>>()?,
        head: Sequence(page.head),
        first_available: Sequence(page.first_available),
    })
}

#[cfg(test)]
mod tests {
    use carillon_domain::{MessageId, RoomId, Timestamp};
    use proptest::{option, prelude::*, sample};
    use uuid::Uuid;

    use super::*;

    fn uuid() -> impl Strategy<Value = Uuid> {
        any::<u128>().prop_map(Uuid::from_u128)
    }

    fn time() -> impl Strategy<Value = Timestamp> {
        (-1_000_000_000_000i64..10_000_000_000_000).prop_map(Timestamp)
    }

    fn any_kind() -> impl Strategy<Value = RoomKind> {
        sample::select(&RoomKind::ALL[..])
    }

    fn any_role() -> impl Strategy<Value = Role> {
        sample::select(&Role::ALL[..])
    }

    prop_compose! {
        fn any_rules()(window in option::of(any::<u32>()), unread: bool, retention in option::of(any::<u32>())) -> RoomRules {
            RoomRules { edit_window_seconds: window, edit_unread_only: unread, retention_seconds: retention }
        }
    }

    prop_compose! {
        fn any_mentions()(users in prop::collection::vec(uuid(), 0..4), room: bool) -> Mentions {
            Mentions { users: users.into_iter().map(UserId).collect(), room }
        }
    }

    prop_compose! {
        fn any_room()(
            id in uuid(), kind in any_kind(), name in ".*", description in ".*", by in uuid(),
            created_at in time(), deleted_at in option::of(time()), pair in option::of((uuid(), uuid())), rules in any_rules(),
        ) -> Room {
            Room { id: RoomId(id), kind, name, description, created_by: UserId(by), created_at, pair: pair.map(|(a, b)| [UserId(a), UserId(b)]), deleted_at, rules }
        }
    }

    prop_compose! {
        fn any_draft()(
            client in "[!-~]{1,64}", message_type in sample::select(&MessageType::ALL[..]), content in ".*",
            reply_to in option::of(uuid()),
        ) -> Draft {
            Draft { client_message_id: ClientMessageId(client), message_type, content, reply_to: reply_to.map(MessageId) }
        }
    }

    prop_compose! {
        fn any_message()(
            ids in (uuid(), uuid(), uuid()), numbers: [u64; 3], draft in any_draft(),
            times in (time(), option::of(time()), option::of(time())), mentions in any_mentions(),
        ) -> Message {
            Message {
                id: MessageId(ids.0),
                room: RoomId(ids.1),
                sequence: Sequence(numbers[0]),
                messages_before: numbers[1],
                sender: UserId(ids.2),
                time: times.0,
                client_message_id: draft.client_message_id,
                message_type: draft.message_type,
                content: draft.content,
                reply_to: draft.reply_to,
                edited_at: times.1,
                deleted_at: times.2,
                revision: Sequence(numbers[2]),
                mentions,
            }
        }
    }

    fn any_body() -> impl Strategy<Value = EventBody> {
        prop_oneof![
            (uuid(), any_draft(), any_mentions()).prop_map(|(id, draft, mentions)| {
                EventBody::Message {
                    id: MessageId(id),
                    draft,
                    mentions,
                }
            }),
            uuid().prop_map(|user| EventBody::Invited { user: UserId(user) }),
            uuid().prop_map(|user| EventBody::Banned { user: UserId(user) }),
            uuid().prop_map(|user| EventBody::Unbanned { user: UserId(user) }),
            (uuid(), time()).prop_map(|(user, until)| EventBody::Muted {
                user: UserId(user),
                until
            }),
            uuid().prop_map(|user| EventBody::Unmuted { user: UserId(user) }),
            (".*", ".*", any_rules()).prop_map(|(name, description, rules)| {
                EventBody::Changed {
                    name,
                    description,
                    rules,
                }
            }),
            (uuid(), any::<u64>(), ".*").prop_map(|(id, target, content)| EventBody::Edited {
                id: MessageId(id),
                target: Sequence(target),
                content
            }),
            (uuid(), any::<u64>()).prop_map(|(id, target)| EventBody::Deleted {
                id: MessageId(id),
                target: Sequence(target)
            }),
            (uuid(), any_role()).prop_map(|(user, role)| EventBody::Joined {
                user: UserId(user),
                role
            }),
            uuid().prop_map(|user| EventBody::left(UserId(user))),
            Just(EventBody::RoomDeleted),
        ]
    }

    prop_compose! {
        fn any_event()(room in uuid(), actor in uuid(), numbers: [u64; 2], time in time(), body in any_body()) -> RoomEvent {
            RoomEvent {
                room: RoomId(room),
                sequence: Sequence(numbers[0]),
                messages_before: numbers[1],
                time,
                actor: UserId(actor),
                body,
            }
        }
    }

    prop_compose! {
        fn any_mark()(numbers: [u64; 2], time in time()) -> ReadMark {
            ReadMark { sequence: Sequence(numbers[0]), messages: numbers[1], time }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn rooms_come_back_as_they_were(
            it in any_room(), role in option::of(any_role()), head: u64, peer in option::of(uuid()),
            last_message in option::of(any_message()), read in any_mark(), unread: u64, mentions: u64,
        ) {
            prop_assert_eq!(room(room_to_proto(it.clone())).unwrap(), it.clone());
            let seen = RoomView { room: it.clone(), role, head: Sequence(head) };
            prop_assert_eq!(view(Some(view_to_proto(seen.clone()))).unwrap(), seen);
            let overviewed = RoomOverview {
                room: it.id,
                head: Sequence(head),
                last_message: last_message.clone(),
                read,
                unread,
                mentions,
            };
            prop_assert_eq!(overview(overview_to_proto(overviewed.clone())).unwrap(), overviewed);
            let line = RoomSummary {
                room: it,
                peer: peer.map(UserId),
                head: Sequence(head),
                last_message,
                read,
                unread,
                mentions,
            };
            prop_assert_eq!(summary(summary_to_proto(line.clone())).unwrap(), line);
        }

        #[test]
        fn heads_marks_and_members_come_back_as_they_were(
            raw in uuid(), n: u64, read in any_mark(), user in uuid(), held in any_role(), joined_at in time(),
        ) {
            let at = RoomHead { room: RoomId(raw), head: Sequence(n) };
            prop_assert_eq!(head(head_to_proto(at)).unwrap(), at);
            prop_assert_eq!(mark(Some(mark_to_proto(read))).unwrap(), read);
            let one = Member { user: UserId(user), role: held, since: Sequence(n), joined_at };
            prop_assert_eq!(member(member_to_proto(one)).unwrap(), one);
            let got = Reached { sequence: Sequence(n), time: joined_at };
            prop_assert_eq!(reached("r", Some(reached_to_proto(got))).unwrap(), got);
            for read in [None, Some(got)] {
                let one = Receipt { user: UserId(user), delivered: Some(got), read };
                prop_assert_eq!(receipt(receipt_to_proto(one)).unwrap(), one);
                let restrictions = Restrictions {
                    banned: read.is_none(),
                    muted_until: read.map(|read| read.time),
                    invited: false,
                };
                let one = Restricted { user: UserId(user), restrictions };
                prop_assert_eq!(restricted(restricted_to_proto(one)).unwrap(), one);
            }
        }

        #[test]
        fn messages_come_back_as_they_were(it in any_message(), duplicate: bool, draft in any_draft(), content in ".*") {
            prop_assert_eq!(message(Some(message_to_proto(it.clone()))).unwrap(), it.clone());
            prop_assert_eq!(checked_draft(Some(draft_to_proto(draft.clone()))).unwrap(), draft);
            let was = Revision { sequence: it.sequence, time: it.time, content };
            prop_assert_eq!(revision(revision_to_proto(was.clone())).unwrap(), was);
            let sent = SendOutcome { message: it, duplicate };
            prop_assert_eq!(outcome(outcome_to_proto(sent.clone())).unwrap(), sent);
        }

        #[test]
        fn pages_come_back_as_they_were(events in prop::collection::vec(any_event(), 0..5), numbers: [u64; 2]) {
            let it = EventPage { events, head: Sequence(numbers[0]), first_available: Sequence(numbers[1]) };
            prop_assert_eq!(page(Some(page_to_proto(it.clone()))).unwrap(), it);
        }
    }

    #[test]
    fn enums_refuse_what_was_not_specified() {
        for bad in [0, 99] {
            assert!(kind("kind", bad).is_err());
            assert!(role("role", bad).is_err());
            assert!(message_type("type", bad).is_err());
            assert!(activity("activity", bad).is_err());
        }
        for it in [Activity::Typing, Activity::Recording] {
            assert_eq!(activity("activity", activity_to_proto(it)).unwrap(), it);
        }
    }

    #[test]
    fn a_bad_client_message_id_names_its_field() {
        let mut bad = draft_to_proto(Draft {
            client_message_id: ClientMessageId("c1".into()),
            message_type: MessageType::Text,
            content: "hello".into(),
            reply_to: None,
        });
        for text in ["", "with blank", &"x".repeat(65)] {
            bad.client_message_id = text.to_owned();
            let error = checked_draft(Some(bad.clone())).unwrap_err();
            assert_eq!(error.fields[0].field, "client_message_id");
        }
    }
}
