//! Who calls: the token, and the address.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::extract::{FromRequestParts, MatchedPath};
use carillon_domain::{
    Error, UserId,
    account::{ClientInfo, Identity},
    limit::Subject,
};
use http::{HeaderMap, Method, header, request::Parts};
use ipnet::IpNet;

use super::{Problem, RequestContext};
use crate::{
    gateway::App,
    wire::{DescribedDevice, DeviceDescription},
};

/// The verified caller. 401 without a valid access token, 429 when its user's limit is used up.
pub struct Caller(pub Identity);

impl FromRequestParts<App> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let Some(token) = bearer(&parts.headers) else {
            return Err(Problem::no_credentials());
        };
        let identity = app.services.verifier.verify_access(token).await?;
        if identity.user == UserId::PROBE && !is_of_probe(parts) {
            return Err(Error::denied("this token is for a probe message only").into());
        }
        let user = Subject::User(identity.user);
        let (allowance, taken) = app.limits.user_requests.take(user).await;
        if let (Some(allowance), Some(context)) =
            (allowance, parts.extensions.get::<RequestContext>())
        {
            let _ = context.of_user.set(allowance);
        }
        taken?;
        Ok(Self(identity))
    }
}

/// What the operator's probe needs: a room of its own, and messages in it.
const PROBE_ROUTES: [(Method, &str); 4] = [
    (Method::GET, "/api/v1/rooms/me"),
    (Method::POST, "/api/v1/rooms"),
    (Method::POST, "/api/v1/rooms/{id}/messages"),
    (Method::GET, "/api/v1/rooms/{id}/messages"),
];

fn is_of_probe(parts: &Parts) -> bool {
    let route = parts.extensions.get::<MatchedPath>();
    route.is_some_and(|route| {
        PROBE_ROUTES
            .iter()
            .any(|(method, path)| parts.method == method && route.as_str() == *path)
    })
}

/// The token of `Authorization: Bearer …`.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// The value of a cookie.
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(found, value)| *found == name && !value.is_empty())
        .map(|(_, value)| value)
}

/// The address at the other end of the connection, put into each request by the server loop.
#[derive(Clone, Copy)]
pub struct PeerAddress(pub SocketAddr);

/// The client's address: the peer's, or what trusted proxies say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientAddress(pub IpAddr);

impl ClientAddress {
    /// While an address is a trusted proxy's, the entry before it in `X-Forwarded-For` counts: the right-most one that isn't a
    /// proxy's, as with nginx's `real_ip_recursive`. Everything to the left of it can be invented by the client.
    pub fn of(headers: &HeaderMap, extensions: &http::Extensions, trusted: &[IpNet]) -> Self {
        let mut client = peer(extensions);
        let entries = headers
            .get_all("x-forwarded-for")
            .iter()
            .rev()
            .flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','));
        for entry in entries {
            if !is_in(client, trusted) {
                break;
            }
            let Some(before) = forwarded(entry) else {
                break;
            };
            client = before;
        }
        Self(client)
    }
}

/// Whether a trusted proxy says that its client came by TLS.
pub fn came_by_tls(headers: &HeaderMap, extensions: &http::Extensions, trusted: &[IpNet]) -> bool {
    let says_https = headers
        .get("x-forwarded-proto")
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"https"));
    says_https && is_in(peer(extensions), trusted)
}

/// The peer's address; an IPv4 address stays one when it comes over an IPv6 socket.
fn peer(extensions: &http::Extensions) -> IpAddr {
    extensions
        .get::<PeerAddress>()
        .map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |peer| {
            peer.0.ip().to_canonical()
        })
}

fn is_in(address: IpAddr, networks: &[IpNet]) -> bool {
    networks.iter().any(|network| network.contains(&address))
}

/// One entry of `X-Forwarded-For`: an address, by some proxies with a port.
fn forwarded(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?.trim();
    let address = text
        .parse::<IpAddr>()
        .or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()))
        .ok()?;
    Some(address.to_canonical())
}

/// What a login records of its client.
pub fn client_info(
    headers: &HeaderMap,
    context: &RequestContext,
    device: Option<DeviceDescription>,
) -> Result<ClientInfo, Problem> {
    let device = match device {
        Some(DeviceDescription::Described(device)) => device,
        Some(DeviceDescription::Name(name)) => DescribedDevice {
            name: Some(name),
            device_type: None,
            platform: None,
        },
        None => DescribedDevice {
            name: None,
            device_type: None,
            platform: None,
        },
    };
    for text in [&device.name, &device.platform].into_iter().flatten() {
        if text.chars().count() > 80 || text.chars().any(char::is_control) {
            return Err(Problem::field(
                "device",
                "at most 80 characters, no control characters",
            ));
        }
    }
    let said = |text: &String| !text.trim().is_empty();
    Ok(ClientInfo {
        device_name: device.name.filter(said),
        device_type: device.device_type,
        platform: device.platform.filter(said),
        user_agent: headers
            .get(header::USER_AGENT)
            .and_then(|value| value.to_str().ok())
            .map(|value| value.chars().take(256).collect()),
        ip: Some(context.client.0.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn tokens_are_found_in_their_places() {
        let sent = headers(&[
            ("authorization", "bearer abc"),
            ("cookie", "a=1; jwt=xyz"),
            ("cookie", "b=2"),
        ]);
        assert_eq!(bearer(&sent), Some("abc"));
        assert_eq!(cookie(&sent, "jwt"), Some("xyz"));
        assert_eq!(cookie(&sent, "b"), Some("2"));
        assert_eq!(cookie(&sent, "c"), None);
        assert_eq!(bearer(&headers(&[("authorization", "Basic abc")])), None);
        assert_eq!(bearer(&headers(&[("authorization", "Bearer ")])), None);
    }

    fn from(peer: &str) -> http::Extensions {
        let mut extensions = http::Extensions::new();
        extensions.insert(PeerAddress(SocketAddr::new(peer.parse().unwrap(), 5)));
        extensions
    }

    /// EDGE-03: who is limited: the right-most address that isn't a trusted proxy's, and only a trusted proxy names it.
    #[test]
    fn only_trusted_proxies_name_the_client() {
        let of = |peer: &str, sent: &[&'static str], trusted: &[&str]| {
            let trusted: Vec<IpNet> = trusted.iter().map(|text| text.parse().unwrap()).collect();
            let sent: Vec<_> = sent.iter().map(|text| ("x-forwarded-for", *text)).collect();
            let address = ClientAddress::of(&headers(&sent), &from(peer), &trusted);
            address.0.to_string()
        };
        let chain = &["6.6.6.6, 1.1.1.1", "10.0.0.9"][..];
        assert_eq!(of("10.0.0.1", chain, &[]), "10.0.0.1");
        assert_eq!(of("10.0.0.1", chain, &["192.168.0.0/16"]), "10.0.0.1");
        assert_eq!(of("9.9.9.9", chain, &["10.0.0.0/8"]), "9.9.9.9");
        assert_eq!(of("10.0.0.1", chain, &["10.0.0.1/32"]), "10.0.0.9");
        assert_eq!(of("10.0.0.1", chain, &["10.0.0.0/8"]), "1.1.1.1");
        let all = &["10.0.0.0/8", "1.0.0.0/8", "6.0.0.0/8"][..];
        assert_eq!(of("10.0.0.1", chain, all), "6.6.6.6");
        assert_eq!(of("10.0.0.1", &[], &["10.0.0.0/8"]), "10.0.0.1");
        // A broken entry ends the walk: what is left of it is nobody's word.
        for broken in ["1.1.1.1, unknown", "1.1.1.1,"] {
            assert_eq!(of("10.0.0.1", &[broken], &["10.0.0.0/8"]), "10.0.0.1");
        }
        assert_eq!(of("10.0.0.1", &["1.1.1.1:443"], &["10.0.0.0/8"]), "1.1.1.1");
        let v6 = &["2001:db8::7"][..];
        assert_eq!(of("::ffff:10.0.0.1", v6, &["10.0.0.0/8"]), "2001:db8::7");
    }

    #[test]
    fn only_trusted_proxies_say_that_it_was_tls() {
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        let sent = |value| headers(&[("x-forwarded-proto", value)]);
        assert!(came_by_tls(&sent("https"), &from("10.0.0.1"), &trusted));
        assert!(!came_by_tls(&sent("http"), &from("10.0.0.1"), &trusted));
        assert!(!came_by_tls(&sent("https"), &from("9.9.9.9"), &trusted));
    }
}
