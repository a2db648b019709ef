//! Contacts, blocks and settings: who may make them, and telling gateways of what changes who is shown (USER-04 to USER-07).
//!
//! What a block does to messages is decided by the message role. What is shown of presence and receipts is decided where they are told, by
//! [`carillon_domain::privacy::shows`]; what a setting does to pushes is the notification role's business.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use carillon_domain::{
    Clock, Error, Result, Timestamp, UserId,
    people::{
        Hidden, MAX_BLOCKED_BY, MAX_BLOCKS, MAX_CONTACT_OF, MAX_CONTACTS, Related, Relation, Sight,
    },
    ports::{AccountStore, Bus, PeopleStore, SettingsStore},
    privacy::{Audience, Fact},
    room::Restrictions,
    services::PeopleService,
    settings::{MAX_LANGUAGE_BYTES, Settings, SettingsChange, settings_of},
    signal::{Signal, Topic},
    view::View,
};
use icu_locale_core::Locale;

/// Entries per page.
const MAX_PAGE: usize = 1000;

/// Contacts, blocks and settings of people. Cheap to clone.
#[derive(Clone)]
pub struct People {
    people: Arc<dyn PeopleStore>,
    settings: Arc<dyn SettingsStore>,
    accounts: Arc<dyn AccountStore>,
    bus: Arc<dyn Bus>,
    clock: Arc<dyn Clock>,
}

// === impl People ===

impl People {
    /// Over these ports; nothing runs by itself.
    pub fn new(
        people: Arc<dyn PeopleStore>,
        settings: Arc<dyn SettingsStore>,
        accounts: Arc<dyn AccountStore>,
        bus: Arc<dyn Bus>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            people,
            settings,
            accounts,
            bus,
            clock,
        }
    }

    /// `NotFound` when nobody has this id.
    async fn check_exists(&self, other: UserId) -> Result<()> {
        match self.accounts.by_ids(&[other]).await?.is_empty() {
            true => Err(Error::not_found("user")),
            false => Ok(()),
        }
    }

    /// Makes a change between warnings to the gateways of everybody whose sight it changes. The one before makes them look again after
    /// a while, even if this process ends right after the change; without it nothing is changed.
    async fn change_sight<T>(
        &self,
        users: &[UserId],
        change: impl Future<Output = Result<T>>,
    ) -> Result<()> {
        self.tell(users).await?;
        change.await?;
        // Also when nothing changed: then an earlier call may have changed it and not come to this.
        self.tell(users).await
    }

    async fn tell(&self, users: &[UserId]) -> Result<()> {
        let told = users.iter().map(|user| self.tell_one(*user));
        futures::future::try_join_all(told).await.map(drop)
    }

    async fn tell_one(&self, user: UserId) -> Result<()> {
        let signal = Signal::BlocksChanged { user }.encode()?;
        let topic = Topic::of_user(user);
        for pause in [50, 200] {
            match self.bus.publish(topic, signal.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tracing::warn!(%error, cause = error.cause_chain(), "a change of what is shown is not told yet");
                }
            }
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        self.bus.publish(topic, signal).await
    }
}

#[async_trait]
impl PeopleService for People {
    #[tracing::instrument(name = "people.put_contact", skip_all)]
    async fn put_contact(&self, user: UserId, other: UserId) -> Result<()> {
        check_other(user, other)?;
        self.check_exists(other).await?;
        if is_hidden_from(self.people.as_ref(), user, other).await? {
            return Err(Error::not_found("user"));
        }
        let now = self.clock.now();
        let put = self
            .people
            .put(Relation::Contact, user, other, now, MAX_CONTACTS);
        // Who is shown something to contacts only sees it from now on.
        self.change_sight(&[user, other], put).await
    }

    #[tracing::instrument(name = "people.remove_contact", skip_all)]
    async fn remove_contact(&self, user: UserId, other: UserId) -> Result<()> {
        check_other(user, other)?;
        let remove = self.people.remove(Relation::Contact, user, other);
        self.change_sight(&[user, other], remove).await
    }

    async fn contact(&self, user: UserId, other: UserId) -> Result<Related> {
        check_other(user, other)?;
        self.people
            .get(Relation::Contact, user, other)
            .await?
            .ok_or_else(|| Error::not_found("contact"))
    }

    async fn contacts(
        &self,
        user: UserId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Related>> {
        check_limit(limit)?;
        self.people
            .list(Relation::Contact, user, after, limit)
            .await
    }

    #[tracing::instrument(name = "people.block", skip_all)]
    async fn block(&self, user: UserId, other: UserId) -> Result<()> {
        check_other(user, other)?;
        self.check_exists(other).await?;
        let now = self.clock.now();
        let put = self
            .people
            .put(Relation::Block, user, other, now, MAX_BLOCKS);
        self.change_sight(&[user, other], put).await
    }

    #[tracing::instrument(name = "people.unblock", skip_all)]
    async fn unblock(&self, user: UserId, other: UserId) -> Result<()> {
        check_other(user, other)?;
        let remove = self.people.remove(Relation::Block, user, other);
        self.change_sight(&[user, other], remove).await
    }

    async fn blocks(
        &self,
        user: UserId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Related>> {
        check_limit(limit)?;
        self.people.list(Relation::Block, user, after, limit).await
    }

    #[tracing::instrument(name = "people.sight", skip_all)]
    async fn sight(&self, user: UserId) -> Result<Sight> {
        let (blocked, by, contact_of, privacy) = futures::try_join!(
            // Concurrent calls may have gone over the bound by a few.
            self.people
                .list(Relation::Block, user, None, MAX_BLOCKS + 1),
            self.people
                .list_reverse(Relation::Block, user, None, MAX_BLOCKED_BY + 1),
            self.people
                .list_reverse(Relation::Contact, user, None, MAX_CONTACT_OF),
            async { Ok(self.settings(user).await?.privacy) }
        )?;
        let told = [Fact::Presence, Fact::Receipts];
        let depends = told
            .into_iter()
            .any(|fact| privacy.audience(fact) == Audience::Contacts);
        let contacts = if depends {
            self.people
                .list(Relation::Contact, user, None, MAX_CONTACTS)
                .await?
        } else {
            Vec::new()
        };
        Ok(Sight {
            hidden: hidden(blocked, by),
            privacy,
            contacts: contacts.into_iter().map(|related| related.user).collect(),
            contact_of,
        })
    }

    async fn settings(&self, user: UserId) -> Result<Settings> {
        Ok(settings_of(&self.settings.of(&[user]).await?, user))
    }

    #[tracing::instrument(name = "people.change_settings", skip_all)]
    async fn change_settings(&self, user: UserId, mut change: SettingsChange) -> Result<Settings> {
        if let Some(Some(language)) = &mut change.language {
            *language = canonical_language(language)?;
        }
        if let Some(Some(until)) = &mut change.muted_until {
            // Later than anybody can write is for good; a time long ago is over.
            *until = (*until).clamp(Timestamp(1), Restrictions::FOR_GOOD);
        }
        let made = self.settings.change(user, &change);
        if change.is_about_privacy() {
            self.change_sight(&[user], made).await?;
        } else {
            made.await?;
        }
        self.settings(user).await
    }
}

fn hidden(blocked: Vec<Related>, by: Vec<UserId>) -> Hidden {
    if blocked.len() > MAX_BLOCKS || by.len() > MAX_BLOCKED_BY {
        return Hidden::Everybody;
    }
    let mut people = by;
    people.extend(blocked.into_iter().map(|related| related.user));
    people.sort_unstable();
    people.dedup();
    Hidden::People(people)
}

/// A language tag as one writes it, such as `de-CH`.
fn canonical_language(tag: &str) -> Result<String> {
    let wrong = || {
        let allowed =
            format!("a BCP 47 language tag of at most {MAX_LANGUAGE_BYTES} bytes, such as de-CH");
        Error::invalid("language", allowed)
    };
    if tag.len() > MAX_LANGUAGE_BYTES {
        return Err(wrong());
    }
    let locale = Locale::try_from_str(tag).map_err(|_| wrong())?;
    Ok(locale.to_string())
}

/// Whether `other` isn't there for `user`: their profile isn't shown.
pub(crate) async fn is_hidden_from(
    people: &dyn PeopleStore,
    user: UserId,
    other: UserId,
) -> Result<bool> {
    let view = View::read_blocks(people, user, &[other]).await?;
    Ok(!view.shows(Fact::Profile, other))
}

fn check_other(user: UserId, other: UserId) -> Result<()> {
    if user == other {
        return Err(Error::invalid("user_id", "somebody other than yourself"));
    }
    Ok(())
}

fn check_limit(limit: usize) -> Result<()> {
    if (1..=MAX_PAGE).contains(&limit) {
        Ok(())
    } else {
        Err(Error::invalid("limit", format!("1 to {MAX_PAGE}")))
    }
}

#[cfg(test)]
mod tests {
    use carillon_adapters::embedded;
    use carillon_domain::{
        ErrorCode,
        account::{Account, User},
        ports::{BusItem, Subscriptions},
        privacy::Privacy,
        settings::Theme,
        time::SystemClock,
    };
    use futures::{FutureExt, StreamExt, stream::BoxStream};

    use super::*;

    struct World {
        stores: embedded::Stores,
        people: People,
        _directory: tempfile::TempDir,
    }

    impl World {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let stores = embedded::open(directory.path()).unwrap();
            Self {
                people: People::new(
                    stores.people.clone(),
                    stores.settings.clone(),
                    stores.accounts.clone(),
                    stores.bus.clone(),
                    Arc::new(SystemClock),
                ),
                stores,
                _directory: directory,
            }
        }

        async fn somebody(&self) -> UserId {
            let id = UserId::new();
            let account = Account {
                user: User {
                    id,
                    username: id.to_string()[4..].to_owned(),
                    display_name: "Somebody".into(),
                    created_at: SystemClock.now(),
                    about: Default::default(),
                },
                email: None,
                phone: None,
                password_hash: None,
            };
            self.stores.accounts.create(&account).await.unwrap();
            id
        }

        async fn listen(
            &self,
            users: &[UserId],
        ) -> (Arc<dyn Subscriptions>, BoxStream<'static, BusItem>) {
            let (subscriptions, items) = self.stores.bus.receiver().await.unwrap();
            for user in users {
                let topic = Topic::of_user(*user);
                subscriptions.subscribe(topic).await.unwrap();
            }
            (subscriptions, items)
        }
    }

    async fn next_told(items: &mut BoxStream<'static, BusItem>) -> UserId {
        let Some(BusItem::Message { payload, .. }) = items.next().await else {
            panic!("nothing was told");
        };
        match Signal::decode(&payload).unwrap() {
            Signal::BlocksChanged { user } => user,
            other => panic!("{other:?}"),
        }
    }

    fn ids(list: &[Related]) -> Vec<UserId> {
        list.iter().map(|related| related.user).collect()
    }

    fn hidden(mut people: Vec<UserId>) -> Hidden {
        people.sort_unstable();
        Hidden::People(people)
    }

    /// USER-04: contacts are made, listed and removed, as often as one likes, and are nobody else's business.
    #[tokio::test]
    async fn contacts_are_kept() {
        let world = World::new();
        let (people, ann) = (&world.people, world.somebody().await);
        let (bob, zoe) = (world.somebody().await, world.somebody().await);
        for other in [zoe, bob, bob] {
            people.put_contact(ann, other).await.unwrap();
        }
        let mut expected = vec![bob, zoe];
        expected.sort_unstable();
        let list = people.contacts(ann, None, 10).await.unwrap();
        assert_eq!(ids(&list), expected);
        let rest = people.contacts(ann, Some(expected[0]), 10).await.unwrap();
        assert_eq!(ids(&rest), expected[1..]);
        assert_eq!(people.contact(ann, bob).await.unwrap().user, bob);
        assert!(people.contacts(bob, None, 10).await.unwrap().is_empty());
        for _ in 0..2 {
            people.remove_contact(ann, bob).await.unwrap();
            let error = people.contact(ann, bob).await.unwrap_err();
            assert_eq!(error.code, ErrorCode::NotFound);
        }
    }

    /// USER-05: whoever was blocked, and whoever blocked, get nothing of each other, until both ended it.
    #[tokio::test]
    async fn blocks_hide_in_both_directions() {
        let world = World::new();
        let (people, ann) = (&world.people, world.somebody().await);
        let (bob, zoe) = (world.somebody().await, world.somebody().await);
        for (user, other) in [(ann, bob), (ann, bob), (bob, ann), (zoe, ann)] {
            people.block(user, other).await.unwrap();
        }
        let of = async |user| people.sight(user).await.unwrap().hidden;
        assert_eq!(of(ann).await, hidden(vec![bob, zoe]));
        assert_eq!(of(bob).await, hidden(vec![ann]));
        assert_eq!(of(zoe).await, hidden(vec![ann]));
        let list = people.blocks(ann, None, 10).await.unwrap();
        assert_eq!(ids(&list), [bob], "who blocked her isn't told");
        people.unblock(ann, bob).await.unwrap();
        assert_eq!(of(bob).await, hidden(vec![ann]));
        people.unblock(bob, ann).await.unwrap();
        people.unblock(bob, ann).await.unwrap();
        assert_eq!(of(bob).await, hidden(vec![]));
    }

    /// USER-05: gateways of both are told before and after, also of a repeat: the first call may have ended in the middle.
    #[tokio::test]
    async fn gateways_are_told_before_and_after() {
        let world = World::new();
        let (ann, bob) = (world.somebody().await, world.somebody().await);
        let (_subscriptions, mut items) = world.listen(&[ann, bob]).await;
        for _ in 0..2 {
            world.people.block(ann, bob).await.unwrap();
            let mut told = Vec::new();
            for _ in 0..4 {
                told.push(next_told(&mut items).await);
            }
            let mut expected = [ann, bob];
            expected.sort_unstable();
            for half in told.chunks_mut(2) {
                half.sort_unstable();
                assert_eq!(half, expected);
            }
        }
    }

    /// USER-05: to whom somebody blocked, they don't exist; the other way round they do, since a block must be undone somehow.
    #[tokio::test]
    async fn the_blocked_make_no_contact() {
        let world = World::new();
        let (ann, bob) = (world.somebody().await, world.somebody().await);
        let people = &world.people;
        people.block(ann, bob).await.unwrap();
        let hidden = people.put_contact(bob, ann).await.unwrap_err();
        let unknown = people.put_contact(bob, UserId::new()).await.unwrap_err();
        assert_eq!(hidden.code, ErrorCode::NotFound);
        assert_eq!(hidden.to_string(), unknown.to_string());
        people.put_contact(ann, bob).await.unwrap();
        people.unblock(ann, bob).await.unwrap();
        people.put_contact(bob, ann).await.unwrap();
    }

    /// USER-04, USER-05: nobody relates to themselves or to nobody, and pages are bounded.
    #[tokio::test]
    async fn input_is_checked() {
        let world = World::new();
        let (people, ann) = (&world.people, world.somebody().await);
        for refused in [
            people.put_contact(ann, ann).await,
            people.remove_contact(ann, ann).await,
            people.contact(ann, ann).await.map(drop),
            people.block(ann, ann).await,
            people.unblock(ann, ann).await,
        ] {
            let error = refused.unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidRequest);
            assert_eq!(error.fields[0].field, "user_id");
        }
        for refused in [
            people.put_contact(ann, UserId::new()).await,
            people.block(ann, UserId::new()).await,
        ] {
            assert_eq!(refused.unwrap_err().code, ErrorCode::NotFound);
        }
        for limit in [0, 1001] {
            assert!(people.contacts(ann, None, limit).await.is_err());
            assert!(people.blocks(ann, None, limit).await.is_err());
        }
    }

    /// USER-05: somebody whom very many blocked gets nobody's presence, and the set stays small.
    #[tokio::test]
    async fn too_many_blocks_hide_everybody() {
        let world = World::new();
        let troll = UserId::new();
        let now = SystemClock.now();
        let blocks = (0..=MAX_BLOCKED_BY).map(|_| {
            let people = world.stores.people.clone();
            async move {
                people
                    .put(Relation::Block, UserId::new(), troll, now, MAX_BLOCKS)
                    .await
            }
        });
        for made in futures::future::join_all(blocks).await {
            assert!(made.unwrap());
        }
        let found = world.people.sight(troll).await.unwrap();
        assert_eq!(found.hidden, Hidden::Everybody);
    }

    /// USER-06: what a gateway keeps of a person follows their settings and contacts, and holds their own contacts only while needed.
    #[tokio::test]
    async fn sight_follows_contacts_and_privacy() {
        let world = World::new();
        let (people, ann) = (&world.people, world.somebody().await);
        let (bob, zoe) = (world.somebody().await, world.somebody().await);
        people.put_contact(ann, bob).await.unwrap();
        people.put_contact(zoe, ann).await.unwrap();
        let sight = people.sight(ann).await.unwrap();
        assert_eq!(sight.contact_of, [zoe]);
        assert_eq!(sight.privacy, Privacy::default());
        assert!(sight.contacts.is_empty(), "nothing depends on them");
        let change = SettingsChange {
            read_receipts: Some(Audience::Contacts),
            ..SettingsChange::default()
        };
        let settings = people.change_settings(ann, change).await.unwrap();
        assert_eq!(settings.privacy.read_receipts, Audience::Contacts);
        assert_eq!(settings, people.settings(ann).await.unwrap());
        let sight = people.sight(ann).await.unwrap();
        assert_eq!(
            (sight.privacy, sight.contacts),
            (settings.privacy, vec![bob])
        );
        people.remove_contact(zoe, ann).await.unwrap();
        assert!(people.sight(ann).await.unwrap().contact_of.is_empty());
        let of_bob = people.sight(bob).await.unwrap();
        assert_eq!(
            of_bob.privacy,
            Privacy::default(),
            "others are as they were"
        );
    }

    /// USER-06: gateways are told of privacy before and after, and not of what only the person themselves sees.
    #[tokio::test]
    async fn gateways_are_told_of_privacy() {
        let world = World::new();
        let ann = world.somebody().await;
        let (_subscriptions, mut items) = world.listen(&[ann]).await;
        let private = SettingsChange {
            last_seen: Some(Audience::Nobody),
            ..SettingsChange::default()
        };
        let looks = SettingsChange {
            theme: Some(Theme::Dark),
            ..SettingsChange::default()
        };
        world.people.change_settings(ann, looks).await.unwrap();
        world.people.change_settings(ann, private).await.unwrap();
        for _ in 0..2 {
            assert_eq!(next_told(&mut items).await, ann);
        }
        let next = items.next().now_or_never();
        assert!(next.is_none(), "the look was told too");
    }

    /// USER-07: a language is a BCP 47 tag, kept in its usual form.
    #[tokio::test]
    async fn languages_are_checked() {
        let world = World::new();
        let (people, ann) = (&world.people, world.somebody().await);
        let set = async |language: &str| {
            let change = SettingsChange {
                language: Some(Some(language.to_owned())),
                ..SettingsChange::default()
            };
            people.change_settings(ann, change).await
        };
        for (tag, kept) in [
            ("de", "de"),
            ("DE-ch", "de-CH"),
            ("zh-hant-tw", "zh-Hant-TW"),
            ("sl-nedis", "sl-nedis"),
        ] {
            let settings = set(tag).await.unwrap();
            assert_eq!(settings.language.as_deref(), Some(kept));
        }
        let long = "en-".to_owned() + &"a".repeat(40);
        for bad in ["", "d", "de_", "german language", "de-", &long] {
            let error = set(bad).await.unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidRequest, "{bad}");
            assert_eq!(error.fields[0].field, "language");
        }
        let settings = people.settings(ann).await.unwrap();
        assert_eq!(settings.language.as_deref(), Some("sl-nedis"));
    }
}
