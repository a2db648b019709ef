//! Takes people whose accounts are erased out of their rooms (AUTH-15). Each replica does it in the rooms that it owns, so that no replica
//! has to ask another one; whoever finds no room left of a person says so.

use std::{sync::Weak, time::Duration};

use carillon_domain::{
    Result, RoomId, UserId,
    ports::{ErasurePart, PersonKeys},
};
use tokio::time::MissedTickBehavior;

use crate::{MessageRole, decide::Intent};

/// People that are looked at in one round.
const PEOPLE: usize = 100;
/// Rooms of a person that are read at once.
const ROOMS: usize = 1000;

/// Looks every so often, until the role is gone.
pub async fn run(role: Weak<MessageRole>, every: Duration) {
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(role) = role.upgrade() else { return };
        if let Err(error) = role.erase_pending().await {
            tracing::warn!(%error, cause = error.cause_chain(), "people who are erased are still in their rooms for now");
        }
    }
}

impl MessageRole {
    pub(crate) async fn erase_pending(&self) -> Result<()> {
        let keys: &dyn PersonKeys = self.person_keys.as_ref();
        let mut result = Ok(());
        for user in keys.erasing(ErasurePart::Rooms, PEOPLE).await? {
            match self.leave_all(user).await {
                Ok(true) => keys.erased(ErasurePart::Rooms, user).await?,
                Ok(false) => {}
                // Whoever can't be taken out keeps nobody else in.
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// Takes somebody out of the rooms that are ours; whether there is none left anywhere.
    async fn leave_all(&self, user: UserId) -> Result<bool> {
        let rooms = self.rooms.as_ref();
        let (mut left, mut failed) = (0, Ok(()));
        for invited in [false, true] {
            let mut after = None;
            loop {
                let ids = match invited {
                    false => rooms.rooms_of(user, after, ROOMS).await?,
                    true => rooms.invites_of(user, after, ROOMS).await?,
                };
                let Some(last) = ids.last() else { break };
                after = Some(*last);
                let found = rooms.get_many(&ids).await?;
                self.forget_deleted(user, &found).await;
                for room in found.iter().filter(|room| room.deleted_at.is_none()) {
                    match self.leave_one(user, room.id).await {
                        Ok(done) => left += usize::from(!done),
                        Err(error) => failed = Err(error),
                    }
                }
            }
        }
        failed.map(|()| left == 0)
    }

    /// Whether it was done here.
    async fn leave_one(&self, user: UserId, room: RoomId) -> Result<bool> {
        if self.shared.check_owner(room).is_err() {
            return Ok(false);
        }
        self.write(room, user, Intent::Erase).await?;
        Ok(true)
    }
}
