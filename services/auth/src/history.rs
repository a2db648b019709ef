//! What happened to accounts: kept for their owners, and told to their devices (AUTH-08, AUTH-12).
//!
//! Noting never fails what is noted. What a stranger causes is noted behind their back, so that its time doesn't tell whether
//! there is such an account.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use carillon_domain::{
    Clock, DeviceId, Error, Result, UserId,
    account::{ClientInfo, Identity, ProfileChange, User},
    ports::{Bus, SecurityLog},
    security::{History, SecurityEvent, SecurityEventKind, Trail},
    services::{AccountService, FoundUsers},
    signal::{Signal, Topic},
};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::service::Auth;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Notes under way at once that nobody waits for; more are left out.
const IN_BACKGROUND: usize = 64;
/// Events per page.
const MAX_PAGE: usize = 100;

/// How long events of a trail are kept, and how many.
fn kept(trail: Trail) -> (Duration, usize) {
    match trail {
        Trail::Logins | Trail::Failures => (90 * DAY, 100),
        Trail::Locks => (90 * DAY, 50),
        Trail::Changes => (365 * DAY, 200),
    }
}

/// Keeps and tells what happened. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Notes {
    log: Arc<dyn SecurityLog>,
    bus: Arc<dyn Bus>,
    clock: Arc<dyn Clock>,
    background: Arc<Semaphore>,
}

impl Notes {
    pub fn new(log: Arc<dyn SecurityLog>, bus: Arc<dyn Bus>, clock: Arc<dyn Clock>) -> Self {
        Self {
            log,
            bus,
            clock,
            background: Arc::new(Semaphore::new(IN_BACKGROUND)),
        }
    }

    /// Notes an event; a failure is logged.
    pub async fn note(
        &self,
        user: UserId,
        kind: SecurityEventKind,
        device: Option<DeviceId>,
        client: ClientInfo,
    ) {
        let event = SecurityEvent {
            id: Uuid::now_v7(),
            time: self.clock.now(),
            kind,
            device,
            client,
        };
        let trail = kind.trail();
        let (time, count) = kept(trail);
        let until = event.time.plus(time);
        let appended = self.log.append(trail, user, &event, until, count).await;
        if let Err(error) = appended {
            tracing::warn!(%error, cause = error.cause_chain(), kind = kind.as_str(), "a security event was not kept");
        }
        if (matches!(trail, Trail::Changes | Trail::Locks) || kind == SecurityEventKind::LoggedIn)
            && let Err(error) = self.tell(user, &event).await
        {
            tracing::warn!(%error, cause = error.cause_chain(), kind = kind.as_str(), "a security event was not told");
        }
    }

    async fn tell(&self, user: UserId, event: &SecurityEvent) -> Result<()> {
        let signal = Signal::Security {
            user,
            id: event.id,
            kind: event.kind,
            device: event.device,
            time: event.time,
        };
        let topic = Topic::of_user(user);
        self.bus.publish(topic, signal.encode()?).await
    }

    /// Notes an event while the caller goes on.
    pub fn note_later(&self, user: UserId, kind: SecurityEventKind, client: ClientInfo) {
        let Ok(permit) = self.background.clone().try_acquire_owned() else {
            tracing::warn!(
                kind = kind.as_str(),
                "a security event was not kept: too many at once"
            );
            return;
        };
        let notes = self.clone();
        tokio::spawn(async move {
            notes.note(user, kind, None, client).await;
            drop(permit);
        });
    }
}

#[async_trait]
impl AccountService for Auth {
    async fn history(
        &self,
        who: &Identity,
        history: History,
        before: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<SecurityEvent>> {
        if !(1..=MAX_PAGE).contains(&limit) {
            return Err(Error::invalid("limit", format!("1 to {MAX_PAGE}")));
        }
        let log = &self.ports.security;
        let trails = history.trails().iter();
        let lists = trails.map(|trail| log.list(*trail, who.user, before, limit));
        let mut events = futures::future::try_join_all(lists).await?.concat();
        events.sort_by_key(|event| std::cmp::Reverse(event.id));
        events.truncate(limit);
        Ok(events)
    }

    #[tracing::instrument(name = "auth.change_profile", skip_all)]
    async fn change_profile(&self, who: &Identity, change: ProfileChange) -> Result<User> {
        self.update_profile(who, change).await
    }

    #[tracing::instrument(name = "auth.search", skip_all)]
    async fn search(
        &self,
        who: &Identity,
        query: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<FoundUsers> {
        self.find_people(who.user, query, after, limit).await
    }

    #[tracing::instrument(name = "auth.change_username", skip_all)]
    async fn change_username(
        &self,
        who: &Identity,
        username: &str,
        password: Option<String>,
    ) -> Result<User> {
        self.rename_user(who, username, password).await
    }

    #[tracing::instrument(name = "auth.change_email", skip_all)]
    async fn change_email(
        &self,
        who: &Identity,
        email: &str,
        password: Option<String>,
    ) -> Result<()> {
        self.replace_email(who, email, password).await
    }

    #[tracing::instrument(name = "auth.change_password", skip_all)]
    async fn change_password(
        &self,
        who: &Identity,
        current: Option<String>,
        new: String,
    ) -> Result<()> {
        self.replace_password(who, current, new).await
    }

    #[tracing::instrument(name = "auth.verify_email", skip_all)]
    async fn verify_email(&self, token: &str, client: ClientInfo) -> Result<()> {
        self.confirm_email(token, client).await
    }

    #[tracing::instrument(name = "auth.forgot_password", skip_all)]
    async fn forgot_password(&self, email: &str) -> Result<()> {
        self.mail_reset(email).await
    }

    #[tracing::instrument(name = "auth.reset_password", skip_all)]
    async fn reset_password(&self, token: &str, new: String, client: ClientInfo) -> Result<()> {
        self.set_forgotten_password(token, new, client).await
    }

    #[tracing::instrument(name = "auth.erase", skip_all)]
    async fn erase(&self, who: &Identity, password: Option<String>) -> Result<()> {
        self.erase_own(who, password).await
    }
}
