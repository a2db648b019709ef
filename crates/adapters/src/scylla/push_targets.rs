//! [`PushTargetStore`]: one row per device, in its user's partition.

use async_trait::async_trait;
use carillon_domain::{
    DeviceId, Error, Result, UserId,
    ports::PushTargetStore,
    push::{PushProvider, PushTarget},
};
use futures::future::BoxFuture;
use scylla::statement::prepared::PreparedStatement;
use uuid::Uuid;

use super::database::{Database, some_at_a_time};

pub(super) struct PushTargets {
    database: Database,
    put: PreparedStatement,
    remove: PreparedStatement,
    of_user: PreparedStatement,
}

impl PushTargets {
    pub(super) async fn new(database: &Database) -> Result<Self> {
        Ok(Self {
            put: database
                .prepare("INSERT INTO push_targets (user, device, provider, push_token, p256dh, auth) VALUES (?, ?, ?, ?, ?, ?)")
                .await?,
            remove: database
                .prepare("DELETE FROM push_targets WHERE user = ? AND device = ?")
                .await?,
            of_user: database
                .prepare("SELECT device, provider, push_token, p256dh, auth FROM push_targets WHERE user = ?")
                .await?,
            database: database.clone(),
        })
    }

    async fn of_user(&self, user: UserId) -> Result<Vec<PushTarget>> {
        type Columns = (Uuid, String, String, Option<String>, Option<String>);
        self.database
            .rows::<Columns>("push_targets_of_user", &self.of_user, (user.0,))
            .await?
            .into_iter()
            .map(|(device, provider, token, p256dh, auth)| {
                Ok(PushTarget {
                    user,
                    device: DeviceId(device),
                    provider: PushProvider::parse(&provider)
                        .ok_or_else(|| Error::defect("a stored push provider is unknown"))?,
                    token,
                    p256dh: p256dh.filter(|text| !text.is_empty()),
                    auth: auth.filter(|text| !text.is_empty()),
                })
            })
            .collect()
    }
}

#[async_trait]
impl PushTargetStore for PushTargets {
    async fn put(&self, target: &PushTarget) -> Result<()> {
        // An empty text, not null, replaces what an earlier target had: a null would be a tombstone.
        let values = (
            target.user.0,
            target.device.0,
            target.provider.as_str(),
            &target.token,
            target.p256dh.as_deref().unwrap_or_default(),
            target.auth.as_deref().unwrap_or_default(),
        );
        self.database
            .write("put_push_target", &self.put, values)
            .await
    }

    async fn remove(&self, user: UserId, device: DeviceId) -> Result<()> {
        self.database
            .write("remove_push_target", &self.remove, (user.0, device.0))
            .await
    }

    async fn of_users(&self, users: &[UserId]) -> Result<Vec<PushTarget>> {
        let mut reads: Vec<BoxFuture<'_, Result<Vec<PushTarget>>>> = Vec::new();
        for user in users {
            reads.push(Box::pin(self.of_user(*user)));
        }
        let targets = some_at_a_time(reads).await?;
        Ok(targets.into_iter().flatten().collect())
    }
}
