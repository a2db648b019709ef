//! Names as they are looked for (USER-03).

use std::collections::HashSet;

use unicode_normalization::UnicodeNormalization;

use crate::{account::User, ports::MIN_PREFIX_CHARS};

/// Longest name that is looked for, in characters.
pub const MAX_TERM_CHARS: usize = 80;

/// The form in which names are compared: NFKC, lower-case, single blanks.
pub fn folded(text: &str) -> String {
    let folded = text.nfkc().collect::<String>().to_lowercase();
    let folded = folded.nfkc().collect::<String>();
    folded.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What somebody is filed under in a [`PeopleIndex`](crate::ports::PeopleIndex).
pub fn search_terms(user: &User) -> HashSet<String> {
    [&user.username, &user.display_name]
        .into_iter()
        .map(|name| {
            folded(name)
                .chars()
                .take(MAX_TERM_CHARS)
                .collect::<String>()
        })
        .filter(|term| term.chars().nth(MIN_PREFIX_CHARS - 1).is_some())
        .filter(|term| !term.chars().any(char::is_control))
        .collect()
}
