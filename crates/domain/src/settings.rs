//! What people set for themselves: to whom they show things, what they are notified of, how clients look (USER-06, USER-07).

use serde::{Deserialize, Serialize};

use crate::{
    Error, Result, Timestamp, UserId,
    privacy::{Audience, Privacy},
};

/// Longest language tag.
pub const MAX_LANGUAGE_BYTES: usize = 35;

/// Which messages somebody gets a push for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notify {
    /// All of their rooms.
    #[default]
    All,
    /// Those that call them by name or everybody, and those of direct rooms.
    Mentions,
    /// None.
    None,
}

impl Notify {
    /// All, for tables and tests.
    pub const ALL: [Self; 3] = [Self::All, Self::Mentions, Self::None];

    /// The stable text form, as in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Mentions => "mentions",
            Self::None => "none",
        }
    }

    /// The reverse of [`Notify::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|notify| notify.as_str() == text)
    }

    /// The same of a caller's text; `InvalidRequest` naming the field.
    pub fn checked(field: &'static str, text: &str) -> Result<Self> {
        Self::parse(text).ok_or_else(|| Error::invalid(field, "all, mentions or none"))
    }
}

/// How a client looks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Theme {
    /// As the device does.
    #[default]
    System,
    /// Dark on light.
    Light,
    /// Light on dark.
    Dark,
}

impl Theme {
    /// All, for tables and tests.
    pub const ALL: [Self; 3] = [Self::System, Self::Light, Self::Dark];

    /// The stable text form, as in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Light => "light",
            Self::Dark => "dark",
        }
    }

    /// The reverse of [`Theme::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|theme| theme.as_str() == text)
    }

    /// The same of a caller's text; `InvalidRequest` naming the field.
    pub fn checked(field: &'static str, text: &str) -> Result<Self> {
        Self::parse(text).ok_or_else(|| Error::invalid(field, "system, light or dark"))
    }
}

/// All that one person set; the default is what somebody has who never set anything.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// To whom they show what.
    pub privacy: Privacy,
    /// What they get pushes for.
    pub notifications: Notify,
    /// No push at all before then.
    pub muted_until: Option<Timestamp>,
    /// How their clients look.
    pub theme: Theme,
    /// Their language, as a BCP 47 tag.
    pub language: Option<String>,
}

impl Settings {
    /// Whether a push for a message is wanted.
    pub fn wants_push(&self, now: Timestamp, is_called: bool, is_direct: bool) -> bool {
        let is_muted = self.muted_until.is_some_and(|until| now < until);
        !is_muted
            && match self.notifications {
                Notify::All => true,
                Notify::Mentions => is_called || is_direct,
                Notify::None => false,
            }
    }
}

/// What to change; what is `None` stays.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SettingsChange {
    /// See [`Privacy::last_seen`].
    pub last_seen: Option<Audience>,
    /// See [`Privacy::profile_photo`].
    pub profile_photo: Option<Audience>,
    /// See [`Privacy::read_receipts`].
    pub read_receipts: Option<Audience>,
    /// See [`Settings::notifications`].
    pub notifications: Option<Notify>,
    /// See [`Settings::muted_until`]; `Some(None)` ends it.
    pub muted_until: Option<Option<Timestamp>>,
    /// See [`Settings::theme`].
    pub theme: Option<Theme>,
    /// See [`Settings::language`]; `Some(None)` forgets it.
    pub language: Option<Option<String>>,
}

impl SettingsChange {
    /// Makes the change.
    pub fn apply(&self, settings: &mut Settings) {
        fn set<T: Clone>(change: &Option<T>, field: &mut T) {
            if let Some(value) = change {
                value.clone_into(field);
            }
        }
        set(&self.last_seen, &mut settings.privacy.last_seen);
        set(&self.profile_photo, &mut settings.privacy.profile_photo);
        set(&self.read_receipts, &mut settings.privacy.read_receipts);
        set(&self.notifications, &mut settings.notifications);
        set(&self.muted_until, &mut settings.muted_until);
        set(&self.theme, &mut settings.theme);
        set(&self.language, &mut settings.language);
    }

    /// Whether it says anything about what others are shown.
    pub fn is_about_privacy(&self) -> bool {
        self.last_seen.is_some() || self.profile_photo.is_some() || self.read_receipts.is_some()
    }
}

impl From<Settings> for SettingsChange {
    /// What makes anybody's settings these.
    fn from(settings: Settings) -> Self {
        Self {
            last_seen: Some(settings.privacy.last_seen),
            profile_photo: Some(settings.privacy.profile_photo),
            read_receipts: Some(settings.privacy.read_receipts),
            notifications: Some(settings.notifications),
            muted_until: Some(settings.muted_until),
            theme: Some(settings.theme),
            language: Some(settings.language),
        }
    }
}

/// Settings of some people, of whom only those are listed who ever set anything.
pub fn settings_of(list: &[(UserId, Settings)], user: UserId) -> Settings {
    list.iter()
        .find(|(other, _)| *other == user)
        .map(|(_, settings)| settings.clone())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// USER-07: each kind of notification, muted or not, called or not, direct or not.
    #[test]
    fn which_pushes_are_wanted() {
        let (before, end) = (Timestamp(999), Timestamp(1_000));
        for notifications in Notify::ALL {
            for (is_called, is_direct) in
                [(false, false), (true, false), (false, true), (true, true)]
            {
                let settings = Settings {
                    notifications,
                    muted_until: Some(end),
                    ..Settings::default()
                };
                let expected = match notifications {
                    Notify::All => true,
                    Notify::Mentions => is_called || is_direct,
                    Notify::None => false,
                };
                assert_eq!(settings.wants_push(end, is_called, is_direct), expected);
                assert!(!settings.wants_push(before, is_called, is_direct));
            }
        }
    }

    /// USER-06, USER-07: a change changes what it names, and nothing else.
    #[test]
    fn changes_name_what_they_change() {
        let full = Settings {
            privacy: Privacy {
                last_seen: Audience::Contacts,
                profile_photo: Audience::Nobody,
                read_receipts: Audience::Contacts,
            },
            notifications: Notify::Mentions,
            muted_until: Some(Timestamp(5)),
            theme: Theme::Dark,
            language: Some("de-CH".into()),
        };
        let mut settings = Settings::default();
        SettingsChange::from(full.clone()).apply(&mut settings);
        assert_eq!(settings, full);
        SettingsChange::default().apply(&mut settings);
        assert_eq!(settings, full);
        let change = SettingsChange {
            muted_until: Some(None),
            ..SettingsChange::default()
        };
        change.apply(&mut settings);
        let expected = Settings {
            muted_until: None,
            ..full
        };
        assert_eq!(settings, expected);
        assert!(!change.is_about_privacy());
    }

    #[test]
    fn texts_are_read_back() {
        for notify in Notify::ALL {
            assert_eq!(Notify::parse(notify.as_str()), Some(notify));
        }
        for theme in Theme::ALL {
            assert_eq!(Theme::parse(theme.as_str()), Some(theme));
        }
    }
}
