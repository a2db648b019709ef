//! Rooms and users hash to partitions; a partition of rooms is owned by one message replica at a time.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{ReplicaId, RoomId, UserId};

/// How many partitions there are. Part of the stored format: changing it needs a migration.
pub const PARTITIONS: u16 = 1024;

/// A partition of rooms (or of users, for topics of the bus).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Partition(pub u16);

impl Partition {
    /// The partition that a room belongs to.
    pub fn of_room(room: RoomId) -> Self {
        Self::of(room.0)
    }

    /// The partition whose topic carries what concerns a user.
    pub fn of_user(user: UserId) -> Self {
        Self::of(user.0)
    }

    fn of(id: Uuid) -> Self {
        let value = mix((id.as_u128() >> 64) as u64 ^ (id.as_u128() as u64).rotate_left(32));
        Self((value % u64::from(PARTITIONS)) as u16)
    }
}

/// The replica that should own the partition, by rendezvous hashing over the live replicas: when one goes, only its
/// partitions move. Every process that sees the same replicas answers the same.
pub fn preferred_owner<'a>(
    partition: Partition,
    replicas: impl IntoIterator<Item = &'a ReplicaId>,
) -> Option<&'a ReplicaId> {
    replicas.into_iter().max_by_key(|replica| {
        let mut hash = mix(u64::from(partition.0).wrapping_add(0x9e37_79b9_7f4a_7c15));
        for byte in replica.0.bytes() {
            hash = mix(hash ^ u64::from(byte));
        }
        (hash, *replica)
    })
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a fixed, well-mixing permutation. Stored data depends on it.
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_spread_evenly() {
        let mut counts = vec![0u32; usize::from(PARTITIONS)];
        for _ in 0..102_400 {
            counts[usize::from(Partition::of_room(RoomId::new()).0)] += 1;
        }
        assert!(
            counts.iter().all(|&n| (40..=180).contains(&n)),
            "uneven: {:?}",
            counts.iter().minmax()
        );
    }

    trait MinMax {
        fn minmax(self) -> Option<(u32, u32)>;
    }
    impl<'a, I: Iterator<Item = &'a u32> + Clone> MinMax for I {
        fn minmax(self) -> Option<(u32, u32)> {
            Some((*self.clone().min()?, *self.max()?))
        }
    }

    #[test]
    fn the_hash_is_part_of_the_stored_format() {
        let room = RoomId("01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap());
        insta::assert_snapshot!(Partition::of_room(room).0.to_string(), @"1012");
    }

    #[test]
    fn only_the_lost_replicas_partitions_move() {
        let all: Vec<ReplicaId> = (0..4).map(|n| ReplicaId(format!("message-{n}"))).collect();
        let fewer = &all[..3];
        let mut owned = [0u32; 4];
        for partition in (0..PARTITIONS).map(Partition) {
            let before = preferred_owner(partition, &all).unwrap();
            let after = preferred_owner(partition, fewer).unwrap();
            owned[all.iter().position(|r| r == before).unwrap()] += 1;
            assert!(before == after || *before == all[3]);
        }
        assert!(owned.iter().all(|&n| n > 180), "uneven: {owned:?}");
    }
}
