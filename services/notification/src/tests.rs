//! The notification role over the embedded stores and a real HTTP receiver.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::{Request, State},
    http::StatusCode as Status,
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use carillon_adapters::embedded;
use carillon_domain::{
    Clock, DeviceId, Error, ErrorCode, MessageId, Result, RoomId, Sequence, Timestamp, UserId,
    account::{ClientInfo, Identity, Session},
    event::Mentions,
    people::Relation,
    ports::{JobHandler, JobOutcome},
    push::{PushJob, PushProvider, PushTarget},
    services::{NewPushTarget, NotificationService},
    settings::{Notify, Settings},
};
use p256::{PublicKey, SecretKey, ecdh::diffie_hellman, elliptic_curve::sec1::ToEncodedPoint};
use parking_lot::Mutex;
use ring::{aead, hkdf, signature};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{
    FcmOptions, NotificationOptions, NotificationPorts, NotificationRole, ServiceAccount, VapidKey,
    WebPushOptions,
};

/// Made for these tests; opens nothing.
const RSA_KEY: &str = include_str!("testdata/service-account.pem");

struct TestClock(AtomicI64);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}

/// A request as the receiver got it.
#[derive(Debug)]
struct Got {
    path: String,
    headers: axum::http::HeaderMap,
    body: Vec<u8>,
}

impl Got {
    fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// What the receiver answers next; 201 when nothing is left.
type Script = Arc<Mutex<VecDeque<Response>>>;

/// A push service and token endpoint: records requests, answers by script.
struct Receiver {
    url: Url,
    script: Script,
    got: mpsc::UnboundedReceiver<Got>,
}

impl Receiver {
    async fn start() -> Self {
        let (sender, got) = mpsc::unbounded_channel();
        let script = Script::default();
        let app = Router::new()
            .fallback(receive)
            .with_state((sender, script.clone()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self {
            url: Url::parse(&format!("http://{address}/")).unwrap(),
            script,
            got,
        }
    }

    fn answers(&self, answer: impl IntoResponse) {
        self.script.lock().push_back(answer.into_response());
    }

    /// Everything received up to now.
    fn received(&mut self) -> Vec<Got> {
        std::iter::from_fn(|| self.got.try_recv().ok()).collect()
    }
}

async fn receive(
    State((sender, script)): State<(mpsc::UnboundedSender<Got>, Script)>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let path = parts.uri.path().to_owned();
    let is_token = path == "/token";
    let got = Got {
        path,
        headers: parts.headers,
        body: body.to_vec(),
    };
    sender.send(got).unwrap();
    if is_token {
        return r#"{"access_token":"opensesame","expires_in":3599,"token_type":"Bearer"}"#
            .into_response();
    }
    let next = script.lock().pop_front();
    next.unwrap_or_else(|| Status::CREATED.into_response())
}

/// A browser's side of a subscription.
struct Browser {
    secret: SecretKey,
    auth: [u8; 16],
}

impl Browser {
    fn new() -> Self {
        Self {
            // Keys are numbers from 1 to the order of the curve, which begins with 0xffffffff00.
            secret: SecretKey::from_slice(&[rand::random::<u8>().clamp(1, 0xfe); 32]).unwrap(),
            auth: rand::random(),
        }
    }

    fn public(&self) -> Vec<u8> {
        let key = self.secret.public_key();
        key.to_encoded_point(false).as_bytes().to_vec()
    }

    /// RFC 8291 from the receiver's side, with ring's HKDF: written apart from the code under test.
    fn decrypt(&self, body: &[u8]) -> serde_json::Value {
        struct Len(usize);
        impl hkdf::KeyType for Len {
            fn len(&self) -> usize {
                self.0
            }
        }
        let derive = |salt: &[u8], input: &[u8], info: &[u8], len: usize| {
            let mut out = vec![0; len];
            hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
                .extract(input)
                .expand(&[info], Len(len))
                .unwrap()
                .fill(&mut out)
                .unwrap();
            out
        };
        let (salt, rest) = body.split_at(16);
        assert_eq!(rest[..5], [0, 0, 16, 0, 65]);
        let (sender, record) = rest[5..].split_at(65);
        let sender_key = PublicKey::from_sec1_bytes(sender).unwrap();
        let shared = diffie_hellman(self.secret.to_nonzero_scalar(), sender_key.as_affine());
        let info = [b"WebPush: info\0", self.public().as_slice(), sender].concat();
        let input = derive(&self.auth, shared.raw_secret_bytes(), &info, 32);
        let key = derive(salt, &input, b"Content-Encoding: aes128gcm\0", 16);
        let nonce = derive(salt, &input, b"Content-Encoding: nonce\0", 12);
        let mut record = record.to_vec();
        let plain =
            aead::LessSafeKey::new(aead::UnboundKey::new(&aead::AES_128_GCM, &key).unwrap())
                .open_in_place(
                    aead::Nonce::try_assume_unique_for_key(&nonce).unwrap(),
                    aead::Aad::empty(),
                    &mut record,
                )
                .unwrap();
        assert_eq!(plain.last(), Some(&2));
        serde_json::from_slice(&plain[..plain.len() - 1]).unwrap()
    }
}

struct World {
    role: Arc<NotificationRole>,
    stores: embedded::Stores,
    receiver: Receiver,
    clock: Arc<TestClock>,
    vapid: VapidKey,
    _directory: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let receiver = Receiver::start().await;
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(TestClock(AtomicI64::new(1_700_000_000_000)));
        let stores = embedded::open_with(
            directory.path(),
            embedded::Options {
                clock: clock.clone(),
                ..embedded::Options::default()
            },
        )
        .unwrap();
        let vapid = VapidKey::generate();
        let options = NotificationOptions {
            web_push: Some(WebPushOptions {
                base_url: Some(receiver.url.clone()),
                vapid_key: vapid.clone(),
                subject: "mailto:ops@example.com".to_owned(),
                ttl: Duration::from_secs(3600),
            }),
            fcm: Some(FcmOptions {
                base_url: receiver.url.clone(),
                service_account: ServiceAccount {
                    project_id: "town".to_owned(),
                    client_email: "push@town.example".to_owned(),
                    private_key: RSA_KEY.to_owned(),
                    private_key_id: Some("key-1".to_owned()),
                    token_uri: receiver.url.join("token").unwrap(),
                },
            }),
            request_timeout: Duration::from_secs(5),
            ..NotificationOptions::default()
        };
        Self {
            role: role(&stores, &clock, options),
            stores,
            receiver,
            clock,
            vapid,
            _directory: directory,
        }
    }

    /// Logs a device in.
    async fn log_in(&self, user: UserId) -> Identity {
        let who = Identity { user, ..identity() };
        let session = Session {
            user,
            device: who.device,
            refresh_hash: [0; 32],
            access_token_id: who.token_id,
            access_expires_at: Timestamp(self.clock.now().0 + 900_000),
            expires_at: Timestamp(self.clock.now().0 + 7 * 86_400_000),
            created_at: self.clock.now(),
            last_seen_at: self.clock.now(),
            client: ClientInfo::default(),
        };
        self.stores.sessions.put(&session).await.unwrap();
        who
    }

    async fn web_target(&self, browser: &Browser, path: &str) -> Identity {
        let who = self.log_in(UserId::new()).await;
        self.subscribe(
            &who,
            browser,
            self.receiver.url.join(path).unwrap().as_str(),
        )
        .await;
        who
    }

    async fn subscribe(&self, who: &Identity, browser: &Browser, endpoint: &str) {
        let target = NewPushTarget {
            provider: PushProvider::WebPush,
            token: endpoint.to_owned(),
            p256dh: Some(URL_SAFE_NO_PAD.encode(browser.public())),
            auth: Some(URL_SAFE_NO_PAD.encode(browser.auth)),
        };
        self.role.register(who, target).await.unwrap();
    }

    async fn fcm_target(&self, token: &str) -> Identity {
        let who = self.log_in(UserId::new()).await;
        self.role.register(&who, fcm(token)).await.unwrap();
        who
    }

    async fn targets(&self, who: &Identity) -> Vec<PushTarget> {
        self.stores
            .push_targets
            .of_users(&[who.user])
            .await
            .unwrap()
    }
}

fn role(
    stores: &embedded::Stores,
    clock: &Arc<TestClock>,
    options: NotificationOptions,
) -> Arc<NotificationRole> {
    let ports = NotificationPorts {
        targets: stores.push_targets.clone(),
        people: stores.people.clone(),
        settings: stores.settings.clone(),
        queue: stores.push_queue.clone(),
        ephemeral: stores.ephemeral.clone(),
        sessions: stores.sessions.clone(),
        clock: clock.clone(),
    };
    Arc::new(NotificationRole::new(ports, options).unwrap())
}

fn identity() -> Identity {
    Identity {
        user: UserId::new(),
        device: DeviceId::new(),
        token_id: uuid::Uuid::now_v7(),
        expires_at: Timestamp(i64::MAX),
    }
}

fn fcm(token: &str) -> NewPushTarget {
    NewPushTarget {
        provider: PushProvider::Fcm,
        token: token.to_owned(),
        p256dh: None,
        auth: None,
    }
}

fn job(to: &[&Identity]) -> PushJob {
    let message = MessageId::new();
    PushJob {
        id: format!("{message}/0"),
        room: RoomId::new(),
        message,
        sequence: Sequence(7),
        sender: UserId::new(),
        title: "Ann".to_owned(),
        body: "hello".to_owned(),
        recipients: to.iter().map(|who| who.user).collect(),
        mentions: Default::default(),
        direct: false,
        traceparent: None,
    }
}

fn code<T>(result: Result<T, Error>) -> ErrorCode {
    result.err().expect("must be refused").code
}

/// NOTIF-01: a Web Push that only the browser can read, identified by our key, for the service's origin.
#[tokio::test]
async fn web_push_is_encrypted_and_identified() {
    let mut world = World::new().await;
    let browser = Browser::new();
    let who = world.web_target(&browser, "push/abc?x=1").await;
    let job = job(&[&who]);
    assert_eq!(world.role.handle(job.clone()).await, JobOutcome::Done);
    let got = world.receiver.received().remove(0);
    assert_eq!(got.path, "/push/abc");
    assert_eq!(got.header("content-encoding"), "aes128gcm");
    assert_eq!(got.header("ttl"), "3600");
    assert!(!String::from_utf8_lossy(&got.body).contains("hello"));
    let payload = browser.decrypt(&got.body);
    assert_eq!(payload["body"], "hello");
    assert_eq!(payload["title"], "Ann");
    assert_eq!(payload["sequence"], 7);
    assert_eq!(payload["room_id"], job.room.to_string());
    assert_eq!(payload["message_id"], job.message.to_string());

    let authorization = got.header("authorization");
    let (token, key) = authorization
        .strip_prefix("vapid t=")
        .and_then(|rest| rest.split_once(", k="))
        .unwrap();
    assert_eq!(key, world.vapid.public_key());
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let key = URL_SAFE_NO_PAD.decode(key).unwrap();
    signature::UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, key)
        .verify(
            signed.as_bytes(),
            &URL_SAFE_NO_PAD.decode(signature).unwrap(),
        )
        .unwrap();
    let claims = claims(signed);
    let origin = world.receiver.url.as_str().trim_end_matches('/');
    assert_eq!(claims["aud"], origin);
    assert_eq!(claims["sub"], "mailto:ops@example.com");
}

/// USER-07: who wants no pushes, or only of what calls them, gets no others; a mute ends by itself.
#[tokio::test]
async fn settings_decide_which_pushes_come() {
    let mut world = World::new().await;
    let browser = Browser::new();
    let who = world.web_target(&browser, "push/a").await;
    let now = world.clock.now();
    let of = |notifications, muted_until| Settings {
        notifications,
        muted_until,
        ..Settings::default()
    };
    let called = Mentions {
        users: vec![who.user],
        room: false,
    };
    let all_called = Mentions {
        users: Vec::new(),
        room: true,
    };
    let other_called = Mentions {
        users: vec![UserId::new()],
        room: false,
    };
    let (muted, over) = (Some(now.plus(Duration::from_secs(1))), Some(now));
    for (settings, mentions, direct, comes) in [
        (of(Notify::All, None), Mentions::default(), false, true),
        (of(Notify::All, over), Mentions::default(), false, true),
        (of(Notify::All, muted), called.clone(), true, false),
        (
            of(Notify::Mentions, None),
            Mentions::default(),
            false,
            false,
        ),
        (of(Notify::Mentions, None), other_called, false, false),
        (of(Notify::Mentions, None), called.clone(), false, true),
        (of(Notify::Mentions, None), all_called, false, true),
        (of(Notify::Mentions, None), Mentions::default(), true, true),
        (of(Notify::None, None), called, true, false),
    ] {
        let change = settings.clone().into();
        world
            .stores
            .settings
            .change(who.user, &change)
            .await
            .unwrap();
        let job = PushJob {
            mentions,
            direct,
            ..job(&[&who])
        };
        assert_eq!(world.role.handle(job).await, JobOutcome::Done);
        let received = world.receiver.received().len();
        assert_eq!(received, usize::from(comes), "{settings:?}");
    }
}

/// USER-05: a push to somebody whom the sender blocked doesn't say who wrote.
#[tokio::test]
async fn a_push_shows_no_name_to_the_blocked() {
    let mut world = World::new().await;
    let browser = Browser::new();
    let who = world.web_target(&browser, "push/a").await;
    let job = job(&[&who]);
    let (people, now) = (world.stores.people.clone(), world.clock.now());
    let mut titles = Vec::new();
    for (n, pair) in [
        None,
        Some((who.user, job.sender)),
        Some((job.sender, who.user)),
    ]
    .into_iter()
    .enumerate()
    {
        if let Some((user, other)) = pair {
            people
                .put(Relation::Block, user, other, now, 9)
                .await
                .unwrap();
        }
        let job = PushJob {
            id: n.to_string(),
            ..job.clone()
        };
        assert_eq!(world.role.handle(job).await, JobOutcome::Done);
        let payload = browser.decrypt(&world.receiver.received().remove(0).body);
        titles.push(payload["title"].as_str().unwrap().to_owned());
    }
    assert_eq!(titles, ["Ann", "Ann", ""]);
}

fn claims(signed: &str) -> serde_json::Value {
    let claims = signed.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
}

/// NOTIF-01: FCM HTTP v1 with an access token that is asked for once, with a signed assertion.
#[tokio::test]
async fn fcm_messages_carry_an_access_token() {
    let mut world = World::new().await;
    let who = world.fcm_target("device-token").await;
    let first = job(&[&who]);
    assert_eq!(world.role.handle(first.clone()).await, JobOutcome::Done);
    assert_eq!(world.role.handle(job(&[&who])).await, JobOutcome::Done);
    let got = world.receiver.received();
    let paths: Vec<_> = got.iter().map(|got| got.path.as_str()).collect();
    let send = "/v1/projects/town/messages:send";
    assert_eq!(paths, ["/token", send, send]);

    let form: Vec<_> = url::form_urlencoded::parse(&got[0].body).collect();
    assert_eq!(form[0].1, "urn:ietf:params:oauth:grant-type:jwt-bearer");
    let (signed, signature) = form[1].1.rsplit_once('.').unwrap();
    let der = PrivatePkcs8KeyDer::from_pem_slice(RSA_KEY.as_bytes()).unwrap();
    let key = ring::rsa::KeyPair::from_pkcs8(der.secret_pkcs8_der()).unwrap();
    signature::UnparsedPublicKey::new(&signature::RSA_PKCS1_2048_8192_SHA256, key.public())
        .verify(
            signed.as_bytes(),
            &URL_SAFE_NO_PAD.decode(signature).unwrap(),
        )
        .unwrap();
    let claims = claims(signed);
    assert_eq!(claims["iss"], "push@town.example");
    assert_eq!(
        claims["aud"],
        world.receiver.url.join("token").unwrap().as_str()
    );
    assert_eq!(
        claims["scope"],
        "https://www.googleapis.com/auth/firebase.messaging"
    );

    assert_eq!(got[1].header("authorization"), "Bearer opensesame");
    let message = &got[1].json()["message"];
    assert_eq!(message["token"], "device-token");
    assert_eq!(message["notification"]["body"], "hello");
    assert_eq!(message["data"]["sequence"], "7");
    assert_eq!(message["data"]["room_id"], first.room.to_string());

    // An hour later the token has ended.
    world.clock.0.fetch_add(3_600_000, Ordering::SeqCst);
    assert_eq!(world.role.handle(job(&[&who])).await, JobOutcome::Done);
    assert_eq!(world.receiver.received()[0].path, "/token");
}

/// NOTIF-02: a job that comes again, or twice at once, is delivered once.
#[tokio::test]
async fn a_repeated_job_is_delivered_once() {
    let mut world = World::new().await;
    let browser = Browser::new();
    let who = world.web_target(&browser, "a").await;
    let job = job(&[&who]);
    let repeats = (0..4).map(|_| world.role.handle(job.clone()));
    let outcomes = futures::future::join_all(repeats).await;
    assert!(outcomes.contains(&JobOutcome::Done), "{outcomes:?}");
    assert_eq!(world.role.handle(job.clone()).await, JobOutcome::Done);
    assert_eq!(world.receiver.received().len(), 1);
}

/// NOTIF-02: a consumer that crashed in the middle leaves a job that the next one delivers, once the attempt must be over.
#[tokio::test]
async fn a_crash_during_a_delivery_loses_nothing() {
    let mut world = World::new().await;
    let browser = Browser::new();
    let who = world.web_target(&browser, "a").await;
    let job = job(&[&who]);
    // A receiver that never answers, and a consumer that is gone before it gives up.
    let hanging = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let registered = world.targets(&who).await.remove(0);
    let url = format!("http://{}/", hanging.local_addr().unwrap());
    let base_url = Some(Url::parse(&url).unwrap());
    let stuck = PushTarget {
        token: url,
        ..registered.clone()
    };
    world.stores.push_targets.put(&stuck).await.unwrap();
    let options = NotificationOptions {
        web_push: Some(WebPushOptions {
            base_url,
            vapid_key: world.vapid.clone(),
            subject: "mailto:ops@example.com".to_owned(),
            ttl: Duration::from_secs(60),
        }),
        ..NotificationOptions::default()
    };
    let crashing = role(&world.stores, &world.clock, options);
    let crash = tokio::spawn({
        let job = job.clone();
        async move { crashing.handle(job).await }
    });
    let _connection = hanging.accept().await.unwrap();
    crash.abort();
    assert!(crash.await.unwrap_err().is_cancelled());

    world.stores.push_targets.put(&registered).await.unwrap();
    let JobOutcome::Retry(after) = world.role.handle(job.clone()).await else {
        panic!("the other attempt may still be under way");
    };
    assert_eq!(world.receiver.received().len(), 0);
    let after = i64::try_from(after.as_millis()).unwrap();
    world.clock.0.fetch_add(after.max(31_000), Ordering::SeqCst);
    assert_eq!(world.role.handle(job).await, JobOutcome::Done);
    assert_eq!(world.receiver.received().len(), 1);
}

/// NOTIF-02: overload and defects of a provider: later, as it says; and only the device that missed it.
#[tokio::test]
async fn failed_deliveries_are_tried_again() {
    let mut world = World::new().await;
    let browser = Browser::new();
    let who = world.web_target(&browser, "a").await;
    let job_one = job(&[&who]);
    world
        .receiver
        .answers((Status::TOO_MANY_REQUESTS, [("retry-after", "120")]));
    world.receiver.answers(Status::SERVICE_UNAVAILABLE);
    let outcome = world.role.handle(job_one.clone()).await;
    assert_eq!(outcome, JobOutcome::Retry(Duration::from_secs(120)));
    assert!(matches!(
        world.role.handle(job_one.clone()).await,
        JobOutcome::Retry(_)
    ));
    assert_eq!(world.role.handle(job_one).await, JobOutcome::Done);
    assert_eq!(world.receiver.received().len(), 3);

    let other = world.web_target(&browser, "b").await;
    let job_two = job(&[&who, &other]);
    world.receiver.answers(Status::BAD_GATEWAY);
    assert!(matches!(
        world.role.handle(job_two.clone()).await,
        JobOutcome::Retry(_)
    ));
    assert_eq!(world.role.handle(job_two).await, JobOutcome::Done);
    let mut paths: Vec<_> = world
        .receiver
        .received()
        .into_iter()
        .map(|got| got.path)
        .collect();
    assert_eq!(paths.len(), 3);
    paths.sort();
    paths.dedup();
    assert_eq!(paths, ["/a", "/b"]);
}

/// NOTIF-02: what a provider will never take is dropped, also when another device brings the job back; redirects aren't followed.
#[tokio::test]
async fn rejected_deliveries_are_dropped() {
    let mut world = World::new().await;
    let browser = Browser::new();
    let who = world.web_target(&browser, "a").await;
    for answer in [
        Status::BAD_REQUEST.into_response(),
        Status::PAYLOAD_TOO_LARGE.into_response(),
        Status::FORBIDDEN.into_response(),
        (Status::FOUND, [("location", "/elsewhere")]).into_response(),
        (Status::TEMPORARY_REDIRECT, [("location", "/elsewhere")]).into_response(),
    ] {
        world.receiver.answers(answer);
        let job = job(&[&who]);
        assert_eq!(world.role.handle(job.clone()).await, JobOutcome::Done);
        assert_eq!(world.role.handle(job).await, JobOutcome::Done);
        let got = world.receiver.received();
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].path, "/a");
    }
    assert_eq!(world.targets(&who).await.len(), 1);
}

/// NOTIF-02: nobody listens: later.
#[tokio::test]
async fn without_a_connection_the_job_stays() {
    let world = World::new().await;
    let who = world.web_target(&Browser::new(), "a").await;
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = Url::parse(&format!("http://{}/", free.local_addr().unwrap())).unwrap();
    drop(free);
    let target = world.targets(&who).await.remove(0);
    let moved = PushTarget {
        token: base_url.to_string(),
        ..target
    };
    world.stores.push_targets.put(&moved).await.unwrap();
    let options = NotificationOptions {
        web_push: Some(WebPushOptions {
            base_url: Some(base_url),
            vapid_key: world.vapid.clone(),
            subject: "mailto:ops@example.com".to_owned(),
            ttl: Duration::from_secs(60),
        }),
        ..NotificationOptions::default()
    };
    let role = role(&world.stores, &world.clock, options);
    assert!(matches!(
        role.handle(job(&[&who])).await,
        JobOutcome::Retry(_)
    ));
}

/// NOTIF-03: 404 and 410 of a push service drop the target, and with it all further jobs.
#[tokio::test]
async fn targets_that_are_gone_are_dropped() {
    let mut world = World::new().await;
    let browser = Browser::new();
    for status in [Status::NOT_FOUND, Status::GONE] {
        let who = world.web_target(&browser, "a").await;
        world.receiver.answers(status);
        assert_eq!(world.role.handle(job(&[&who])).await, JobOutcome::Done);
        assert!(world.targets(&who).await.is_empty());
        assert_eq!(world.role.handle(job(&[&who])).await, JobOutcome::Done);
        assert_eq!(world.receiver.received().len(), 1);
    }
}

/// NOTIF-03: FCM's word for it; another 404, as of a wrong project, costs nobody their target. A refused access token is
/// replaced.
#[tokio::test]
async fn fcm_targets_are_dropped_only_by_its_word() {
    let mut world = World::new().await;
    let who = world.fcm_target("device-token").await;
    world
        .receiver
        .answers((Status::NOT_FOUND, "<html>no such page</html>"));
    assert_eq!(world.role.handle(job(&[&who])).await, JobOutcome::Done);
    assert_eq!(world.targets(&who).await.len(), 1);

    world.receiver.received();
    world.receiver.answers(Status::UNAUTHORIZED);
    let again = job(&[&who]);
    assert!(matches!(
        world.role.handle(again.clone()).await,
        JobOutcome::Retry(_)
    ));
    assert_eq!(world.role.handle(again).await, JobOutcome::Done);
    let paths: Vec<_> = world
        .receiver
        .received()
        .into_iter()
        .map(|got| got.path)
        .collect();
    let send = "/v1/projects/town/messages:send";
    assert_eq!(paths, [send, "/token", send]);

    let gone = r#"{"error":{"code":404,"details":[{"errorCode":"UNREGISTERED"}]}}"#;
    world.receiver.answers((Status::NOT_FOUND, gone));
    assert_eq!(world.role.handle(job(&[&who])).await, JobOutcome::Done);
    assert!(world.targets(&who).await.is_empty());
}

/// NOTIF-03: a device has one target; registering again replaces it, unregistering ends it.
#[tokio::test]
async fn targets_are_registered_by_device() {
    let world = World::new().await;
    let who = world.fcm_target("first").await;
    world.role.register(&who, fcm("second")).await.unwrap();
    let targets = world.targets(&who).await;
    assert_eq!(targets.len(), 1);
    assert_eq!(targets[0].token, "second");
    world.role.unregister(&who).await.unwrap();
    world.role.unregister(&who).await.unwrap();
    assert!(world.targets(&who).await.is_empty());
}

/// NOTIF-01: what can't be registered, and why.
#[tokio::test]
async fn registrations_are_checked() {
    let world = World::new().await;
    let browser = Browser::new();
    let web = |token: &str| NewPushTarget {
        provider: PushProvider::WebPush,
        token: token.to_owned(),
        p256dh: Some(URL_SAFE_NO_PAD.encode(browser.public())),
        auth: Some(URL_SAFE_NO_PAD.encode(browser.auth)),
    };
    let register = |target| async {
        let error = world.role.register(&identity(), target).await.unwrap_err();
        (error.code, error.fields.first().map(|f| f.field.clone()))
    };
    let of = |field: &str| (ErrorCode::InvalidRequest, Some(field.to_owned()));
    for bad in [
        "",
        "http://push.example.com/",
        "https://10.0.0.1/",
        "https://localhost/",
    ] {
        assert_eq!(register(web(bad)).await, of("token"), "{bad}");
    }
    let good = "https://push.example.com/x";
    assert_eq!(
        register(NewPushTarget {
            p256dh: None,
            ..web(good)
        })
        .await,
        of("p256dh")
    );
    let short = Some("AAAA".to_owned());
    assert_eq!(
        register(NewPushTarget {
            auth: short,
            ..web(good)
        })
        .await,
        of("auth")
    );
    world.role.register(&identity(), web(good)).await.unwrap();
    for bad in ["", "has blank", "line\nbreak", &"x".repeat(4097)] {
        assert_eq!(register(fcm(bad)).await, of("token"));
    }
    let mixed = NewPushTarget {
        provider: PushProvider::Fcm,
        ..web("token")
    };
    assert_eq!(register(mixed).await, of("p256dh"));
}

/// NOTIF-01: a provider that isn't configured says so.
#[tokio::test]
async fn providers_must_be_configured() {
    let world = World::new().await;
    let apns = NewPushTarget {
        provider: PushProvider::Apns,
        ..fcm("token")
    };
    let result = world.role.register(&identity(), apns.clone()).await;
    assert_eq!(code(result), ErrorCode::FailedPrecondition);
    let bare = role(&world.stores, &world.clock, NotificationOptions::default());
    for provider in [PushProvider::Fcm, PushProvider::Apns, PushProvider::WebPush] {
        let target = NewPushTarget {
            provider,
            ..apns.clone()
        };
        let result = bare.register(&identity(), target).await;
        assert_eq!(code(result), ErrorCode::FailedPrecondition);
    }
}

/// NOTIF-01: a target that was stored under another configuration isn't called inside the network.
#[tokio::test]
async fn stored_endpoints_are_checked_again() {
    let mut world = World::new().await;
    let who = world.web_target(&Browser::new(), "a").await;
    let options = NotificationOptions {
        web_push: Some(WebPushOptions {
            base_url: None,
            vapid_key: world.vapid.clone(),
            subject: "mailto:ops@example.com".to_owned(),
            ttl: Duration::from_secs(60),
        }),
        ..NotificationOptions::default()
    };
    let strict = role(&world.stores, &world.clock, options);
    assert_eq!(strict.handle(job(&[&who])).await, JobOutcome::Done);
    assert!(world.receiver.received().is_empty());
}

/// NOTIF-02: through the durable queue: each job once, and the consumer stops when told.
#[tokio::test]
async fn jobs_are_consumed_from_the_queue() {
    let mut world = World::new().await;
    let browser = Browser::new();
    let who = world.web_target(&browser, "a").await;
    let stop = CancellationToken::new();
    let running = tokio::spawn(world.role.clone().run(4, stop.clone()));
    let job = job(&[&who]);
    world.stores.push_queue.publish(&job).await.unwrap();
    world.stores.push_queue.publish(&job).await.unwrap();
    let got = world.receiver.got.recv().await.unwrap();
    assert_eq!(
        browser.decrypt(&got.body)["message_id"],
        job.message.to_string()
    );
    stop.cancel();
    running.await.unwrap().unwrap();
    assert!(world.receiver.received().is_empty());
}

/// NOTIF-03: a device whose session ended, however, gets nothing more, and its target is dropped.
#[tokio::test]
async fn logged_out_devices_get_no_push() {
    let mut world = World::new().await;
    let browser = Browser::new();
    let who = world.web_target(&browser, "a").await;
    let sessions = world.stores.sessions.clone();
    sessions.remove(who.user, who.device).await.unwrap();
    assert_eq!(world.role.handle(job(&[&who])).await, JobOutcome::Done);
    assert!(world.receiver.received().is_empty());
    assert!(world.targets(&who).await.is_empty());

    let who = world.web_target(&browser, "b").await;
    world.clock.0.fetch_add(8 * 86_400_000, Ordering::SeqCst);
    assert_eq!(world.role.handle(job(&[&who])).await, JobOutcome::Done);
    assert!(world.receiver.received().is_empty());
    assert!(world.targets(&who).await.is_empty());
}

/// NOTIF-02: a browser that logged in again has one subscription, and gets a message once.
#[tokio::test]
async fn one_subscription_of_several_logins_gets_one_push() {
    let mut world = World::new().await;
    let browser = Browser::new();
    let first = world.web_target(&browser, "a").await;
    let again = world.log_in(first.user).await;
    let endpoint = world.receiver.url.join("a").unwrap();
    world.subscribe(&again, &browser, endpoint.as_str()).await;
    assert_eq!(world.targets(&first).await.len(), 2);
    assert_eq!(world.role.handle(job(&[&first])).await, JobOutcome::Done);
    assert_eq!(world.receiver.received().len(), 1);
    let left = world.targets(&first).await;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].device, again.device, "the newest");
}

/// NOTIF-02: an endpoint that doesn't answer is asked once, then its owner's are left alone for a while; pushes of others go on.
#[tokio::test]
async fn silent_endpoints_are_left_alone() {
    let mut world = World::new().await;
    let browser = Browser::new();
    let slow = world.log_in(UserId::new()).await;
    // A name that nobody can have (RFC 6761).
    world
        .subscribe(&slow, &browser, "https://push.invalid/x")
        .await;
    let pause = Duration::from_secs(300);
    let first = job(&[&slow]);
    assert_eq!(
        world.role.handle(first.clone()).await,
        JobOutcome::Retry(pause)
    );
    let mark = format!("push:slow:{}", slow.user);
    let ephemeral = world.stores.ephemeral.clone();
    assert!(ephemeral.get(&mark).await.unwrap().is_some());
    // What nobody is asked while the mark is there, the counter of unanswered requests shows.
    let origin = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(
        "https://push.invalid",
    ));
    let unanswered = format!("push:unanswered:{origin}");
    for _ in 0..3 {
        assert_eq!(
            world.role.handle(job(&[&slow])).await,
            JobOutcome::Retry(pause)
        );
    }
    let minute = Duration::from_secs(60);
    assert_eq!(ephemeral.increment(&unanswered, minute).await.unwrap(), 2);

    let other = world.web_target(&browser, "a").await;
    assert_eq!(world.role.handle(job(&[&other])).await, JobOutcome::Done);
    assert_eq!(world.receiver.received().len(), 1);
}

/// NOTIF-02: one person's pushes are bounded, and nobody else's are concerned.
#[tokio::test]
async fn pushes_of_one_person_are_bounded() {
    let mut world = World::new().await;
    let browser = Browser::new();
    let who = world.web_target(&browser, "a").await;
    let other = world.web_target(&browser, "b").await;
    for _ in 0..70 {
        assert_eq!(world.role.handle(job(&[&who])).await, JobOutcome::Done);
    }
    assert_eq!(world.receiver.received().len(), 60);
    assert_eq!(world.role.handle(job(&[&other])).await, JobOutcome::Done);
    assert_eq!(world.receiver.received().len(), 1);
    world.clock.0.fetch_add(61_000, Ordering::SeqCst);
    assert_eq!(world.role.handle(job(&[&who])).await, JobOutcome::Done);
    assert_eq!(world.receiver.received().len(), 1);
}
