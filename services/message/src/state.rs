//! What an owner remembers of an open room. A cache: everything in it can be read again after a restart.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use carillon_domain::{
    Error, ErrorCode, Result, RoomId, Sequence, Timestamp, UserId,
    event::{EventBody, RoomEvent},
    ports::{Epoch, Fence, Floor, OpenRoom, ReadMark},
    room::{Room, Standing},
};
use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use parking_lot::Mutex;

use crate::decide;

/// Rooms with more members than this aren't remembered as a whole; nobody is pushed for every message of such a room.
pub const FEW_MEMBERS: usize = 1000;
/// People remembered per room.
const PEOPLE_REMEMBERED: usize = 10_000;
/// Places of deleted messages remembered per room.
const DELETED_REMEMBERED: usize = 10_000;

/// Owning a partition under one epoch. Shared by the partition's task with the readers of its rooms: what is remembered of a room
/// may be shown only while it is known that nobody else changed it.
pub struct Tenure {
    /// The epoch.
    pub epoch: Epoch,
    proof: Mutex<Proof>,
}

struct Proof {
    /// When the last question was asked that proved the epoch to be the partition's; `None` once it is over.
    proven: Option<Instant>,
    /// The question under way, for all who came before it was asked.
    question: Option<Question>,
}

#[derive(Clone)]
struct Question {
    asked: Instant,
    answer: Shared<BoxFuture<'static, Result<()>>>,
}

impl Tenure {
    /// Begins with an acquisition that was asked for at `asked`.
    pub fn new(epoch: Epoch, asked: Instant) -> Self {
        Self {
            epoch,
            proof: Mutex::new(Proof {
                proven: Some(asked),
                question: None,
            }),
        }
    }

    /// Whether the epoch was the partition's at `since` or later, asking the log through `ask` unless that is known already. One
    /// question at a time, shared by all who wait for it: so a store is asked no more often than it answers. `NotOwner` when the
    /// epoch is over.
    pub async fn prove_since(
        &self,
        since: Instant,
        ask: impl Fn(Epoch) -> BoxFuture<'static, Result<()>>,
    ) -> Result<()> {
        loop {
            let question = {
                let mut proof = self.proof.lock();
                match proof.proven {
                    None => {
                        return Err(Error::new(
                            ErrorCode::NotOwner,
                            "another replica owns this room, try again",
                        ));
                    }
                    Some(proven) if proven >= since => return Ok(()),
                    Some(_) => {}
                }
                let new = || Question {
                    asked: Instant::now(),
                    answer: ask(self.epoch).shared(),
                };
                proof.question.get_or_insert_with(new).clone()
            };
            let answer = question.answer.await;
            let mut proof = self.proof.lock();
            let current = proof.question.as_ref();
            if current.is_some_and(|current| current.asked == question.asked) {
                proof.question = None;
                match &answer {
                    Ok(()) => {
                        proof.proven = proof.proven.map(|before| before.max(question.asked));
                    }
                    Err(error) if error.code == ErrorCode::NotOwner => proof.proven = None,
                    Err(_) => {}
                }
            }
            if question.asked >= since {
                return answer;
            }
            // That question was asked before we came: it proves nothing to us.
        }
    }

    /// The log said that the epoch was the partition's at `asked` or later.
    pub fn prove(&self, asked: Instant) {
        let mut proof = self.proof.lock();
        // Once over, it stays so.
        proof.proven = proof.proven.map(|before| before.max(asked));
    }

    /// It is over, or nobody knows.
    pub fn end(&self) {
        self.proof.lock().proven = None;
    }

    /// Whether it was proven no longer ago than this.
    pub fn is_proven_within(&self, age: Duration) -> bool {
        let proven = self.proof.lock().proven;
        proven.is_some_and(|proven| proven.elapsed() < age)
    }
}

/// An open room. Only its partition's task changes it; readers look.
pub struct OpenedRoom {
    /// As it was when it was opened: its kind and its people don't change; the rest is in `now`.
    pub room: Room,
    /// Set at opening, for readers of the log.
    pub fences: Arc<[Fence]>,
    /// Under which it was opened.
    pub tenure: Arc<Tenure>,
    /// The part that changes.
    pub now: Mutex<RoomNow>,
}

/// The changing part of an open room.
pub struct RoomNow {
    /// The last committed event.
    pub head: Sequence,
    /// Messages up to it.
    pub messages: u64,
    /// Whether it was deleted.
    pub deleted: bool,
    /// With its name, description and rules as they are now.
    pub room: Arc<Room>,
    /// What retention left.
    pub floor: Floor,
    /// When the first event that is kept has to go; `None` if that isn't known.
    pub expires: Option<Timestamp>,
    /// Somebody is looking for what has to go.
    expiring: bool,
    /// The floor of a while ago: nobody reads below it any more.
    pub purgeable: Sequence,
    people: HashMap<UserId, Standing>,
    /// Whether one of the two people of a direct room blocked the other, and when that was asked.
    blocked: Option<(Instant, bool)>,
    /// All members, if they were asked for.
    everybody: Option<Everybody>,
    /// The last event that concerned somebody's membership, as far as is known: not before this.
    peopled: Sequence,
    /// Deleted messages, if somebody's unread ones were counted.
    deleted_messages: Option<DeletedMessages>,
    /// The last own message of everybody who wrote since the room was opened: who writes has read, and the store hears of it late.
    wrote: HashMap<UserId, ReadMark>,
}

/// The members of a room.
#[derive(Clone)]
pub enum Everybody {
    /// All of them.
    Few(Arc<Vec<UserId>>),
    /// Too many to be pushed for every message.
    Many,
}

/// The places of all deleted messages after a place: for all readers of a room they are read once, as far back as somebody needed,
/// and kept up to date.
struct DeletedMessages {
    after: Sequence,
    places: BTreeSet<Sequence>,
}

/// The right to look for what has to go from a room, by its retention: one at a time.
pub struct Expiring<'a>(&'a OpenedRoom);

impl<'a> Expiring<'a> {
    /// `None` if somebody is looking already.
    pub fn begin(room: &'a OpenedRoom) -> Option<Self> {
        let was = std::mem::replace(&mut room.now.lock().expiring, true);
        (!was).then_some(Self(room))
    }
}

impl Drop for Expiring<'_> {
    fn drop(&mut self) {
        self.0.now.lock().expiring = false;
    }
}

/// Shared handle of an open room.
pub type RoomHandle = Arc<OpenedRoom>;

impl OpenedRoom {
    /// From what the log and the store said.
    pub fn new(room: Room, open: OpenRoom, tenure: Arc<Tenure>) -> Self {
        let now = RoomNow {
            head: open.head,
            messages: open.messages,
            // The log is the truth; the stored room follows it.
            deleted: open.deleted,
            room: Arc::new(room.clone()),
            floor: open.floor,
            expires: None,
            expiring: false,
            purgeable: Sequence::ZERO,
            people: HashMap::new(),
            blocked: None,
            everybody: None,
            peopled: open.head,
            deleted_messages: None,
            wrote: HashMap::new(),
        };
        Self {
            room,
            fences: open.fences.into(),
            tenure,
            now: Mutex::new(now),
        }
    }

    /// Its id.
    pub fn id(&self) -> RoomId {
        self.room.id
    }
}

impl RoomNow {
    /// What is remembered about a person.
    pub fn standing(&self, user: UserId) -> Option<Standing> {
        self.people.get(&user).copied()
    }

    /// Remembers what the store said when the head was `at`; ignored if the room went on since, for then an event may have told
    /// more.
    pub fn learn_standing(&mut self, at: Sequence, user: UserId, standing: Standing) {
        if self.head != at {
            return;
        }
        if self.people.len() >= PEOPLE_REMEMBERED {
            self.people.clear();
        }
        self.people.insert(user, standing);
    }

    /// Whether one of the two people of a direct room blocked the other, if that was asked no longer ago than this.
    pub fn is_blocked(&self, age: Duration) -> Option<bool> {
        let (asked, blocked) = self.blocked?;
        (asked.elapsed() < age).then_some(blocked)
    }

    /// Remembers that.
    pub fn learn_blocked(&mut self, asked: Instant, blocked: bool) {
        self.blocked = Some((asked, blocked));
    }

    /// All members, if remembered.
    pub fn everybody(&self) -> Option<Everybody> {
        self.everybody.clone()
    }

    /// Remembers all members as they were when the head was `at`; ignored if somebody came or went since.
    pub fn learn_everybody(&mut self, at: Sequence, users: Everybody) {
        if self.peopled <= at {
            self.everybody = Some(users);
        }
    }

    /// The place and count up to which somebody has read, knowing what the store said.
    pub fn read_by(&self, user: UserId, stored: ReadMark) -> ReadMark {
        match self.wrote.get(&user) {
            Some(wrote) if wrote.sequence > stored.sequence => *wrote,
            _ => stored,
        }
    }

    /// Places of deleted messages after a place; `None` if not all of them are remembered.
    pub fn deleted_after(&self, after: Sequence) -> Option<Vec<Sequence>> {
        let known = self.deleted_messages.as_ref()?;
        (known.after <= after).then(|| known.places.range(after.next()..).copied().collect())
    }

    /// Remembers the places of all deleted messages after a place, as they were when the head was `at`; ignored if the room went
    /// on since, or if they are too many.
    pub fn learn_deleted(&mut self, at: Sequence, after: Sequence, places: &[Sequence]) {
        if self.head == at && places.len() <= DELETED_REMEMBERED {
            self.deleted_messages = Some(DeletedMessages {
                after,
                places: places.iter().copied().collect(),
            });
        }
    }

    /// Takes in where the log begins now, and when the first event from there on has to go by a retention.
    pub fn raise_floor(&mut self, floor: Floor, expires: Option<Timestamp>, retention: Duration) {
        if floor.first >= self.floor.first {
            self.floor = floor;
            // The rules may have changed since.
            self.expires = expires.filter(|_| self.room.rules.retention() == Some(retention));
        }
    }

    /// How far anybody but one person has read by writing.
    pub fn wrote_besides(&self, person: UserId) -> Sequence {
        let others = self.wrote.iter().filter(|(user, _)| **user != person);
        others
            .map(|(_, mark)| mark.sequence)
            .max()
            .unwrap_or_default()
    }

    /// Takes a committed event in.
    pub fn apply(&mut self, event: &RoomEvent) {
        self.head = event.sequence;
        self.messages = event.messages_after();
        if let Some(user) = event.body.concerns() {
            self.everybody = None;
            self.peopled = event.sequence;
            // Of whom nothing is remembered, they are read again.
            if let Some(known) = self.people.get_mut(&user) {
                *known = decide::after(*known, event);
            }
        }
        match &event.body {
            EventBody::RoomDeleted => self.deleted = true,
            EventBody::Changed {
                name,
                description,
                rules,
            } => {
                self.room = Arc::new(Room {
                    name: name.clone(),
                    description: description.clone(),
                    rules: *rules,
                    ..Room::clone(&self.room)
                });
                self.expires = None;
            }
            EventBody::Message { .. } => {
                if self.wrote.len() >= PEOPLE_REMEMBERED {
                    self.wrote.clear();
                }
                let mark = ReadMark {
                    sequence: event.sequence,
                    messages: self.messages,
                    time: event.time,
                };
                self.wrote.insert(event.actor, mark);
            }
            EventBody::Deleted { target, .. } => {
                if let Some(deleted) = &mut self.deleted_messages {
                    if deleted.places.len() < DELETED_REMEMBERED {
                        deleted.places.insert(*target);
                    } else {
                        self.deleted_messages = None;
                    }
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use carillon_domain::{
        ClientMessageId, MessageId, Timestamp,
        event::{Draft, Mentions, MessageType},
        room::{Member, Role, RoomKind, RoomRules},
    };

    use super::*;

    fn opened() -> OpenedRoom {
        let room = Room {
            id: RoomId::new(),
            kind: RoomKind::Group,
            name: String::new(),
            description: String::new(),
            created_by: UserId::new(),
            created_at: Timestamp(0),
            pair: None,
            deleted_at: None,
            rules: RoomRules::default(),
        };
        let open = OpenRoom {
            room: room.id,
            head: Sequence::ZERO,
            messages: 0,
            deleted: false,
            floor: Floor::default(),
            fences: Vec::new(),
        };
        let tenure = Tenure::new(Epoch(1), Instant::now());
        OpenedRoom::new(room, open, Arc::new(tenure))
    }

    fn apply(now: &mut RoomNow, actor: UserId, body: EventBody) -> Sequence {
        let event = RoomEvent {
            room: RoomId::new(),
            sequence: now.head.next(),
            messages_before: now.messages,
            time: Timestamp(now.head.0.cast_signed()),
            actor,
            body,
        };
        now.apply(&event);
        event.sequence
    }

    fn text() -> EventBody {
        EventBody::Message {
            id: MessageId::new(),
            draft: Draft {
                client_message_id: ClientMessageId("c".into()),
                message_type: MessageType::Text,
                content: "hi".into(),
                reply_to: None,
            },
            mentions: Mentions::default(),
        }
    }

    /// Promise 4: what isn't proven any more isn't shown, and an epoch that is over doesn't come back.
    #[test]
    fn a_tenure_must_be_proven_again() {
        let long = Duration::from_secs(3600);
        let tenure = Tenure::new(Epoch(1), Instant::now());
        assert!(tenure.is_proven_within(long));
        assert!(!tenure.is_proven_within(Duration::ZERO));
        tenure.end();
        tenure.prove(Instant::now());
        assert!(!tenure.is_proven_within(long));
    }

    /// Promise 2: who comes later needs a later proof; who waits together is proven together; an end is for all.
    #[tokio::test]
    async fn readers_share_a_proof_that_is_not_older_than_they_are() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let asked = Arc::new(AtomicUsize::new(0));
        let ask = |answer: fn() -> Result<()>| {
            let asked = asked.clone();
            move |_| {
                asked.fetch_add(1, Ordering::Relaxed);
                async move {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    answer()
                }
                .boxed()
            }
        };
        let tenure = Tenure::new(Epoch(1), Instant::now());
        let later = Instant::now();
        let yes = ask(|| Ok(()));
        let (first, second) = tokio::join!(
            tenure.prove_since(later, &yes),
            tenure.prove_since(later, &yes)
        );
        first.and(second).unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        tenure.prove_since(later, &yes).await.unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 1, "known already");

        // Who comes while a question is under way waits for the next one.
        let early = Instant::now();
        let both = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            tenure.prove_since(Instant::now(), &yes).await
        };
        let (first, second) = tokio::join!(tenure.prove_since(early, &yes), both);
        first.and(second).unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 3);

        let away = || Err(Error::new(ErrorCode::Unavailable, "away"));
        let failed = tenure.prove_since(Instant::now(), ask(away)).await;
        assert_eq!(failed.unwrap_err().code, ErrorCode::Unavailable);
        assert!(tenure.is_proven_within(Duration::from_secs(60)));
        let over = || Err(Error::new(ErrorCode::NotOwner, "over"));
        let failed = tenure.prove_since(Instant::now(), ask(over)).await;
        assert_eq!(failed.unwrap_err().code, ErrorCode::NotOwner);
        let failed = tenure.prove_since(Instant::now(), &yes).await;
        assert_eq!(failed.unwrap_err().code, ErrorCode::NotOwner);
    }

    /// MSG-03: a reader that read a membership before it ended must not bring it back.
    #[test]
    fn an_old_answer_of_the_store_is_not_learned() {
        let room = opened();
        let mut now = room.now.lock();
        let (ann, bob) = (UserId::new(), UserId::new());
        let member = Member {
            user: bob,
            role: Role::Member,
            since: Sequence(1),
            joined_at: Timestamp(0),
        };
        let joined = Standing {
            member: Some(member),
            ..Standing::default()
        };
        let at = now.head;
        apply(&mut now, ann, EventBody::left(bob));
        // So many others that everything remembered is dropped.
        for _ in 0..=PEOPLE_REMEMBERED {
            let head = now.head;
            now.learn_standing(head, UserId::new(), Standing::default());
        }
        now.learn_standing(at, bob, joined);
        assert_eq!(
            now.standing(bob),
            None,
            "nothing is remembered: it is read again"
        );
    }

    /// MSG-03: of whom nothing is remembered, nothing is made up.
    #[test]
    fn events_change_only_what_is_remembered() {
        let room = opened();
        let mut now = room.now.lock();
        let (ann, bob) = (UserId::new(), UserId::new());
        let joined = |user, role| EventBody::Joined { user, role };
        now.learn_standing(Sequence::ZERO, ann, Standing::default());
        apply(&mut now, ann, joined(ann, Role::Member));
        let member = |now: &RoomNow, user| now.standing(user).unwrap().member;
        let joined_at = member(&now, ann).unwrap().joined_at;
        apply(&mut now, ann, text());
        apply(&mut now, ann, joined(ann, Role::Admin));
        let admin = member(&now, ann).unwrap();
        assert_eq!((admin.joined_at, admin.role), (joined_at, Role::Admin));
        apply(&mut now, ann, EventBody::Banned { user: ann });
        let banned = now.standing(ann).unwrap();
        assert!(banned.member.is_none() && banned.restrictions.banned);
        apply(&mut now, ann, joined(bob, Role::Admin));
        apply(
            &mut now,
            ann,
            EventBody::Muted {
                user: bob,
                until: Timestamp(9),
            },
        );
        assert_eq!(now.standing(bob), None);
    }

    /// MSG-09: what is remembered for counting is bounded, and right as far as it goes.
    #[test]
    fn deleted_messages_are_remembered_as_far_as_they_were_read() {
        let room = opened();
        let mut now = room.now.lock();
        let ann = UserId::new();
        let delete = |target| EventBody::Deleted {
            id: MessageId::new(),
            target: Sequence(target),
        };
        for _ in 0..3 {
            apply(&mut now, ann, text());
        }
        assert_eq!(now.deleted_after(Sequence(1)), None);
        now.learn_deleted(Sequence(2), Sequence(1), &[]);
        assert_eq!(now.deleted_after(Sequence(1)), None, "the room went on");
        now.learn_deleted(Sequence(3), Sequence(1), &[Sequence(2)]);
        apply(&mut now, ann, delete(3));
        assert_eq!(
            now.deleted_after(Sequence(1)),
            Some(vec![Sequence(2), Sequence(3)])
        );
        assert_eq!(now.deleted_after(Sequence(2)), Some(vec![Sequence(3)]));
        assert_eq!(now.deleted_after(Sequence::ZERO), None, "not read so far");
        for n in 0..DELETED_REMEMBERED as u64 {
            apply(&mut now, ann, delete(4 + n));
        }
        assert_eq!(now.deleted_after(Sequence(1)), None, "too many");
    }
}
