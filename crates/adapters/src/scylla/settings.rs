//! [`SettingsStore`]: a row per person, a column per setting: changes of different ones at the same time don't know of each other.

use async_trait::async_trait;
use carillon_domain::{
    Result, Timestamp, UserId,
    ports::SettingsStore,
    privacy::{Audience, Privacy},
    settings::{Notify, Settings, SettingsChange, Theme},
};
use scylla::{
    statement::prepared::PreparedStatement,
    value::{CqlTimestamp, CqlValue},
};
use uuid::Uuid;

use super::database::{Database, cql_time};

/// No end is set; an empty text says that no language is. Nulls would be tombstones.
const NO_TIME: Timestamp = Timestamp(0);

pub(super) struct SettingsRows {
    database: Database,
    of: PreparedStatement,
    remove: PreparedStatement,
    last_seen: PreparedStatement,
    profile_photo: PreparedStatement,
    read_receipts: PreparedStatement,
    notifications: PreparedStatement,
    muted_until: PreparedStatement,
    theme: PreparedStatement,
    language: PreparedStatement,
}

impl SettingsRows {
    pub(super) async fn new(database: &Database) -> Result<Self> {
        let set = async |column: &str| {
            database
                .prepare(&format!(
                    "INSERT INTO settings (user, {column}) VALUES (?, ?)"
                ))
                .await
        };
        Ok(Self {
            of: database
                .prepare("SELECT user, last_seen, profile_photo, read_receipts, notifications, muted_until, theme, language FROM settings WHERE user = ?")
                .await?,
            remove: database
                .prepare("DELETE FROM settings WHERE user = ?")
                .await?,
            last_seen: set("last_seen").await?,
            profile_photo: set("profile_photo").await?,
            read_receipts: set("read_receipts").await?,
            notifications: set("notifications").await?,
            muted_until: set("muted_until").await?,
            theme: set("theme").await?,
            language: set("language").await?,
            database: database.clone(),
        })
    }
}

type Columns = (
    Uuid,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<CqlTimestamp>,
    Option<String>,
    Option<String>,
);

fn settings(columns: Columns) -> (UserId, Settings) {
    let (
        user,
        last_seen,
        profile_photo,
        read_receipts,
        notifications,
        muted_until,
        theme,
        language,
    ) = columns;
    // What a newer version wrote hides.
    let audience = |text: Option<String>| match text {
        None => Audience::default(),
        Some(text) => Audience::parse(&text).unwrap_or(Audience::Nobody),
    };
    let settings = Settings {
        privacy: Privacy {
            last_seen: audience(last_seen),
            profile_photo: audience(profile_photo),
            read_receipts: audience(read_receipts),
        },
        notifications: notifications
            .and_then(|text| Notify::parse(&text))
            .unwrap_or_default(),
        muted_until: muted_until
            .map(|until| Timestamp(until.0))
            .filter(|until| *until != NO_TIME),
        theme: theme
            .and_then(|text| Theme::parse(&text))
            .unwrap_or_default(),
        language: language.filter(|text| !text.is_empty()),
    };
    (UserId(user), settings)
}

#[async_trait]
impl SettingsStore for SettingsRows {
    async fn of(&self, users: &[UserId]) -> Result<Vec<(UserId, Settings)>> {
        let keys = users.iter().map(|user| user.0);
        let rows = self
            .database
            .rows_by_key::<Columns>("settings_of", &self.of, keys)
            .await?;
        Ok(rows.into_iter().map(settings).collect())
    }

    async fn change(&self, user: UserId, change: &SettingsChange) -> Result<()> {
        let text = |text: &str| CqlValue::Text(text.to_owned());
        let time = |time| CqlValue::Timestamp(cql_time(time));
        let columns = [
            (
                &self.last_seen,
                change.last_seen.map(|audience| text(audience.as_str())),
            ),
            (
                &self.profile_photo,
                change.profile_photo.map(|audience| text(audience.as_str())),
            ),
            (
                &self.read_receipts,
                change.read_receipts.map(|audience| text(audience.as_str())),
            ),
            (
                &self.notifications,
                change.notifications.map(|notify| text(notify.as_str())),
            ),
            (
                &self.muted_until,
                change
                    .muted_until
                    .map(|until| time(until.unwrap_or(NO_TIME))),
            ),
            (&self.theme, change.theme.map(|theme| text(theme.as_str()))),
            (
                &self.language,
                change
                    .language
                    .as_ref()
                    .map(|language| text(language.as_deref().unwrap_or_default())),
            ),
        ];
        let writes: Vec<(&PreparedStatement, Vec<CqlValue>)> = columns
            .into_iter()
            .filter_map(|(statement, value)| {
                Some((statement, vec![CqlValue::Uuid(user.0), value?]))
            })
            .collect();
        if writes.is_empty() {
            return Ok(());
        }
        self.database.batch("change_settings", writes).await
    }

    async fn remove(&self, user: UserId) -> Result<()> {
        self.database
            .write("remove_settings", &self.remove, (user.0,))
            .await
    }
}
