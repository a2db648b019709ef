//! `carillon.auth.v1.AccountService`: the server of an `AccountService`, and the client that is one (AUTH-09, AUTH-12).

use std::sync::Arc;

use async_trait::async_trait;
use carillon_domain::{
    Error, Result,
    account::{ClientInfo, Identity, ProfileChange, User},
    security::{History, SecurityEvent, SecurityEventKind},
    services::{AccountService, FoundUsers},
};
use tonic::{Request, Response, Status, transport::Channel};
use uuid::Uuid;

use crate::{
    auth::{client_info, client_info_from_proto, client_info_to_proto, user, user_to_proto},
    connection::{self, Connection, Credentials, For},
    gate::{self, Caller, handle},
    proto::auth::{
        self as pb, account_service_client::AccountServiceClient, account_service_server as server,
    },
    tls::PeerRole,
    values::{self, answer, id, limit, limit_to_proto, optional_id, timestamp, timestamp_to_proto},
};

/// Entries per page, when the caller doesn't say, and at most.
const PAGE: usize = 50;
const MAX_PAGE: usize = 100;
/// The same of people who are looked for.
const FOUND_PAGE: usize = 20;
const MAX_FOUND_PAGE: usize = 50;

// === server ===

/// Offers an `AccountService` over gRPC; mount it with [`crate::serve`].
#[derive(Clone)]
pub struct AccountServer {
    service: Arc<dyn AccountService>,
}

impl AccountServer {
    /// Makes a server of the service.
    pub fn new(service: Arc<dyn AccountService>) -> Self {
        Self { service }
    }

    pub(crate) fn into_tonic(self) -> server::AccountServiceServer<Self> {
        server::AccountServiceServer::new(self)
    }

    async fn history(
        &self,
        caller: Caller,
        history: History,
        list: pb::ListHistoryRequest,
    ) -> Result<pb::ListHistoryResponse> {
        let before = optional_id("before", list.before.as_deref())?;
        let limit = limit(list.limit, PAGE, MAX_PAGE)?;
        let who = caller.identity()?;
        let events = self.service.history(&who, history, before, limit).await?;
        Ok(pb::ListHistoryResponse {
            events: events.into_iter().map(event_to_proto).collect(),
        })
    }
}

#[tonic::async_trait]
impl server::AccountService for AccountServer {
    async fn list_login_history(
        &self,
        request: Request<pb::ListHistoryRequest>,
    ) -> Result<Response<pb::ListHistoryResponse>, Status> {
        handle(request, |caller, list| {
            self.history(caller, History::Logins, list)
        })
        .await
    }

    async fn list_security_events(
        &self,
        request: Request<pb::ListHistoryRequest>,
    ) -> Result<Response<pb::ListHistoryResponse>, Status> {
        handle(request, |caller, list| {
            self.history(caller, History::Security, list)
        })
        .await
    }

    async fn update_profile(
        &self,
        request: Request<pb::UpdateProfileRequest>,
    ) -> Result<Response<pb::UpdateProfileResponse>, Status> {
        handle(request, |caller, update| async move {
            let change = ProfileChange {
                display_name: update.display_name,
                bio: update.bio,
                status: update.status,
            };
            let who = caller.identity()?;
            let user = self.service.change_profile(&who, change).await?;
            Ok(pb::UpdateProfileResponse {
                user: Some(user_to_proto(user)),
            })
        })
        .await
    }

    async fn search_users(
        &self,
        request: Request<pb::SearchUsersRequest>,
    ) -> Result<Response<pb::SearchUsersResponse>, Status> {
        handle(request, |caller, search| async move {
            let limit = limit(search.limit, FOUND_PAGE, MAX_FOUND_PAGE)?;
            let (who, after) = (caller.identity()?, search.after.as_deref());
            let found = self
                .service
                .search(&who, &search.query, after, limit)
                .await?;
            Ok(pb::SearchUsersResponse {
                users: found.users.into_iter().map(user_to_proto).collect(),
                next: found.next,
            })
        })
        .await
    }

    async fn change_username(
        &self,
        request: Request<pb::ChangeUsernameRequest>,
    ) -> Result<Response<pb::ChangeUsernameResponse>, Status> {
        handle(request, |caller, change| async move {
            let user = self
                .service
                .change_username(&caller.identity()?, &change.username, change.password)
                .await?;
            Ok(pb::ChangeUsernameResponse {
                user: Some(user_to_proto(user)),
            })
        })
        .await
    }

    async fn change_email(
        &self,
        request: Request<pb::ChangeEmailRequest>,
    ) -> Result<Response<pb::ChangeEmailResponse>, Status> {
        handle(request, |caller, change| async move {
            self.service
                .change_email(&caller.identity()?, &change.email, change.password)
                .await?;
            Ok(pb::ChangeEmailResponse {})
        })
        .await
    }

    async fn change_password(
        &self,
        request: Request<pb::ChangePasswordRequest>,
    ) -> Result<Response<pb::ChangePasswordResponse>, Status> {
        handle(request, |caller, change| async move {
            let (current, new) = (change.current_password, change.new_password);
            self.service
                .change_password(&caller.identity()?, current, new)
                .await?;
            Ok(pb::ChangePasswordResponse {})
        })
        .await
    }

    async fn verify_email(
        &self,
        request: Request<pb::VerifyEmailRequest>,
    ) -> Result<Response<pb::VerifyEmailResponse>, Status> {
        let peer = gate::address(&request);
        handle(request, |caller, verify| async move {
            let client = client_info(caller, peer, verify.client);
            self.service.verify_email(&verify.token, client).await?;
            Ok(pb::VerifyEmailResponse {})
        })
        .await
    }

    async fn forgot_password(
        &self,
        request: Request<pb::ForgotPasswordRequest>,
    ) -> Result<Response<pb::ForgotPasswordResponse>, Status> {
        handle(request, |_, forgot| async move {
            self.service.forgot_password(&forgot.email).await?;
            Ok(pb::ForgotPasswordResponse {})
        })
        .await
    }

    async fn reset_password(
        &self,
        request: Request<pb::ResetPasswordRequest>,
    ) -> Result<Response<pb::ResetPasswordResponse>, Status> {
        let peer = gate::address(&request);
        handle(request, |caller, reset| async move {
            let client = client_info(caller, peer, reset.client);
            self.service
                .reset_password(&reset.token, reset.new_password, client)
                .await?;
            Ok(pb::ResetPasswordResponse {})
        })
        .await
    }

    async fn erase_account(
        &self,
        request: Request<pb::EraseAccountRequest>,
    ) -> Result<Response<pb::EraseAccountResponse>, Status> {
        handle(request, |caller, erase| async move {
            let who = caller.identity()?;
            self.service.erase(&who, erase.password).await?;
            Ok(pb::EraseAccountResponse {})
        })
        .await
    }
}

// === client ===

/// An `AccountService` that runs in another process.
#[derive(Clone)]
pub struct AccountClient {
    rpc: Connection<AccountServiceClient<Channel>>,
}

impl AccountClient {
    /// Connects to `endpoint` (such as `http://auth:50051`) on first use. Must be called within a runtime.
    pub fn connect_lazy(endpoint: &str, credentials: Credentials) -> Result<Self> {
        let client =
            AccountServiceClient::new(connection::channel(endpoint, PeerRole::Auth, &credentials)?);
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
impl AccountService for AccountClient {
    async fn history(
        &self,
        who: &Identity,
        history: History,
        before: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<SecurityEvent>> {
        let request = pb::ListHistoryRequest {
            limit: limit_to_proto(limit),
            before: before.map(|before| before.to_string()),
        };
        let who = For::Identity(who);
        let list = match history {
            History::Logins => {
                self.rpc
                    .call("ListLoginHistory", who, request, |mut c, r| async move {
                        c.list_login_history(r).await
                    })
                    .await?
            }
            History::Security => {
                self.rpc
                    .call("ListSecurityEvents", who, request, |mut c, r| async move {
                        c.list_security_events(r).await
                    })
                    .await?
            }
        };
        list.events
            .into_iter()
            .map(|one| answer(event(one)))
            .collect()
    }

    async fn change_profile(&self, who: &Identity, change: ProfileChange) -> Result<User> {
        let request = pb::UpdateProfileRequest {
            display_name: change.display_name,
            bio: change.bio,
            status: change.status,
        };
        let changed = self
            .rpc
            .call(
                "UpdateProfile",
                For::Identity(who),
                request,
                |mut c, r| async move { c.update_profile(r).await },
            )
            .await?;
        answer(user("user", changed.user))
    }

    async fn search(
        &self,
        who: &Identity,
        query: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<FoundUsers> {
        let request = pb::SearchUsersRequest {
            query: query.to_owned(),
            limit: limit_to_proto(limit),
            after: after.map(str::to_owned),
        };
        let found = self
            .rpc
            .call(
                "SearchUsers",
                For::Identity(who),
                request,
                |mut c, r| async move { c.search_users(r).await },
            )
            .await?;
        let users = found.users.into_iter();
        Ok(FoundUsers {
            users: users
                .map(|one| answer(user("users", Some(one))))
                .collect::<Result<_>>()?,
            next: found.next,
        })
    }

    async fn change_username(
        &self,
        who: &Identity,
        username: &str,
        password: Option<String>,
    ) -> Result<User> {
        let request = pb::ChangeUsernameRequest {
            username: username.to_owned(),
            password,
        };
        let changed = self
            .rpc
            .call(
                "ChangeUsername",
                For::Identity(who),
                request,
                |mut c, r| async move { c.change_username(r).await },
            )
            .await?;
        answer(user("user", changed.user))
    }

    async fn change_email(
        &self,
        who: &Identity,
        email: &str,
        password: Option<String>,
    ) -> Result<()> {
        let request = pb::ChangeEmailRequest {
            email: email.to_owned(),
            password,
        };
        self.rpc
            .call(
                "ChangeEmail",
                For::Identity(who),
                request,
                |mut c, r| async move { c.change_email(r).await },
            )
            .await?;
        Ok(())
    }

    async fn change_password(
        &self,
        who: &Identity,
        current: Option<String>,
        new: String,
    ) -> Result<()> {
        let request = pb::ChangePasswordRequest {
            current_password: current,
            new_password: new,
        };
        self.rpc
            .call(
                "ChangePassword",
                For::Identity(who),
                request,
                |mut c, r| async move { c.change_password(r).await },
            )
            .await?;
        Ok(())
    }

    async fn verify_email(&self, token: &str, client: ClientInfo) -> Result<()> {
        let request = pb::VerifyEmailRequest {
            token: token.to_owned(),
            client: Some(client_info_to_proto(client)),
        };
        self.rpc
            .call("VerifyEmail", For::Nobody, request, |mut c, r| async move {
                c.verify_email(r).await
            })
            .await?;
        Ok(())
    }

    async fn forgot_password(&self, email: &str) -> Result<()> {
        let request = pb::ForgotPasswordRequest {
            email: email.to_owned(),
        };
        self.rpc
            .call(
                "ForgotPassword",
                For::Nobody,
                request,
                |mut c, r| async move { c.forgot_password(r).await },
            )
            .await?;
        Ok(())
    }

    async fn reset_password(&self, token: &str, new: String, client: ClientInfo) -> Result<()> {
        let request = pb::ResetPasswordRequest {
            token: token.to_owned(),
            new_password: new,
            client: Some(client_info_to_proto(client)),
        };
        self.rpc
            .call(
                "ResetPassword",
                For::Nobody,
                request,
                |mut c, r| async move { c.reset_password(r).await },
            )
            .await?;
        Ok(())
    }

    async fn erase(&self, who: &Identity, password: Option<String>) -> Result<()> {
        let request = pb::EraseAccountRequest { password };
        self.rpc
            .call(
                "EraseAccount",
                For::Identity(who),
                request,
                |mut c, r| async move { c.erase_account(r).await },
            )
            .await?;
        Ok(())
    }
}

// === values ===

fn event_to_proto(event: SecurityEvent) -> pb::SecurityEvent {
    pb::SecurityEvent {
        id: event.id.to_string(),
        time: Some(timestamp_to_proto(event.time)),
        kind: event.kind.as_str().to_owned(),
        device_id: event.device.map(|device| device.to_string()),
        client: Some(client_info_to_proto(event.client)),
    }
}

fn event(event: pb::SecurityEvent) -> Result<SecurityEvent> {
    Ok(SecurityEvent {
        id: id("id", &event.id)?,
        time: timestamp("time", event.time)?,
        kind: SecurityEventKind::parse(&event.kind)
            .ok_or_else(|| Error::invalid("kind", "is unknown"))?,
        device: optional_id("device_id", event.device_id.as_deref())?,
        client: client_info_from_proto(event.client.unwrap_or_default()),
    })
}

#[cfg(test)]
mod tests {
    use carillon_domain::{
        DeviceId, Timestamp,
        account::{ClientInfo, DeviceType},
    };

    use super::*;

    #[test]
    fn events_come_back_as_they_were() {
        for (n, kind) in SecurityEventKind::ALL.into_iter().enumerate() {
            let given = SecurityEvent {
                id: Uuid::now_v7(),
                time: Timestamp(1_700_000_000_000 + n as i64),
                kind,
                device: (n % 2 == 0).then(DeviceId::new),
                client: ClientInfo {
                    ip: Some("192.0.2.1".into()),
                    device_type: Some(DeviceType::ALL[n % 5]),
                    ..ClientInfo::default()
                },
            };
            assert_eq!(event(event_to_proto(given.clone())).unwrap(), given);
        }
    }
}
