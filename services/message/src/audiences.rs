//! To whom people show how far messages got to them (USER-06), remembered for a moment: each mark would cost a question otherwise.

use std::{sync::Arc, time::Duration};

use carillon_domain::{
    UserId,
    ports::SettingsStore,
    privacy::{Audience, Fact},
    settings::settings_of,
};
use moka::sync::Cache;

/// For how long an answer is remembered: so late a change counts for marks.
const LASTS: Duration = Duration::from_secs(1);
/// People remembered.
const REMEMBERED: u64 = 100_000;

/// What people show of receipts.
pub struct Audiences {
    store: Arc<dyn SettingsStore>,
    known: Cache<UserId, Audience>,
}

impl Audiences {
    pub fn new(store: Arc<dyn SettingsStore>) -> Self {
        let known = Cache::builder()
            .max_capacity(REMEMBERED)
            .time_to_live(LASTS)
            .build();
        Self { store, known }
    }

    /// As it was at most [`LASTS`] ago; nobody while it can't be read.
    pub async fn of_receipts(&self, user: UserId) -> Audience {
        if let Some(audience) = self.known.get(&user) {
            return audience;
        }
        match self.store.of(&[user]).await {
            Ok(settings) => {
                let privacy = settings_of(&settings, user).privacy;
                let audience = privacy.audience(Fact::Receipts);
                self.known.insert(user, audience);
                audience
            }
            Err(error) => {
                tracing::debug!(%error, "to whom a mark is shown can't be read");
                Audience::Nobody
            }
        }
    }
}
