//! Reads everything that must survive, while the platform goes on.
//!
//! Why what it reads fits together. Marks are read before the rooms, and of each room what is told of people before its end: so nothing
//! is ahead of the events that are saved, and the events, put back in order over what was read before them, say the rest. Accounts
//! and uploads are read last: whoever or whatever an event names is there. Everything that was acknowledged before the first call is
//! in the pages that follow it; of what is written meanwhile, each room has what comes before some place.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use carillon_domain::{
    Error, ErrorCode, Result, RoomId, Sequence, UserId,
    account::Account,
    event::RoomEvent,
    media::Media,
    people::Relation,
    ports::{
        AccountStore, Archive, Bounds, KeyState, MediaIndex, OpenRoom, PeopleStore, PersonKey,
        PersonKeys, PushTargetStore, Receipt, RoomLog, RoomStore,
    },
    room::{Restrictions, Room},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use crate::{
    record::{Record, Section, StandingRecord, mark},
    write::Sink,
};

/// Ids per page.
const IDS: usize = 500;
/// Entries per page of what belongs to a person or a room.
const ENTRIES: usize = 1_000;
/// Events per page, and so per record.
const EVENTS: u64 = 500;
/// People or rooms that are read at once.
const AT_ONCE: usize = 16;
/// How often to begin a room again whose retention goes on between two reads of it.
const TRIES: usize = 10;

/// Where to read.
#[derive(Clone)]
pub struct Source {
    /// What there is.
    pub archive: Arc<dyn Archive>,
    /// Accounts.
    pub accounts: Arc<dyn AccountStore>,
    /// Keys of people.
    pub person_keys: Arc<dyn PersonKeys>,
    /// Contacts and blocks.
    pub people: Arc<dyn PeopleStore>,
    /// Rooms and what their logs say.
    pub rooms: Arc<dyn RoomStore>,
    /// The logs.
    pub log: Arc<dyn RoomLog>,
    /// Where pushes go.
    pub push_targets: Arc<dyn PushTargetStore>,
    /// Uploads.
    pub media: Arc<dyn MediaIndex>,
}

/// Reads all of it.
pub async fn save(source: &Source, sink: &mut dyn Sink) -> Result<()> {
    let mut after = None;
    while let Some(users) = page(source.archive.users(after, IDS).await?, &mut after) {
        source.keys_for(&users, sink).await?;
        let mut people = stream::iter(users)
            .map(|user| source.person(user))
            .buffered(AT_ONCE);
        while let Some(records) = people.try_next().await? {
            for (section, record) in records {
                sink.take(section, record).await?;
            }
        }
    }
    let mut after = None;
    while let Some(ids) = page(source.archive.rooms(after, IDS).await?, &mut after) {
        let rooms = source.rooms.get_many(&ids).await?;
        let mut begun = stream::iter(rooms)
            .map(|room| source.begin(room))
            .buffered(AT_ONCE);
        while let Some(room) = begun.try_next().await? {
            source.room(room, sink).await?;
        }
    }
    let mut after = None;
    while let Some(ids) = page(source.archive.media(after, IDS).await?, &mut after) {
        let entries: Vec<Option<Media>> = stream::iter(ids)
            .map(|id| source.media.get(id))
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        let entries: Vec<Media> = entries.into_iter().flatten().collect();
        let owners: HashSet<UserId> = entries.iter().map(|media| media.owner).collect();
        let owners: Vec<UserId> = owners.into_iter().collect();
        source.keys_for(&owners, sink).await?;
        for media in entries {
            // Whoever writes it has the bytes, or not.
            let record = Record::Media {
                media,
                bytes: false,
            };
            sink.take(Section::Media, record).await?;
        }
    }
    let mut after = None;
    let mut names = HashSet::new();
    while let Some(users) = page(source.archive.users(after, IDS).await?, &mut after) {
        source.keys_for(&users, sink).await?;
        for account in source.accounts.by_ids(&users).await? {
            // Accounts aren't of one moment: a name that changed hands meanwhile would be there twice, and couldn't be restored.
            if !names_of(&account).all(|name| names.insert(name)) {
                return Err(Error::new(
                    ErrorCode::Unavailable,
                    "a name changed hands while accounts were read; make the backup again",
                ));
            }
            sink.take(Section::Accounts, Record::Account(account))
                .await?;
        }
    }
    // Last: whoever wrote anything that was read has a key by now.
    let mut after = None;
    loop {
        let keys = source.person_keys.all(after, IDS).await?;
        let Some((last, _)) = keys.last() else {
            return Ok(());
        };
        after = Some(*last);
        sink.take(Section::Keys, Record::Keys(keys)).await?;
    }
}

/// Hashes of an account's names, 64 bits each: a million accounts cost some tens of megabytes.
fn names_of(account: &Account) -> impl Iterator<Item = u64> {
    let user = Some(account.user.username.to_lowercase());
    let names = [
        ("user", user),
        ("email", account.email.clone()),
        ("phone", account.phone.clone()),
    ];
    names.into_iter().filter_map(|(kind, name)| {
        let mut hasher = DefaultHasher::new();
        (kind, name?).hash(&mut hasher);
        Some(hasher.finish())
    })
}

/// The page, and where the next one begins; `None` when there are no more.
fn page<T: Copy>(ids: Vec<T>, after: &mut Option<T>) -> Option<Vec<T>> {
    *after = Some(*ids.last()?);
    Some(ids)
}

/// A room whose first events were read.
struct Begun {
    room: Room,
    end: OpenRoom,
    receipts: Vec<Receipt>,
    standings: Vec<StandingRecord>,
    events: Vec<RoomEvent>,
    /// Where the next events are.
    next: Sequence,
}

impl Source {
    /// Hands over the keys of people, making those that aren't there.
    async fn keys_for(&self, users: &[UserId], sink: &mut dyn Sink) -> Result<()> {
        let mut keys = self.person_keys.of(users).await?;
        let known: HashSet<UserId> = keys.iter().map(|(user, _)| *user).collect();
        let unknown: Vec<UserId> = users
            .iter()
            .filter(|user| !known.contains(user))
            .copied()
            .collect();
        let made: Vec<(UserId, KeyState)> = stream::iter(unknown)
            .map(|user| async move {
                let key = PersonKey::generate()?;
                let state = self.person_keys.put_if_absent(user, &key).await?;
                Ok::<_, Error>((user, state))
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        keys.extend(made);
        sink.take(Section::Keys, Record::KeysFor(keys)).await
    }

    /// What belongs to a person.
    async fn person(&self, user: UserId) -> Result<Vec<(Section, Record)>> {
        let mut records = Vec::new();
        for relation in Relation::ALL {
            let mut after = None;
            loop {
                let others = self.people.list(relation, user, after, ENTRIES).await?;
                let Some(last) = others.last() else { break };
                after = Some(last.user);
                let record = Record::Related {
                    relation: relation.into(),
                    user,
                    others: others
                        .iter()
                        .map(|other| (other.user, other.since))
                        .collect(),
                };
                records.push((Section::People, record));
            }
        }
        let targets = self.push_targets.of_users(&[user]).await?;
        records.extend(
            targets
                .into_iter()
                .map(|target| (Section::People, Record::PushTarget(target))),
        );
        let mut after = None;
        while let Some(rooms) = page(
            self.rooms.invites_of(user, after, ENTRIES).await?,
            &mut after,
        ) {
            records.push((Section::People, Record::Invited { user, rooms }));
        }
        let mut after = None;
        while let Some(rooms) = page(self.rooms.rooms_of(user, after, ENTRIES).await?, &mut after) {
            let marks = self.rooms.read_marks(user, &rooms).await?;
            if !marks.is_empty() {
                let marks = marks.into_iter().map(mark).collect();
                records.push((Section::Marks, Record::Marks { user, marks }));
            }
        }
        Ok(records)
    }

    /// Reads a room up to its first events.
    async fn begin(&self, room: Room) -> Result<Begun> {
        let receipts = self.receipts(room.id).await?;
        // Where retention removes events, what they said of people is told apart; elsewhere the events say all.
        let retained = room.rules.retention_seconds.is_some();
        for _ in 0..TRIES {
            let before = self.archive.peek(room.id).await?;
            let standings = if retained || before.floor.first > Sequence(1) {
                self.standings(room.id).await?
            } else {
                Vec::new()
            };
            let end = self.archive.peek(room.id).await?;
            let told_apart = retained || before.floor.first > Sequence(1);
            let covered = if told_apart {
                before.head.next()
            } else {
                Sequence(1)
            };
            // Retention got further than what was told: what lies between is known from nowhere.
            if end.floor.first > covered {
                continue;
            }
            let from = end.floor.first.min(end.head).max(Sequence(1));
            let Some((events, next)) = self.events(&end, from).await? else {
                continue;
            };
            return Ok(Begun {
                room,
                end,
                receipts,
                standings,
                events,
                next,
            });
        }
        Err(overtaken(room.id))
    }

    /// Hands a room over, reading its other events.
    async fn room(&self, begun: Begun, sink: &mut dyn Sink) -> Result<()> {
        let (id, end) = (begun.room.id, begun.end);
        for receipts in begun.receipts.chunks(ENTRIES) {
            let receipts = receipts.iter().map(|receipt| (*receipt).into()).collect();
            let record = Record::Receipts { room: id, receipts };
            sink.take(Section::Receipts, record).await?;
        }
        let bounds = Bounds {
            floor: end.floor,
            head: end.head,
            messages: end.messages,
        };
        let record = Record::Room {
            room: begun.room,
            log: bounds.into(),
        };
        sink.take(Section::Rooms, record).await?;
        for people in begun.standings.chunks(ENTRIES) {
            let people = people.to_vec();
            let record = Record::Standings { room: id, people };
            sink.take(Section::Rooms, record).await?;
        }
        let (mut events, mut next) = (begun.events, begun.next);
        while !events.is_empty() {
            let record = Record::Events {
                room: id,
                first: end.floor.first,
                messages: end.floor.messages,
                events,
            };
            sink.take(Section::Rooms, record).await?;
            if next > end.head {
                break;
            }
            (events, next) = self
                .events(&end, next)
                .await?
                .ok_or_else(|| overtaken(id))?;
        }
        Ok(())
    }

    /// The events from a place on, and where the next ones are; `None` when retention removed some since the end was read.
    async fn events(
        &self,
        end: &OpenRoom,
        from: Sequence,
    ) -> Result<Option<(Vec<RoomEvent>, Sequence)>> {
        if end.head < from {
            return Ok(Some((Vec::new(), from)));
        }
        let to = end.head.min(Sequence(from.0 + EVENTS - 1));
        let read = self.log.events(end.room, &end.fences, from, to).await;
        let complete = |events: &Vec<RoomEvent>| events.len() as u64 == to.0 + 1 - from.0;
        match read {
            Ok(events) if complete(&events) => return Ok(Some((events, to.next()))),
            // The last event of a room of which retention keeps nothing may be there or not.
            Ok(events) if from < end.floor.first => return Ok(Some((events, to.next()))),
            // A gap is told as a defect, which it isn't if retention made it.
            Err(error) if error.code != ErrorCode::Internal => return Err(error),
            Ok(_) | Err(_) => {}
        }
        let floor = self.archive.peek(end.room).await?.floor;
        if floor.first > from {
            return Ok(None);
        }
        Err(Error::defect(format!(
            "events of room {} are missing from {from} to {to}",
            end.room
        )))
    }

    async fn receipts(&self, room: RoomId) -> Result<Vec<Receipt>> {
        let (mut all, mut after): (Vec<Receipt>, _) = (Vec::new(), None);
        loop {
            let some = self.rooms.receipts(room, after, ENTRIES).await?;
            let Some(last) = some.last() else {
                return Ok(all);
            };
            after = Some(last.user);
            all.extend(some);
        }
    }

    async fn standings(&self, room: RoomId) -> Result<Vec<StandingRecord>> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let members = self.rooms.members(room, after, ENTRIES).await?;
            let Some(last) = members.last() else { break };
            after = Some(last.user);
            all.extend(members.into_iter().map(|member| StandingRecord {
                user: member.user,
                member: Some(member),
                restrictions: Restrictions::default(),
            }));
        }
        let mut after = None;
        loop {
            let restricted = self.rooms.restricted(room, after, ENTRIES).await?;
            let Some(last) = restricted.last() else {
                return Ok(all);
            };
            after = Some(last.user);
            all.extend(restricted.into_iter().map(|bound| StandingRecord {
                user: bound.user,
                member: None,
                restrictions: bound.restrictions,
            }));
        }
    }
}

fn overtaken(room: RoomId) -> Error {
    Error::new(
        ErrorCode::Unavailable,
        format!("retention removed events of room {room} faster than they were read: try again"),
    )
}
