//! What both REST and sockets do, with one meaning: thin compositions of the services.

use std::{sync::Arc, time::Instant};

use carillon_domain::{
    Error, ErrorCode, MessageId, Result, RoomId, UserId,
    event::{Draft, Message, Revision},
    room::RoomKind,
    services::{HistoryQuery, MessageService, RoomSummary, RoomView, SendOutcome},
};
use parking_lot::Mutex;

use crate::metrics;

/// How many pairs of people the cache of direct rooms remembers.
const DIRECT_ROOMS_CACHED: usize = 100_000;

/// Messages, with the look-ups that clients don't want to do.
pub struct Chat {
    messages: Arc<dyn MessageService>,
    /// Direct rooms by pair: one room per pair for ever, so that an entry can't become wrong.
    direct: Mutex<DirectRooms>,
}

#[derive(Default)]
struct DirectRooms {
    young: std::collections::HashMap<(UserId, UserId), RoomId>,
    old: std::collections::HashMap<(UserId, UserId), RoomId>,
}

impl DirectRooms {
    fn get(&self, pair: &(UserId, UserId)) -> Option<RoomId> {
        self.young.get(pair).or_else(|| self.old.get(pair)).copied()
    }

    /// Two generations bound the memory: when the young one is full it becomes the old one.
    fn put(&mut self, pair: (UserId, UserId), room: RoomId) {
        if self.young.len() >= DIRECT_ROOMS_CACHED / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(pair, room);
    }
}

fn pair(a: UserId, b: UserId) -> (UserId, UserId) {
    if a <= b { (a, b) } else { (b, a) }
}

impl Chat {
    pub fn new(messages: Arc<dyn MessageService>) -> Self {
        Self {
            messages,
            direct: Mutex::default(),
        }
    }

    /// The services' own calls, for what needs no composition.
    pub fn messages(&self) -> &dyn MessageService {
        self.messages.as_ref()
    }

    /// The direct room with a peer, made if there was none.
    pub async fn open_direct(&self, actor: UserId, peer: UserId) -> Result<(RoomView, bool)> {
        let (view, made) = self.messages.open_direct(actor, peer).await?;
        self.direct.lock().put(pair(actor, peer), view.room.id);
        Ok((view, made))
    }

    /// The id of the direct room, if it is known here.
    pub fn known_direct(&self, actor: UserId, peer: UserId) -> Option<RoomId> {
        self.direct.lock().get(&pair(actor, peer))
    }

    /// The id of the direct room with a peer, made if there was none.
    pub async fn direct_id(&self, actor: UserId, peer: UserId) -> Result<RoomId> {
        match self.known_direct(actor, peer) {
            Some(room) => Ok(room),
            None => Ok(self.open_direct(actor, peer).await?.0.room.id),
        }
    }

    /// The id of the direct room with a peer, without making one.
    async fn find_direct(&self, actor: UserId, peer: UserId) -> Result<Option<RoomId>> {
        if let Some(room) = self.known_direct(actor, peer) {
            return Ok(Some(room));
        }
        let mut after = None;
        loop {
            let page = self.messages.my_rooms(actor, after, 100).await?;
            for summary in &page {
                if let (RoomKind::Direct, Some(other)) = (summary.room.kind, summary.peer) {
                    self.direct.lock().put(pair(actor, other), summary.room.id);
                }
            }
            if let Some(found) = page.iter().find(|summary| summary.peer == Some(peer)) {
                return Ok(Some(found.room.id));
            }
            match page.last() {
                Some(last) if page.len() == 100 => after = Some(last.room.id),
                _ => return Ok(None),
            }
        }
    }

    /// Messages with a peer; none if they never wrote to each other.
    pub async fn direct_history(
        &self,
        actor: UserId,
        peer: UserId,
        query: HistoryQuery,
    ) -> Result<Vec<Message>> {
        match self.find_direct(actor, peer).await? {
            Some(room) => self.messages.history(actor, room, query).await,
            None => Ok(Vec::new()),
        }
    }

    /// The caller's direct rooms after `after`, and where to go on.
    pub async fn direct_rooms(
        &self,
        actor: UserId,
        mut after: Option<RoomId>,
        limit: usize,
    ) -> Result<(Vec<RoomSummary>, Option<RoomId>)> {
        let mut found = Vec::new();
        loop {
            let page = self.messages.my_rooms(actor, after, 100).await?;
            let full = page.len() == 100;
            for summary in page {
                after = Some(summary.room.id);
                if summary.room.kind == RoomKind::Direct {
                    found.push(summary);
                    if found.len() == limit {
                        return Ok((found, after));
                    }
                }
            }
            if !full {
                return Ok((found, None));
            }
        }
    }

    pub async fn send(&self, actor: UserId, room: RoomId, draft: Draft) -> Result<SendOutcome> {
        let started = Instant::now();
        let sent = self.messages.send(actor, room, draft).await;
        metrics::SENDS
            .with_label_values(&[outcome_of(&sent)])
            .observe(started.elapsed().as_secs_f64());
        sent
    }

    pub async fn message(&self, actor: UserId, id: MessageId) -> Result<Message> {
        let place = self.messages.locate(id).await?;
        self.messages.message(actor, place.room, id).await
    }

    pub async fn revisions(&self, actor: UserId, id: MessageId) -> Result<Vec<Revision>> {
        let place = self.messages.locate(id).await?;
        self.messages.revisions(actor, place.room, id).await
    }

    pub async fn edit(&self, actor: UserId, id: MessageId, content: String) -> Result<Message> {
        let place = self.messages.locate(id).await?;
        self.messages.edit(actor, place.room, id, content).await
    }

    pub async fn delete(&self, actor: UserId, id: MessageId) -> Result<Message> {
        let place = self.messages.locate(id).await?;
        self.messages.delete(actor, place.room, id).await
    }
}

/// What became of a send, as the metrics name it.
fn outcome_of(sent: &Result<SendOutcome>) -> &'static str {
    match sent {
        Ok(sent) if sent.duplicate => "duplicate",
        Ok(_) => "stored",
        Err(error) => match error.code {
            ErrorCode::NotOwner
            | ErrorCode::Unavailable
            | ErrorCode::DeadlineExceeded
            | ErrorCode::Internal => "failed",
            _ => "refused",
        },
    }
}

/// The error as a client may see it: ownership is our own business, and a defect's text is for the log.
pub fn shown(error: Error) -> Error {
    match error.code {
        ErrorCode::NotOwner => {
            let mut shown = Error::new(
                ErrorCode::Unavailable,
                "the room is moving to another server, try again",
            );
            shown.retry_after = error.retry_after;
            shown
        }
        ErrorCode::Internal => {
            let shown = Error::new(ErrorCode::Internal, "internal error");
            tracing::error!(cause = error.cause_chain(), "internal error");
            shown
        }
        ErrorCode::Unavailable => {
            tracing::warn!(detail = %error.detail, cause = error.cause_chain(), "unavailable");
            error
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_of_direct_rooms_is_bounded() {
        let mut rooms = DirectRooms::default();
        let last = (UserId::new(), UserId::new());
        for _ in 0..DIRECT_ROOMS_CACHED * 2 {
            rooms.put((UserId::new(), UserId::new()), RoomId::new());
        }
        rooms.put(last, RoomId::new());
        assert!(rooms.young.len() + rooms.old.len() <= DIRECT_ROOMS_CACHED);
        assert!(rooms.get(&last).is_some());
    }

    /// OPS-03: a failure of ours is told from what a sender did wrong.
    #[test]
    fn only_our_failures_count_as_failed() {
        let failed: Vec<&str> = ErrorCode::ALL
            .into_iter()
            .filter(|code| outcome_of(&Err(Error::new(*code, ""))) == "failed")
            .map(ErrorCode::as_str)
            .collect();
        assert_eq!(
            failed,
            ["not_owner", "unavailable", "deadline_exceeded", "internal"]
        );
    }

    #[test]
    fn causes_and_ownership_stay_inside() {
        let defect = shown(Error::defect("secret cause"));
        assert_eq!(defect.detail, "internal error");
        assert!(defect.cause_chain().is_empty());
        let moved = shown(Error::new(ErrorCode::NotOwner, "partition 5"));
        assert_eq!(moved.code, ErrorCode::Unavailable);
    }
}
