//! Which rows of a room's log count: pure rules.
//!
//! A row carries the epoch of the owner that wrote it. Each owner sets a fence when it opens a room: "from `first` on, rows of
//! smaller epochs are void". So whatever a paused or cut-off owner still writes lands behind a fence and is never seen. The fences
//! of a room are those that its newest opener knew: see [`timestamps`].

use carillon_domain::{
    Sequence,
    ports::{Epoch, Fence},
};

use super::signed;

/// Whether some later owner had declared this place its own.
pub(super) fn is_void(fences: &[Fence], sequence: Sequence, epoch: Epoch) -> bool {
    fences
        .iter()
        .any(|fence| fence.epoch > epoch && fence.first <= sequence)
}

/// Whether a reader with these fences sees the row. Rows of owners that the reader doesn't know of are not its business: they
/// are beyond the head that it knows.
pub(super) fn is_visible(fences: &[Fence], sequence: Sequence, epoch: Epoch) -> bool {
    let newest = fences.iter().map(|fence| fence.epoch).max();
    newest.is_some_and(|newest| epoch <= newest) && !is_void(fences, sequence, epoch)
}

/// The fences that still decide something, ascending by epoch and by place: one is dead when a later one begins no later, since
/// that one voids all the rows that it voids.
pub(super) fn living(mut fences: Vec<Fence>) -> Vec<Fence> {
    fences.sort_unstable_by_key(|fence| fence.epoch);
    let mut living: Vec<Fence> = Vec::new();
    for fence in fences.into_iter().rev() {
        if living.last().is_none_or(|later| fence.first < later.first) {
            living.push(fence);
        }
    }
    living.reverse();
    living
}

/// Timestamps of an opener's writes: of its deletion of all fences of earlier epochs, and of the fences that it knows. All that
/// earlier epochs write is older than its deletion, whenever it arrives; all that later ones write is newer than its fences.
pub(super) fn timestamps(epoch: Epoch) -> (i64, i64) {
    let drop_at = signed(epoch.0.saturating_mul(2));
    (drop_at, drop_at.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn fence(epoch: u64, first: u64) -> Fence {
        Fence {
            epoch: Epoch(epoch),
            first: Sequence(first),
        }
    }

    #[test]
    fn a_replaced_owners_rows_are_void_from_the_fence_on() {
        let fences = [fence(1, 1), fence(3, 6)];
        assert!(is_visible(&fences, Sequence(5), Epoch(1)));
        assert!(!is_visible(&fences, Sequence(6), Epoch(1)));
        assert!(!is_visible(&fences, Sequence(6), Epoch(2)));
        assert!(is_visible(&fences, Sequence(6), Epoch(3)));
    }

    #[test]
    fn rows_of_later_owners_are_not_seen_with_older_fences() {
        assert!(!is_visible(&[fence(1, 1)], Sequence(2), Epoch(2)));
        assert!(!is_visible(&[], Sequence(1), Epoch(1)));
    }

    #[test]
    fn a_quiet_room_keeps_one_fence() {
        let fences = living(vec![fence(1, 5), fence(2, 5), fence(7, 5)]);
        assert_eq!(fences, [fence(7, 5)]);
    }

    /// The table of fences as the database merges what openers write, in whatever order it arrives.
    #[derive(Default)]
    struct Table {
        puts: Vec<(Fence, i64)>,
        drops: Vec<(Epoch, i64)>,
    }

    impl Table {
        fn write(&mut self, epoch: Epoch, living: &[Fence]) {
            let (drop_at, put_at) = timestamps(epoch);
            self.drops.push((epoch, drop_at));
            self.puts
                .extend(living.iter().map(|fence| (*fence, put_at)));
        }

        fn read(&self) -> Vec<Fence> {
            let mut newest: BTreeMap<Epoch, (Fence, i64)> = BTreeMap::new();
            for (fence, at) in &self.puts {
                let stored = newest.entry(fence.epoch).or_insert((*fence, *at));
                if *at > stored.1 {
                    *stored = (*fence, *at);
                }
            }
            let dropped = |fence: &Fence, at: i64| {
                self.drops
                    .iter()
                    .any(|(below, dropped_at)| fence.epoch < *below && *dropped_at >= at)
            };
            newest
                .into_values()
                .filter(|(fence, at)| !dropped(fence, *at))
                .map(|(fence, _)| fence)
                .collect()
        }
    }

    /// What an owner does next; 0 is the newest, 1 the one before it.
    #[derive(Clone, Debug)]
    enum Step {
        /// A new owner takes the partition.
        Acquire,
        /// An owner reads the room's fences and its end.
        Read { back: usize },
        /// An owner that has read writes its fences, and serves if it is still the newest then.
        Fence { back: usize },
        /// An owner that serves, or did, writes this many events after what it knows; the last of them may get lost.
        Write { back: usize, count: u64, lost: bool },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            2 => Just(Step::Acquire),
            3 => (0usize..3).prop_map(|back| Step::Read { back }),
            3 => (0usize..3).prop_map(|back| Step::Fence { back }),
            5 => (0usize..3, 1u64..4, any::<bool>())
                .prop_map(|(back, count, lost)| Step::Write { back, count, lost }),
        ]
    }

    /// How far an owner has come.
    #[derive(Clone)]
    enum Phase {
        Acquired,
        Read { head: u64, fences: Vec<Fence> },
        Serves { head: u64, fences: Vec<Fence> },
        Failed,
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// MSG-03: whatever owners still write that were paused at any point, an event that was acknowledged, or seen by an
        /// owner that serves, stays, alone at its place, and places are dense.
        #[test]
        fn acknowledged_rows_stay_and_are_alone(steps in prop::collection::vec(step(), 1..60)) {
            let mut rows: Vec<(Sequence, Epoch)> = Vec::new();
            let mut table = Table::default();
            let mut owners: Vec<Phase> = Vec::new();
            let mut acknowledged: BTreeMap<Sequence, Epoch> = BTreeMap::new();
            for step in [Step::Acquire, Step::Read { back: 0 }, Step::Fence { back: 0 }].into_iter().chain(steps) {
                let of = |back: usize| owners.len().saturating_sub(1 + back);
                match step {
                    Step::Acquire => owners.push(Phase::Acquired),
                    Step::Read { back } => {
                        let index = of(back);
                        let epoch = Epoch(index as u64 + 1);
                        let Phase::Acquired = owners[index] else { continue };
                        let fences = table.read();
                        if fences.iter().any(|fence| fence.epoch > epoch) {
                            owners[index] = Phase::Failed;
                            continue;
                        }
                        let mut head = 0;
                        while rows.iter().any(|(sequence, by)| {
                            sequence.0 == head + 1 && *by <= epoch && !is_void(&fences, *sequence, *by)
                        }) {
                            head += 1;
                        }
                        owners[index] = Phase::Read { head, fences };
                    }
                    Step::Fence { back } => {
                        let index = of(back);
                        let epoch = Epoch(index as u64 + 1);
                        let Phase::Read { head, fences: mut known } = owners[index].clone() else { continue };
                        known.push(Fence { epoch, first: Sequence(head + 1) });
                        let fences = living(known);
                        table.write(epoch, &fences);
                        if index + 1 < owners.len() {
                            owners[index] = Phase::Failed;
                            continue;
                        }
                        for place in (1..=head).map(Sequence) {
                            let seen = rows.iter().find(|(at, by)| *at == place && is_visible(&fences, *at, *by));
                            prop_assert!(seen.is_some(), "{} isn't there for its owner", place);
                            let (_, by) = seen.copied().unwrap_or_default();
                            let known = *acknowledged.entry(place).or_insert(by);
                            prop_assert_eq!(known, by, "another event is at {}", place);
                        }
                        owners[index] = Phase::Serves { head, fences };
                    }
                    Step::Write { back, count, lost } => {
                        let index = of(back);
                        let newest = index + 1 == owners.len();
                        let epoch = Epoch(index as u64 + 1);
                        let Phase::Serves { head, fences } = owners[index].clone() else { continue };
                        let written = count - u64::from(lost);
                        rows.extend((head + 1..=head + written).map(|place| (Sequence(place), epoch)));
                        if newest && !lost {
                            acknowledged.extend((head + 1..=head + count).map(|place| (Sequence(place), epoch)));
                            owners[index] = Phase::Serves { head: head + count, fences };
                        }
                        // An owner that lost a write must acquire anew before it writes on.
                        if newest && lost {
                            owners[index] = Phase::Failed;
                        }
                    }
                }
                rows.sort_unstable();
                rows.dedup();
                let mut readers = vec![table.read()];
                if let Some(Phase::Serves { fences, .. }) = owners.last() {
                    readers.push(fences.clone());
                }
                for fences in readers {
                    for (place, by) in &acknowledged {
                        let seen: Vec<Epoch> = rows.iter()
                            .filter(|(sequence, epoch)| sequence == place && is_visible(&fences, *sequence, *epoch))
                            .map(|(_, epoch)| *epoch)
                            .collect();
                        prop_assert_eq!(&seen, &vec![*by], "at {} with {:?}", place, fences);
                    }
                    let living = living(fences.clone());
                    for (sequence, epoch) in &rows {
                        prop_assert_eq!(
                            is_visible(&living, *sequence, *epoch),
                            is_visible(&fences, *sequence, *epoch),
                            "leaving out the dead of {:?} changed what is seen", fences
                        );
                    }
                }
            }
        }
    }
}
