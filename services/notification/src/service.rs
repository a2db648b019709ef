//! The notification role: registers targets and works on push jobs.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use carillon_domain::{
    Clock, Error, ErrorCode, Result, UserId,
    account::Identity,
    ports::{
        Ephemeral, JobHandler, JobOutcome, PeopleStore, PushQueue, PushTargetStore, SessionStore,
        SettingsStore,
    },
    privacy::{Audience, Fact, Ties, shows},
    push::{PushJob, PushProvider, PushTarget},
    services::{NewPushTarget, NotificationService},
    settings::settings_of,
};
use carillon_telemetry::propagation;
use futures::{StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    deliver::{Outcome, Providers},
    options::{NotificationOptions, OptionsError},
    web_push::Subscription,
};

/// Longest token of FCM that is taken; real ones have a few hundred characters.
const MAX_TOKEN_BYTES: usize = 4096;
/// How long a delivery is remembered: longer than any queue repeats a job.
const REMEMBERED_FOR: Duration = Duration::from_secs(24 * 3600);
/// Users whose targets are read at once.
const USERS_PER_READ: usize = 200;
/// The window of counters.
const MINUTE: Duration = Duration::from_secs(60);
/// How long a recipient's endpoints, and a host, are left alone after they didn't answer.
const SLOW_USER: Duration = Duration::from_secs(300);
const SLOW_ORIGIN: Duration = Duration::from_secs(60);
/// Requests of one host without an answer within a minute after which it is left alone for everybody.
const UNANSWERED: u64 = 10;
/// When one of our own stores isn't there.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// What the role needs.
pub struct NotificationPorts {
    /// Where pushes go.
    pub targets: Arc<dyn PushTargetStore>,
    /// For who sees whose name.
    pub people: Arc<dyn PeopleStore>,
    /// For who wants which pushes.
    pub settings: Arc<dyn SettingsStore>,
    /// What is to be pushed.
    pub queue: Arc<dyn PushQueue>,
    /// Counters and claims.
    pub ephemeral: Arc<dyn Ephemeral>,
    /// Which devices are still logged in: no other gets a push.
    pub sessions: Arc<dyn SessionStore>,
    /// The present.
    pub clock: Arc<dyn Clock>,
}

/// The notification role.
pub struct NotificationRole {
    targets: Arc<dyn PushTargetStore>,
    people: Arc<dyn PeopleStore>,
    settings: Arc<dyn SettingsStore>,
    clock: Arc<dyn Clock>,
    queue: Arc<dyn PushQueue>,
    ephemeral: Arc<dyn Ephemeral>,
    sessions: Arc<dyn SessionStore>,
    providers: Providers,
    /// How long a delivery may be under way before another consumer may try it.
    under_way: Duration,
    deliveries_at_once: usize,
    pushes_per_user: u64,
}

// === impl NotificationRole ===

impl NotificationRole {
    /// Opens no connection yet.
    pub fn new(
        ports: NotificationPorts,
        options: NotificationOptions,
    ) -> std::result::Result<Self, OptionsError> {
        Ok(Self {
            targets: ports.targets,
            people: ports.people,
            settings: ports.settings,
            clock: ports.clock.clone(),
            queue: ports.queue,
            ephemeral: ports.ephemeral,
            sessions: ports.sessions,
            pushes_per_user: options.pushes_per_user_and_minute,
            // FCM may need two requests.
            under_way: 2 * options.request_timeout + Duration::from_secs(10),
            deliveries_at_once: options.deliveries_at_once.max(1),
            providers: Providers::new(options, ports.clock)?,
        })
    }

    /// Consumes push jobs, at most `concurrency` at once, until `stop`; then finishes what is under way.
    pub async fn run(self: Arc<Self>, concurrency: usize, stop: CancellationToken) -> Result<()> {
        let queue = self.queue.clone();
        let stopped = Box::pin(stop.cancelled_owned());
        queue.consume(self, concurrency, stopped).await
    }

    async fn work(&self, job: &PushJob) -> JobOutcome {
        let mut retry: Option<Duration> = None;
        let nameless = PushJob {
            title: String::new(),
            ..job.clone()
        };
        for users in job.recipients.chunks(USERS_PER_READ) {
            let read = async {
                let recipients = self.recipients(job, users).await?;
                let users: Vec<UserId> = recipients.keys().copied().collect();
                let targets = self.live_targets(&users).await?;
                Ok::<_, Error>((targets, recipients))
            };
            let (targets, recipients) = match read.await {
                Ok(read) => read,
                Err(error) => {
                    tracing::warn!(%error, cause = error.cause_chain(), "push targets not read");
                    return JobOutcome::Retry(RETRY_AFTER);
                }
            };
            let outcomes: Vec<Outcome> = futures::stream::iter(targets)
                .map(|target| {
                    let is_named = recipients.get(&target.user).copied().unwrap_or_default();
                    let job = if is_named { job } else { &nameless };
                    async move { self.deliver_once(job, &target).await }
                })
                .buffer_unordered(self.deliveries_at_once)
                .collect()
                .await;
            for outcome in outcomes {
                if let Outcome::Retry(after) = outcome {
                    retry = retry.max(Some(after));
                }
            }
        }
        retry.map_or(JobOutcome::Done, JobOutcome::Retry)
    }

    /// Those of these people who want a push for this message now (USER-07), with whether they may see who sent it (USER-05).
    async fn recipients(&self, job: &PushJob, users: &[UserId]) -> Result<HashMap<UserId, bool>> {
        let (settings, blocks) = futures::try_join!(
            self.settings.of(users),
            self.people.blocked_between(job.sender, users)
        )?;
        let now = self.clock.now();
        let wanted = users.iter().copied().filter(|user| {
            let is_called = job.mentions.room || job.mentions.users.contains(user);
            settings_of(&settings, *user).wants_push(now, is_called, job.direct)
        });
        let everyone = Audience::Everyone;
        Ok(wanted
            .map(|user| {
                let between = blocks.iter().find(|between| between.other == user);
                let ties = between.map_or_else(Ties::default, |between| Ties {
                    viewer_blocked: between.by_other,
                    person_blocked: between.by_user,
                    ..Ties::default()
                });
                (user, shows(Fact::Profile, ties, everyone, everyone))
            })
            .collect())
    }

    /// Where pushes for these people go now: to devices that are logged in, once to each place, and not to people who had more
    /// than their share of the last minute.
    async fn live_targets(&self, users: &[UserId]) -> Result<Vec<PushTarget>> {
        let targets = self.targets.of_users(users).await?;
        let checked: Vec<(PushTarget, bool)> = futures::stream::iter(targets)
            .map(|target| async move {
                let session = self.sessions.get(target.user, target.device).await?;
                Ok::<_, Error>((target, session.is_some()))
            })
            .buffered(self.deliveries_at_once)
            .try_collect()
            .await?;
        let mut live = Vec::new();
        let mut stale = Vec::new();
        for (target, is_live) in checked {
            if is_live {
                live.push(target);
            } else {
                // However the session ended: the device's next person, or a thief, must not read on.
                stale.push(target);
            }
        }
        // A browser that logged in again is a new device with the same subscription. Ids of devices grow: the newest counts.
        live.sort_by_key(|target| std::cmp::Reverse(target.device));
        let mut places = HashSet::new();
        let (mut live, repeated): (Vec<_>, Vec<_>) = live.into_iter().partition(|target| {
            places.insert((target.user, target.provider, target.token.clone()))
        });
        stale.extend(repeated);
        for target in &stale {
            self.forget(target).await?;
            Outcome::Gone.count(target.provider);
        }
        let mut over = HashSet::new();
        for user in live
            .iter()
            .map(|target| target.user)
            .collect::<HashSet<_>>()
        {
            let key = format!("push:user:{user}");
            let count = self.ephemeral.increment(&key, MINUTE).await?;
            if count > self.pushes_per_user {
                over.insert(user);
            }
        }
        live.retain(|target| {
            let taken = !over.contains(&target.user);
            if !taken {
                Outcome::Limited.count(target.provider);
            }
            taken
        });
        Ok(live)
    }

    /// Delivers to one device unless it was done before. "Done" is remembered for a day; "under way" only as long as a request
    /// can take, so that a consumer that crashed in between leaves a job that is delivered by the next one.
    async fn deliver_once(&self, job: &PushJob, target: &PushTarget) -> Outcome {
        let outcome = match self.try_deliver(job, target).await {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::warn!(%error, cause = error.cause_chain(), "push not delivered");
                Outcome::Retry(RETRY_AFTER)
            }
        };
        outcome.count(target.provider);
        outcome
    }

    async fn try_deliver(&self, job: &PushJob, target: &PushTarget) -> Result<Outcome> {
        let key = Sha256::digest(format!("{}\n{}", job.id, target.device));
        let key = hex::encode(key);
        let (done, under_way) = (format!("push:done:{key}"), format!("push:now:{key}"));
        if !self.ephemeral.claim(&under_way, self.under_way).await? {
            // Somebody else is at it, or crashed at it: this job comes again, and then it is done or free.
            return Ok(if self.ephemeral.get(&done).await?.is_some() {
                Outcome::Repeated
            } else {
                Outcome::Retry(self.under_way)
            });
        }
        if self.ephemeral.get(&done).await?.is_some() {
            self.ephemeral.remove(&under_way).await?;
            return Ok(Outcome::Repeated);
        }
        let outcome = self.deliver_unless_slow(job, target).await?;
        match outcome {
            // A rejected job isn't tried on this device again when another device's retry brings it back.
            Outcome::Delivered | Outcome::Rejected => {
                self.ephemeral.put(&done, b"1", REMEMBERED_FOR).await?;
            }
            Outcome::Gone => self.forget(target).await?,
            Outcome::Retry(_) | Outcome::Repeated | Outcome::Limited => {}
        }
        self.ephemeral.remove(&under_way).await?;
        Ok(outcome)
    }

    /// Endpoints that strangers named and that don't answer are left alone for a while: waiting for one takes a place that the pushes
    /// of others need. What counts is the recipient, since names of hosts are free; and the host when many recipients have it.
    async fn deliver_unless_slow(&self, job: &PushJob, target: &PushTarget) -> Result<Outcome> {
        let Some(origin) = self.providers.strangers_origin(target) else {
            let delivery = self.providers.deliver(job, target).await;
            return Ok(delivery.unwrap_or(Outcome::Retry(RETRY_AFTER)));
        };
        let origin = hex::encode(Sha256::digest(origin));
        let of_user = format!("push:slow:{}", target.user);
        let of_origin = format!("push:slow:{origin}");
        for (mark, pause) in [(&of_user, SLOW_USER), (&of_origin, SLOW_ORIGIN)] {
            if self.ephemeral.get(mark).await?.is_some() {
                return Ok(Outcome::Retry(pause));
            }
        }
        if let Some(outcome) = self.providers.deliver(job, target).await {
            return Ok(outcome);
        }
        self.ephemeral.put(&of_user, b"1", SLOW_USER).await?;
        let unanswered = format!("push:unanswered:{origin}");
        if self.ephemeral.increment(&unanswered, MINUTE).await? >= UNANSWERED {
            self.ephemeral.put(&of_origin, b"1", SLOW_ORIGIN).await?;
        }
        Ok(Outcome::Retry(SLOW_USER))
    }

    /// Drops a target that its provider doesn't know any more, unless the device has registered another meanwhile.
    async fn forget(&self, target: &PushTarget) -> Result<()> {
        let now = self.targets.of_users(&[target.user]).await?;
        if now.contains(target) {
            self.targets.remove(target.user, target.device).await?;
        }
        Ok(())
    }

    fn checked(&self, who: &Identity, new: NewPushTarget) -> Result<PushTarget> {
        if !self.providers.has(new.provider) {
            let name = match new.provider {
                PushProvider::Fcm => "FCM",
                PushProvider::Apns => "APNs",
                PushProvider::WebPush => "Web Push",
            };
            return Err(Error::new(
                ErrorCode::FailedPrecondition,
                format!("{name} is not configured"),
            ));
        }
        match new.provider {
            PushProvider::WebPush => {
                self.providers
                    .check_endpoint(&new.token)
                    .map_err(|problem| Error::invalid("token", problem))?;
                let p256dh = new.p256dh.as_deref().unwrap_or_default();
                let auth = new.auth.as_deref().unwrap_or_default();
                Subscription::parse(p256dh, auth).map_err(|field| {
                    Error::invalid(field, "the subscription's key in base64url")
                })?;
            }
            PushProvider::Fcm | PushProvider::Apns => {
                let fits = (1..=MAX_TOKEN_BYTES).contains(&new.token.len());
                if !fits || !new.token.bytes().all(|b| b.is_ascii_graphic()) {
                    return Err(Error::invalid(
                        "token",
                        "1 to 4096 visible ASCII characters",
                    ));
                }
                if new.p256dh.is_some() || new.auth.is_some() {
                    return Err(Error::invalid("p256dh", "only for Web Push, as is auth"));
                }
            }
        }
        Ok(PushTarget {
            user: who.user,
            device: who.device,
            provider: new.provider,
            token: new.token,
            p256dh: new.p256dh,
            auth: new.auth,
        })
    }
}

#[async_trait]
impl NotificationService for NotificationRole {
    #[tracing::instrument(name = "notification.register", skip_all)]
    async fn register(&self, who: &Identity, target: NewPushTarget) -> Result<()> {
        let target = self.checked(who, target)?;
        self.targets.put(&target).await
    }

    #[tracing::instrument(name = "notification.unregister", skip_all)]
    async fn unregister(&self, who: &Identity) -> Result<()> {
        self.targets.remove(who.user, who.device).await
    }
}

#[async_trait]
impl JobHandler for NotificationRole {
    async fn handle(&self, job: PushJob) -> JobOutcome {
        let span = tracing::info_span!(
            "push.job",
            otel.kind = "consumer",
            push.recipients = job.recipients.len(),
        );
        // A queue adapter that opened a span has made it a child of the send already.
        if propagation::trace_id().is_none()
            && let Some(parent) = &job.traceparent
        {
            propagation::set_parent(&span, parent);
        }
        self.work(&job).instrument(span).await
    }
}
