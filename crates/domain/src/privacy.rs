//! What of a person is shown to whom: one decision for every place that shows somebody (USER-05, USER-06).
//!
//! Where a fact is to be had at all is said elsewhere: presence, for example, only by contacts and who shares a room. Who is in a room is
//! shown to whoever may read it, whatever is between the two.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// To whom a person shows something.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Audience {
    /// Whoever can come across it.
    #[default]
    Everyone,
    /// The person's own contacts.
    Contacts,
    /// Nobody else. Also what a newer version stored and this one doesn't know.
    #[serde(other)]
    Nobody,
}

impl Audience {
    /// All, for tables and tests.
    pub const ALL: [Self; 3] = [Self::Everyone, Self::Contacts, Self::Nobody];

    /// The stable text form, as in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Everyone => "everyone",
            Self::Contacts => "contacts",
            Self::Nobody => "nobody",
        }
    }

    /// The reverse of [`Audience::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|audience| audience.as_str() == text)
    }

    /// The same of a caller's text; `InvalidRequest` naming the field.
    pub fn checked(field: &'static str, text: &str) -> Result<Self> {
        Self::parse(text).ok_or_else(|| Error::invalid(field, "everyone, contacts or nobody"))
    }

    /// Whether it has somebody who is a contact of the person, or isn't.
    fn has(self, is_contact: bool) -> bool {
        match self {
            Self::Everyone => true,
            Self::Contacts => is_contact,
            Self::Nobody => false,
        }
    }
}

/// What a person chose (USER-06).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Privacy {
    /// Whether they are online, and when they were.
    pub last_seen: Audience,
    /// Their picture.
    pub profile_photo: Audience,
    /// How far messages got to them, and how far they have read.
    pub read_receipts: Audience,
}

impl Privacy {
    /// To whom they show a fact; [`Audience::Everyone`] for what nobody chooses.
    pub fn audience(&self, fact: Fact) -> Audience {
        match fact {
            Fact::Presence => self.last_seen,
            Fact::Photo => self.profile_photo,
            Fact::Receipts => self.read_receipts,
            Fact::Profile | Fact::Status | Fact::Search | Fact::Activity => Audience::Everyone,
        }
    }
}

/// Something of a person that can be shown to another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fact {
    /// Names and what they write of themselves.
    Profile,
    /// What they are up to.
    Status,
    /// Their picture.
    Photo,
    /// That they are found by their names.
    Search,
    /// Whether they are online, and when they were.
    Presence,
    /// That they write or record.
    Activity,
    /// How far messages got to them, and how far they have read.
    Receipts,
}

impl Fact {
    /// All, for tables and tests.
    pub const ALL: [Self; 7] = [
        Self::Profile,
        Self::Status,
        Self::Photo,
        Self::Search,
        Self::Presence,
        Self::Activity,
        Self::Receipts,
    ];

    /// Whether it passes in both directions or in none: who hides theirs sees nobody's, and a block hides it from both.
    fn is_mutual(self) -> bool {
        matches!(self, Self::Presence | Self::Activity | Self::Receipts)
    }
}

/// What is between who looks, the viewer, and the person who would be shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ties {
    /// They are the same.
    pub same: bool,
    /// The viewer has the person as a contact.
    pub viewer_has_person: bool,
    /// The person has the viewer as a contact.
    pub person_has_viewer: bool,
    /// The viewer blocked the person.
    pub viewer_blocked: bool,
    /// The person blocked the viewer.
    pub person_blocked: bool,
}

/// Whether a viewer is shown a fact of a person, by what is between them and to whom each of the two shows it
/// ([`Privacy::audience`]).
///
/// A person who blocked the viewer isn't there for them. Whom the viewer blocked keeps a profile, for a block must be undone somehow.
pub fn shows(fact: Fact, ties: Ties, person: Audience, viewer: Audience) -> bool {
    if ties.same {
        return true;
    }
    let is_blocked = ties.person_blocked || (fact.is_mutual() && ties.viewer_blocked);
    !is_blocked
        && person.has(ties.person_has_viewer)
        && (!fact.is_mutual() || viewer.has(ties.viewer_has_person))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_ties() -> Vec<(String, Ties)> {
        let mut all = Vec::new();
        for (blocks, viewer_blocked, person_blocked) in [
            ("no block", false, false),
            ("viewer blocked", true, false),
            ("person blocked", false, true),
            ("both blocked", true, true),
        ] {
            for (contacts, viewer_has_person, person_has_viewer) in [
                ("strangers", false, false),
                ("person has viewer", false, true),
                ("viewer has person", true, false),
                ("both have", true, true),
            ] {
                let ties = Ties {
                    same: false,
                    viewer_has_person,
                    person_has_viewer,
                    viewer_blocked,
                    person_blocked,
                };
                all.push((format!("{blocks}, {contacts}"), ties));
            }
        }
        all
    }

    /// USER-05, USER-06: every cell: a row for what is between the two; in it, for each audience of the person, one mark for each
    /// audience of the viewer (everyone, contacts, nobody).
    #[test]
    fn the_whole_matrix() {
        let mut table = String::new();
        for fact in Fact::ALL {
            table += &format!(
                "{:<36}everyone contacts nobody  <- the person's\n",
                format!("{fact:?}")
            );
            for (name, ties) in all_ties() {
                table += &format!("  {name:<34}");
                for person in Audience::ALL {
                    for viewer in Audience::ALL {
                        table += if shows(fact, ties, person, viewer) {
                            "+"
                        } else {
                            "."
                        };
                    }
                    table += "      ";
                }
                table.truncate(table.trim_end().len());
                table += "\n";
            }
        }
        insta::assert_snapshot!(table);
    }

    /// USER-06: people always see themselves.
    #[test]
    fn nobody_hides_from_themselves() {
        for fact in Fact::ALL {
            for (_, ties) in all_ties() {
                let ties = Ties { same: true, ..ties };
                assert!(shows(fact, ties, Audience::Nobody, Audience::Nobody));
            }
        }
    }

    /// USER-06: what passes in both directions is shown to both or to neither.
    #[test]
    fn mutual_facts_are_symmetric() {
        for fact in [Fact::Presence, Fact::Activity, Fact::Receipts] {
            for (_, ties) in all_ties() {
                let turned = Ties {
                    same: false,
                    viewer_has_person: ties.person_has_viewer,
                    person_has_viewer: ties.viewer_has_person,
                    viewer_blocked: ties.person_blocked,
                    person_blocked: ties.viewer_blocked,
                };
                for one in Audience::ALL {
                    for other in Audience::ALL {
                        let shown = shows(fact, ties, one, other);
                        assert_eq!(shown, shows(fact, turned, other, one));
                    }
                }
            }
        }
    }

    /// USER-06: what isn't known hides.
    #[test]
    fn unknown_audiences_are_nobody() {
        for audience in Audience::ALL {
            assert_eq!(Audience::parse(audience.as_str()), Some(audience));
            let json = serde_json::to_string(&audience).unwrap();
            assert_eq!(json, format!("{:?}", audience.as_str()));
            assert_eq!(serde_json::from_str::<Audience>(&json).unwrap(), audience);
        }
        let newer: Audience = serde_json::from_str(r#""friends_of_friends""#).unwrap();
        assert_eq!(newer, Audience::Nobody);
        assert_eq!(Privacy::default().last_seen, Audience::Everyone);
    }
}
