//! Who is let in, as whom (AUTH-16, EDGE-01).

use std::{str::FromStr, sync::Arc};

use carillon_domain::{
    Error, ErrorCode, RoomId, UserId,
    account::Identity,
    limit::{Algorithm, Policy},
};
use http::uri::PathAndQuery;
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;
use tower::{Layer, ServiceExt};

use super::{
    INTERNAL, Running, all_of,
    fakes::{FakeLimiter, FakeServices, FakeVerifier, ann, uuid},
    options, start, start_with,
};
use crate::{
    MessageServer, RoleServices,
    gate::{Caller, GateLayer},
    methods::{self, Access},
    proto::{
        auth::{
            GetMeRequest, LoginRequest, RedeemTicketRequest, RefreshTokenRequest,
            ValidateTokenRequest, auth_service_client::AuthServiceClient,
        },
        message::{
            GetEventsRequest, GetRoomRequest, ListMyRoomIdsRequest,
            message_service_client::MessageServiceClient,
        },
    },
};

async fn channel(server: &Running) -> Channel {
    Endpoint::from_str(&server.address)
        .unwrap()
        .connect()
        .await
        .unwrap()
}

fn request<T>(message: T, metadata: &[(&'static str, &str)]) -> Request<T> {
    let mut request = Request::new(message);
    for (name, value) in metadata {
        request.metadata_mut().insert(*name, value.parse().unwrap());
    }
    request
}

struct Scene {
    fake: Arc<FakeServices>,
    channel: Channel,
    _server: Running,
}

async fn scene() -> Scene {
    let fake = Arc::new(FakeServices::default());
    let server = start(all_of(&fake)).await;
    Scene {
        fake,
        channel: channel(&server).await,
        _server: server,
    }
}

impl Scene {
    /// Asks for the caller's own profile, which needs a whole identity.
    async fn me(&self, metadata: &[(&'static str, &str)]) -> Result<(), Status> {
        let mut auth = AuthServiceClient::new(self.channel.clone());
        auth.get_me(request(GetMeRequest {}, metadata))
            .await
            .map(drop)
    }

    async fn assert_refused(&self, metadata: &[(&'static str, &str)], words: &str) {
        let status = self.me(metadata).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{metadata:?}");
        assert!(status.message().contains(words), "{status:?}");
        assert!(self.fake.calls().is_empty());
    }
}

#[tokio::test]
async fn credentials_that_are_not_valid_are_refused_in_words() {
    let scene = scene().await;
    scene.assert_refused(&[], "authorization: Bearer").await;
    let bad = "not-the-token-of-the-tests";
    scene
        .assert_refused(&[("carillon-internal-token", bad)], "internal token")
        .await;
    scene
        .assert_refused(&[("authorization", "Bearer forged")], "not valid")
        .await;
    scene
        .assert_refused(&[("authorization", "Basic good")], "Bearer <access token>")
        .await;
    scene
        .assert_refused(&[("authorization", "good")], "Bearer <access token>")
        .await;
    scene
        .assert_refused(
            &[("carillon-internal-token", INTERNAL)],
            "carillon-token-id",
        )
        .await;
    scene
        .assert_refused(
            &[
                ("carillon-internal-token", INTERNAL),
                ("carillon-user-id", "me"),
            ],
            "carillon-user-id",
        )
        .await;
}

/// EDGE-01: an identity is believed only from those who know the secret.
#[tokio::test]
async fn identity_metadata_of_strangers_is_ignored() {
    let scene = scene().await;
    let victim = uuid(666).to_string();
    let claimed = [
        ("carillon-user-id", victim.as_str()),
        ("carillon-device-id", victim.as_str()),
        ("carillon-token-id", victim.as_str()),
        ("carillon-token-expires", "4102444800000"),
    ];
    scene.assert_refused(&claimed, "no credentials").await;

    let mut with_token = claimed.to_vec();
    with_token.push(("authorization", "Bearer good"));
    scene.me(&with_token).await.unwrap();
    assert_eq!(scene.fake.calls(), [format!("me {:?}", ann())]);
}

#[tokio::test]
async fn a_role_passes_on_the_identity_that_the_gateway_verified() {
    let scene = scene().await;
    let (user, device, token) = (
        uuid(10).to_string(),
        uuid(11).to_string(),
        uuid(12).to_string(),
    );
    let metadata = [
        ("carillon-internal-token", INTERNAL),
        ("carillon-user-id", &user),
        ("carillon-device-id", &device),
        ("carillon-token-id", &token),
        ("carillon-token-expires", "1700000000123"),
    ];
    scene.me(&metadata).await.unwrap();
    let identity = Identity {
        user: UserId(uuid(10)),
        device: carillon_domain::DeviceId(uuid(11)),
        token_id: uuid(12),
        expires_at: carillon_domain::Timestamp(1_700_000_000_123),
    };
    assert_eq!(scene.fake.calls(), [format!("me {identity:?}")]);
}

/// The actor of an integrator is the token's user.
#[tokio::test]
async fn an_integrator_acts_as_the_tokens_user() {
    let scene = scene().await;
    let mut messages = MessageServiceClient::new(scene.channel.clone());
    let ids = messages
        .list_my_room_ids(request(
            ListMyRoomIdsRequest {},
            &[("authorization", "bearer good")],
        ))
        .await
        .unwrap();
    assert_eq!(ids.into_inner().room_ids.len(), 2);
    assert_eq!(scene.fake.calls(), [format!("room_ids {}", ann().user)]);
}

/// The token of the operator's probe is for the public edge.
#[tokio::test]
async fn the_probe_is_no_integrator() {
    let scene = scene().await;
    let metadata = [("authorization", "Bearer probe")];
    let status = scene.me(&metadata).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(scene.fake.calls().is_empty());
}

#[tokio::test]
async fn public_methods_need_no_token_and_mind_no_stale_one() {
    let scene = scene().await;
    let mut auth = AuthServiceClient::new(scene.channel.clone());
    let login = LoginRequest {
        login: "ann".into(),
        ..Default::default()
    };
    let given = auth.login(login.clone()).await.unwrap().into_inner();
    assert_eq!(given.access_token, "access-ann");
    // The address of the connection, whatever was claimed.
    assert!(scene.fake.calls()[0].contains("ip: Some(\"127.0.0.1\")"));

    let refresh = RefreshTokenRequest {
        refresh_token: "r".into(),
        client: None,
    };
    auth.refresh_token(request(refresh, &[("authorization", "Bearer expired")]))
        .await
        .unwrap();

    let wrong = [("carillon-internal-token", "not-the-token-of-the-tests")];
    let status = auth.login(request(login, &wrong)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}

/// EDGE-03: an address has so many calls without credentials; those of the cluster's roles, and of other methods, don't count.
#[tokio::test]
async fn strangers_are_let_in_only_so_often() {
    let mut options = options();
    let minute = std::time::Duration::from_secs(60);
    let policy = Policy::new("test", Algorithm::default(), 2, minute);
    let limiter = Arc::new(FakeLimiter::default());
    options.interceptor = options.interceptor.limiting_strangers(policy, limiter);
    let server = start_with(all_of(&Arc::new(FakeServices::default())), options).await;
    let mut auth = AuthServiceClient::new(channel(&server).await);
    let login = LoginRequest {
        login: "ann".into(),
        ..Default::default()
    };
    let internal = [("carillon-internal-token", INTERNAL)];
    for _ in 0..5 {
        let call = request(login.clone(), &internal);
        auth.login(call).await.unwrap();
    }
    for _ in 0..2 {
        auth.login(login.clone()).await.unwrap();
    }
    let status = auth.login(login.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let refresh = RefreshTokenRequest {
        refresh_token: "r".into(),
        client: None,
    };
    let status = auth.refresh_token(refresh).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    auth.login(request(login, &internal)).await.unwrap();
    let me = request(GetMeRequest {}, &[("authorization", "Bearer good")]);
    auth.get_me(me).await.unwrap();
}

/// AUTH-06: a bad token is an answer, no error; not being able to tell is an error.
#[tokio::test]
async fn validate_token_answers_without_an_error() {
    let scene = scene().await;
    let mut auth = AuthServiceClient::new(scene.channel.clone());
    let mut validate = async |token: &str| {
        let request = ValidateTokenRequest {
            access_token: token.into(),
        };
        auth.validate_token(request).await.map(|r| r.into_inner())
    };
    let good = validate("good").await.unwrap();
    assert!(good.is_valid);
    assert_eq!(good.user_id, ann().user.to_string());
    for bad in ["forged", ""] {
        let answer = validate(bad).await.unwrap();
        assert!(!answer.is_valid);
        assert_eq!(answer.user_id, "");
    }
    let unknown = validate("store-down").await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unavailable);
}

#[tokio::test]
async fn a_deny_list_out_of_reach_is_no_verdict() {
    let scene = scene().await;
    let status = scene
        .me(&[("authorization", "Bearer store-down")])
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
}

#[tokio::test]
async fn internal_methods_refuse_integrators() {
    let scene = scene().await;
    let mut auth = AuthServiceClient::new(scene.channel.clone());
    let redeem = RedeemTicketRequest {
        ticket: "ticket".into(),
    };
    let status = auth
        .redeem_ticket(request(redeem.clone(), &[("authorization", "Bearer good")]))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(scene.fake.calls().is_empty());
    auth.redeem_ticket(request(redeem, &[("carillon-internal-token", INTERNAL)]))
        .await
        .unwrap();
}

/// AUTH-16: the layer stands before every method of every service, not only those that a test thought of.
#[tokio::test]
async fn every_method_of_ours_is_behind_the_gate() {
    let scene = scene().await;
    let mut tried = 0;
    for (path, method) in methods::all().filter(|(path, _)| path.starts_with("/carillon.")) {
        let nobody = raw_call(&scene.channel, path, &[]).await.err();
        let person = raw_call(&scene.channel, path, &[("authorization", "Bearer good")])
            .await
            .err();
        let refused = |status: &Option<Status>, code| {
            status.as_ref().is_some_and(|status| status.code() == code)
        };
        let expected = match method.access {
            Access::Public => !refused(&nobody, Code::Unauthenticated),
            Access::Authenticated => {
                refused(&nobody, Code::Unauthenticated)
                    && !refused(&person, Code::Unauthenticated)
                    && !refused(&person, Code::PermissionDenied)
            }
            Access::Internal => {
                refused(&nobody, Code::Unauthenticated) && refused(&person, Code::PermissionDenied)
            }
        };
        assert!(
            expected,
            "{path}: {:?}, {nobody:?}, {person:?}",
            method.access
        );
        assert!(!refused(&person, Code::Unimplemented), "{path}");
        tried += 1;
    }
    assert!(tried > 40, "{tried}");
}

/// Calls a method with an empty message.
async fn raw_call(
    channel: &Channel,
    path: &str,
    metadata: &[(&'static str, &str)],
) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let codec: tonic_prost::ProstCodec<(), ()> = tonic_prost::ProstCodec::default();
    client
        .unary(
            request((), metadata),
            PathAndQuery::from_str(path).unwrap(),
            codec,
        )
        .await
        .map(drop)
}

#[tokio::test]
async fn unknown_methods_make_no_labels() {
    let scene = scene().await;
    let path = "/evil.Service/MadeUp";
    let status = raw_call(&scene.channel, path, &[("authorization", "Bearer good")]).await;
    assert_eq!(status.unwrap_err().code(), Code::Unimplemented);
    let metrics = carillon_telemetry::metrics::render();
    assert!(!metrics.contains("evil") && !metrics.contains("MadeUp"));
    assert!(metrics.contains(
        "carillon_rpc_requests_total{code=\"UNIMPLEMENTED\",method=\"unknown\",service=\"unknown\"}"
    ));
}

/// OPS-03: calls are counted by method and code, and timed.
#[tokio::test]
async fn calls_are_counted() {
    let scene = scene().await;
    scene.fake.fail_next([Error::not_found("user")]);
    let good = [("authorization", "Bearer good")];
    assert!(scene.me(&good).await.is_err());
    scene.me(&good).await.unwrap();
    let metrics = carillon_telemetry::metrics::render();
    for code in ["OK", "NOT_FOUND"] {
        assert!(metrics.contains(&format!(
            "carillon_rpc_requests_total{{code=\"{code}\",method=\"GetMe\",service=\"carillon.auth.v1.AuthService\"}}"
        )));
    }
    assert!(metrics.contains(
        "carillon_rpc_request_duration_seconds_count{method=\"GetMe\",service=\"carillon.auth.v1.AuthService\"}"
    ));
}

/// AUTH-16: handlers find the identity among the request's extensions.
#[tokio::test]
async fn the_identity_is_among_the_extensions() {
    let seen = tower::service_fn(async |request: http::Request<tonic::body::Body>| {
        assert_eq!(request.extensions().get::<Identity>(), Some(&ann()));
        assert_eq!(
            request.extensions().get::<Caller>(),
            Some(&Caller::Person(ann()))
        );
        Ok::<_, std::convert::Infallible>(http::Response::new(tonic::body::Body::empty()))
    });
    let call = http::Request::builder()
        .uri("/carillon.auth.v1.AuthService/GetMe")
        .header("authorization", "Bearer good")
        .body(tonic::body::Body::empty())
        .unwrap();
    let response = GateLayer(options().interceptor)
        .layer(seen)
        .oneshot(call)
        .await
        .unwrap();
    assert!(response.headers().get("grpc-status").is_none());
}

#[test]
fn an_unfit_internal_token_is_refused() {
    let unfit = crate::InterceptorOptions::new("", Arc::new(FakeVerifier));
    assert_eq!(unfit.err().unwrap().code, ErrorCode::InvalidRequest);
}

fn get_room() -> GetRoomRequest {
    GetRoomRequest {
        room_id: RoomId(uuid(30)).to_string(),
    }
}

fn role_metadata(user: &str) -> [(&'static str, &str); 2] {
    [
        ("carillon-internal-token", INTERNAL),
        ("carillon-user-id", user),
    ]
}

/// Integrators are never told who owns what; roles are.
#[tokio::test]
async fn not_owner_is_for_roles_only() {
    let scene = scene().await;
    let mut messages = MessageServiceClient::new(scene.channel.clone());
    let moved = || Error::new(ErrorCode::NotOwner, "not mine");
    scene.fake.fail_next([moved(), moved()]);

    let status = messages
        .get_room(request(get_room(), &[("authorization", "Bearer good")]))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(
        status.get_details_error_info().unwrap().reason,
        "UNAVAILABLE"
    );
    assert!(status.get_details_retry_info().is_some());

    let user = uuid(1).to_string();
    let status = messages
        .get_room(request(get_room(), &role_metadata(&user)))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    assert_eq!(status.get_details_error_info().unwrap().reason, "NOT_OWNER");
}

/// Integrators may call any replica: their calls are routed for them.
#[tokio::test]
async fn integrators_calls_are_routed_for_them() {
    let local = Arc::new(FakeServices::named("local"));
    let router = Arc::new(FakeServices::named("router"));
    let server = start(RoleServices {
        message: Some(MessageServer::new(local.clone()).routing_integrators(router.clone())),
        ..Default::default()
    })
    .await;
    let mut messages = MessageServiceClient::new(channel(&server).await);
    let user = uuid(1).to_string();
    for metadata in [
        &[("authorization", "Bearer good")][..],
        &role_metadata(&user),
    ] {
        messages
            .get_room(request(get_room(), metadata))
            .await
            .unwrap();
    }
    let expected = [format!("room {} {}", ann().user, RoomId(uuid(30)))];
    assert_eq!(router.calls(), expected);
    assert_eq!(local.calls(), expected);
}

/// A page of large events stays below what gRPC clients take by default, without a gap.
#[tokio::test]
async fn integrators_pages_fit_their_clients() {
    let scene = scene().await;
    let mut messages = MessageServiceClient::new(scene.channel.clone());
    let events = GetEventsRequest {
        room_id: RoomId(uuid(30)).to_string(),
        after: 10,
        limit: Some(1000),
    };
    let page = messages
        .get_events(request(events, &[("authorization", "Bearer good")]))
        .await
        .unwrap()
        .into_inner()
        .page
        .unwrap();
    let sequences: Vec<_> = page.events.iter().map(|event| event.sequence).collect();
    let expected: Vec<_> = (11..11 + sequences.len() as u64).collect();
    assert_eq!(sequences, expected);
    assert!((100..300).contains(&sequences.len()), "{}", sequences.len());
    assert_eq!(page.head, 5010);
}

/// A user alone is enough for calls with an actor, not for those that need the token's identity.
#[tokio::test]
async fn a_role_must_say_for_whom_it_calls() {
    let scene = scene().await;
    let user = uuid(1).to_string();
    let mut messages = MessageServiceClient::new(scene.channel.clone());
    messages
        .get_room(request(get_room(), &role_metadata(&user)))
        .await
        .unwrap();
    let status = scene.me(&role_metadata(&user)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let none = messages
        .get_room(request(
            get_room(),
            &[("carillon-internal-token", INTERNAL)],
        ))
        .await
        .unwrap_err();
    assert_eq!(none.code(), Code::Unauthenticated);
    assert!(none.message().contains("carillon-user-id"));
}
