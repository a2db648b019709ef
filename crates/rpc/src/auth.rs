//! `carillon.auth.v1.AuthService`: the server of an `AuthService`, and the client that is one (AUTH-03 to AUTH-06).

use std::{net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use carillon_domain::{
    DeviceId, ErrorCode, Result, UserId,
    account::{About, ClientInfo, DeviceType, Identity, Session, SessionView, Tokens, User},
    services::{AuthService, Login, NewAccount, TokenVerifier},
};
use tonic::{Request, Response, Status, transport::Channel};
use uuid::Uuid;

use crate::{
    PeerRole,
    connection::{self, Connection, Credentials, For},
    gate::{self, Caller, handle},
    proto::auth::{
        self as pb, auth_service_client::AuthServiceClient, auth_service_server as server,
    },
    values::{self, answer, id, required, timestamp, timestamp_to_proto},
};

/// Most ids in one `GetUsers`.
const MAX_USERS: usize = 1000;

// === server ===

/// Offers an `AuthService` over gRPC; mount it with [`crate::serve`].
#[derive(Clone)]
pub struct AuthServer {
    service: Arc<dyn AuthService>,
    verifier: Arc<dyn TokenVerifier>,
}

impl AuthServer {
    /// `verifier` answers `ValidateToken`.
    pub fn new(service: Arc<dyn AuthService>, verifier: Arc<dyn TokenVerifier>) -> Self {
        Self { service, verifier }
    }

    pub(crate) fn into_tonic(self) -> server::AuthServiceServer<Self> {
        server::AuthServiceServer::new(self)
    }
}

#[tonic::async_trait]
impl server::AuthService for AuthServer {
    async fn register(
        &self,
        request: Request<pb::RegisterRequest>,
    ) -> Result<Response<pb::RegisterResponse>, Status> {
        handle(request, |_, account| async move {
            let made = self
                .service
                .register(NewAccount {
                    username: account.username,
                    email: account.email,
                    password: account.password,
                })
                .await?;
            Ok(pb::RegisterResponse {
                user: Some(user_to_proto(made)),
            })
        })
        .await
    }

    async fn login(
        &self,
        request: Request<pb::LoginRequest>,
    ) -> Result<Response<pb::Tokens>, Status> {
        let peer = gate::address(&request);
        handle(request, |caller, login| async move {
            let client = client_info(caller, peer, login.client);
            let login = Login {
                login: login.login,
                password: login.password,
            };
            self.service.login(login, client).await.map(tokens_to_proto)
        })
        .await
    }

    async fn send_otp(
        &self,
        request: Request<pb::SendOtpRequest>,
    ) -> Result<Response<pb::SendOtpResponse>, Status> {
        handle(request, |_, send| async move {
            self.service.send_otp(&send.phone_number).await?;
            Ok(pb::SendOtpResponse {})
        })
        .await
    }

    async fn verify_otp(
        &self,
        request: Request<pb::VerifyOtpRequest>,
    ) -> Result<Response<pb::Tokens>, Status> {
        let peer = gate::address(&request);
        handle(request, |caller, verify| async move {
            let client = client_info(caller, peer, verify.client);
            self.service
                .verify_otp(&verify.phone_number, &verify.otp_code, client)
                .await
                .map(tokens_to_proto)
        })
        .await
    }

    async fn validate_token(
        &self,
        request: Request<pb::ValidateTokenRequest>,
    ) -> Result<Response<pb::ValidateTokenResponse>, Status> {
        handle(request, |_, validate| async move {
            match self.verifier.verify_access(&validate.access_token).await {
                Ok(identity) => Ok(pb::ValidateTokenResponse {
                    is_valid: true,
                    user_id: identity.user.to_string(),
                }),
                Err(error) if error.code == ErrorCode::Unauthenticated => {
                    Ok(pb::ValidateTokenResponse::default())
                }
                // Not known is not "no": the deny-list can't be reached, for example.
                Err(error) => Err(error),
            }
        })
        .await
    }

    async fn refresh_token(
        &self,
        request: Request<pb::RefreshTokenRequest>,
    ) -> Result<Response<pb::Tokens>, Status> {
        let peer = gate::address(&request);
        handle(request, |caller, refresh| async move {
            let client = client_info(caller, peer, refresh.client);
            self.service
                .refresh(&refresh.refresh_token, client)
                .await
                .map(tokens_to_proto)
        })
        .await
    }

    async fn revoke_current_device(
        &self,
        request: Request<pb::RevokeCurrentDeviceRequest>,
    ) -> Result<Response<pb::RevokeCurrentDeviceResponse>, Status> {
        handle(request, |caller, _| async move {
            self.service.logout(&caller.identity()?).await?;
            Ok(pb::RevokeCurrentDeviceResponse {})
        })
        .await
    }

    async fn logout_all_devices(
        &self,
        request: Request<pb::LogoutAllDevicesRequest>,
    ) -> Result<Response<pb::LogoutAllDevicesResponse>, Status> {
        handle(request, |caller, _| async move {
            let devices = self.service.logout_all(&caller.identity()?).await?;
            Ok(pb::LogoutAllDevicesResponse { devices })
        })
        .await
    }

    async fn list_sessions(
        &self,
        request: Request<pb::ListSessionsRequest>,
    ) -> Result<Response<pb::ListSessionsResponse>, Status> {
        handle(request, |caller, _| async move {
            let sessions = self.service.sessions(&caller.identity()?).await?;
            Ok(pb::ListSessionsResponse {
                sessions: sessions.into_iter().map(session_to_proto).collect(),
            })
        })
        .await
    }

    async fn end_session(
        &self,
        request: Request<pb::EndSessionRequest>,
    ) -> Result<Response<pb::EndSessionResponse>, Status> {
        handle(request, |caller, end| async move {
            let device = id("device_id", &end.device_id)?;
            self.service
                .end_session(&caller.identity()?, device)
                .await?;
            Ok(pb::EndSessionResponse {})
        })
        .await
    }

    async fn get_users(
        &self,
        request: Request<pb::GetUsersRequest>,
    ) -> Result<Response<pb::GetUsersResponse>, Status> {
        handle(request, |caller, get| async move {
            let ids = values::ids("user_ids", &get.user_ids, MAX_USERS)?;
            let users = self.service.users(viewer(caller)?, &ids).await?;
            Ok(pb::GetUsersResponse {
                users: users.into_iter().map(user_to_proto).collect(),
            })
        })
        .await
    }

    async fn get_user_by_name(
        &self,
        request: Request<pb::GetUserByNameRequest>,
    ) -> Result<Response<pb::GetUserByNameResponse>, Status> {
        handle(request, |caller, get| async move {
            let user = self
                .service
                .user_by_name(viewer(caller)?, &get.username)
                .await?;
            Ok(pb::GetUserByNameResponse {
                user: user.map(user_to_proto),
            })
        })
        .await
    }

    async fn get_me(
        &self,
        request: Request<pb::GetMeRequest>,
    ) -> Result<Response<pb::GetMeResponse>, Status> {
        handle(request, |caller, _| async move {
            let (user, email) = self.service.me(&caller.identity()?).await?;
            Ok(pb::GetMeResponse {
                user: Some(user_to_proto(user)),
                email,
            })
        })
        .await
    }

    async fn issue_ticket(
        &self,
        request: Request<pb::IssueTicketRequest>,
    ) -> Result<Response<pb::IssueTicketResponse>, Status> {
        handle(request, |caller, _| async move {
            let ticket = self.service.issue_ticket(&caller.identity()?).await?;
            Ok(pb::IssueTicketResponse { ticket })
        })
        .await
    }

    async fn redeem_ticket(
        &self,
        request: Request<pb::RedeemTicketRequest>,
    ) -> Result<Response<pb::RedeemTicketResponse>, Status> {
        handle(request, |_, redeem| async move {
            let identity = self.service.redeem_ticket(&redeem.ticket).await?;
            Ok(identity_to_proto(&identity))
        })
        .await
    }
}

// === client ===

/// An `AuthService` that runs in another process.
#[derive(Clone)]
pub struct AuthClient {
    rpc: Connection<AuthServiceClient<Channel>>,
}

impl AuthClient {
    /// Connects to `endpoint` (such as `http://auth:50051`) on first use. Must be called within a runtime.
    pub fn connect_lazy(endpoint: &str, credentials: Credentials) -> Result<Self> {
        let client =
            AuthServiceClient::new(connection::channel(endpoint, PeerRole::Auth, &credentials)?);
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
impl AuthService for AuthClient {
    async fn register(&self, account: NewAccount) -> Result<User> {
        let request = pb::RegisterRequest {
            username: account.username,
            email: account.email,
            password: account.password,
        };
        let made = self
            .rpc
            .call("Register", For::Nobody, request, |mut c, r| async move {
                c.register(r).await
            })
            .await?;
        answer(user("user", made.user))
    }

    async fn login(&self, login: Login, client: ClientInfo) -> Result<Tokens> {
        let request = pb::LoginRequest {
            login: login.login,
            password: login.password,
            client: Some(client_info_to_proto(client)),
        };
        let given = self
            .rpc
            .call("Login", For::Nobody, request, |mut c, r| async move {
                c.login(r).await
            })
            .await?;
        answer(tokens(given))
    }

    async fn send_otp(&self, phone_number: &str) -> Result<()> {
        let request = pb::SendOtpRequest {
            phone_number: phone_number.to_owned(),
        };
        self.rpc
            .call("SendOTP", For::Nobody, request, |mut c, r| async move {
                c.send_otp(r).await
            })
            .await?;
        Ok(())
    }

    async fn verify_otp(
        &self,
        phone_number: &str,
        otp_code: &str,
        client: ClientInfo,
    ) -> Result<Tokens> {
        let request = pb::VerifyOtpRequest {
            phone_number: phone_number.to_owned(),
            otp_code: otp_code.to_owned(),
            client: Some(client_info_to_proto(client)),
        };
        let given = self
            .rpc
            .call("VerifyOTP", For::Nobody, request, |mut c, r| async move {
                c.verify_otp(r).await
            })
            .await?;
        answer(tokens(given))
    }

    async fn refresh(&self, refresh_token: &str, client: ClientInfo) -> Result<Tokens> {
        let request = pb::RefreshTokenRequest {
            refresh_token: refresh_token.to_owned(),
            client: Some(client_info_to_proto(client)),
        };
        let given = self
            .rpc
            .call(
                "RefreshToken",
                For::Nobody,
                request,
                |mut c, r| async move { c.refresh_token(r).await },
            )
            .await?;
        answer(tokens(given))
    }

    async fn logout(&self, who: &Identity) -> Result<()> {
        let request = pb::RevokeCurrentDeviceRequest {};
        self.rpc
            .call(
                "RevokeCurrentDevice",
                For::Identity(who),
                request,
                |mut c, r| async move { c.revoke_current_device(r).await },
            )
            .await?;
        Ok(())
    }

    async fn logout_all(&self, who: &Identity) -> Result<u64> {
        let request = pb::LogoutAllDevicesRequest {};
        let ended = self
            .rpc
            .call(
                "LogoutAllDevices",
                For::Identity(who),
                request,
                |mut c, r| async move { c.logout_all_devices(r).await },
            )
            .await?;
        Ok(ended.devices)
    }

    async fn sessions(&self, who: &Identity) -> Result<Vec<SessionView>> {
        let request = pb::ListSessionsRequest {};
        let list = self
            .rpc
            .call(
                "ListSessions",
                For::Identity(who),
                request,
                |mut c, r| async move { c.list_sessions(r).await },
            )
            .await?;
        list.sessions
            .into_iter()
            .map(|one| answer(session(one)))
            .collect()
    }

    async fn end_session(&self, who: &Identity, device: DeviceId) -> Result<()> {
        let request = pb::EndSessionRequest {
            device_id: device.to_string(),
        };
        self.rpc
            .call(
                "EndSession",
                For::Identity(who),
                request,
                |mut c, r| async move { c.end_session(r).await },
            )
            .await?;
        Ok(())
    }

    async fn users(&self, viewer: Option<UserId>, ids: &[UserId]) -> Result<Vec<User>> {
        let request = pb::GetUsersRequest {
            user_ids: values::texts(ids),
        };
        let found = self
            .rpc
            .call(
                "GetUsers",
                on_behalf_of(viewer),
                request,
                |mut c, r| async move { c.get_users(r).await },
            )
            .await?;
        found
            .users
            .into_iter()
            .map(|one| answer(user("users", Some(one))))
            .collect()
    }

    async fn user_by_name(&self, viewer: Option<UserId>, username: &str) -> Result<Option<User>> {
        let request = pb::GetUserByNameRequest {
            username: username.to_owned(),
        };
        let found = self
            .rpc
            .call(
                "GetUserByName",
                on_behalf_of(viewer),
                request,
                |mut c, r| async move { c.get_user_by_name(r).await },
            )
            .await?;
        found
            .user
            .map(|one| answer(user("user", Some(one))))
            .transpose()
    }

    async fn me(&self, who: &Identity) -> Result<(User, Option<String>)> {
        let request = pb::GetMeRequest {};
        let me = self
            .rpc
            .call(
                "GetMe",
                For::Identity(who),
                request,
                |mut c, r| async move { c.get_me(r).await },
            )
            .await?;
        Ok((answer(user("user", me.user))?, me.email))
    }

    async fn issue_ticket(&self, who: &Identity) -> Result<String> {
        let request = pb::IssueTicketRequest {};
        let issued = self
            .rpc
            .call(
                "IssueTicket",
                For::Identity(who),
                request,
                |mut c, r| async move { c.issue_ticket(r).await },
            )
            .await?;
        Ok(issued.ticket)
    }

    async fn redeem_ticket(&self, ticket: &str) -> Result<Identity> {
        let request = pb::RedeemTicketRequest {
            ticket: ticket.to_owned(),
        };
        let redeemed = self
            .rpc
            .call(
                "RedeemTicket",
                For::Nobody,
                request,
                |mut c, r| async move { c.redeem_ticket(r).await },
            )
            .await?;
        answer(identity(redeemed))
    }
}

// === who looks ===

/// Who looks at a profile; nobody when it is a role's own question.
fn viewer(caller: Caller) -> Result<Option<UserId>> {
    match caller {
        Caller::Role { user, .. } => Ok(user),
        _ => caller.actor().map(Some),
    }
}

fn on_behalf_of(viewer: Option<UserId>) -> For<'static> {
    viewer.map_or(For::Nobody, For::User)
}

// === values ===

/// The gateway's word on the client's address is taken; others are known by their connection.
pub(crate) fn client_info(
    caller: Caller,
    peer: Option<SocketAddr>,
    client: Option<pb::ClientInfo>,
) -> ClientInfo {
    let mut client = client_info_from_proto(client.unwrap_or_default());
    if caller.is_external() {
        client.ip = peer.map(|peer| peer.ip().to_string());
    }
    client
}

/// What is no known type of device is none.
pub(crate) fn client_info_from_proto(client: pb::ClientInfo) -> ClientInfo {
    ClientInfo {
        device_name: client.device_name,
        user_agent: client.user_agent,
        ip: client.ip,
        device_type: client.device_type.as_deref().and_then(DeviceType::parse),
        platform: client.platform,
    }
}

pub(crate) fn client_info_to_proto(client: ClientInfo) -> pb::ClientInfo {
    pb::ClientInfo {
        device_name: client.device_name,
        user_agent: client.user_agent,
        ip: client.ip,
        device_type: client.device_type.map(|kind| kind.as_str().to_owned()),
        platform: client.platform,
    }
}

pub(crate) fn user_to_proto(user: User) -> pb::User {
    pb::User {
        id: user.id.to_string(),
        username: user.username,
        display_name: user.display_name,
        created_at: Some(timestamp_to_proto(user.created_at)),
        bio: user.about.bio,
        status: user.about.status,
    }
}

pub(crate) fn user(field: &str, user: Option<pb::User>) -> Result<User> {
    let user = required(field, user)?;
    Ok(User {
        id: id("user.id", &user.id)?,
        username: user.username,
        display_name: user.display_name,
        created_at: timestamp("user.created_at", user.created_at)?,
        about: About {
            bio: user.bio,
            status: user.status,
        },
    })
}

fn tokens_to_proto(tokens: Tokens) -> pb::Tokens {
    pb::Tokens {
        access_token: tokens.access_token,
        refresh_token: tokens.refresh_token,
        expires_in: tokens.expires_in,
        device_id: tokens.device.to_string(),
        user: Some(user_to_proto(tokens.user)),
    }
}

fn tokens(tokens: pb::Tokens) -> Result<Tokens> {
    Ok(Tokens {
        access_token: tokens.access_token,
        refresh_token: tokens.refresh_token,
        expires_in: tokens.expires_in,
        user: user("user", tokens.user)?,
        device: id("device_id", &tokens.device_id)?,
    })
}

fn session_to_proto(view: SessionView) -> pb::Session {
    let SessionView { session, has_push } = view;
    pb::Session {
        user_id: session.user.to_string(),
        device_id: session.device.to_string(),
        access_expires_at: Some(timestamp_to_proto(session.access_expires_at)),
        expires_at: Some(timestamp_to_proto(session.expires_at)),
        created_at: Some(timestamp_to_proto(session.created_at)),
        last_seen_at: Some(timestamp_to_proto(session.last_seen_at)),
        client: Some(client_info_to_proto(session.client)),
        has_push,
    }
}

/// The refresh token's hash and the access token's id never leave the auth role: they are zero here.
fn session(session: pb::Session) -> Result<SessionView> {
    Ok(SessionView {
        session: Session {
            user: id("user_id", &session.user_id)?,
            device: id("device_id", &session.device_id)?,
            refresh_hash: [0; 32],
            access_token_id: Uuid::nil(),
            access_expires_at: timestamp("access_expires_at", session.access_expires_at)?,
            expires_at: timestamp("expires_at", session.expires_at)?,
            created_at: timestamp("created_at", session.created_at)?,
            last_seen_at: timestamp("last_seen_at", session.last_seen_at)?,
            client: client_info_from_proto(session.client.unwrap_or_default()),
        },
        has_push: session.has_push,
    })
}

fn identity_to_proto(identity: &Identity) -> pb::RedeemTicketResponse {
    pb::RedeemTicketResponse {
        user_id: identity.user.to_string(),
        device_id: identity.device.to_string(),
        token_id: identity.token_id.to_string(),
        expires_at: Some(timestamp_to_proto(identity.expires_at)),
    }
}

fn identity(redeemed: pb::RedeemTicketResponse) -> Result<Identity> {
    Ok(Identity {
        user: id("user_id", &redeemed.user_id)?,
        device: id("device_id", &redeemed.device_id)?,
        token_id: id("token_id", &redeemed.token_id)?,
        expires_at: timestamp("expires_at", redeemed.expires_at)?,
    })
}

#[cfg(test)]
mod tests {
    use carillon_domain::Timestamp;
    use proptest::prelude::*;

    use super::*;

    fn uuid() -> impl Strategy<Value = Uuid> {
        any::<u128>().prop_map(Uuid::from_u128)
    }

    fn time() -> impl Strategy<Value = Timestamp> {
        (-1_000_000_000_000i64..10_000_000_000_000).prop_map(Timestamp)
    }

    prop_compose! {
        fn any_user()(raw in uuid(), username in ".*", display_name in ".*", created_at in time(), bio in ".*", status in ".*") -> User {
            User { id: UserId(raw), username, display_name, created_at, about: About { bio, status } }
        }
    }

    prop_compose! {
        fn any_client()(
            device_name in prop::option::of(".*"), user_agent in prop::option::of(".*"), ip in prop::option::of(".*"),
            device_type in prop::option::of(prop::sample::select(&DeviceType::ALL[..])), platform in prop::option::of(".*"),
        ) -> ClientInfo {
            ClientInfo { device_name, user_agent, ip, device_type, platform }
        }
    }

    proptest! {
        #[test]
        fn tokens_come_back_as_they_were(
            access in ".*", refresh in ".*", expires_in: u64, user in any_user(), device in uuid(),
        ) {
            let given = Tokens {
                access_token: access,
                refresh_token: refresh,
                expires_in,
                user,
                device: DeviceId(device),
            };
            let back = tokens(tokens_to_proto(given.clone())).unwrap();
            prop_assert_eq!(back.access_token, given.access_token);
            prop_assert_eq!(back.refresh_token, given.refresh_token);
            prop_assert_eq!(back.expires_in, given.expires_in);
            prop_assert_eq!(back.user, given.user);
            prop_assert_eq!(back.device, given.device);
        }

        /// All but the secrets, which stay in the auth role.
        #[test]
        fn sessions_come_back_without_their_secrets(
            user in uuid(), device in uuid(), times in prop::array::uniform4(time()), client in any_client(),
            hash: [u8; 32], token in uuid(), has_push: bool,
        ) {
            let given = Session {
                user: UserId(user),
                device: DeviceId(device),
                refresh_hash: hash,
                access_token_id: token,
                access_expires_at: times[0],
                expires_at: times[1],
                created_at: times[2],
                last_seen_at: times[3],
                client,
            };
            let expected = Session { refresh_hash: [0; 32], access_token_id: Uuid::nil(), ..given.clone() };
            let view = |session| SessionView { session, has_push };
            prop_assert_eq!(session(session_to_proto(view(given))).unwrap(), view(expected));
        }

        #[test]
        fn identities_come_back_as_they_were(user in uuid(), device in uuid(), token_id in uuid(), expires_at in time()) {
            let given = Identity { user: UserId(user), device: DeviceId(device), token_id, expires_at };
            prop_assert_eq!(identity(identity_to_proto(&given)).unwrap(), given);
        }

        #[test]
        fn the_gateways_word_on_the_client_is_taken_whole(client in any_client()) {
            let role = Caller::Role { user: None, identity: None };
            prop_assert_eq!(client_info(role, None, Some(client_info_to_proto(client.clone()))), client);
        }
    }

    #[test]
    fn a_strangers_address_is_that_of_the_connection() {
        let claimed = pb::ClientInfo {
            ip: Some("10.0.0.1".into()),
            ..Default::default()
        };
        let peer = "192.0.2.7:1234".parse().ok();
        let client = client_info(Caller::Nobody, peer, Some(claimed));
        assert_eq!(client.ip.as_deref(), Some("192.0.2.7"));
    }
}
