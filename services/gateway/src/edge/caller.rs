//! Who calls: the token, and the address.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::extract::FromRequestParts;
use carillon_domain::account::{ClientInfo, Identity};
use http::{HeaderMap, header, request::Parts};

use super::{Problem, RequestContext};
use crate::gateway::App;

/// The verified caller. 401 without a valid access token.
pub struct Caller(pub Identity);

impl FromRequestParts<App> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let Some(token) = bearer(&parts.headers) else {
            return Err(Problem::no_credentials());
        };
        let identity = app.services.verifier.verify_access(token).await?;
        Ok(Self(identity))
    }
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

/// The client's address: the peer's, or what a trusted proxy says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientAddress(pub IpAddr);

impl ClientAddress {
    pub fn of(
        headers: &HeaderMap,
        extensions: &http::Extensions,
        trust_forwarded_for: bool,
    ) -> Self {
        let peer = extensions
            .get::<PeerAddress>()
            .map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |peer| peer.0.ip());
        let forwarded = trust_forwarded_for
            .then(|| {
                // The last entry is the one that our own proxy wrote; earlier ones can be invented by the client.
                headers
                    .get_all("x-forwarded-for")
                    .iter()
                    .next_back()?
                    .to_str()
                    .ok()?
                    .rsplit(',')
                    .next()?
                    .trim()
                    .parse()
                    .ok()
            })
            .flatten();
        Self(forwarded.unwrap_or(peer))
    }

    /// What counts as one client for limits: an IPv6 customer has a whole /64.
    pub fn limit_key(self) -> IpAddr {
        match self.0 {
            IpAddr::V4(_) => self.0,
            IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or_else(
                || IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
                IpAddr::V4,
            ),
        }
    }
}

/// What a login records of its client.
pub fn client_info(
    headers: &HeaderMap,
    context: &RequestContext,
    device: Option<String>,
) -> Result<ClientInfo, Problem> {
    if device
        .as_ref()
        .is_some_and(|name| name.chars().count() > 80 || name.chars().any(char::is_control))
    {
        return Err(Problem::field(
            "device",
            "at most 80 characters, no control characters",
        ));
    }
    Ok(ClientInfo {
        device_name: device.filter(|name| !name.trim().is_empty()),
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

    #[test]
    fn only_a_trusted_proxy_names_the_client() {
        let sent = headers(&[("x-forwarded-for", "1.1.1.1, 2.2.2.2")]);
        let mut extensions = http::Extensions::new();
        extensions.insert(PeerAddress("10.0.0.1:5".parse().unwrap()));
        let of = |trust| ClientAddress::of(&sent, &extensions, trust).0.to_string();
        assert_eq!(of(false), "10.0.0.1");
        assert_eq!(of(true), "2.2.2.2");
    }

    #[test]
    fn one_ipv6_network_is_one_client() {
        let key = |text: &str| ClientAddress(text.parse().unwrap()).limit_key();
        assert_eq!(key("2001:db8:1:2:3::4"), key("2001:db8:1:2:ffff::1"));
        assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
        assert_eq!(key("::ffff:1.2.3.4"), key("1.2.3.4"));
    }
}
