//! Which rows of a room's log count: pure rules.
//!
//! A row carries the epoch of the owner that wrote it. Each owner sets a fence when it opens a room: "from `first` on, rows of
//! smaller epochs are void". So whatever a paused or cut-off owner still writes lands behind a fence and is never seen.

use carillon_domain::{
    Sequence,
    ports::{Epoch, Fence},
};

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

/// Splits fences into those that still decide something and the dead: a fence is dead when a later one begins no later, since
/// that one voids all the rows that it voids. The living ones are ascending by epoch and by place.
pub(super) fn split(mut fences: Vec<Fence>) -> (Vec<Fence>, Vec<Fence>) {
    fences.sort_unstable_by_key(|fence| fence.epoch);
    let mut earliest = Sequence(u64::MAX);
    let (mut living, mut dead) = (Vec::new(), Vec::new());
    for fence in fences.into_iter().rev() {
        if living.is_empty() || fence.first < earliest {
            earliest = fence.first;
            living.push(fence);
        } else {
            dead.push(fence);
        }
    }
    living.reverse();
    (living, dead)
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
        let (living, dead) = split(vec![fence(1, 5), fence(2, 5), fence(7, 5)]);
        assert_eq!(living, [fence(7, 5)]);
        assert_eq!(dead.len(), 2);
    }

    /// What an owner does next.
    #[derive(Clone, Debug)]
    enum Step {
        /// A new owner opens the room.
        Open,
        /// An owner (0 is the newest) writes this many events after what it knows; the last of them may get lost.
        Write { back: usize, count: u64, lost: bool },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            1 => Just(Step::Open),
            4 => (0usize..3, 1u64..4, any::<bool>())
                .prop_map(|(back, count, lost)| Step::Write { back, count, lost }),
        ]
    }

    proptest! {
        /// MSG-03: whatever paused owners still write, an acknowledged event stays, alone at its place, and places are dense.
        #[test]
        fn acknowledged_rows_stay_and_are_alone(steps in prop::collection::vec(step(), 1..60)) {
            let mut rows: Vec<(Sequence, Epoch)> = Vec::new();
            let mut fences: Vec<Fence> = Vec::new();
            let mut owners: Vec<(Epoch, u64)> = Vec::new();
            let mut acknowledged: BTreeMap<Sequence, Epoch> = BTreeMap::new();
            for step in std::iter::once(Step::Open).chain(steps) {
                match step {
                    Step::Open => {
                        let epoch = Epoch(owners.len() as u64 + 1);
                        let mut head = 0;
                        while rows.iter().any(|(sequence, by)| sequence.0 == head + 1 && !is_void(&fences, *sequence, *by)) {
                            head += 1;
                        }
                        fences.push(Fence { epoch, first: Sequence(head + 1) });
                        owners.push((epoch, head));
                    }
                    Step::Write { back, count, lost } => {
                        let index = owners.len().saturating_sub(1 + back);
                        let newest = index + 1 == owners.len();
                        let (epoch, head) = owners[index];
                        // An owner that lost a write must open again before it writes on: here it never does.
                        let written = count - u64::from(lost);
                        for place in head + 1..=head + written {
                            rows.push((Sequence(place), epoch));
                        }
                        if newest && !lost {
                            for place in head + 1..=head + count {
                                acknowledged.insert(Sequence(place), epoch);
                            }
                            owners[index].1 = head + count;
                        }
                    }
                }
                rows.sort_unstable();
                rows.dedup();
                let (living, dead) = split(fences.clone());
                for (place, by) in &acknowledged {
                    let seen: Vec<Epoch> = rows.iter()
                        .filter(|(sequence, epoch)| sequence == place && is_visible(&living, *sequence, *epoch))
                        .map(|(_, epoch)| *epoch)
                        .collect();
                    prop_assert_eq!(&seen, &vec![*by], "at {} with {:?}", place, living);
                }
                for (sequence, epoch) in &rows {
                    prop_assert_eq!(
                        is_visible(&living, *sequence, *epoch),
                        is_visible(&fences, *sequence, *epoch),
                        "dropping {:?} changed what is seen", dead
                    );
                }
            }
        }
    }
}
