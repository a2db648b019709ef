use std::sync::Arc;

use ::http::{Method, Request, Response, StatusCode};
use axum::{Router, body::Body};
use carillon_adapters::limits::{Fallback, MemoryLimiter};
use carillon_domain::{
    Error, ErrorCode, Result, UserId,
    account::Identity,
    limit::{Grant, Policy, Subject},
    ports::{Probe, RateLimiter},
};
use futures::StreamExt as _;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::{
    Gateway, GatewayOptions,
    testing::{Town, options, published, somebody, token},
};

fn router(town: &Arc<Town>, options: GatewayOptions) -> Router {
    Gateway::new(options, town.services(), published(r#"{"keys":[]}"#)).router()
}

async fn ask(router: &Router, request: Request<Body>) -> (StatusCode, ::http::HeaderMap, Vec<u8>) {
    let response: Response<Body> = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    (parts.status, parts.headers, bytes.to_vec())
}

fn request(
    method: Method,
    path: &str,
    who: Option<&Identity>,
    body: Option<Value>,
) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(who) = who {
        request = request.header("authorization", format!("Bearer {}", token(who)));
    }
    match body {
        Some(body) => request
            .header("content-type", "application/json")
            .body(Body::from(body.to_string())),
        None => request.body(Body::empty()),
    }
    .unwrap()
}

fn get(path: &str, who: &Identity) -> Request<Body> {
    request(Method::GET, path, Some(who), None)
}

/// A line for a table of answers; the trace id differs each time.
fn line(name: &str, status: StatusCode, headers: &::http::HeaderMap, body: &[u8]) -> String {
    let body: Value = serde_json::from_slice(body).expect("problem details are JSON");
    assert_eq!(
        headers["content-type"], "application/problem+json",
        "{name}"
    );
    assert!(
        body["trace_id"].as_str().is_some_and(|id| !id.is_empty()),
        "{name}"
    );
    assert_eq!(body["status"], status.as_u16(), "{name}");
    let fields: Vec<String> = body["errors"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|e| {
            format!(
                "{}: {}",
                e["field"].as_str().unwrap(),
                e["detail"].as_str().unwrap()
            )
        })
        .collect();
    format!(
        "{name}: {} {} | {} | {}",
        status.as_u16(),
        body["code"].as_str().unwrap(),
        body["detail"].as_str().unwrap(),
        fields.join("; ")
    )
}

/// EDGE-01, EDGE-04: bad input gets a clear answer with a stable code and the place of the problem.
#[tokio::test]
async fn bad_input_gets_a_clear_answer() {
    let town = Town::new();
    let (ann, eve) = (somebody(), somebody());
    let room = town.room(&[ann.user]);
    let router = router(
        &town,
        GatewayOptions {
            max_body_bytes: 1000,
            max_upload_bytes: 1000,
            request_timeout: std::time::Duration::from_millis(200),
            ..options()
        },
    );
    let register = |body: Value| request(Method::POST, "/api/v1/auth/register", None, Some(body));
    let named = |name: &str| {
        register(json!({"username": name, "email": "a@b.example", "password": "12345678"}))
    };
    let raw = |body: &str, content_type: &str| {
        Request::builder()
            .method(Method::POST)
            .uri("/api/v1/auth/register")
            .header("content-type", content_type.to_owned())
            .body(Body::from(body.to_owned()))
            .unwrap()
    };
    let room_path = format!("/api/v1/rooms/{room}");
    let messages = format!("{room_path}/messages");
    let expired = Identity {
        expires_at: carillon_domain::Timestamp(0),
        ..ann
    };
    let upload = |who: &Identity, form: String| {
        Request::builder()
            .method(Method::POST)
            .uri("/api/v1/uploads")
            .header("authorization", format!("Bearer {}", token(who)))
            .header("content-type", "multipart/form-data; boundary=x")
            .body(Body::from(form))
            .unwrap()
    };
    let part = |name: &str, content: &str| {
        format!(
            "--x\r\ncontent-disposition: form-data; name=\"{name}\"; filename=\"f.png\"\r\n\r\n{content}\r\n"
        )
    };
    let cases = [
        ("unknown route", get("/api/v1/nothing", &ann)),
        ("unknown page", get("/nothing", &ann)),
        (
            "wrong method",
            request(Method::PUT, "/api/v1/rooms", Some(&ann), None),
        ),
        ("malformed JSON", raw("{\"username\": ", "application/json")),
        ("not an object", raw("[1,2,3]", "application/json")),
        ("empty body", raw("", "application/json")),
        ("trailing text", raw("{} {}", "application/json")),
        (
            "wrong content type",
            raw("a=b", "application/x-www-form-urlencoded"),
        ),
        (
            "wrong type",
            register(json!({"username": 5, "email": "x", "password": "p"})),
        ),
        ("missing field", register(json!({"username": "ann"}))),
        (
            "unknown field",
            register(json!({"username": "a", "email": "e", "password": "p", "admin": true})),
        ),
        (
            "large body",
            register(json!({"username": "x".repeat(2000)})),
        ),
        ("taken name", named("taken")),
        ("panic", named("panic")),
        ("defect", named("defect")),
        ("timeout", named("slow")),
        (
            "two logins",
            request(
                Method::POST,
                "/api/v1/auth/login",
                None,
                Some(json!({"email": "a", "username": "b", "password": "p"})),
            ),
        ),
        (
            "wrong password",
            request(
                Method::POST,
                "/api/v1/auth/login",
                None,
                Some(json!({"username": "b", "password": "p"})),
            ),
        ),
        (
            "no token",
            request(Method::GET, "/api/v1/auth/me", None, None),
        ),
        ("expired token", get("/api/v1/auth/me", &expired)),
        ("bad UUID in path", get("/api/v1/rooms/general", &ann)),
        (
            "bad second UUID",
            request(
                Method::PUT,
                &format!("{room_path}/members/bob"),
                Some(&ann),
                None,
            ),
        ),
        ("bad UUID in query", get("/api/v1/presence?users=ann", &ann)),
        (
            "too many ids",
            get(
                &format!(
                    "/api/v1/users?ids={}",
                    vec![room.to_string(); 101].join(",")
                ),
                &ann,
            ),
        ),
        ("unknown parameter", get("/api/v1/rooms?page=2", &ann)),
        ("missing parameter", get("/api/v1/presence", &ann)),
        ("limit of zero", get(&format!("{messages}?limit=0"), &ann)),
        (
            "limit too large",
            get(&format!("{messages}?limit=101"), &ann),
        ),
        ("negative limit", get(&format!("{messages}?limit=-1"), &ann)),
        (
            "both bounds",
            get(&format!("{messages}?before=1&after=2"), &ann),
        ),
        (
            "unknown room",
            get(&format!("/api/v1/rooms/{}", ann.user), &ann),
        ),
        ("another's room", get(&room_path, &eve)),
        ("another's messages", get(&messages, &eve)),
        (
            "direct room by hand",
            request(
                Method::POST,
                "/api/v1/rooms",
                Some(&ann),
                Some(json!({"name": "x", "type": "direct"})),
            ),
        ),
        (
            "unknown kind",
            request(
                Method::POST,
                "/api/v1/rooms",
                Some(&ann),
                Some(json!({"name": "x", "type": "castle"})),
            ),
        ),
        (
            "offline by choice",
            request(
                Method::PUT,
                "/api/v1/presence/me",
                Some(&ann),
                Some(json!({"state": "offline"})),
            ),
        ),
        (
            "upload that is no form",
            request(Method::POST, "/api/v1/uploads", Some(&ann), Some(json!({}))),
        ),
        (
            "upload without a room",
            upload(&ann, format!("{}--x--\r\n", part("file", "png"))),
        ),
        (
            "upload without a file",
            upload(
                &ann,
                format!("{}--x--\r\n", part("room_id", &room.to_string())),
            ),
        ),
        (
            "upload with another field",
            upload(&ann, format!("{}--x--\r\n", part("color", "red"))),
        ),
        ("upload cut off", upload(&ann, part("file", "png"))),
        (
            "large upload",
            upload(
                &ann,
                format!(
                    "{}{}--x--\r\n",
                    part("room_id", &room.to_string()),
                    part("file", &"p".repeat(1001))
                ),
            ),
        ),
        (
            "huge upload",
            upload(
                &ann,
                format!("{}--x--\r\n", part("file", &"p".repeat(40_000))),
            ),
        ),
        (
            "token in the socket's URL",
            get("/api/v1/ws?token=secret", &ann),
        ),
        ("socket without an upgrade", get("/api/v1/ws", &ann)),
    ];
    let mut table = Vec::new();
    for (name, request) in cases {
        let (status, headers, body) = ask(&router, request).await;
        table.push(line(name, status, &headers, &body));
        for secret in ["secret of the handler", "a secret cause"] {
            assert!(!String::from_utf8_lossy(&body).contains(secret), "{name}");
        }
    }
    let table = table.join("\n").replace(&room.to_string(), "ROOM");
    insta::assert_snapshot!(table);
}

/// EDGE-01: a refused request is read to its end, so that the client that is still sending it gets the answer; but not for ever, and
/// not when the client asked first.
#[tokio::test]
async fn the_rest_of_a_refused_body_is_read_within_bounds() {
    let town = Town::new();
    let options = GatewayOptions {
        max_upload_bytes: 1000,
        ..options()
    };
    let router = router(&town, options);
    for (pieces, expect, read) in [(15, false, 15), (1000, false, 21), (15, true, 0)] {
        let taken = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = taken.clone();
        let body = futures::stream::iter(0..pieces).map(move |_| {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok::<_, std::io::Error>(vec![b'x'; 100])
        });
        // Nobody says who they are: refused before anything is read.
        let mut request = Request::builder()
            .method(Method::POST)
            .uri("/api/v1/uploads");
        if expect {
            request = request.header("expect", "100-continue");
        }
        let request = request.body(Body::from_stream(body)).unwrap();
        let (status, ..) = ask(&router, request).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        let taken = taken.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(taken, read, "of {pieces} pieces, expect: {expect}");
    }
}

/// AUTH-04, RFC 6750: 401 says how to authenticate; 405 says which methods there are.
#[tokio::test]
async fn challenges_and_allowed_methods() {
    let town = Town::new();
    let router = router(&town, options());
    let (status, headers, _) =
        ask(&router, request(Method::GET, "/api/v1/auth/me", None, None)).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_eq!(headers["www-authenticate"], "Bearer");
    let forged = Request::builder()
        .uri("/api/v1/auth/me")
        .header("authorization", "Bearer abc")
        .body(Body::empty())
        .unwrap();
    let (_, headers, _) = ask(&router, forged).await;
    assert_eq!(
        headers["www-authenticate"],
        "Bearer error=\"invalid_token\""
    );
    let (status, headers, _) = ask(
        &router,
        request(Method::DELETE, "/api/v1/rooms", None, None),
    )
    .await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    let allow = headers["allow"].to_str().unwrap();
    assert!(allow.contains("GET") && allow.contains("POST"), "{allow}");
}

/// EDGE-03: after the burst 429 with Retry-After, and RateLimit headers on every answer; auth has its own, stricter limit.
#[tokio::test]
async fn limits_are_told() {
    let town = Town::new();
    let options = GatewayOptions {
        auth_per_minute: 2,
        requests_per_minute: 4,
        ..options()
    };
    let router = router(&town, options);
    let login = || {
        let body = json!({"username": "ann", "password": "right password"});
        request(Method::POST, "/api/v1/auth/login", None, Some(body))
    };
    for left in ["1", "0"] {
        let (status, headers, _) = ask(&router, login()).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers["ratelimit-limit"], "2");
        assert_eq!(headers["ratelimit-remaining"], left);
        assert_eq!(headers["ratelimit-policy"], r#""auth";q=2;w=60"#);
        let told = headers["ratelimit"].to_str().unwrap();
        assert!(
            told.starts_with(&format!(r#""auth";r={left};t="#)),
            "{told}"
        );
    }
    let (status, headers, body) = ask(&router, login()).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    let wait: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=30).contains(&wait), "{wait}");
    assert_eq!(headers["ratelimit-remaining"], "0");
    assert!(String::from_utf8(body).unwrap().contains("rate_limited"));
    let ann = somebody();
    let (status, ..) = ask(&router, get("/api/v1/auth/me", &ann)).await;
    assert_eq!(status, StatusCode::OK, "other routes have their own limit");
    for _ in 0..50 {
        let (status, ..) = ask(&router, request(Method::GET, "/health", None, None)).await;
        assert_eq!(status, StatusCode::OK, "probes are never limited");
    }
}

/// AUTH-08, AUTH-09, AUTH-12: what a client may say of its device; pages of history; changes and their errors.
#[tokio::test]
async fn accounts_are_seen_and_changed() {
    let town = Town::new();
    let router = router(&town, options());
    let ann = somebody();
    for (device, expected) in [
        (json!("phone"), StatusCode::OK),
        (
            json!({"name": "phone", "type": "phone", "platform": "x"}),
            StatusCode::OK,
        ),
        (json!({"type": null}), StatusCode::OK),
        (json!({"type": "fridge"}), StatusCode::BAD_REQUEST),
        (json!({"kind": "phone"}), StatusCode::BAD_REQUEST),
        (json!({"platform": "x".repeat(81)}), StatusCode::BAD_REQUEST),
        (json!("two\nlines"), StatusCode::BAD_REQUEST),
    ] {
        let body = json!({"username": "ann", "password": "right password", "device": device});
        let login = request(Method::POST, "/api/v1/auth/login", None, Some(body));
        let (status, _, body) = ask(&router, login).await;
        let body = String::from_utf8_lossy(&body).into_owned();
        assert_eq!(status, expected, "{device}: {body}");
        assert!(status.is_success() || body.contains("\"device"), "{body}");
    }
    let json_of = async |path: &str| -> serde_json::Value {
        let (status, _, body) = ask(&router, get(path, &ann)).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        serde_json::from_slice(&body).unwrap()
    };
    for (path, kind) in [
        ("/api/v1/auth/login-history", "logged_in"),
        ("/api/v1/auth/security-events", "token_reused"),
    ] {
        let first = json_of(&format!("{path}?limit=1")).await;
        assert_eq!(first["items"][0]["kind"], kind);
        let next = first["next"].as_str().unwrap();
        let rest = json_of(&format!("{path}?cursor={next}")).await;
        assert_eq!(rest["items"].as_array().unwrap().len(), 1);
        assert!(rest["next"].is_null());
        for wrong in ["limit=0", "limit=101", "cursor=x"] {
            let (status, ..) = ask(&router, get(&format!("{path}?{wrong}"), &ann)).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{wrong}");
        }
    }
    let (right, wrong) = ("right password", "wrong");
    let change = async |path: &str, body: serde_json::Value| {
        let path = format!("/api/v1/auth/{path}");
        let (status, ..) = ask(
            &router,
            request(Method::PATCH, &path, Some(&ann), Some(body)),
        )
        .await;
        status.as_u16()
    };
    for (path, field, value, password, done) in [
        ("username", "username", "anna", "password", 200),
        ("email", "email", "a@example.com", "password", 204),
        (
            "password",
            "new_password",
            "another password",
            "current_password",
            204,
        ),
    ] {
        assert_eq!(
            change(path, json!({field: value, password: right})).await,
            done
        );
        assert_eq!(
            change(path, json!({field: value, password: wrong})).await,
            403
        );
        assert_eq!(change(path, json!({field: value})).await, 400);
        assert_eq!(change(path, json!({password: right})).await, 400);
        assert_eq!(change(path, json!({field: value, "more": 1})).await, 400);
        let nobody = request(Method::PATCH, &format!("/api/v1/auth/{path}"), None, None);
        assert_eq!(ask(&router, nobody).await.0, StatusCode::UNAUTHORIZED);
    }
}

/// AUTH-10: what a mailed token does needs no other credentials, and is limited as tries of secrets are.
#[tokio::test]
async fn mailed_tokens() {
    let town = Town::new();
    let limited = GatewayOptions {
        auth_per_minute: 100,
        ..options()
    };
    let router = router(&town, limited);
    let post = async |path: &str, body: serde_json::Value| {
        let path = format!("/api/v1/auth/{path}");
        let (status, headers, _) =
            ask(&router, request(Method::POST, &path, None, Some(body))).await;
        let policy = headers["ratelimit-policy"].to_str().unwrap().to_owned();
        assert!(policy.starts_with("\"auth\""), "{path}: {policy}");
        status.as_u16()
    };
    let (right, wrong) = ("right token", "another token");
    assert_eq!(post("email/verify", json!({"token": right})).await, 204);
    assert_eq!(post("email/verify", json!({"token": wrong})).await, 400);
    let reset = |token: &str| json!({"token": token, "new_password": "a new password"});
    assert_eq!(post("password/reset", reset(right)).await, 204);
    assert_eq!(post("password/reset", reset(wrong)).await, 400);
    assert_eq!(post("password/reset", json!({"token": right})).await, 400);
    let forgot = |email: &str| json!({"email": email});
    assert_eq!(
        post("password/forgot", forgot("ann@example.com")).await,
        204
    );
    assert_eq!(post("password/forgot", forgot("ann")).await, 400);
}

/// USER-01, USER-03, AUTH-15: a patch of the profile, and a page of people.
#[tokio::test]
async fn profiles_are_patched_and_people_found() {
    let town = Town::new();
    let router = router(&town, options());
    let ann = somebody();
    for path in ["/api/v1/auth/me", "/api/v1/users/me"] {
        let body = json!({"bio": "hello", "display_name": null});
        let patch = request(Method::PATCH, path, Some(&ann), Some(body));
        let (status, _, body) = ask(&router, patch).await;
        assert_eq!(status, StatusCode::OK);
        let user: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (&user["bio"], &user["display_name"]),
            (&json!("hello"), &json!(""))
        );
        let wrong = json!({"username": "x"});
        let wrong = request(Method::PATCH, path, Some(&ann), Some(wrong));
        assert_eq!(ask(&router, wrong).await.0, StatusCode::BAD_REQUEST);
    }
    let search = async |query: &str| {
        let path = format!("/api/v1/users/search?{query}");
        let (status, _, body) = ask(&router, get(&path, &ann)).await;
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        (status.as_u16(), body)
    };
    let (status, page) = search("q=ann&limit=7&cursor=place").await;
    assert_eq!((status, &page["next"]), (200, &json!("further")));
    assert_eq!(page["items"][0]["username"], "ann Some(\"place\") 7");
    for wrong in ["", "q=ann&limit=51", "q=ann&limit=0", "q=ann&more=1"] {
        assert_eq!(search(wrong).await.0, 400, "{wrong}");
    }
}

/// EDGE-03: a user has a limit of their own, over all devices and addresses; the answer tells of both, and who has no valid token
/// uses up nobody's.
#[tokio::test]
async fn users_have_a_limit_of_their_own() {
    let town = Town::new();
    let options = GatewayOptions {
        requests_per_minute: 100,
        user_requests_per_minute: 2,
        ..options()
    };
    let router = router(&town, options);
    let (ann, bob) = (somebody(), somebody());
    let other_device = Identity {
        device: carillon_domain::DeviceId::new(),
        ..ann
    };
    let me = "/api/v1/auth/me";
    for (who, left) in [(&ann, "1"), (&other_device, "0")] {
        let (status, headers, _) = ask(&router, get(me, who)).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers["ratelimit-limit"], "2");
        assert_eq!(headers["ratelimit-remaining"], left);
        let policies = r#""requests";q=100;w=60, "user_requests";q=2;w=60"#;
        assert_eq!(headers["ratelimit-policy"], policies);
    }
    let (status, headers, body) = ask(&router, get(me, &ann)).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    let wait: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=30).contains(&wait), "{wait}");
    assert!(String::from_utf8(body).unwrap().contains("rate_limited"));
    let (status, ..) = ask(&router, get(me, &bob)).await;
    assert_eq!(status, StatusCode::OK, "another user from the same address");
    let mut forged = request(Method::GET, me, None, None);
    let headers = forged.headers_mut();
    headers.insert("authorization", "Bearer forged".parse().unwrap());
    let (status, headers, _) = ask(&router, forged).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_eq!(headers["ratelimit-policy"], r#""requests";q=100;w=60"#);
}

/// EDGE-03: several gateways over one limiter are one to an address; and when nothing may pass uncounted, an answer says so.
#[tokio::test]
async fn gateways_share_their_limits() {
    let shared: Arc<dyn RateLimiter> = Arc::new(MemoryLimiter::new());
    let of = |limiter: Arc<dyn RateLimiter>| {
        let services = crate::Services {
            limiter,
            ..Town::new().services()
        };
        let options = GatewayOptions {
            auth_per_minute: 3,
            ..options()
        };
        crate::Gateway::new(options, services, published("")).router()
    };
    let gateways = [of(shared.clone()), of(shared)];
    let login = || {
        let body = json!({"username": "ann", "password": "wrong"});
        request(Method::POST, "/api/v1/auth/login", None, Some(body))
    };
    let mut answers = Vec::new();
    for gateway in gateways.iter().cycle().take(6) {
        answers.push(ask(gateway, login()).await.0.as_u16());
    }
    assert_eq!(answers, [401, 401, 401, 429, 429, 429]);

    let closed = of(Arc::new(Fallback::new(Arc::new(Away), None)));
    let (status, headers, body) = ask(&closed, login()).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(headers.contains_key("retry-after"));
    assert!(String::from_utf8(body).unwrap().contains("unavailable"));
    let open = of(Arc::new(Fallback::new(
        Arc::new(Away),
        Some(Arc::new(MemoryLimiter::new())),
    )));
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.push(ask(&open, login()).await.0.as_u16());
    }
    assert_eq!(answers, [401, 401, 401, 429]);
}

/// A store of limits that can't be reached.
struct Away;

#[async_trait::async_trait]
impl RateLimiter for Away {
    async fn take(&self, _: &Policy, _: Subject, _: u32, _: u32) -> Result<Grant> {
        Err(Error::new(ErrorCode::Unavailable, "away"))
    }

    fn take_now(&self, _: &Policy, _: Subject, _: u32) -> Option<Grant> {
        None
    }
}

/// EDGE-03: behind one trusted proxy each client has its own bucket; from anybody else the header means nothing.
#[tokio::test]
async fn clients_behind_a_proxy_are_told_apart() {
    let town = Town::new();
    let of = |trusted: &[&str]| {
        let options = GatewayOptions {
            auth_per_minute: 1,
            trusted_proxies: trusted.iter().map(|text| text.parse().unwrap()).collect(),
            ..options()
        };
        router(&town, options)
    };
    let login = |client: &str| {
        let body = json!({"username": "ann", "password": "right password"});
        let mut request = request(Method::POST, "/api/v1/auth/login", None, Some(body));
        let headers = request.headers_mut();
        headers.insert("x-forwarded-for", client.parse().unwrap());
        headers.insert("x-forwarded-proto", "https".parse().unwrap());
        request
    };
    // Requests of these tests come from the loopback address.
    let trusting = of(&["127.0.0.0/8"]);
    let (ok, limited) = (StatusCode::OK, StatusCode::TOO_MANY_REQUESTS);
    for (client, expected) in [
        ("192.0.2.1", ok),
        ("192.0.2.2", ok),
        ("192.0.2.1", limited),
        ("6.6.6.6, 192.0.2.2", limited),
    ] {
        let (status, headers, _) = ask(&trusting, login(client)).await;
        assert_eq!(status, expected, "{client}");
        assert!(headers.contains_key("strict-transport-security"));
    }
    let strict = of(&["10.0.0.0/8"]);
    for (client, expected) in [("192.0.2.1", ok), ("192.0.2.2", limited)] {
        let (status, headers, _) = ask(&strict, login(client)).await;
        assert_eq!(status, expected, "{client}");
        assert!(!headers.contains_key("strict-transport-security"));
    }
}

/// EDGE-05: security headers on everything, the page's policy allows no inline script, HSTS only behind TLS.
#[tokio::test]
async fn headers_protect() {
    let town = Town::new();
    let plain = router(&town, options());
    let tls = router(
        &town,
        GatewayOptions {
            tls: true,
            ..options()
        },
    );
    for path in ["/", "/health", "/nothing", "/api/v1/rooms"] {
        let (_, headers, _) = ask(&plain, request(Method::GET, path, None, None)).await;
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(headers["referrer-policy"], "no-referrer", "{path}");
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(policy.contains("frame-ancestors 'none'"), "{path}");
        assert!(!policy.contains("unsafe"), "{path}");
        assert_eq!(headers["api-version"], "1", "{path}");
        assert!(headers.contains_key("x-request-id"), "{path}");
        assert!(!headers.contains_key("strict-transport-security"), "{path}");
    }
    let (_, headers, _) = ask(&tls, request(Method::GET, "/", None, None)).await;
    assert!(headers.contains_key("strict-transport-security"));
    let (_, _, page) = ask(&plain, request(Method::GET, "/", None, None)).await;
    let page = String::from_utf8(page).unwrap();
    assert!(!page.contains("<script>") && !page.contains(" style=") && !page.contains(" onclick="));
    for asset in ["/app.js", "/app.css", "/icon.svg"] {
        let (status, ..) = ask(&plain, request(Method::GET, asset, None, None)).await;
        assert_eq!(status, StatusCode::OK);
        assert!(page.contains(asset));
    }
    let mut packed = request(Method::GET, "/app.js", None, None);
    packed
        .headers_mut()
        .insert("accept-encoding", "br".parse().unwrap());
    let (_, headers, _) = ask(&plain, packed).await;
    assert_eq!(headers["content-encoding"], "br");
    let script = include_str!("../page/app.js");
    assert!(!script.contains("innerHTML") && !script.contains("insertAdjacentHTML"));
}

/// EDGE-04: a reasonable request id comes back, another is replaced; a trace's id shows in errors.
#[tokio::test]
async fn requests_are_identified() {
    let town = Town::new();
    let router = router(&town, options());
    let with = |id: &'static str| {
        Request::builder()
            .uri("/nothing")
            .header("x-request-id", id)
            .body(Body::empty())
            .unwrap()
    };
    let (_, headers, _) = ask(&router, with("order-66")).await;
    assert_eq!(headers["x-request-id"], "order-66");
    let (_, headers, body) = ask(&router, with("a b <script>")).await;
    let made = headers["x-request-id"].to_str().unwrap();
    assert_ne!(made, "a b <script>");
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        body["trace_id"], made,
        "without a trace the request's id stands in"
    );
}

/// EDGE-05: listed origins may read answers, others may not; preflights are answered.
#[tokio::test]
async fn cross_origin_requests() {
    let town = Town::new();
    let options = GatewayOptions {
        allowed_origins: vec!["https://app.example".to_owned()],
        ..options()
    };
    let router = router(&town, options);
    let preflight = |origin: &'static str| {
        Request::builder()
            .method(Method::OPTIONS)
            .uri("/api/v1/rooms")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header(
                "access-control-request-headers",
                "authorization,content-type",
            )
            .body(Body::empty())
            .unwrap()
    };
    let (status, headers, _) = ask(&router, preflight("https://app.example")).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        headers["access-control-allow-origin"],
        "https://app.example"
    );
    assert!(!headers.contains_key("access-control-allow-credentials"));
    let (_, headers, _) = ask(&router, preflight("https://evil.example")).await;
    assert!(!headers.contains_key("access-control-allow-origin"));
}

/// EDGE-05: a listed page can read every answer, whoever made it: 400, 401, 404, 429, 500 and 504 too.
#[tokio::test]
async fn errors_can_be_read_by_listed_pages() {
    let town = Town::new();
    let options = GatewayOptions {
        allowed_origins: vec!["https://app.example".to_owned()],
        auth_per_minute: 4,
        request_timeout: std::time::Duration::from_millis(200),
        ..options()
    };
    let router = router(&town, options);
    let register = |name: &str| {
        let body = json!({"username": name, "email": "a@b.example", "password": "12345678"});
        request(Method::POST, "/api/v1/auth/register", None, Some(body))
    };
    let cases = [
        (register("taken"), StatusCode::CONFLICT),
        (register("panic"), StatusCode::INTERNAL_SERVER_ERROR),
        (register("slow"), StatusCode::GATEWAY_TIMEOUT),
        (register("ann"), StatusCode::CREATED),
        (register("bob"), StatusCode::TOO_MANY_REQUESTS),
        (
            request(Method::GET, "/api/v1/auth/me", None, None),
            StatusCode::UNAUTHORIZED,
        ),
        (
            request(Method::GET, "/api/v1/nothing", None, None),
            StatusCode::NOT_FOUND,
        ),
    ];
    for (mut request, expected) in cases {
        let headers = request.headers_mut();
        headers.insert("origin", "https://app.example".parse().unwrap());
        let (status, headers, _) = ask(&router, request).await;
        assert_eq!(status, expected);
        assert_eq!(
            headers["access-control-allow-origin"], "https://app.example",
            "{status}"
        );
        let exposed = headers["access-control-expose-headers"].to_str().unwrap();
        assert!(exposed.contains("retry-after"), "{status}: {exposed}");
        let vary: Vec<_> = headers.get_all("vary").iter().collect();
        assert!(
            vary.iter()
                .any(|value| value.to_str().unwrap().contains("origin")),
            "{status}: {vary:?}"
        );
    }
}

/// MEDIA-03: uploads come back whole, in parts, and not at all when the client has them; never compressed.
#[tokio::test]
async fn uploads_and_downloads() {
    let town = Town::new();
    let ann = somebody();
    let room = town.room(&[ann.user]);
    let router = router(&town, options());
    let form = format!(
        "--x\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.png\"\r\n\r\n{}\r\n\
         --x\r\ncontent-disposition: form-data; name=\"room_id\"\r\n\r\n{room}\r\n--x--\r\n",
        "0123456789".repeat(200)
    );
    let upload = Request::builder()
        .method(Method::POST)
        .uri("/api/v1/uploads")
        .header("authorization", format!("Bearer {}", token(&ann)))
        .header("content-type", "multipart/form-data; boundary=x")
        .body(Body::from(form))
        .unwrap();
    let (status, _, body) = ask(&router, upload).await;
    assert_eq!(status, StatusCode::CREATED);
    let media: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(media["size"], 2000);
    let url = media["url"].as_str().unwrap();
    let fetch = |name: &'static str, value: String| {
        let mut request = get(url, &ann);
        request
            .headers_mut()
            .insert("accept-encoding", "gzip".parse().unwrap());
        request.headers_mut().insert(name, value.parse().unwrap());
        request
    };
    let (status, headers, body) = ask(&router, fetch("x-nothing", "1".into())).await;
    assert_eq!((status, body.len()), (StatusCode::OK, 2000));
    assert!(!headers.contains_key("content-encoding"));
    // MEDIA-04: a cache asks each time, and keeps what it has to whom it was given.
    assert_eq!(headers["cache-control"], "private, no-cache");
    let varies: Vec<_> = headers.get_all("vary").iter().collect();
    assert!(
        varies.iter().any(|value| *value == "authorization"),
        "{varies:?}"
    );
    let etag = headers["etag"].to_str().unwrap().to_owned();
    let (status, headers, body) = ask(&router, fetch("range", "bytes=5-9".into())).await;
    assert_eq!(
        (status, body.as_slice()),
        (StatusCode::PARTIAL_CONTENT, &b"56789"[..])
    );
    assert_eq!(headers["content-range"], "bytes 5-9/2000");
    let (status, _, body) = ask(&router, fetch("if-none-match", etag)).await;
    assert_eq!((status, body.len()), (StatusCode::NOT_MODIFIED, 0));
    let (status, headers, _) = ask(&router, fetch("range", "bytes=5000-".into())).await;
    assert_eq!(status, StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(headers["content-range"], "bytes */2000");
}

/// Promise 7: a download is read as the client takes it, and what its connection still holds counts against its user.
#[tokio::test]
async fn downloads_hold_little_memory() {
    let town = Town::new();
    let (ann, bob) = (somebody(), somebody());
    let room = town.room(&[ann.user, bob.user]);
    const PIECE: usize = 256 * 1024;
    let options = GatewayOptions {
        download_bytes_at_once: 4 * PIECE,
        ..options()
    };
    let router = router(&town, options);
    let content: Vec<u8> = (0..3 * PIECE + 17).map(|i| (i % 251) as u8).collect();
    let file = carillon_domain::services::NewMedia {
        room,
        file_name: "a.png".into(),
        bytes: content.clone().into(),
    };
    let media = carillon_domain::services::MediaService::upload(&*town, ann.user, file)
        .await
        .unwrap();
    let path = format!("/api/v1/media/{}", media.id);

    let mut slow = router.clone().oneshot(get(&path, &ann)).await.unwrap();
    assert_eq!(slow.headers()["content-length"], content.len().to_string());
    let first = slow.body_mut().frame().await.unwrap().unwrap();
    let first = first.into_data().unwrap();
    assert_eq!(first.len(), PIECE, "no more than was asked for");
    let (status, headers, _) = ask(&router, get(&path, &ann)).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert!(headers.contains_key("retry-after"));
    let (status, _, body) = ask(&router, get(&path, &bob)).await;
    assert_eq!((status, &body), (StatusCode::OK, &content));
    // The body is gone, but its piece is not written yet.
    drop(slow);
    let (status, ..) = ask(&router, get(&path, &ann)).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    drop(first);
    let mut part = get(&path, &ann);
    let range = format!("bytes=5-{}", PIECE + 9);
    part.headers_mut().insert("range", range.parse().unwrap());
    let (status, headers, body) = ask(&router, part).await;
    assert_eq!(status, StatusCode::PARTIAL_CONTENT);
    assert_eq!(headers["content-length"], (PIECE + 5).to_string());
    assert_eq!(body, content[5..PIECE + 10]);
}

struct Broken;

#[async_trait::async_trait]
impl Probe for Broken {
    fn name(&self) -> &'static str {
        "scylla"
    }

    async fn check(&self) -> Result<()> {
        Err(Error::new(
            ErrorCode::Unavailable,
            "scylla is not available",
        ))
    }
}

/// OPS-01, promise 8: alive without its dependencies, ready only with them.
#[tokio::test]
async fn health_and_readiness() {
    let town = Town::new();
    let fine = router(&town, options());
    let broken = router(
        &town,
        GatewayOptions {
            probes: vec![Arc::new(Broken)],
            ..options()
        },
    );
    for (router, expected) in [
        (&fine, StatusCode::OK),
        (&broken, StatusCode::SERVICE_UNAVAILABLE),
    ] {
        let (status, ..) = ask(router, request(Method::GET, "/health", None, None)).await;
        assert_eq!(status, StatusCode::OK);
        let (status, ..) = ask(router, request(Method::GET, "/ready", None, None)).await;
        assert_eq!(status, expected);
    }
    let (_, _, body) = ask(&broken, request(Method::GET, "/ready", None, None)).await;
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["dependencies"][0]["name"], "scylla");
    assert_eq!(body["dependencies"][0]["status"], "down");
    assert!(body["dependencies"][0]["latency_ms"].is_number());
}

/// A store that hangs, and counts who asks.
#[derive(Default)]
struct Hanging(std::sync::atomic::AtomicUsize);

#[async_trait::async_trait]
impl Probe for Hanging {
    fn name(&self) -> &'static str {
        "redis"
    }

    async fn check(&self) -> Result<()> {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        Ok(())
    }
}

/// OPS-01: a stranger who asks often doesn't load a store that is in trouble.
#[tokio::test]
async fn readiness_is_asked_once_for_all() {
    let probe = Arc::new(Hanging::default());
    let router = router(
        &Town::new(),
        GatewayOptions {
            probes: vec![probe.clone()],
            ..options()
        },
    );
    let asked = (0..50).map(|_| ask(&router, request(Method::GET, "/ready", None, None)));
    for (status, ..) in futures::future::join_all(asked).await {
        assert_eq!(status, StatusCode::OK);
    }
    assert_eq!(probe.0.load(std::sync::atomic::Ordering::Relaxed), 1);
}

/// MSG-04, MSG-19: what a send answers.
#[tokio::test]
async fn messages_by_rest() {
    let town = Town::new();
    let ann = somebody();
    let room = town.room(&[ann.user]);
    let router = router(&town, options());
    let path = format!("/api/v1/rooms/{room}/messages");
    let body = json!({"client_message_id": "c1", "content": "hi"});
    let (status, _, body) = ask(
        &router,
        request(Method::POST, &path, Some(&ann), Some(body)),
    )
    .await;
    assert_eq!(status, StatusCode::CREATED);
    let message: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(message["sequence"], 2);
    assert_eq!(message["type"], "text");
    assert_eq!(message["sender_id"], ann.user.to_string());
    assert_eq!(message["time"], "2026-09-21T14:13:20.000Z");
    let events = format!("/api/v1/rooms/{room}/events?after=0&limit=1");
    let (_, _, body) = ask(&router, get(&events, &ann)).await;
    let page: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(page["items"][0]["type"], "user_joined");
    assert_eq!(page["next"], "1");
    let (_, _, body) = ask(&router, get(&events.replace("after=0", "after=1"), &ann)).await;
    let page: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(page["items"][0]["payload"]["content"], "hi");
    assert_eq!(page["next"], Value::Null);
}

/// Promise 8: without a store the answer is a retryable 503, not a hang and not a 500.
#[tokio::test]
async fn an_absent_store_is_a_retryable_answer() {
    let town = Town::new();
    let ann = somebody();
    let router = router(&town, options());
    town.store_down
        .store(true, std::sync::atomic::Ordering::Relaxed);
    let (status, headers, body) = ask(&router, get("/api/v1/rooms", &ann)).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(headers.contains_key("retry-after"));
    assert!(String::from_utf8(body).unwrap().contains("\"unavailable\""));
}

/// USER-04, USER-05: contacts and blocks by REST, page by page, as often as one likes; a blocker's profile is gone for the blocked.
#[tokio::test]
async fn contacts_and_blocks() {
    let town = Town::new();
    let (ann, bob) = (somebody(), somebody());
    let mut others = [bob.user, carillon_domain::UserId::new()];
    others.sort_unstable();
    let router = router(&town, options());
    let status = async |method: Method, path: &str, who: &Identity| {
        let request = request(method, &format!("/api/v1{path}"), Some(who), None);
        ask(&router, request).await.0
    };
    let list = async |path: &str, who: &Identity| -> Value {
        let (status, _, body) = ask(&router, get(&format!("/api/v1{path}"), who)).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        serde_json::from_slice(&body).unwrap()
    };
    for kind in ["contacts", "blocks"] {
        let done = StatusCode::NO_CONTENT;
        for other in others.iter().chain([&bob.user]) {
            let path = format!("/{kind}/{other}");
            assert_eq!(status(Method::PUT, &path, &ann).await, done);
        }
        let first = list(&format!("/{kind}?limit=1"), &ann).await;
        let expected = json!([{"user_id": others[0], "since": "1970-01-01T00:00:00.000Z"}]);
        assert_eq!(first["items"], expected);
        let cursor = first["next"].as_str().unwrap();
        let rest = list(&format!("/{kind}?cursor={cursor}"), &ann).await;
        assert_eq!(rest["items"][0]["user_id"], others[1].to_string());
        assert_eq!(rest["next"], Value::Null);
        assert_eq!(list(&format!("/{kind}"), &bob).await["items"], json!([]));
    }
    let of_ann = format!("/users/{}", ann.user);
    let of_both = format!("/users?ids={},{}", ann.user, bob.user);
    let contact = format!("/contacts/{}", bob.user);
    assert_eq!(status(Method::GET, &contact, &ann).await, StatusCode::OK);
    assert_eq!(
        status(Method::GET, &of_ann, &bob).await,
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        list(&of_both, &bob).await["items"][0]["id"],
        bob.user.to_string()
    );
    for kind in ["contacts", "blocks"] {
        let path = format!("/{kind}/{}", bob.user);
        for _ in 0..2 {
            assert_eq!(
                status(Method::DELETE, &path, &ann).await,
                StatusCode::NO_CONTENT
            );
        }
    }
    assert_eq!(
        status(Method::GET, &contact, &ann).await,
        StatusCode::NOT_FOUND
    );
    assert_eq!(status(Method::GET, &of_ann, &bob).await, StatusCode::OK);
    for path in ["/contacts?limit=1001", "/blocks?limit=0", "/contacts/ann"] {
        assert_eq!(
            status(Method::GET, path, &ann).await,
            StatusCode::BAD_REQUEST,
            "{path}"
        );
    }
    let (unknown, ..) = ask(
        &router,
        request(Method::GET, "/api/v1/contacts", None, None),
    )
    .await;
    assert_eq!(unknown, StatusCode::UNAUTHORIZED);
}

/// EDGE-01: the token of the operator's probe is good for a room of its own and messages in it, whatever else there is.
#[tokio::test]
async fn the_probe_may_write_and_read_messages_only() {
    let town = Town::new();
    let probe = Identity {
        user: UserId::PROBE,
        ..somebody()
    };
    let room = town.room(&[probe.user]);
    let router = router(&town, options());
    let messages = format!("/api/v1/rooms/{room}/messages");
    let message = json!({ "client_message_id": "a", "content": "probe" });
    let new_room = json!({ "name": "probe", "type": "private" });
    for (method, path, body) in [
        (Method::GET, "/api/v1/rooms/me", None),
        (Method::GET, &messages, None),
        (Method::POST, &messages, Some(message)),
        (Method::POST, "/api/v1/rooms", Some(new_room)),
    ] {
        let (status, _, body) = ask(&router, request(method, path, Some(&probe), body)).await;
        let said = String::from_utf8_lossy(&body).into_owned();
        assert!(status != StatusCode::FORBIDDEN, "{path}: {status} {said}");
    }
    let room = format!("/api/v1/rooms/{room}");
    for (method, path) in [
        (Method::GET, "/api/v1/rooms"),
        (Method::GET, "/api/v1/users?query=ann"),
        (Method::GET, "/api/v1/users/by-username/ann"),
        (Method::GET, "/api/v1/contacts"),
        (Method::GET, "/api/v1/presence"),
        (Method::GET, &room),
        (Method::DELETE, &room),
        (Method::POST, "/api/v1/auth/ws-ticket"),
        (Method::GET, "/api/v1/auth/sessions"),
    ] {
        let (status, _, _) = ask(&router, request(method, path, Some(&probe), None)).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{path}");
    }
}
