//! Roles that know each other by certificates.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use carillon_domain::{
    ErrorCode, MessageId, RoomId,
    account::ClientInfo,
    services::{AuthService as _, Login, MessageService as _},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::net::TcpStream;

use super::{
    all_of,
    fakes::{FakeServices, FakeVerifier, ann, uuid},
    start_with,
};
use crate::{
    AuthClient, Credentials, InterceptorOptions, MessageClient, RoleNames, ServeOptions, Tls,
};

fn names() -> RoleNames {
    let name = |role: &str| format!("town-{role}.chat.svc");
    RoleNames {
        gateway: name("gateway"),
        auth: name("auth"),
        message: name("message"),
        presence: name("presence"),
        media: name("media"),
        notification: name("notification"),
    }
}

/// An authority, and the certificates that it gives.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// Certificate and key.
struct Issued(String, String);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    fn issue(&self, names: &[&str], days: i64) -> Issued {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        let now = std::time::SystemTime::now();
        params.not_before = (now - Duration::from_secs(86_400 * 30)).into();
        params.not_after = if days < 0 {
            (now - Duration::from_secs(86_400 * days.unsigned_abs())).into()
        } else {
            (now + Duration::from_secs(86_400 * days.unsigned_abs())).into()
        };
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Issued(certificate.pem(), key.serialize_pem())
    }

    fn role(&self, role: &str) -> Tls {
        self.tls(&[&format!("town-{role}.chat.svc")])
    }

    fn tls(&self, subject: &[&str]) -> Tls {
        let Issued(certificate, key) = self.issue(subject, 30);
        Tls::new(&names(), &certificate, &key, &self.pem()).unwrap()
    }
}

/// A server of every service that proves to be the role `tls` is of.
async fn server(tls: Tls) -> (super::Running, String, Arc<FakeServices>) {
    let fake = Arc::new(FakeServices::default());
    let options = ServeOptions {
        tls: Some(tls),
        ..ServeOptions::new(InterceptorOptions::mutual_tls(Arc::new(FakeVerifier)))
    };
    let running = start_with(all_of(&fake), options).await;
    let address = running.address.replace("http://", "https://");
    (running, address, fake)
}

async fn call(address: &str, tls: Tls) -> Result<(), ErrorCode> {
    let client = AuthClient::connect_lazy(address, Credentials::mutual_tls(tls)).unwrap();
    let answer = client.me(&ann()).await;
    answer.map(|_| ()).map_err(|error| error.code)
}

#[tokio::test]
async fn a_gateway_is_let_in_by_its_certificate() {
    let authority = Authority::new();
    let (_running, address, fake) = server(authority.role("auth")).await;
    assert_eq!(call(&address, authority.role("gateway")).await, Ok(()));
    assert_eq!(fake.calls().len(), 1);
}

#[tokio::test]
async fn others_are_not() {
    let authority = Authority::new();
    let (_running, address, fake) = server(authority.role("auth")).await;
    let refused = |tls: Tls| {
        let address = address.clone();
        async move { call(&address, tls).await.unwrap_err() }
    };
    // A role that has no business with accounts.
    assert_eq!(
        refused(authority.role("media")).await,
        ErrorCode::PermissionDenied
    );
    // A name that the authority gave to somebody else: no role, and without a token nobody.
    assert_eq!(
        refused(authority.tls(&["shop.example.com"])).await,
        ErrorCode::Unauthenticated
    );
    // The right name by another authority, from one who believes ours.
    let other = Authority::new().issue(&["town-gateway.chat.svc"], 30);
    let tls = Tls::new(&names(), &other.0, &other.1, &authority.pem()).unwrap();
    assert_eq!(refused(tls).await, ErrorCode::Unavailable);
    // The right name, a month ago.
    let expired = authority.issue(&["town-gateway.chat.svc"], -1);
    let tls = Tls::new(&names(), &expired.0, &expired.1, &authority.pem()).unwrap();
    assert_eq!(refused(tls).await, ErrorCode::Unavailable);
    assert_eq!(fake.calls().len(), 0);
}

/// Whoever logs in without being a role is known by their address, over TLS as well: limits go by it.
#[tokio::test]
async fn a_stranger_has_an_address() {
    let authority = Authority::new();
    let (_running, address, fake) = server(authority.role("auth")).await;
    let credentials = Credentials::mutual_tls(authority.tls(&["shop.example.com"]));
    let client = AuthClient::connect_lazy(&address, credentials).unwrap();
    let login = Login {
        login: "ann".to_owned(),
        password: "correct horse battery".to_owned(),
    };
    client.login(login, ClientInfo::default()).await.unwrap();
    let calls = fake.calls();
    assert!(calls[0].contains("ip: Some(\"127.0.0.1\")"), "{calls:?}");
}

/// What listens at the address of a role must be that role.
#[tokio::test]
async fn a_server_must_prove_the_role_that_is_called() {
    let authority = Authority::new();
    let (_running, address, _fake) = server(authority.role("media")).await;
    assert_eq!(
        call(&address, authority.role("gateway")).await,
        Err(ErrorCode::Unavailable)
    );
    // By its address, as message replicas are called.
    let (_running, address, fake) = server(authority.role("message")).await;
    let credentials = Credentials::mutual_tls(authority.role("gateway"));
    let messages = MessageClient::connect_lazy(&address, credentials).unwrap();
    let (room, message) = (RoomId(uuid(1)), MessageId(uuid(2)));
    let _ = messages.message(ann().user, room, message).await;
    assert_eq!(fake.calls().len(), 1);
}

/// A rotation of the authority: first both are believed everywhere, then certificates change, then the old one goes. Nobody is refused.
#[tokio::test]
async fn an_authority_is_replaced_while_calls_go_on() {
    let (old, new) = (Authority::new(), Authority::new());
    let gateway = old.role("gateway");
    let auth = old.role("auth");
    let (_running, address, _fake) = server(auth.clone()).await;
    // One connection that stays, and a new one for each look.
    let kept =
        AuthClient::connect_lazy(&address, Credentials::mutual_tls(gateway.clone())).unwrap();
    let both = format!("{}{}", old.pem(), new.pem());
    let roles = [
        (&auth, "town-auth.chat.svc"),
        (&gateway, "town-gateway.chat.svc"),
    ];
    for (issuer, trust) in [(&old, &both), (&new, &both), (&new, &new.pem())] {
        for (tls, name) in roles {
            let Issued(certificate, key) = issuer.issue(&[name], 30);
            tls.replace(&certificate, &key, trust).unwrap();
            // Halfway too.
            assert_eq!(call(&address, gateway.clone()).await, Ok(()));
            kept.me(&ann()).await.unwrap();
        }
    }
    // Whoever still has an old certificate is no role any more.
    assert_eq!(
        call(&address, old.role("gateway")).await,
        Err(ErrorCode::Unavailable)
    );
}

#[tokio::test]
async fn plain_text_and_silence_get_nowhere() {
    let authority = Authority::new();
    let (running, address, _fake) = server(authority.role("auth")).await;
    let plain = Credentials::internal("0123456789abcdef").unwrap();
    let client = AuthClient::connect_lazy(&running.address, plain).unwrap();
    let refused = client.me(&ann()).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unavailable);
    // Connections that never speak keep nobody else out.
    let socket: SocketAddr = address.trim_start_matches("https://").parse().unwrap();
    let mut silent = Vec::new();
    for _ in 0..32 {
        silent.push(TcpStream::connect(socket).await.unwrap());
    }
    assert_eq!(call(&address, authority.role("gateway")).await, Ok(()));
}

#[test]
fn what_is_no_certificate_is_named_and_changes_nothing() {
    let authority = Authority::new();
    let Issued(certificate, key) = authority.issue(&["town-auth.chat.svc"], 30);
    let Issued(_, other_key) = authority.issue(&["town-auth.chat.svc"], 30);
    let trust = authority.pem();
    for (certificate, key, trust, field) in [
        ("", key.as_str(), trust.as_str(), "tls.certificate"),
        (&certificate, "", &trust, "tls.key"),
        (&certificate, &key, "nonsense", "tls.trust"),
        (&certificate, &other_key, &trust, "tls.certificate"),
    ] {
        let error = Tls::new(&names(), certificate, key, trust).unwrap_err();
        assert_eq!(error.fields[0].field, field);
    }
    let mut bad = names();
    bad.media = "not a name".to_owned();
    let error = Tls::new(&bad, &certificate, &key, &trust).unwrap_err();
    assert_eq!(error.fields[0].field, "tls.names");
}
