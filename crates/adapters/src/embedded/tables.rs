//! The tables of the store. Keys begin with what they are read by; numbers in keys are big-endian, so that they sort.

use fjall::{Database, Keyspace, KeyspaceCreateOptions};

/// A table: an LSM tree of its own in the one store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub(super) enum Table {
    /// Format, epochs of partitions, counters.
    Meta,
    /// `a` user → account; `u` name, `e` address, `p` number → user; `h` trail, user, id (newest first) → end, security event;
    /// `s` term, 0, user → nothing: people by the beginnings of their names.
    Accounts,
    /// User, device → end, session.
    Sessions,
    /// Access token id → end.
    RevokedTokens,
    /// Key → end, kind, value.
    Ephemeral,
    /// End, table, key → nothing: what to remove when. An entry whose row ends later by now is stale and means nothing.
    Ends,
    /// `r` room → room; `l` room (listed ones); `d` two users → room.
    Rooms,
    /// Room, user → member.
    Members,
    /// User, room → nothing.
    RoomsOfUser,
    /// User, room → read mark, up to format 1. See [`Table::Marks`].
    ReadMarks,
    /// Room, slot, sequence → event.
    Events,
    /// Room → last sequence, messages.
    Heads,
    /// Sender, client message id → rooms and sequences. In a store that an older format wrote also: the same, room, sequence → nothing.
    Sent,
    /// Message → room, sequence.
    Messages,
    /// `w` due time, number → waiting job; `x` number → dead job.
    PushJobs,
    /// User, device → target.
    PushTargets,
    /// Media → entry.
    Media,
    /// User → when last seen.
    LastSeen,
    /// Room, user, `d` → how far messages got to them; `r` → how far they have read.
    Marks,
    /// `r` room, user → restrictions; `i` user, room (invitations); `k` room (with a retention); `f` room → floor;
    /// `d` room, sequence (deleted messages); `m` room, user (none: everybody), sequence (mentions).
    RoomIndex,
    /// `c` user, other → since and `C` other, user → nothing: contacts; `b`, `B` alike: blocks; `n`, `m` user → how many.
    People,
    /// `k` user → their key, or when it was destroyed; `a`, `r`, `m` user → nothing: parts that still erase them;
    /// `u` user, media → nothing: uploads.
    PersonKeys,
}

/// Names on disk, in the order of [`Table`], and the size in MiB at which a table's newest rows move from memory to a file.
const TABLES: [(Table, &str, u64); 22] = [
    (Table::Meta, "meta", 4),
    (Table::Accounts, "accounts", 4),
    (Table::Sessions, "sessions", 4),
    (Table::RevokedTokens, "revoked_tokens", 4),
    (Table::Ephemeral, "ephemeral", 8),
    (Table::Ends, "ends", 4),
    (Table::Rooms, "rooms", 4),
    (Table::Members, "members", 4),
    (Table::RoomsOfUser, "rooms_of_user", 4),
    (Table::ReadMarks, "read_marks", 4),
    (Table::Events, "events", 32),
    (Table::Heads, "heads", 8),
    (Table::Sent, "sent", 16),
    (Table::Messages, "messages", 16),
    (Table::PushJobs, "push_jobs", 8),
    (Table::PushTargets, "push_targets", 4),
    (Table::Media, "media", 4),
    (Table::LastSeen, "last_seen", 4),
    (Table::Marks, "marks", 8),
    (Table::RoomIndex, "room_index", 4),
    (Table::People, "people", 4),
    (Table::PersonKeys, "person_keys", 4),
];

impl Table {
    /// The reverse of `table as u8`.
    pub(super) fn from_number(number: u8) -> Option<Self> {
        TABLES.get(usize::from(number)).map(|(table, ..)| *table)
    }
}

/// Handles of all tables.
pub(super) struct Tables(Vec<Keyspace>);

impl Tables {
    /// Opens every table, making those that aren't there.
    pub(super) fn open(database: &Database) -> fjall::Result<Self> {
        TABLES
            .iter()
            .map(|(_, name, mebibytes)| {
                database.keyspace(name, || {
                    KeyspaceCreateOptions::default().max_memtable_size(mebibytes * 1024 * 1024)
                })
            })
            .collect::<fjall::Result<_>>()
            .map(Self)
    }

    /// One table.
    pub(super) fn keyspace(&self, table: Table) -> &Keyspace {
        &self.0[table as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of tables are stored in [`Table::Ends`].
    #[test]
    fn the_list_is_in_the_order_of_the_enum() {
        for (place, (table, ..)) in TABLES.iter().enumerate() {
            assert_eq!(*table as usize, place);
            assert_eq!(Table::from_number(place as u8), Some(*table));
        }
    }
}
