//! Health, reflection and the stop (OPS-01, OPS-02).

use std::{str::FromStr, sync::Arc, time::Duration};

use carillon_domain::services::AuthService;
use futures::StreamExt;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use super::{Running, all_of, credentials, fakes::FakeServices, options, start, start_with};
use crate::{AuthClient, AuthServer, RoleServices};

fn channel(server: &Running) -> Channel {
    Endpoint::from_str(&server.address).unwrap().connect_lazy()
}

fn about(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.into(),
    }
}

/// OPS-01: health by service and for the whole process, without credentials.
#[tokio::test]
async fn health_answers_for_the_services_that_are_there() {
    let fake = Arc::new(FakeServices::default());
    let server = start(RoleServices {
        auth: Some(AuthServer::new(fake, Arc::new(super::fakes::FakeVerifier))),
        ..Default::default()
    })
    .await;
    let mut health = HealthClient::new(channel(&server));
    let mut watch = health
        .watch(about("carillon.auth.v1.AuthService"))
        .await
        .unwrap()
        .into_inner();
    let mut next = async || watch.next().await.unwrap().unwrap().status();
    assert_eq!(next().await, ServingStatus::Serving);
    server.serving.set_serving(false);
    assert_eq!(next().await, ServingStatus::NotServing);
    server.serving.set_serving(true);
    assert_eq!(next().await, ServingStatus::Serving);

    let whole = health.check(about("")).await.unwrap().into_inner();
    assert_eq!(whole.status(), ServingStatus::Serving);
    let absent = health.check(about("carillon.media.v1.MediaService")).await;
    assert_eq!(absent.unwrap_err().code(), Code::NotFound);
}

async fn reflect(server: &Running, ask: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(ask),
    };
    ServerReflectionClient::new(channel(server))
        .server_reflection_info(futures::stream::iter([request]))
        .await
        .unwrap()
        .into_inner()
        .next()
        .await
        .unwrap()
        .unwrap()
        .message_response
        .unwrap()
}

#[tokio::test]
async fn reflection_names_the_services_and_describes_them() {
    let server = start(all_of(&Arc::new(FakeServices::default()))).await;
    let MessageResponse::ListServicesResponse(list) =
        reflect(&server, MessageRequest::ListServices(String::new())).await
    else {
        panic!("no list of services");
    };
    let names: Vec<_> = list.service.iter().map(|one| one.name.as_str()).collect();
    for name in [
        "carillon.auth.v1.AuthService",
        "carillon.media.v1.MediaService",
        "carillon.message.v1.MessageService",
        "carillon.notification.v1.NotificationService",
        "carillon.presence.v1.PresenceService",
        "grpc.health.v1.Health",
    ] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    let symbol = "carillon.auth.v1.AuthService.VerifyOTP".to_owned();
    let answer = reflect(&server, MessageRequest::FileContainingSymbol(symbol)).await;
    assert!(matches!(answer, MessageResponse::FileDescriptorResponse(_)));
}

/// OPS-02: calls in flight end well, new connections are not taken.
#[tokio::test]
async fn a_stop_lets_calls_end() {
    let fake = Arc::new(FakeServices::hanging());
    let mut server = start(all_of(&fake)).await;
    let client = AuthClient::connect_lazy(&server.address, credentials()).unwrap();
    let call = tokio::spawn(async move { client.send_otp("+1").await });
    while fake.calls().is_empty() {
        tokio::task::yield_now().await;
    }
    server.stop.cancel();
    while tokio::net::TcpStream::connect(server.address.trim_start_matches("http://"))
        .await
        .is_ok()
    {
        tokio::task::yield_now().await;
    }
    fake.open_door();
    call.await.unwrap().unwrap();
    (&mut server.task).await.unwrap().unwrap();
}

/// OPS-02: who can't know yet that the process stops finds its port open, and health that says so.
#[tokio::test]
async fn a_stop_is_said_before_the_port_closes() {
    let mut options = options();
    options.lead = Duration::from_secs(2);
    let server = start_with(all_of(&Arc::new(FakeServices::default())), options).await;
    server.stop.cancel();
    let mut health = HealthClient::new(channel(&server));
    let mut watch = health.watch(about("")).await.unwrap().into_inner();
    while watch.next().await.unwrap().unwrap().status() != ServingStatus::NotServing {}
    let client = AuthClient::connect_lazy(&server.address, credentials()).unwrap();
    client.send_otp("+1").await.unwrap();
}

/// OPS-02: the drain is bounded, whatever a call does.
#[tokio::test]
async fn a_stop_is_bounded() {
    let fake = Arc::new(FakeServices::hanging());
    let mut options = options();
    options.drain = Duration::from_millis(50);
    let mut server = start_with(all_of(&fake), options).await;
    let client = AuthClient::connect_lazy(&server.address, credentials()).unwrap();
    let call = tokio::spawn(async move { client.send_otp("+1").await });
    while fake.calls().is_empty() {
        tokio::task::yield_now().await;
    }
    server.stop.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(3), &mut server.task).await;
    ended.expect("the server ends").unwrap().unwrap();
    call.abort();
}
