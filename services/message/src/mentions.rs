//! Whom a message calls by name (MSG-11): `@username` and `@room` in its text.
//!
//! Says nothing about who is told of it, nor whether they are in the room.

use carillon_domain::{
    Result,
    event::{Draft, Mentions, MessageType},
    ports::AccountStore,
    validate,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};

/// The name that calls everybody.
const ROOM: &str = "room";
/// Accounts that are looked up at once.
const AT_ONCE: usize = 8;

/// Whom a draft calls. Names that nobody has call nobody.
pub async fn of(draft: &Draft, accounts: &dyn AccountStore) -> Result<Mentions> {
    if draft.message_type != MessageType::Text {
        return Ok(Mentions::default());
    }
    let (names, room) = names(&draft.content);
    let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
    let mut users = stream::iter(names)
        .map(|name| async move { accounts.by_username(&name).await })
        .buffered(AT_ONCE)
        .try_filter_map(|account| async move { Ok(account.map(|account| account.user.id)) })
        .try_collect::<Vec<_>>()
        .await?;
    // One person, written twice with other capitals.
    let mut seen = std::collections::HashSet::new();
    users.retain(|user| seen.insert(*user));
    Ok(Mentions { users, room })
}

/// The names after an `@` that begins a word, each once, at most [`Mentions::MAX`]; and whether everybody is called.
fn names(text: &str) -> (Vec<&str>, bool) {
    let mut names: Vec<&str> = Vec::new();
    let mut room = false;
    for (at, _) in text.match_indices('@') {
        if text[..at].ends_with(|c: char| c.is_alphanumeric()) {
            continue;
        }
        let rest = &text[at + 1..];
        let end = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')))
            .unwrap_or(rest.len());
        // A full stop or a dash after a name is the sentence's.
        let name = rest[..end].trim_end_matches(['.', '-']);
        if name == ROOM {
            room = true;
        } else if validate::is_username(name)
            && names.len() < Mentions::MAX
            && !names.contains(&name)
        {
            names.push(name);
        }
    }
    (names, room)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// MSG-11: names are whole words, without the sentence's punctuation; addresses are none.
    #[test]
    fn names_in_a_text() {
        let said = |text| names(text);
        assert_eq!(said("hi @ann, and @bob."), (vec!["ann", "bob"], false));
        assert_eq!(said("@room: lunch"), (vec![], true));
        assert_eq!(
            said("(@ann) @ann @a.b-c_d!"),
            (vec!["ann", "a.b-c_d"], false)
        );
        assert_eq!(said("ann@example.com @ @@ @x"), (vec![], false));
        assert_eq!(said("\u{e9}@ann \u{2014}@bob"), (vec!["bob"], false));
        let many: String = (0..50).map(|n| format!("@user{n} ")).collect();
        assert_eq!(said(&many).0.len(), Mentions::MAX);
    }
}
