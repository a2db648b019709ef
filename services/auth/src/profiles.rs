//! What people show of themselves, and finding them by their names (USER-01, USER-03, AUTH-15).
//!
//! The index of names follows the accounts: a person is filed under a name before they have it, and out when they no longer do. So
//! nobody is missing after a crash, and what it left too much is never shown, since every entry is checked against its account.

use std::collections::HashMap;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use carillon_domain::{
    Error, Result, UserId,
    account::{Identity, ProfileChange, User},
    names::{MAX_TERM_CHARS, folded, search_terms},
    ports::MIN_PREFIX_CHARS,
    privacy::Fact,
    services::FoundUsers,
    validate,
};
use unicode_normalization::UnicodeNormalization;
use uuid::Uuid;

use crate::service::Auth;

/// People per page.
const MAX_PAGE: usize = 50;
/// Reads of the index for one page: entries that aren't shown make it shorter, and never slower than this.
const MAX_READS: usize = 4;

impl Auth {
    /// Files somebody under the names that they are about to have.
    pub(crate) async fn file(&self, user: &User) -> Result<()> {
        let index = &self.ports.people_index;
        for term in search_terms(user) {
            index.put(&term, user.id).await?;
        }
        Ok(())
    }

    /// Takes somebody out from under names that they don't have, of those of `before`; and files them under those that they have,
    /// for a change at the same time may have taken those out. A failure leaves entries that nobody is shown.
    pub(crate) async fn unfile(&self, before: &User) {
        let unfiled = async {
            let now = self.ports.accounts.by_ids(&[before.id]).await?;
            let kept = now.first().map(|account| search_terms(&account.user));
            let kept = kept.unwrap_or_default();
            for term in search_terms(before).difference(&kept) {
                self.ports.people_index.remove(term, before.id).await?;
            }
            match self.ports.accounts.by_ids(&[before.id]).await?.first() {
                Some(account) => self.file(&account.user).await,
                None => Ok(()),
            }
        };
        if let Err(error) = unfiled.await {
            tracing::warn!(%error, cause = error.cause_chain(), "the index of names was not tidied");
        }
    }

    pub(crate) async fn update_profile(
        &self,
        who: &Identity,
        mut change: ProfileChange,
    ) -> Result<User> {
        let gone = || Error::unauthenticated("the account is gone");
        let accounts = &self.ports.accounts;
        let found = accounts.by_ids(&[who.user]).await?;
        let before = found.into_iter().next().ok_or_else(gone)?.user;
        for text in [
            &mut change.display_name,
            &mut change.bio,
            &mut change.status,
        ]
        .into_iter()
        .flatten()
        {
            *text = text.trim().nfc().collect();
        }
        if let Some(name) = &mut change.display_name
            && name.is_empty()
        {
            name.clone_from(&before.username);
        }
        let mut problems = validate::Problems::default();
        let fits =
            |text: &Option<String>, check: fn(&str) -> bool| text.as_deref().is_none_or(check);
        problems.check(
            fits(&change.display_name, validate::is_shown_name),
            "display_name",
            "at most 80 characters; none that hide, break lines or turn text around",
        );
        problems.check(
            fits(&change.bio, validate::is_bio),
            "bio",
            "at most 500 characters",
        );
        problems.check(
            fits(&change.status, validate::is_status),
            "status",
            "at most 140 characters on one line",
        );
        problems.into_result()?;
        let mut after = before.clone();
        change.apply(&mut after);
        if after == before {
            return Ok(before);
        }
        self.file(&after).await?;
        if !accounts.change_profile(who.user, &change).await? {
            return Err(gone());
        }
        self.unfile(&before).await;
        Ok(after)
    }

    pub(crate) async fn find_people(
        &self,
        viewer: UserId,
        query: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<FoundUsers> {
        let prefix = folded(query);
        let length = prefix.chars().count();
        if !(MIN_PREFIX_CHARS..=MAX_TERM_CHARS).contains(&length)
            || prefix.contains(char::is_control)
        {
            return Err(Error::invalid(
                "q",
                format!("{MIN_PREFIX_CHARS} to {MAX_TERM_CHARS} characters"),
            ));
        }
        if !(1..=MAX_PAGE).contains(&limit) {
            return Err(Error::invalid("limit", format!("1 to {MAX_PAGE}")));
        }
        let mut place = match after {
            None => None,
            Some(after) => {
                let place = read_cursor(after).filter(|(term, _)| term.starts_with(&prefix));
                Some(place.ok_or_else(|| Error::invalid("cursor", "the `next` of a page"))?)
            }
        };
        let mut users: Vec<User> = Vec::new();
        for _ in 0..MAX_READS {
            let from = place.as_ref().map(|(term, user)| (term.as_str(), *user));
            let entries = self.ports.people_index.find(&prefix, from, limit).await?;
            let is_last = entries.len() < limit;
            let mut ids: Vec<UserId> = entries.iter().map(|(_, user)| *user).collect();
            ids.sort_unstable();
            ids.dedup();
            // Leaves out those who blocked the viewer.
            let shown = self.visible(Fact::Search, Some(viewer), &ids).await?;
            let shown: HashMap<UserId, User> =
                shown.into_iter().map(|user| (user.id, user)).collect();
            for (term, id) in entries {
                if users.len() == limit {
                    return Ok(page(users, place));
                }
                if let Some(user) = shown.get(&id)
                    // Found by the first of their names that begins so; by the other one they would come twice.
                    && search_terms(user).into_iter().filter(|term| term.starts_with(&prefix)).min().as_ref() == Some(&term)
                {
                    users.push(user.clone());
                }
                place = Some((term, id));
            }
            if is_last {
                return Ok(page(users, None));
            }
        }
        Ok(page(users, place))
    }
}

fn page(users: Vec<User>, place: Option<(String, UserId)>) -> FoundUsers {
    FoundUsers {
        users,
        next: place.map(|(term, user)| URL_SAFE_NO_PAD.encode(format!("{user}{term}"))),
    }
}

fn read_cursor(text: &str) -> Option<(String, UserId)> {
    let bytes = URL_SAFE_NO_PAD
        .decode(text.get(..text.len().min(1024))?)
        .ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (user, term) = text.split_at_checked(36)?;
    Some((term.to_owned(), UserId(Uuid::parse_str(user).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// USER-03: ways to write one name are one term.
    #[test]
    fn names_have_one_form() {
        for (written, form) in [
            ("  Änn   Smith ", "änn smith"),
            ("A\u{308}NN smith", "änn smith"),
            ("\u{ff21}nn", "ann"),
            ("李小龙", "李小龙"),
            ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ] {
            assert_eq!(folded(written), form);
            assert_eq!(folded(form), form);
        }
    }

    #[test]
    fn cursors_come_back_as_they_were() {
        let place = ("änn smith".to_owned(), UserId::new());
        let next = page(Vec::new(), Some(place.clone())).next.unwrap();
        assert_eq!(read_cursor(&next), Some(place));
        for bad in ["", "x", "ä", &"A".repeat(2000)] {
            assert_eq!(read_cursor(bad), None);
        }
    }
}
