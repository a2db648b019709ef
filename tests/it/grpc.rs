//! gRPC as integrators use it: AuthService on its port, with the names that the world knows (AUTH-03 to -06, AUTH-16, OPS-01).

use anyhow::{Context as _, Result, ensure};
use carillon_rpc::proto::{
    auth::{
        LoginRequest, LogoutAllDevicesRequest, RefreshTokenRequest, RegisterRequest,
        RevokeCurrentDeviceRequest, SendOtpRequest, ValidateTokenRequest, VerifyOtpRequest,
        auth_service_client::AuthServiceClient,
    },
    message::{ListPublicRoomsRequest, message_service_client::MessageServiceClient},
};
use tonic::{Code, Request};

use crate::world::platform::{QUICK, Up};

fn with_token<T>(body: T, token: &str) -> Result<Request<T>> {
    let mut request = Request::new(body);
    request
        .metadata_mut()
        .insert("authorization", format!("Bearer {token}").parse()?);
    Ok(request)
}

/// AUTH-03, AUTH-06: phone login, validation without an error for a bad token, refresh, and the two ways to log out.
#[tokio::test(flavor = "multi_thread")]
async fn the_auth_service() -> Result<()> {
    let up = Up::start(QUICK).await?;
    let mut auth = AuthServiceClient::connect(up.grpc.clone()).await?;
    let phone_number = "+491701234567".to_owned();
    auth.send_otp(SendOtpRequest {
        phone_number: phone_number.clone(),
    })
    .await?;
    let wrong = VerifyOtpRequest {
        phone_number: phone_number.clone(),
        otp_code: "000000".into(),
        client: None,
    };
    ensure!(auth.verify_otp(wrong).await.unwrap_err().code() == Code::Unauthenticated);
    let right = VerifyOtpRequest {
        phone_number: phone_number.clone(),
        otp_code: "123456".into(),
        client: None,
    };
    let phone = auth.verify_otp(right).await?.into_inner();

    let validate = |token: &str| ValidateTokenRequest {
        access_token: token.to_owned(),
    };
    let valid = auth
        .validate_token(validate(&phone.access_token))
        .await?
        .into_inner();
    ensure!(valid.is_valid && !valid.user_id.is_empty());
    let bad = auth
        .validate_token(validate("no token"))
        .await?
        .into_inner();
    ensure!(!bad.is_valid && bad.user_id.is_empty());

    let fresh = auth
        .refresh_token(RefreshTokenRequest {
            refresh_token: phone.refresh_token.clone(),
            client: None,
        })
        .await?
        .into_inner();
    auth.revoke_current_device(with_token(
        RevokeCurrentDeviceRequest::default(),
        &fresh.access_token,
    )?)
    .await?;
    ensure!(
        !auth
            .validate_token(validate(&fresh.access_token))
            .await?
            .into_inner()
            .is_valid
    );

    let account = RegisterRequest {
        username: "ann".into(),
        email: "ann@example.com".into(),
        password: "correct horse".into(),
    };
    auth.register(account.clone()).await?;
    ensure!(auth.register(account).await.unwrap_err().code() == Code::AlreadyExists);
    let login = LoginRequest {
        login: "ann".into(),
        password: "correct horse".into(),
        client: None,
    };
    let (one, two) = (
        auth.login(login.clone()).await?.into_inner(),
        auth.login(login).await?.into_inner(),
    );
    auth.logout_all_devices(with_token(
        LogoutAllDevicesRequest::default(),
        &one.access_token,
    )?)
    .await?;
    for token in [&one.access_token, &two.access_token] {
        ensure!(
            !auth
                .validate_token(validate(token))
                .await?
                .into_inner()
                .is_valid
        );
    }
    Ok(())
}

/// AUTH-16: every service wants a token, and takes one.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_asked_for_everywhere() -> Result<()> {
    let up = Up::start(QUICK).await?;
    let mut rooms = MessageServiceClient::connect(up.grpc.clone()).await?;
    let list = ListPublicRoomsRequest {
        limit: Some(10),
        after: None,
    };
    let refused = rooms.list_public_rooms(list.clone()).await.unwrap_err();
    ensure!(refused.code() == Code::Unauthenticated, "{refused:?}");
    let person = crate::world::client::Person::register(&up.base, "ann").await?;
    rooms
        .list_public_rooms(with_token(list, &person.access_token)?)
        .await
        .context("with a token")?;
    Ok(())
}
