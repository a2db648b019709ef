//! What one viewer is shown of some people: what stores know of them, put before [`shows`].

use std::collections::HashMap;

use crate::{
    Result, UserId,
    people::{Between, Relation},
    ports::{PeopleStore, SettingsStore},
    privacy::{Audience, Fact, Privacy, Ties, shows},
    settings::Settings,
};

/// What was known when it was read.
#[derive(Clone, Debug)]
pub struct View {
    viewer: UserId,
    /// Of people with whom something is; between others there is nothing.
    ties: HashMap<UserId, Ties>,
    /// Of people who chose anything.
    privacy: HashMap<UserId, Privacy>,
}

impl View {
    /// Of the answers of stores about the viewer and these people.
    pub fn new(
        viewer: UserId,
        contacts: &[Between],
        blocks: &[Between],
        settings: &[(UserId, Settings)],
    ) -> Self {
        let mut ties: HashMap<UserId, Ties> = HashMap::new();
        for between in contacts {
            let ties = ties.entry(between.other).or_default();
            ties.viewer_has_person = between.by_user;
            ties.person_has_viewer = between.by_other;
        }
        for between in blocks {
            let ties = ties.entry(between.other).or_default();
            ties.viewer_blocked = between.by_user;
            ties.person_blocked = between.by_other;
        }
        let privacy = settings
            .iter()
            .map(|(user, settings)| (*user, settings.privacy))
            .collect();
        Self {
            viewer,
            ties,
            privacy,
        }
    }

    /// Reads all that matters for these people, at most 1,000.
    pub async fn read(
        people: &dyn PeopleStore,
        settings: &dyn SettingsStore,
        viewer: UserId,
        others: &[UserId],
    ) -> Result<Self> {
        let own = [viewer];
        let (contacts, blocks, mut theirs, own) = futures::try_join!(
            people.between(Relation::Contact, viewer, others),
            people.blocked_between(viewer, others),
            settings.of(others),
            settings.of(&own),
        )?;
        theirs.extend(own);
        Ok(Self::new(viewer, &contacts, &blocks, &theirs))
    }

    /// Reads what matters for facts that nobody chooses an audience of: names, and being found.
    pub async fn read_blocks(
        people: &dyn PeopleStore,
        viewer: UserId,
        others: &[UserId],
    ) -> Result<Self> {
        let blocks = people.blocked_between(viewer, others).await?;
        Ok(Self::new(viewer, &[], &blocks, &[]))
    }

    /// Whether the viewer is shown a fact of one of these people.
    pub fn shows(&self, fact: Fact, person: UserId) -> bool {
        let ties = Ties {
            same: person == self.viewer,
            ..self.ties.get(&person).copied().unwrap_or_default()
        };
        shows(
            fact,
            ties,
            self.audience(fact, person),
            self.audience(fact, self.viewer),
        )
    }

    fn audience(&self, fact: Fact, user: UserId) -> Audience {
        let privacy = self.privacy.get(&user).copied().unwrap_or_default();
        privacy.audience(fact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// USER-05, USER-06: what stores say of "by user" and "by other" ends on the right side of the decision.
    #[test]
    fn sides_are_not_mixed_up() {
        let (viewer, person) = (UserId::new(), UserId::new());
        let between = |by_user| Between {
            other: person,
            by_user,
            by_other: !by_user,
        };
        let hides = Settings {
            privacy: Privacy {
                last_seen: Audience::Contacts,
                ..Privacy::default()
            },
            ..Settings::default()
        };
        let shown = |fact, contacts: &[Between], blocks: &[Between], of| {
            View::new(viewer, contacts, blocks, &[(of, hides.clone())]).shows(fact, person)
        };
        assert!(shown(Fact::Profile, &[], &[between(true)], person));
        assert!(!shown(Fact::Profile, &[], &[between(false)], person));
        assert!(!shown(Fact::Presence, &[between(true)], &[], person));
        assert!(shown(Fact::Presence, &[between(false)], &[], person));
        assert!(shown(Fact::Presence, &[between(true)], &[], viewer));
        assert!(!shown(Fact::Presence, &[between(false)], &[], viewer));
        let view = View::new(viewer, &[], &[], &[(viewer, hides)]);
        assert!(view.shows(Fact::Presence, viewer), "one's own");
    }
}
