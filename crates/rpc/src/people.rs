//! `carillon.people.v1.PeopleService`: the server of a `PeopleService`, and the client that is one (USER-04 to USER-07).

use std::sync::Arc;

use async_trait::async_trait;
use carillon_domain::{
    Error, Result, UserId,
    people::{Hidden, MAX_BLOCKED_BY, MAX_BLOCKS, MAX_CONTACT_OF, MAX_CONTACTS, Related, Sight},
    privacy::{Audience, Privacy},
    services::PeopleService,
    settings::{Notify, Settings, SettingsChange, Theme},
};
use tonic::{Request, Response, Status, transport::Channel};

use crate::{
    PeerRole,
    connection::{self, Connection, Credentials, For},
    gate::handle,
    proto::people::{
        self as pb, people_service_client::PeopleServiceClient, people_service_server as server,
    },
    values::{
        self, answer, id, limit, limit_to_proto, optional_id, required, timestamp,
        timestamp_to_proto,
    },
};

/// Entries per page, when the caller doesn't say, and at most.
const PAGE: usize = 100;
const MAX_PAGE: usize = 1000;

// === server ===

/// Offers a `PeopleService` over gRPC; mount it with [`crate::serve`].
#[derive(Clone)]
pub struct PeopleServer {
    service: Arc<dyn PeopleService>,
}

impl PeopleServer {
    /// Makes a server of the service.
    pub fn new(service: Arc<dyn PeopleService>) -> Self {
        Self { service }
    }

    pub(crate) fn into_tonic(self) -> server::PeopleServiceServer<Self> {
        server::PeopleServiceServer::new(self)
    }
}

#[tonic::async_trait]
impl server::PeopleService for PeopleServer {
    async fn put_contact(
        &self,
        request: Request<pb::PutContactRequest>,
    ) -> Result<Response<pb::PutContactResponse>, Status> {
        handle(request, |caller, put| async move {
            let other = id("user_id", &put.user_id)?;
            self.service.put_contact(caller.actor()?, other).await?;
            Ok(pb::PutContactResponse {})
        })
        .await
    }

    async fn remove_contact(
        &self,
        request: Request<pb::RemoveContactRequest>,
    ) -> Result<Response<pb::RemoveContactResponse>, Status> {
        handle(request, |caller, remove| async move {
            let other = id("user_id", &remove.user_id)?;
            self.service.remove_contact(caller.actor()?, other).await?;
            Ok(pb::RemoveContactResponse {})
        })
        .await
    }

    async fn get_contact(
        &self,
        request: Request<pb::GetContactRequest>,
    ) -> Result<Response<pb::GetContactResponse>, Status> {
        handle(request, |caller, get| async move {
            let other = id("user_id", &get.user_id)?;
            let contact = self.service.contact(caller.actor()?, other).await?;
            Ok(pb::GetContactResponse {
                contact: Some(related_to_proto(&contact)),
            })
        })
        .await
    }

    async fn list_contacts(
        &self,
        request: Request<pb::ListContactsRequest>,
    ) -> Result<Response<pb::ListContactsResponse>, Status> {
        handle(request, |caller, list| async move {
            let after = optional_id("after", list.after.as_deref())?;
            let limit = limit(list.limit, PAGE, MAX_PAGE)?;
            let contacts = self.service.contacts(caller.actor()?, after, limit).await?;
            Ok(pb::ListContactsResponse {
                contacts: contacts.iter().map(related_to_proto).collect(),
            })
        })
        .await
    }

    async fn block(
        &self,
        request: Request<pb::BlockRequest>,
    ) -> Result<Response<pb::BlockResponse>, Status> {
        handle(request, |caller, block| async move {
            let other = id("user_id", &block.user_id)?;
            self.service.block(caller.actor()?, other).await?;
            Ok(pb::BlockResponse {})
        })
        .await
    }

    async fn unblock(
        &self,
        request: Request<pb::UnblockRequest>,
    ) -> Result<Response<pb::UnblockResponse>, Status> {
        handle(request, |caller, unblock| async move {
            let other = id("user_id", &unblock.user_id)?;
            self.service.unblock(caller.actor()?, other).await?;
            Ok(pb::UnblockResponse {})
        })
        .await
    }

    async fn list_blocks(
        &self,
        request: Request<pb::ListBlocksRequest>,
    ) -> Result<Response<pb::ListBlocksResponse>, Status> {
        handle(request, |caller, list| async move {
            let after = optional_id("after", list.after.as_deref())?;
            let limit = limit(list.limit, PAGE, MAX_PAGE)?;
            let blocks = self.service.blocks(caller.actor()?, after, limit).await?;
            Ok(pb::ListBlocksResponse {
                blocks: blocks.iter().map(related_to_proto).collect(),
            })
        })
        .await
    }

    async fn get_hidden(
        &self,
        request: Request<pb::GetHiddenRequest>,
    ) -> Result<Response<pb::GetHiddenResponse>, Status> {
        handle(request, |caller, _| async move {
            let sight = self.service.sight(caller.actor()?).await?;
            Ok(sight_to_proto(&sight))
        })
        .await
    }

    async fn get_settings(
        &self,
        request: Request<pb::GetSettingsRequest>,
    ) -> Result<Response<pb::GetSettingsResponse>, Status> {
        handle(request, |caller, _| async move {
            let settings = self.service.settings(caller.actor()?).await?;
            Ok(pb::GetSettingsResponse {
                settings: Some(settings_to_proto(settings)),
            })
        })
        .await
    }

    async fn update_settings(
        &self,
        request: Request<pb::UpdateSettingsRequest>,
    ) -> Result<Response<pb::UpdateSettingsResponse>, Status> {
        handle(request, |caller, update| async move {
            let change = change(update)?;
            let changed = self.service.change_settings(caller.actor()?, change);
            Ok(pb::UpdateSettingsResponse {
                settings: Some(settings_to_proto(changed.await?)),
            })
        })
        .await
    }
}

// === client ===

/// A `PeopleService` that runs in another process.
#[derive(Clone)]
pub struct PeopleClient {
    rpc: Connection<PeopleServiceClient<Channel>>,
}

impl PeopleClient {
    /// Connects to `endpoint` (such as `http://auth:50051`) on first use. Must be called within a runtime.
    pub fn connect_lazy(endpoint: &str, credentials: Credentials) -> Result<Self> {
        let client =
            PeopleServiceClient::new(connection::channel(endpoint, PeerRole::Auth, &credentials)?);
        Ok(Self {
            rpc: Connection::new(
                server::SERVICE_NAME,
                client,
                credentials,
                values::CALL_DEADLINE,
            ),
        })
    }
}

#[async_trait]
impl PeopleService for PeopleClient {
    async fn put_contact(&self, user: UserId, other: UserId) -> Result<()> {
        let request = pb::PutContactRequest {
            user_id: other.to_string(),
        };
        self.rpc
            .call(
                "PutContact",
                For::User(user),
                request,
                |mut c, r| async move { c.put_contact(r).await },
            )
            .await?;
        Ok(())
    }

    async fn remove_contact(&self, user: UserId, other: UserId) -> Result<()> {
        let request = pb::RemoveContactRequest {
            user_id: other.to_string(),
        };
        self.rpc
            .call(
                "RemoveContact",
                For::User(user),
                request,
                |mut c, r| async move { c.remove_contact(r).await },
            )
            .await?;
        Ok(())
    }

    async fn contact(&self, user: UserId, other: UserId) -> Result<Related> {
        let request = pb::GetContactRequest {
            user_id: other.to_string(),
        };
        let got = self
            .rpc
            .call(
                "GetContact",
                For::User(user),
                request,
                |mut c, r| async move { c.get_contact(r).await },
            )
            .await?;
        answer(required("contact", got.contact).and_then(related))
    }

    async fn contacts(
        &self,
        user: UserId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Related>> {
        let request = pb::ListContactsRequest {
            limit: limit_to_proto(limit),
            after: after.map(|after| after.to_string()),
        };
        let list = self
            .rpc
            .call(
                "ListContacts",
                For::User(user),
                request,
                |mut c, r| async move { c.list_contacts(r).await },
            )
            .await?;
        list.contacts
            .into_iter()
            .map(|one| answer(related(one)))
            .collect()
    }

    async fn block(&self, user: UserId, other: UserId) -> Result<()> {
        let request = pb::BlockRequest {
            user_id: other.to_string(),
        };
        self.rpc
            .call("Block", For::User(user), request, |mut c, r| async move {
                c.block(r).await
            })
            .await?;
        Ok(())
    }

    async fn unblock(&self, user: UserId, other: UserId) -> Result<()> {
        let request = pb::UnblockRequest {
            user_id: other.to_string(),
        };
        self.rpc
            .call("Unblock", For::User(user), request, |mut c, r| async move {
                c.unblock(r).await
            })
            .await?;
        Ok(())
    }

    async fn blocks(
        &self,
        user: UserId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Related>> {
        let request = pb::ListBlocksRequest {
            limit: limit_to_proto(limit),
            after: after.map(|after| after.to_string()),
        };
        let list = self
            .rpc
            .call(
                "ListBlocks",
                For::User(user),
                request,
                |mut c, r| async move { c.list_blocks(r).await },
            )
            .await?;
        list.blocks
            .into_iter()
            .map(|one| answer(related(one)))
            .collect()
    }

    async fn sight(&self, user: UserId) -> Result<Sight> {
        let request = pb::GetHiddenRequest {};
        let got = self
            .rpc
            .call(
                "GetHidden",
                For::User(user),
                request,
                |mut c, r| async move { c.get_hidden(r).await },
            )
            .await?;
        answer(sight(&got))
    }

    async fn settings(&self, user: UserId) -> Result<Settings> {
        let request = pb::GetSettingsRequest {};
        let got = self
            .rpc
            .call(
                "GetSettings",
                For::User(user),
                request,
                |mut c, r| async move { c.get_settings(r).await },
            )
            .await?;
        answer(required("settings", got.settings).and_then(settings))
    }

    async fn change_settings(&self, user: UserId, change: SettingsChange) -> Result<Settings> {
        let request = change_to_proto(change);
        let got = self
            .rpc
            .call(
                "UpdateSettings",
                For::User(user),
                request,
                |mut c, r| async move { c.update_settings(r).await },
            )
            .await?;
        answer(required("settings", got.settings).and_then(settings))
    }
}

// === values ===

fn related_to_proto(related: &Related) -> pb::Related {
    pb::Related {
        user_id: related.user.to_string(),
        since: Some(timestamp_to_proto(related.since)),
    }
}

fn related(related: pb::Related) -> Result<Related> {
    Ok(Related {
        user: id("user_id", &related.user_id)?,
        since: timestamp("since", related.since)?,
    })
}

fn sight_to_proto(sight: &Sight) -> pb::GetHiddenResponse {
    let (everybody, user_ids) = match &sight.hidden {
        Hidden::Everybody => (true, Vec::new()),
        Hidden::People(people) => (false, values::texts(people)),
    };
    pb::GetHiddenResponse {
        everybody,
        user_ids,
        privacy: Some(privacy_to_proto(sight.privacy)),
        contact_ids: values::texts(&sight.contacts),
        contact_of_ids: values::texts(&sight.contact_of),
    }
}

fn sight(sight: &pb::GetHiddenResponse) -> Result<Sight> {
    let most = MAX_BLOCKS + MAX_BLOCKED_BY;
    let hidden = match sight.everybody {
        true => Hidden::Everybody,
        false => Hidden::People(values::ids("user_ids", &sight.user_ids, most)?),
    };
    Ok(Sight {
        hidden,
        // An auth role that doesn't know privacy yet has none to tell of.
        privacy: sight.privacy.map(privacy).unwrap_or_default(),
        contacts: values::ids("contact_ids", &sight.contact_ids, MAX_CONTACTS)?,
        contact_of: values::ids("contact_of_ids", &sight.contact_of_ids, MAX_CONTACT_OF)?,
    })
}

fn audience_to_proto(audience: Audience) -> i32 {
    let audience = match audience {
        Audience::Everyone => pb::Audience::Everyone,
        Audience::Contacts => pb::Audience::Contacts,
        Audience::Nobody => pb::Audience::Nobody,
    };
    audience.into()
}

/// `None` if unspecified.
fn known_audience(field: &'static str, number: i32) -> Result<Option<Audience>> {
    match pb::Audience::try_from(number) {
        Ok(pb::Audience::Unspecified) => Ok(None),
        Ok(pb::Audience::Everyone) => Ok(Some(Audience::Everyone)),
        Ok(pb::Audience::Contacts) => Ok(Some(Audience::Contacts)),
        Ok(pb::Audience::Nobody) => Ok(Some(Audience::Nobody)),
        Err(_) => Err(Error::invalid(field, "everyone, contacts or nobody")),
    }
}

fn privacy_to_proto(privacy: Privacy) -> pb::Privacy {
    pb::Privacy {
        last_seen: audience_to_proto(privacy.last_seen),
        profile_photo: audience_to_proto(privacy.profile_photo),
        read_receipts: audience_to_proto(privacy.read_receipts),
    }
}

/// What a newer version says hides.
fn privacy(privacy: pb::Privacy) -> Privacy {
    let audience = |number| match known_audience("privacy", number) {
        Ok(audience) => audience.unwrap_or_default(),
        Err(_) => Audience::Nobody,
    };
    Privacy {
        last_seen: audience(privacy.last_seen),
        profile_photo: audience(privacy.profile_photo),
        read_receipts: audience(privacy.read_receipts),
    }
}

fn notify_to_proto(notify: Notify) -> i32 {
    let notify = match notify {
        Notify::All => pb::Notify::All,
        Notify::Mentions => pb::Notify::Mentions,
        Notify::None => pb::Notify::None,
    };
    notify.into()
}

fn notify(number: i32) -> Result<Option<Notify>> {
    match pb::Notify::try_from(number) {
        Ok(pb::Notify::Unspecified) => Ok(None),
        Ok(pb::Notify::All) => Ok(Some(Notify::All)),
        Ok(pb::Notify::Mentions) => Ok(Some(Notify::Mentions)),
        Ok(pb::Notify::None) => Ok(Some(Notify::None)),
        Err(_) => Err(Error::invalid("notifications", "all, mentions or none")),
    }
}

fn theme_to_proto(theme: Theme) -> i32 {
    let theme = match theme {
        Theme::System => pb::Theme::System,
        Theme::Light => pb::Theme::Light,
        Theme::Dark => pb::Theme::Dark,
    };
    theme.into()
}

fn theme(number: i32) -> Result<Option<Theme>> {
    match pb::Theme::try_from(number) {
        Ok(pb::Theme::Unspecified) => Ok(None),
        Ok(pb::Theme::System) => Ok(Some(Theme::System)),
        Ok(pb::Theme::Light) => Ok(Some(Theme::Light)),
        Ok(pb::Theme::Dark) => Ok(Some(Theme::Dark)),
        Err(_) => Err(Error::invalid("theme", "system, light or dark")),
    }
}

fn settings_to_proto(settings: Settings) -> pb::Settings {
    pb::Settings {
        privacy: Some(privacy_to_proto(settings.privacy)),
        notifications: notify_to_proto(settings.notifications),
        muted_until: settings.muted_until.map(timestamp_to_proto),
        theme: theme_to_proto(settings.theme),
        language: settings.language,
    }
}

fn settings(settings: pb::Settings) -> Result<Settings> {
    Ok(Settings {
        privacy: privacy(required("privacy", settings.privacy)?),
        notifications: notify(settings.notifications)?.unwrap_or_default(),
        muted_until: settings
            .muted_until
            .map(|until| timestamp("muted_until", Some(until)))
            .transpose()?,
        theme: theme(settings.theme)?.unwrap_or_default(),
        language: settings.language,
    })
}

fn change_to_proto(change: SettingsChange) -> pb::UpdateSettingsRequest {
    let audience = |audience: Option<Audience>| audience.map(audience_to_proto).unwrap_or_default();
    pb::UpdateSettingsRequest {
        last_seen: audience(change.last_seen),
        profile_photo: audience(change.profile_photo),
        read_receipts: audience(change.read_receipts),
        notifications: change
            .notifications
            .map(notify_to_proto)
            .unwrap_or_default(),
        muted_until: change.muted_until.flatten().map(timestamp_to_proto),
        unmute: change.muted_until == Some(None),
        theme: change.theme.map(theme_to_proto).unwrap_or_default(),
        language: change.language.map(Option::unwrap_or_default),
    }
}

fn change(update: pb::UpdateSettingsRequest) -> Result<SettingsChange> {
    let muted_until = match (update.muted_until, update.unmute) {
        (None, false) => None,
        (None, true) => Some(None),
        (Some(until), false) => Some(Some(timestamp("muted_until", Some(until))?)),
        (Some(_), true) => return Err(Error::invalid("unmute", "not together with muted_until")),
    };
    Ok(SettingsChange {
        last_seen: known_audience("last_seen", update.last_seen)?,
        profile_photo: known_audience("profile_photo", update.profile_photo)?,
        read_receipts: known_audience("read_receipts", update.read_receipts)?,
        notifications: notify(update.notifications)?,
        muted_until,
        theme: theme(update.theme)?,
        language: update
            .language
            .map(|language| Some(language).filter(|language| !language.is_empty())),
    })
}

#[cfg(test)]
mod tests {
    use carillon_domain::Timestamp;

    use super::*;

    #[test]
    fn what_is_shown_comes_back_as_it_was() {
        let some = Hidden::People(vec![UserId::new(), UserId::new()]);
        for hidden in [Hidden::Everybody, Hidden::People(Vec::new()), some] {
            for audience in Audience::ALL {
                let one = Sight {
                    hidden: hidden.clone(),
                    privacy: Privacy {
                        last_seen: audience,
                        profile_photo: Audience::Contacts,
                        read_receipts: Audience::Nobody,
                    },
                    contacts: vec![UserId::new()],
                    contact_of: vec![UserId::new(), UserId::new()],
                };
                assert_eq!(sight(&sight_to_proto(&one)).unwrap(), one);
            }
        }
    }

    /// USER-06: what only a newer version knows hides, and is refused when somebody asks for it.
    #[test]
    fn unknown_numbers_hide() {
        let newer = pb::Privacy {
            last_seen: 77,
            ..pb::Privacy::default()
        };
        assert_eq!(privacy(newer).last_seen, Audience::Nobody);
        assert_eq!(privacy(newer).read_receipts, Audience::Everyone);
        for (field, update) in [
            (
                "last_seen",
                pb::UpdateSettingsRequest {
                    last_seen: 77,
                    ..Default::default()
                },
            ),
            (
                "notifications",
                pb::UpdateSettingsRequest {
                    notifications: 77,
                    ..Default::default()
                },
            ),
            (
                "theme",
                pb::UpdateSettingsRequest {
                    theme: 77,
                    ..Default::default()
                },
            ),
            (
                "unmute",
                pb::UpdateSettingsRequest {
                    muted_until: Some(timestamp_to_proto(Timestamp(5))),
                    unmute: true,
                    ..Default::default()
                },
            ),
        ] {
            assert_eq!(change(update).unwrap_err().fields[0].field, field);
        }
    }

    /// USER-07: every change, with all, with nothing, and with what is taken back.
    #[test]
    fn changes_come_back_as_they_were() {
        let all = SettingsChange {
            last_seen: Some(Audience::Contacts),
            profile_photo: Some(Audience::Nobody),
            read_receipts: Some(Audience::Everyone),
            notifications: Some(Notify::None),
            muted_until: Some(Some(Timestamp(1_234_567))),
            theme: Some(Theme::System),
            language: Some(Some("de".into())),
        };
        let back = SettingsChange {
            muted_until: Some(None),
            language: Some(None),
            ..SettingsChange::default()
        };
        for one in [all, back, SettingsChange::default()] {
            assert_eq!(change(change_to_proto(one.clone())).unwrap(), one);
        }
    }

    #[test]
    fn entries_come_back_as_they_were() {
        let one = Related {
            user: UserId::new(),
            since: Timestamp(1_234_567),
        };
        assert_eq!(related(related_to_proto(&one)).unwrap(), one);
        let without_time = pb::Related {
            since: None,
            ..related_to_proto(&one)
        };
        assert_eq!(related(without_time).unwrap_err().fields[0].field, "since");
    }
}
