//! What an owner remembers of an open room. A cache: everything in it can be read again after a restart.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use carillon_domain::{
    Error, ErrorCode, Result, RoomId, Sequence, UserId,
    event::{EventBody, RoomEvent},
    ports::{Epoch, Fence, OpenRoom},
    room::{Member, Room},
    services::RoomOverview,
};
use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use parking_lot::Mutex;

/// Rooms with more members than this aren't remembered as a whole; nobody is pushed for every message of such a room.
pub const FEW_MEMBERS: usize = 1000;
/// Single memberships remembered per room.
const MEMBERS_REMEMBERED: usize = 10_000;

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
    /// Its fixed part.
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
    members: HashMap<UserId, Option<Member>>,
    /// All members, if they are few and were asked for.
    everybody: Option<Arc<Vec<UserId>>>,
    /// The last messages, if somebody's unread ones were counted.
    recent: Option<Recent>,
}

/// The messages from a place to the head that weren't deleted, for counting unread ones: for all readers of a room they are read
/// once, as far back as somebody needed, and kept up to date.
struct Recent {
    from: Sequence,
    /// Place and sender, ascending; at most [`RoomOverview::EXACT`].
    messages: VecDeque<(Sequence, UserId)>,
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
            members: HashMap::new(),
            everybody: None,
            recent: None,
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
    /// A remembered membership; `None` if nothing is remembered about this person.
    pub fn member(&self, user: UserId) -> Option<Option<Member>> {
        self.members.get(&user).copied()
    }

    /// Remembers what the store said when the head was `at`; ignored if the room went on since, for then an event may have told
    /// more.
    pub fn learn_member(&mut self, at: Sequence, user: UserId, member: Option<Member>) {
        if self.head != at {
            return;
        }
        if self.members.len() >= MEMBERS_REMEMBERED {
            self.members.clear();
        }
        self.members.insert(user, member);
    }

    /// All members, if remembered.
    pub fn everybody(&self) -> Option<Arc<Vec<UserId>>> {
        self.everybody.clone()
    }

    /// Remembers all members as of `head`; ignored if the room went on since.
    pub fn learn_everybody(&mut self, at: Sequence, users: Arc<Vec<UserId>>) {
        if self.head == at {
            self.everybody = Some(users);
        }
    }

    /// Messages of others than `reader` after a place that weren't deleted; `None` if not everything since is remembered.
    pub fn unread(&self, reader: UserId, after: Sequence) -> Option<u64> {
        if self.recent_from() > after.next() {
            return None;
        }
        let unread = self.recent.iter().flat_map(|recent| {
            let first = recent
                .messages
                .partition_point(|(place, _)| *place <= after);
            recent.messages.range(first..)
        });
        Some(unread.filter(|(_, sender)| *sender != reader).count() as u64)
    }

    /// From which place on messages are remembered; after the head if none are.
    pub fn recent_from(&self) -> Sequence {
        let recent = self.recent.as_ref();
        recent.map_or(self.head.next(), |recent| recent.from)
    }

    /// Remembers the messages from `from` up to where others are remembered (`until`), as they were when the head was `at`;
    /// ignored if the room went on since.
    pub fn learn_recent(
        &mut self,
        at: Sequence,
        from: Sequence,
        until: Sequence,
        messages: &[(Sequence, UserId)],
    ) {
        if self.head != at || self.recent_from() != until {
            return;
        }
        let recent = self.recent.get_or_insert_with(|| Recent {
            from,
            messages: VecDeque::new(),
        });
        recent.from = from;
        for message in messages.iter().rev() {
            recent.messages.push_front(*message);
        }
        recent.shorten();
    }

    /// Takes a committed event in.
    pub fn apply(&mut self, event: &RoomEvent) {
        self.head = event.sequence;
        self.messages = event.messages_after();
        match event.body {
            EventBody::Joined { user, role } => {
                self.everybody = None;
                // A change of the role doesn't change when they joined. Of whom nothing is remembered, that isn't known here:
                // they are read again.
                if let Some(known) = self.members.get_mut(&user) {
                    *known = Some(Member {
                        user,
                        role,
                        since: event.sequence,
                        joined_at: known.map_or(event.time, |member| member.joined_at),
                    });
                }
            }
            EventBody::Left { user } => {
                self.members.insert(user, None);
                self.everybody = None;
            }
            EventBody::RoomDeleted => self.deleted = true,
            EventBody::Message { .. } => {
                if let Some(recent) = &mut self.recent {
                    recent.messages.push_back((event.sequence, event.actor));
                    recent.shorten();
                }
            }
            EventBody::Deleted { target, .. } => {
                if let Some(recent) = &mut self.recent {
                    recent.messages.retain(|(place, _)| *place != target);
                }
            }
            EventBody::Edited { .. } => {}
        }
    }
}

impl Recent {
    fn shorten(&mut self) {
        while self.messages.len() as u64 > RoomOverview::EXACT {
            if let Some((place, _)) = self.messages.pop_front() {
                self.from = place.next();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use carillon_domain::{
        ClientMessageId, MessageId, Timestamp,
        event::{Draft, MessageType},
        room::{Role, RoomKind},
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
        };
        let open = OpenRoom {
            room: room.id,
            head: Sequence::ZERO,
            messages: 0,
            deleted: false,
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
        let at = now.head;
        apply(&mut now, ann, EventBody::Left { user: bob });
        // So many others that everything remembered is dropped.
        for _ in 0..=MEMBERS_REMEMBERED {
            let head = now.head;
            now.learn_member(head, UserId::new(), None);
        }
        now.learn_member(at, bob, Some(member));
        assert_eq!(
            now.member(bob),
            None,
            "nothing is remembered: it is read again"
        );
    }

    /// MSG-03: another role keeps the time of joining; of whom nothing is remembered, nothing is made up.
    #[test]
    fn another_role_keeps_the_time_of_joining() {
        let room = opened();
        let mut now = room.now.lock();
        let (ann, bob) = (UserId::new(), UserId::new());
        let joined = |user, role| EventBody::Joined { user, role };
        now.learn_member(Sequence::ZERO, ann, None);
        apply(&mut now, ann, joined(ann, Role::Member));
        let joined_at = now.member(ann).flatten().unwrap().joined_at;
        apply(&mut now, ann, text());
        apply(&mut now, ann, joined(ann, Role::Admin));
        let member = now.member(ann).flatten().unwrap();
        assert_eq!((member.joined_at, member.role), (joined_at, Role::Admin));
        apply(&mut now, ann, joined(bob, Role::Admin));
        assert_eq!(now.member(bob), None);
    }

    /// MSG-09: what is remembered for counting is bounded, and right as far as it goes.
    #[test]
    fn recent_messages_are_few_and_right() {
        let room = opened();
        let mut now = room.now.lock();
        let (ann, bob) = (UserId::new(), UserId::new());
        apply(&mut now, ann, text());
        assert_eq!(now.unread(bob, Sequence::ZERO), None);
        assert_eq!(now.unread(bob, Sequence(1)), Some(0));
        now.learn_recent(Sequence::ZERO, Sequence(1), Sequence(1), &[]);
        assert_eq!(now.unread(bob, Sequence::ZERO), None, "the room went on");
        now.learn_recent(Sequence(1), Sequence(1), Sequence(2), &[(Sequence(1), ann)]);
        assert_eq!(now.unread(bob, Sequence::ZERO), Some(1));
        assert_eq!(now.unread(ann, Sequence::ZERO), Some(0));
        for n in 0..RoomOverview::EXACT {
            apply(&mut now, if n % 2 == 0 { ann } else { bob }, text());
        }
        assert_eq!(
            now.unread(bob, Sequence::ZERO),
            None,
            "the first is forgotten"
        );
        let half = RoomOverview::EXACT / 2;
        assert_eq!(now.unread(bob, Sequence(1)), Some(half));
        let gone = EventBody::Deleted {
            id: MessageId::new(),
            target: Sequence(2),
        };
        apply(&mut now, ann, gone);
        assert_eq!(now.unread(bob, Sequence(1)), Some(half - 1));
        assert_eq!(now.unread(ann, Sequence(1)), Some(half));
    }
}
