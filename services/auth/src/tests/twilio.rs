//! The Twilio provider against a local HTTP server (AUTH-03).

use std::{collections::HashMap, net::SocketAddr};

use axum::{
    Form, Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    routing::post,
};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;
use crate::{Twilio, TwilioOptions};

const RIGHT_CODE: &str = "482913";

/// Twilio Verify, as far as it concerns us.
#[derive(Default)]
struct Verify {
    /// Numbers with a code that wasn't used yet.
    pending: Mutex<Vec<String>>,
    sent: Mutex<usize>,
    /// What it answers instead.
    broken: Mutex<Option<(StatusCode, &'static str)>>,
}

type Answer = (StatusCode, Json<Value>);

async fn serve(
    State(verify): State<Arc<Verify>>,
    Path((service, resource)): Path<(String, String)>,
    headers: HeaderMap,
    Form(form): Form<HashMap<String, String>>,
) -> Answer {
    if let Some((status, status_text)) = *verify.broken.lock() {
        return (status, Json(json!({"status": status_text})));
    }
    // "AC1:secret"
    let is_ours = headers
        .get("authorization")
        .is_some_and(|value| value == "Basic QUMxOnNlY3JldA==");
    if !is_ours || service != "VA1" {
        return (StatusCode::UNAUTHORIZED, Json(json!({"code": 20003})));
    }
    let number = form["To"].clone();
    let mut pending = verify.pending.lock();
    match resource.as_str() {
        "Verifications" if form["Channel"] == "sms" => {
            if number == "+10000000000" {
                return (StatusCode::BAD_REQUEST, Json(json!({"code": 60200})));
            }
            *verify.sent.lock() += 1;
            pending.push(number);
            (StatusCode::CREATED, Json(json!({"status": "pending"})))
        }
        "VerificationCheck" if !pending.contains(&number) => {
            (StatusCode::NOT_FOUND, Json(json!({"code": 20404})))
        }
        "VerificationCheck" if form["Code"] == RIGHT_CODE => {
            pending.retain(|other| *other != number);
            (
                StatusCode::OK,
                Json(json!({"status": "approved", "valid": true})),
            )
        }
        "VerificationCheck" => (
            StatusCode::OK,
            Json(json!({"status": "pending", "valid": false})),
        ),
        _ => (StatusCode::NOT_FOUND, Json(json!({}))),
    }
}

async fn start() -> (Arc<Verify>, SocketAddr) {
    let verify = Arc::new(Verify::default());
    let router = Router::new()
        .route("/under/v2/Services/{service}/{resource}", post(serve))
        .with_state(verify.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    (verify, address)
}

fn twilio(address: SocketAddr, auth_token: &str) -> Twilio {
    Twilio::new(TwilioOptions {
        base_url: format!("http://{address}/under/").parse().unwrap(),
        account_sid: "AC1".into(),
        auth_token: auth_token.to_owned().into(),
        service_sid: "VA1".into(),
    })
    .unwrap()
}

fn world(provider: Twilio) -> World {
    let mut world = World::new();
    let keys = SigningKeys::from_pem([&world.pem]).unwrap();
    let otp: Arc<dyn OtpProvider> = Arc::new(provider);
    world.auth = Auth::new(options(), world.ports.clone(), keys, Some(otp)).unwrap();
    world
}

async fn verify(world: &World, code: &str) -> Result<Tokens> {
    let client = ClientInfo::default();
    world.auth.verify_otp(PHONE, code, client).await
}

/// AUTH-03: a code is sent, checked, and used once; sends and attempts are limited here, whatever the provider does.
#[tokio::test]
async fn codes_by_twilio() {
    let (service, address) = start().await;
    let world = world(twilio(address, "secret"));
    let early = verify(&world, RIGHT_CODE).await.unwrap_err();
    assert_eq!(early.code, ErrorCode::Unauthenticated);
    world.auth.send_otp(PHONE).await.unwrap();
    let soon = world.auth.send_otp(PHONE).await.unwrap_err();
    assert_eq!(soon.code, ErrorCode::RateLimited);
    // The code of development clusters is one like any other.
    let wrong = verify(&world, DevOtp::CODE).await.unwrap_err();
    assert_eq!(wrong.code, ErrorCode::Unauthenticated);
    let tokens = verify(&world, RIGHT_CODE).await.unwrap();
    let again = verify(&world, RIGHT_CODE).await.unwrap_err();
    assert_eq!(again.code, ErrorCode::Unauthenticated);

    world.clock.advance(Duration::from_secs(31));
    world.auth.send_otp(PHONE).await.unwrap();
    for _ in 0..options().otp_attempts {
        let wrong = verify(&world, "000000").await.unwrap_err();
        assert_eq!(wrong.code, ErrorCode::Unauthenticated);
    }
    let locked = verify(&world, RIGHT_CODE).await.unwrap_err();
    assert_eq!(locked.code, ErrorCode::RateLimited);
    for _ in 0..10 {
        world.clock.advance(Duration::from_secs(31));
        let _ = world.auth.send_otp(PHONE).await;
    }
    assert_eq!(*service.sent.lock() as u64, options().otp_sends_per_hour);
    let same = verify(&world, RIGHT_CODE).await.unwrap();
    assert_eq!(same.user.id, tokens.user.id);
}

/// AUTH-03: what the provider refuses, and what it can't do.
#[tokio::test]
async fn refusals_of_twilio() {
    let (service, address) = start().await;
    let ours = twilio(address, "secret");
    let invalid = ours.send("+10000000000").await.unwrap_err();
    assert_eq!(invalid.code, ErrorCode::InvalidRequest);
    assert_eq!(invalid.fields[0].field, "phone_number");
    let stranger = twilio(address, "guess").send(PHONE).await.unwrap_err();
    assert_eq!(stranger.code, ErrorCode::Unavailable);
    for (status, expected) in [
        (StatusCode::TOO_MANY_REQUESTS, ErrorCode::RateLimited),
        (StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unavailable),
        (StatusCode::FOUND, ErrorCode::Unavailable),
    ] {
        *service.broken.lock() = Some((status, "approved"));
        assert_eq!(
            ours.send(PHONE).await.unwrap_err().code,
            expected,
            "{status}"
        );
        let checked = ours.check(PHONE, RIGHT_CODE).await;
        assert_eq!(checked.unwrap_err().code, expected, "{status}");
    }
    for status_text in ["pending", "canceled", "max_attempts_reached", ""] {
        *service.broken.lock() = Some((StatusCode::OK, status_text));
        assert!(
            !ours.check(PHONE, RIGHT_CODE).await.unwrap(),
            "{status_text}"
        );
    }
    // Nobody there. The number isn't told.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    let error = twilio(nobody, "secret").send(PHONE).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    let told = format!("{error} {}", error.cause_chain());
    assert!(
        !told.contains(PHONE) && !told.contains("4155550100"),
        "{told}"
    );
}

#[test]
fn ids_are_no_paths() {
    let options = |service_sid: &str| TwilioOptions {
        base_url: TwilioOptions::BASE_URL.parse().unwrap(),
        account_sid: "AC1".into(),
        auth_token: "secret".to_owned().into(),
        service_sid: service_sid.into(),
    };
    assert!(Twilio::new(options("VA1")).is_ok());
    for bad in ["", "../VA1", "VA1?x", "VA 1"] {
        assert!(Twilio::new(options(bad)).is_err(), "{bad}");
    }
}
