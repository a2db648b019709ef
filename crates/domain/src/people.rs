//! What people are to each other: contacts and blocks. Each is said by one person alone; nobody is asked.

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorCode, Timestamp, UserId, privacy::Privacy};

/// Contacts that one person may have.
pub const MAX_CONTACTS: usize = 5_000;
/// Blocks that one person may have made.
pub const MAX_BLOCKS: usize = 5_000;
/// Blocks against one person that are looked at one by one; somebody with more is hidden from everybody's presence and typing.
pub const MAX_BLOCKED_BY: usize = 5_000;

/// People who have one person as a contact that are looked at one by one.
pub const MAX_CONTACT_OF: usize = 5_000;

/// What somebody says of another person.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Relation {
    /// "I want to know when they are online" (USER-04).
    Contact,
    /// "I want nothing to do with them" (USER-05).
    Block,
}

impl Relation {
    /// Both, for tests.
    pub const ALL: [Self; 2] = [Self::Contact, Self::Block];

    /// The error for somebody who has as many as are allowed.
    pub fn full(self, most: usize) -> Error {
        let what = match self {
            Self::Contact => "contacts",
            Self::Block => "blocks",
        };
        Error::new(
            ErrorCode::FailedPrecondition,
            format!("at most {most} {what}: remove some first"),
        )
    }
}

/// An entry of somebody's contacts or blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Related {
    /// The other person.
    pub user: UserId,
    /// When it was said first.
    pub since: Timestamp,
}

/// What is between a person and another one; at least one of the two is true.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Between {
    /// The other one.
    pub other: UserId,
    /// The person said it of the other one.
    pub by_user: bool,
    /// The other one said it of the person.
    pub by_other: bool,
}

/// Whose presence and typing a person doesn't get: of whom they blocked, and of who blocked them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Hidden {
    /// Of these; at most [`MAX_BLOCKS`] + [`MAX_BLOCKED_BY`], ascending.
    People(Vec<UserId>),
    /// Of anybody: more people blocked them than are looked at one by one.
    Everybody,
}

/// What decides what a person is shown of others, as gateways keep it for who is connected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sight {
    /// Blocks, in both directions.
    pub hidden: Hidden,
    /// To whom the person shows what.
    pub privacy: Privacy,
    /// The person's contacts, ascending, at most [`MAX_CONTACTS`]; empty while nothing of `privacy` depends on them.
    pub contacts: Vec<UserId>,
    /// Who has the person as a contact, ascending; of more than [`MAX_CONTACT_OF`] those with the lowest ids. Who isn't among them
    /// and shows something to contacts only counts as hiding it.
    pub contact_of: Vec<UserId>,
}
