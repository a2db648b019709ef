//! Content of messages, sealed with its sender's key on its way into a room's log and opened on its way out (AUTH-15, MSG-23).
//!
//! So erasing a person is destroying one key: what they wrote is unreadable from then on, wherever a copy of it lies, and each event keeps
//! its place. Processes that remember the key forget it within [`REMEMBERED`].
//!
//! It is no end-to-end encryption, and doesn't hide content from whoever runs the stores: the keys lie in them. Who is in which room,
//! who sent when, and whom a message calls, isn't sealed. Content that was written before is read as it lies there.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD as BASE64};
use carillon_domain::{
    ClientMessageId, Error, MessageId, ReplicaId, Result, RoomId, Sequence, Timestamp, UserId,
    event::{EventBody, RoomEvent, StoredMessage},
    partition::Partition,
    ports::{Epoch, Fence, Floor, KeyState, OpenRoom, PersonKey, PersonKeys, RoomLog},
    seal::Seal,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use moka::future::Cache;

/// How long a key that was read is remembered: as long may somebody who was erased still be read. What it costs is a read per person
/// that writes or is read, and this time.
pub const REMEMBERED: Duration = Duration::from_secs(10);
/// People whose keys are remembered.
const PEOPLE: u64 = 20_000;
/// First keys that are made at once.
const MAKERS: usize = 16;
/// What sealed content begins with. No text that people send does: they can't send the character NUL.
const MARK: &str = "\u{0}1";

/// A log that holds content sealed.
pub struct Sealed {
    log: Arc<dyn RoomLog>,
    keys: Arc<dyn PersonKeys>,
    known: Cache<UserId, Person>,
}

/// What is known of somebody's key.
#[derive(Clone)]
enum Person {
    Holds(Arc<Seal>),
    Erased(Timestamp),
}

type People = HashMap<UserId, Person>;

impl Sealed {
    /// Over a log as it lies in the store.
    pub fn new(log: Arc<dyn RoomLog>, keys: Arc<dyn PersonKeys>) -> Self {
        Self {
            log,
            keys,
            known: Cache::builder()
                .max_capacity(PEOPLE)
                .time_to_live(REMEMBERED)
                .build(),
        }
    }

    /// What there is of these people's keys; who has none is left out.
    async fn people(&self, users: impl Iterator<Item = UserId>) -> Result<People> {
        let mut people = People::new();
        let mut unknown = Vec::new();
        for user in users {
            if people.contains_key(&user) || unknown.contains(&user) {
                continue;
            }
            match self.known.get(&user).await {
                Some(person) => {
                    people.insert(user, person);
                }
                None => unknown.push(user),
            }
        }
        for some in unknown.chunks(1_000) {
            for (user, state) in self.keys.of(some).await? {
                people.insert(user, self.learn(user, state).await?);
            }
        }
        Ok(people)
    }

    async fn learn(&self, user: UserId, state: KeyState) -> Result<Person> {
        let person = match state {
            KeyState::Held(key) => Person::Holds(Arc::new(Seal::new(&key)?)),
            KeyState::Destroyed(at) => Person::Erased(at),
        };
        self.known.insert(user, person.clone()).await;
        Ok(person)
    }

    /// The same, with keys for those who had none.
    async fn writers(&self, events: &[RoomEvent]) -> Result<People> {
        let writers = || {
            let written = events.iter().filter(|event| content(event).is_some());
            written.map(|event| event.actor)
        };
        let mut people = self.people(writers()).await?;
        let mut new: Vec<UserId> = writers()
            .filter(|user| !people.contains_key(user))
            .collect();
        new.sort_unstable();
        new.dedup();
        let made: Vec<(UserId, Person)> = stream::iter(new)
            .map(|user| async move {
                let state = self
                    .keys
                    .put_if_absent(user, &PersonKey::generate()?)
                    .await?;
                Ok::<_, Error>((user, self.learn(user, state).await?))
            })
            .buffer_unordered(MAKERS)
            .try_collect()
            .await?;
        people.extend(made);
        Ok(people)
    }
}

fn seal(mut event: RoomEvent, people: &People) -> Result<RoomEvent> {
    let bound = bound_to(&event);
    let Some(key) = people.get(&event.actor) else {
        return Ok(event);
    };
    let Some(text) = content_mut(&mut event) else {
        return Ok(event);
    };
    match key {
        Person::Holds(key) => *text = seal_text(key, &bound, text)?,
        // They were erased while this was on its way: nobody reads it.
        Person::Erased(_) => text.clear(),
    }
    Ok(event)
}

fn seal_text(key: &Seal, bound: &[u8], text: &str) -> Result<String> {
    let sealed = key.seal(bound, text.as_bytes())?;
    let mut text = String::with_capacity(MARK.len() + sealed.len() * 4 / 3 + 4);
    text.push_str(MARK);
    BASE64.encode_string(&sealed, &mut text);
    Ok(text)
}

fn content(event: &RoomEvent) -> Option<&str> {
    match &event.body {
        EventBody::Message { draft, .. } => Some(&draft.content),
        EventBody::Edited { content, .. } => Some(content),
        _ => None,
    }
}

fn content_mut(event: &mut RoomEvent) -> Option<&mut String> {
    match &mut event.body {
        EventBody::Message { draft, .. } => Some(&mut draft.content),
        EventBody::Edited { content, .. } => Some(content),
        _ => None,
    }
}

/// What content is bound to: put into another message it opens nowhere.
fn bound_to(event: &RoomEvent) -> Vec<u8> {
    let (kind, id) = match &event.body {
        EventBody::Message { id, .. } => (b'm', *id),
        EventBody::Edited { id, .. } => (b'e', *id),
        _ => return Vec::new(),
    };
    let mut bound = vec![kind];
    bound.extend_from_slice(event.room.0.as_bytes());
    bound.extend_from_slice(id.0.as_bytes());
    bound
}

/// Opens an event's content in place; empties it when its key is gone.
fn open(event: &mut RoomEvent, people: &People) -> Result<()> {
    let (actor, room, bound) = (event.actor, event.room, bound_to(event));
    let Some(text) = content_mut(event) else {
        return Ok(());
    };
    let person = people.get(&actor);
    let Some(sealed) = text.strip_prefix(MARK) else {
        // From before content was sealed, or of somebody who was erased.
        if let Some(Person::Erased(_)) = person {
            text.clear();
        }
        return Ok(());
    };
    match person {
        Some(Person::Holds(key)) => {
            *text = open_text(key, &bound, sealed).unwrap_or_else(|error| {
                tracing::error!(%error, user = %actor, %room, "a message's content can't be opened");
                String::new()
            });
        }
        Some(Person::Erased(_)) => text.clear(),
        None => {
            tracing::error!(user = %actor, "there is no key for what this person wrote");
            text.clear();
        }
    }
    Ok(())
}

fn open_text(key: &Seal, bound: &[u8], sealed: &str) -> Result<String> {
    let damaged = || Error::defect("stored content is damaged");
    let bytes = BASE64.decode(sealed).map_err(|_| damaged())?;
    String::from_utf8(key.open(bound, bytes)?).map_err(|_| damaged())
}

/// Opens a message; what somebody wrote who was erased is shown as deleted.
fn open_message(message: &mut StoredMessage, people: &People) -> Result<()> {
    open(&mut message.sent, people)?;
    for change in &mut message.changes {
        open(change, people)?;
    }
    let Some(Person::Erased(at)) = people.get(&message.sent.actor) else {
        return Ok(());
    };
    if let EventBody::Message { id, .. } = message.sent.body {
        let last = message.changes.last().unwrap_or(&message.sent);
        let deleted = RoomEvent {
            time: *at,
            actor: message.sent.actor,
            body: EventBody::Deleted {
                id,
                target: message.sent.sequence,
            },
            ..last.clone()
        };
        message.changes.push(deleted);
    }
    Ok(())
}

#[async_trait]
impl RoomLog for Sealed {
    async fn acquire(&self, partition: Partition, owner: &ReplicaId) -> Result<Epoch> {
        self.log.acquire(partition, owner).await
    }

    async fn open(&self, room: RoomId, epoch: Epoch) -> Result<OpenRoom> {
        self.log.open(room, epoch).await
    }

    async fn check(&self, partition: Partition, epoch: Epoch) -> Result<()> {
        self.log.check(partition, epoch).await
    }

    async fn append(&self, partition: Partition, epoch: Epoch, events: &[RoomEvent]) -> Result<()> {
        if events.iter().all(|event| content(event).is_none()) {
            return self.log.append(partition, epoch, events).await;
        }
        let people = self.writers(events).await?;
        let sealed = events
            .iter()
            .map(|event| seal(event.clone(), &people))
            .collect::<Result<Vec<_>>>()?;
        self.log.append(partition, epoch, &sealed).await
    }

    async fn raise_floor(&self, room: RoomId, floor: Floor) -> Result<()> {
        self.log.raise_floor(room, floor).await
    }

    async fn purge(&self, room: RoomId, fences: &[Fence], below: Sequence) -> Result<bool> {
        self.log.purge(room, fences, below).await
    }

    async fn events(
        &self,
        room: RoomId,
        fences: &[Fence],
        from: Sequence,
        to: Sequence,
    ) -> Result<Vec<RoomEvent>> {
        let mut events = self.log.events(room, fences, from, to).await?;
        let written = events.iter().filter(|event| content(event).is_some());
        let people = self.people(written.map(|event| event.actor)).await?;
        for event in &mut events {
            open(event, &people)?;
        }
        Ok(events)
    }

    async fn messages(
        &self,
        room: RoomId,
        fences: &[Fence],
        from: Sequence,
        to: Sequence,
    ) -> Result<Vec<StoredMessage>> {
        let mut messages = self.log.messages(room, fences, from, to).await?;
        let mut actors = Vec::with_capacity(messages.len());
        for message in &messages {
            actors.push(message.sent.actor);
            actors.extend(message.changes.iter().map(|change| change.actor));
        }
        let people = self.people(actors.into_iter()).await?;
        for message in &mut messages {
            open_message(message, &people)?;
        }
        Ok(messages)
    }

    async fn find_sent(
        &self,
        sender: UserId,
        id: &ClientMessageId,
    ) -> Result<Vec<(RoomId, Sequence)>> {
        self.log.find_sent(sender, id).await
    }

    async fn find_message(&self, id: MessageId) -> Result<Option<(RoomId, Sequence)>> {
        self.log.find_message(id).await
    }
}

#[cfg(test)]
mod tests {
    use carillon_domain::{event::Draft, event::Mentions, event::MessageType};

    use super::*;
    use crate::embedded;

    fn said(actor: UserId, sequence: u64, text: &str) -> RoomEvent {
        RoomEvent {
            room: RoomId(uuid::Uuid::nil()),
            sequence: Sequence(sequence),
            messages_before: sequence - 1,
            time: Timestamp(1_700_000_000_000),
            actor,
            body: EventBody::Message {
                id: MessageId::new(),
                draft: Draft {
                    client_message_id: ClientMessageId(format!("c{sequence}")),
                    message_type: MessageType::Text,
                    content: text.into(),
                    reply_to: None,
                },
                mentions: Mentions::default(),
            },
        }
    }

    /// AUTH-15: the store holds no plain content; with the key gone the rest of the room is read as before, and their messages as
    /// deleted, those from before sealing too.
    #[tokio::test(flavor = "multi_thread")]
    async fn content_goes_with_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let stores = embedded::open(folder.path()).unwrap();
        let (ann, bob) = (UserId::new(), UserId::new());
        let room = RoomId(uuid::Uuid::nil());
        let partition = Partition::of_room(room);
        let me = ReplicaId("me".into());
        let plain = stores.log.clone();
        let sealed = Sealed::new(plain.clone(), stores.person_keys.clone());
        let epoch = sealed.acquire(partition, &me).await.unwrap();
        sealed.open(room, epoch).await.unwrap();
        let early = said(ann, 1, "from before");
        plain.append(partition, epoch, &[early]).await.unwrap();
        let events = [said(ann, 2, "hello"), said(bob, 3, "hello")];
        sealed.append(partition, epoch, &events).await.unwrap();

        let read = |log: Arc<dyn RoomLog>| async move {
            let messages = log.messages(room, &[], Sequence(1), Sequence(3)).await;
            let messages = messages.unwrap();
            let folded = messages.iter().map(|message| message.fold().unwrap());
            let shown = folded.map(|message| (message.content, message.deleted_at));
            shown.collect::<Vec<_>>()
        };
        let sealed: Arc<dyn RoomLog> = Arc::new(sealed);
        let shown = read(sealed.clone()).await;
        assert_eq!(shown[1..], [("hello".into(), None), ("hello".into(), None)]);
        let stored = read(plain.clone()).await;
        assert!(stored[1..].iter().all(|(text, _)| text.starts_with(MARK)));
        assert_ne!(stored[1].0, stored[2].0);

        let at = Timestamp(1_800_000_000_000);
        stores.person_keys.destroy(ann, at).await.unwrap();
        let later: Arc<dyn RoomLog> = Arc::new(Sealed::new(plain, stores.person_keys.clone()));
        let gone = (String::new(), Some(at));
        let shown = read(later.clone()).await;
        assert_eq!(shown, [gone.clone(), gone, ("hello".into(), None)]);
        let events = later.events(room, &[], Sequence(1), Sequence(3)).await;
        let texts: Vec<_> = events
            .unwrap()
            .iter()
            .map(|e| content(e).unwrap().to_owned())
            .collect();
        assert_eq!(texts, ["", "", "hello"]);
    }

    /// Content that was moved to another message doesn't open there.
    #[test]
    fn content_is_bound_to_its_message() {
        let key = Seal::new(&PersonKey::generate().unwrap()).unwrap();
        let ann = UserId::new();
        let (one, other) = (said(ann, 1, "hello"), said(ann, 1, "hello"));
        let text = seal_text(&key, &bound_to(&one), "hello").unwrap();
        let body = text.strip_prefix(MARK).unwrap();
        assert_eq!(open_text(&key, &bound_to(&one), body).unwrap(), "hello");
        assert!(open_text(&key, &bound_to(&other), body).is_err());
        assert!(open_text(&key, &bound_to(&one), &body[4..]).is_err());
    }
}
