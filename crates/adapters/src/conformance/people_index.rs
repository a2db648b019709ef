//! [`PeopleIndex`] (USER-03).

use std::sync::Arc;

use carillon_domain::{UserId, ports::PeopleIndex};

/// Every clause.
pub async fn all(store: Arc<dyn PeopleIndex>) {
    people_are_found_by_the_beginning(&*store).await;
    pages_continue_after_an_entry(&*store).await;
    what_was_removed_is_gone(&*store).await;
}

/// A beginning that no other test has.
fn unique() -> String {
    UserId::new().0.simple().to_string()[16..].to_owned()
}

async fn find(store: &dyn PeopleIndex, prefix: &str) -> Vec<(String, UserId)> {
    store.find(prefix, None, 1_000).await.unwrap()
}

/// USER-03: exactly those terms that begin so, in any script, ascending.
pub async fn people_are_found_by_the_beginning(store: &dyn PeopleIndex) {
    let start = unique();
    let mut all = Vec::new();
    for end in ["", " b", "a", "ab", "b", "ä", "李小龙", "👋", "\u{10ffff}"] {
        for _ in 0..2 {
            let (term, user) = (format!("{start}{end}"), UserId::new());
            store.put(&term, user).await.unwrap();
            store.put(&term, user).await.unwrap();
            all.push((term, user));
        }
    }
    all.sort();
    // A neighbour on either side.
    let mut next = start.clone().into_bytes();
    *next.last_mut().unwrap() += 1;
    let next = String::from_utf8(next).unwrap();
    store.put(&next, UserId::new()).await.unwrap();
    store.put(&start[..15], UserId::new()).await.unwrap();
    for end in ["", "a", "ab", "李", "👋", "x"] {
        let prefix = format!("{start}{end}");
        let mut expected = all.clone();
        expected.retain(|(term, _)| term.starts_with(&prefix));
        // The very last code point is no character: terms with it may be left out.
        let mut found = find(store, &prefix).await;
        found.retain(|(term, _)| !term.ends_with('\u{10ffff}'));
        expected.retain(|(term, _)| !term.ends_with('\u{10ffff}'));
        assert_eq!(found, expected, "{end}");
    }
}

/// USER-03: a page ends where the next one begins, also between people with one name.
pub async fn pages_continue_after_an_entry(store: &dyn PeopleIndex) {
    let start = unique();
    let mut expected = Vec::new();
    for n in 0..9 {
        let (term, user) = (format!("{start}{}", n / 4), UserId::new());
        store.put(&term, user).await.unwrap();
        expected.push((term, user));
    }
    expected.sort();
    let mut found: Vec<(String, UserId)> = Vec::new();
    loop {
        let last = found.last().cloned();
        let after = last.as_ref().map(|(term, user)| (term.as_str(), *user));
        let page = store.find(&start, after, 2).await.unwrap();
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= 2);
        found.extend(page);
    }
    assert_eq!(found, expected);
}

/// USER-03: of one person and term only.
pub async fn what_was_removed_is_gone(store: &dyn PeopleIndex) {
    let (start, ann, bob) = (unique(), UserId::new(), UserId::new());
    let other = format!("{start}x");
    for (term, user) in [(&start, ann), (&start, bob), (&other, ann)] {
        store.put(term, user).await.unwrap();
    }
    for _ in 0..2 {
        store.remove(&start, ann).await.unwrap();
        let expected = [(start.clone(), bob), (other.clone(), ann)];
        assert_eq!(find(store, &start).await, expected);
    }
    store.put(&start, ann).await.unwrap();
    assert_eq!(find(store, &start).await.len(), 3);
}
