//! [`PeopleStore`] (USER-04, USER-05).

use std::sync::Arc;

use carillon_domain::{
    ErrorCode, Timestamp, UserId,
    people::{Between, Related, Relation},
    ports::PeopleStore,
};

const NOW: Timestamp = Timestamp(1_700_000_000_123);
const MOST: usize = 5_000;

/// Every clause.
pub async fn all(store: Arc<dyn PeopleStore>) {
    for relation in Relation::ALL {
        what_was_said_is_found_from_both_sides(&*store, relation).await;
        saying_it_again_changes_nothing(&*store, relation).await;
        what_was_taken_back_is_gone_from_both_sides(&*store, relation).await;
        lists_are_paged_by_id(&*store, relation).await;
        nobody_has_more_than_allowed(&*store, relation).await;
        a_thousand_others_are_compared_at_once(&*store, relation).await;
        changes_at_once_end_the_same_on_both_sides(&store, relation).await;
    }
    contacts_and_blocks_are_apart(&*store).await;
}

async fn put(store: &dyn PeopleStore, relation: Relation, user: UserId, other: UserId) -> bool {
    let put = store.put(relation, user, other, NOW, MOST);
    put.await.unwrap()
}

async fn listed(store: &dyn PeopleStore, relation: Relation, user: UserId) -> Vec<UserId> {
    let list = store.list(relation, user, None, MOST).await.unwrap();
    list.into_iter().map(|related| related.user).collect()
}

async fn listed_reverse(store: &dyn PeopleStore, relation: Relation, user: UserId) -> Vec<UserId> {
    let list = store.list_reverse(relation, user, None, MOST);
    list.await.unwrap()
}

/// USER-04, USER-05: an entry is read by who said it, and by whom it is about, and means nothing the other way round.
pub async fn what_was_said_is_found_from_both_sides(store: &dyn PeopleStore, relation: Relation) {
    let (ann, bob) = (UserId::new(), UserId::new());
    assert!(put(store, relation, ann, bob).await, "it is new");
    let expected = Related {
        user: bob,
        since: NOW,
    };
    let found = store.get(relation, ann, bob).await.unwrap();
    assert_eq!(found, Some(expected));
    assert_eq!(store.get(relation, bob, ann).await.unwrap(), None);
    let list = store.list(relation, ann, None, 10).await.unwrap();
    assert_eq!(list, [expected]);
    assert!(listed(store, relation, bob).await.is_empty());
    assert_eq!(listed_reverse(store, relation, bob).await, [ann]);
    assert!(listed_reverse(store, relation, ann).await.is_empty());
    for (user, other, by_user) in [(ann, bob, true), (bob, ann, false)] {
        let between = Between {
            other,
            by_user,
            by_other: !by_user,
        };
        let others = [UserId::new(), other];
        let found = store.between(relation, user, &others).await.unwrap();
        assert_eq!(found, [between]);
    }
    put(store, relation, bob, ann).await;
    let both = Between {
        other: bob,
        by_user: true,
        by_other: true,
    };
    let found = store.between(relation, ann, &[bob]).await.unwrap();
    assert_eq!(found, [both]);
}

/// USER-04, USER-05: a repeat is no second entry, and keeps the first time.
pub async fn saying_it_again_changes_nothing(store: &dyn PeopleStore, relation: Relation) {
    let (ann, bob) = (UserId::new(), UserId::new());
    assert!(put(store, relation, ann, bob).await);
    let later = Timestamp(NOW.0 + 1);
    // Also when no other entry would be let in.
    assert!(!store.put(relation, ann, bob, later, 1).await.unwrap());
    let list = store.list(relation, ann, None, 10).await.unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!(list[0].since, NOW);
}

/// USER-04, USER-05: removing leaves nothing, may be repeated, and leaves room for another.
pub async fn what_was_taken_back_is_gone_from_both_sides(
    store: &dyn PeopleStore,
    relation: Relation,
) {
    let (ann, bob, zoe) = (UserId::new(), UserId::new(), UserId::new());
    assert!(!store.remove(relation, ann, bob).await.unwrap());
    put(store, relation, ann, bob).await;
    put(store, relation, ann, zoe).await;
    assert!(store.remove(relation, ann, bob).await.unwrap());
    assert!(!store.remove(relation, ann, bob).await.unwrap());
    assert_eq!(store.get(relation, ann, bob).await.unwrap(), None);
    assert_eq!(listed(store, relation, ann).await, [zoe]);
    assert!(listed_reverse(store, relation, bob).await.is_empty());
    let found = store.between(relation, bob, &[ann]).await.unwrap();
    assert_eq!(found, []);
    assert!(store.put(relation, ann, bob, NOW, 2).await.unwrap());
}

/// USER-04, USER-05: pages go on after the last id of the one before, from both sides.
pub async fn lists_are_paged_by_id(store: &dyn PeopleStore, relation: Relation) {
    let ann = UserId::new();
    let mut others: Vec<UserId> = (0..7).map(|_| UserId::new()).collect();
    for &other in others.iter().rev() {
        put(store, relation, ann, other).await;
        put(store, relation, other, ann).await;
    }
    others.sort_unstable();
    for reverse in [false, true] {
        let mut seen = Vec::new();
        loop {
            let after = seen.last().copied();
            let page: Vec<UserId> = if reverse {
                let page = store.list_reverse(relation, ann, after, 3);
                page.await.unwrap()
            } else {
                let page = store.list(relation, ann, after, 3).await.unwrap();
                page.into_iter().map(|related| related.user).collect()
            };
            assert!(page.len() <= 3);
            seen.extend(&page);
            if page.len() < 3 {
                break;
            }
        }
        assert_eq!(seen, others, "reverse: {reverse}");
    }
}

/// USER-04, USER-05: the bound is each person's own, and the error says it.
pub async fn nobody_has_more_than_allowed(store: &dyn PeopleStore, relation: Relation) {
    let (ann, zoe) = (UserId::new(), UserId::new());
    for _ in 0..3 {
        let other = UserId::new();
        assert!(store.put(relation, ann, other, NOW, 3).await.unwrap());
    }
    let error = store.put(relation, ann, zoe, NOW, 3).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
    assert!(error.detail.contains('3'), "{}", error.detail);
    assert_eq!(listed(store, relation, ann).await.len(), 3);
    assert!(listed_reverse(store, relation, zoe).await.is_empty());
    assert!(store.put(relation, zoe, ann, NOW, 3).await.unwrap());
}

/// USER-05: the largest question is one call.
pub async fn a_thousand_others_are_compared_at_once(store: &dyn PeopleStore, relation: Relation) {
    let ann = UserId::new();
    let others: Vec<UserId> = (0..1_000).map(|_| UserId::new()).collect();
    put(store, relation, ann, others[3]).await;
    put(store, relation, others[997], ann).await;
    let mut found = store.between(relation, ann, &others).await.unwrap();
    found.sort_by_key(|between| between.other);
    let found: Vec<_> = found.iter().map(|b| (b.other, b.by_user)).collect();
    assert_eq!(found, [(others[3], true), (others[997], false)]);
    assert_eq!(store.between(relation, ann, &[]).await.unwrap(), []);
}

/// USER-05: whichever of concurrent changes wins, both sides agree.
pub async fn changes_at_once_end_the_same_on_both_sides(
    store: &Arc<dyn PeopleStore>,
    relation: Relation,
) {
    for _ in 0..4 {
        let (ann, bob) = (UserId::new(), UserId::new());
        let changes = (0..8).map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                if n % 2 == 0 {
                    store.put(relation, ann, bob, NOW, MOST).await
                } else {
                    store.remove(relation, ann, bob).await
                }
            })
        });
        for change in futures::future::join_all(changes).await {
            change.unwrap().unwrap();
        }
        let said = listed(&**store, relation, ann).await == [bob];
        let about = listed_reverse(&**store, relation, bob).await == [ann];
        assert_eq!(said, about, "the two sides differ");
    }
}

/// USER-05: a block is no contact, and a contact no block.
pub async fn contacts_and_blocks_are_apart(store: &dyn PeopleStore) {
    let (ann, bob) = (UserId::new(), UserId::new());
    put(store, Relation::Contact, ann, bob).await;
    assert!(listed(store, Relation::Block, ann).await.is_empty());
    assert_eq!(store.blocked_between(ann, &[bob]).await.unwrap(), []);
    put(store, Relation::Block, ann, bob).await;
    store.remove(Relation::Contact, ann, bob).await.unwrap();
    let found = store.blocked_between(bob, &[ann]).await.unwrap();
    let expected = Between {
        other: ann,
        by_user: false,
        by_other: true,
    };
    assert_eq!(found, [expected]);
    assert!(
        listed_reverse(store, Relation::Contact, bob)
            .await
            .is_empty()
    );
}
