//! Which addresses the role may call when a stranger names them.
//!
//! A Web Push endpoint is a URL that any user may register. Without a check it would let them send requests into the
//! cluster's own network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// Longest endpoint, in bytes.
const MAX_ENDPOINT_BYTES: usize = 2048;

/// How an endpoint may be called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Trust {
    /// It is under the configured base URL.
    Configured,
    /// It is a stranger's: only on public addresses.
    Public,
}

/// Checks an endpoint; the error says what is allowed.
pub(crate) fn check(endpoint: &str, base: Option<&Url>) -> Result<(Url, Trust), &'static str> {
    if endpoint.len() > MAX_ENDPOINT_BYTES {
        return Err("at most 2048 bytes");
    }
    let url = Url::parse(endpoint).map_err(|_| "must be an https URL")?;
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err("must be an https URL without credentials and fragment");
    }
    if base.is_some_and(|base| is_under(&url, base)) {
        return Ok((url, Trust::Configured));
    }
    if url.scheme() != "https" {
        return Err("must be an https URL");
    }
    let public = match url.host() {
        Some(Host::Domain(name)) => !is_local_name(name),
        Some(Host::Ipv4(address)) => is_public(IpAddr::V4(address)),
        Some(Host::Ipv6(address)) => is_public(IpAddr::V6(address)),
        None => false,
    };
    if public {
        Ok((url, Trust::Public))
    } else {
        Err("must be on a public address")
    }
}

/// Whether `url` is on the same origin as `base`, and its path within the base's. Both were parsed: `..` is resolved already.
fn is_under(url: &Url, base: &Url) -> bool {
    let folder = base.path().trim_end_matches('/');
    let within = url
        .path()
        .strip_prefix(folder)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    url.origin() == base.origin() && within
}

fn is_local_name(name: &str) -> bool {
    let name = name.trim_end_matches('.');
    name == "localhost" || name.ends_with(".localhost") || !name.contains('.')
}

/// Whether an address is reachable from everywhere (RFC 6890 and its registries): no private, local, shared, documentation,
/// benchmark, multicast or reserved one, and no IPv6 address that stands for such an IPv4 address.
pub(crate) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(v4: Ipv4Addr) -> bool {
    let [a, b, c, _] = v4.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let protocol = a == 192 && b == 0 && c == 0;
    let relay = a == 192 && b == 88 && c == 99;
    let benchmark = a == 198 && (b == 18 || b == 19);
    !(a == 0
        || a >= 224
        || v4.is_loopback()
        || v4.is_private()
        || v4.is_link_local()
        || v4.is_documentation()
        || shared
        || protocol
        || relay
        || benchmark)
}

fn is_public_v6(v6: Ipv6Addr) -> bool {
    let s = v6.segments();
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match s {
        // IPv4-mapped, and NAT64.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            embedded(high, low)
        }
        // 6to4.
        [0x2002, high, low, ..] => embedded(high, low),
        // Protocol assignments (Teredo, ORCHID and others), and documentation.
        [0x2001, second, ..] if second < 0x200 || second == 0xdb8 => false,
        [0x3fff, second, ..] if second < 0x1000 => false,
        // All that is assigned as global unicast.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

/// Resolves names to public addresses only. It is asked at every connection, so that a name can't point elsewhere after it was
/// checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PublicOnly;

/// A name has no public address.
#[derive(Debug, thiserror::Error)]
#[error("the name has no public address")]
pub(crate) struct NotPublic;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0))
                .await?
                .filter(|address| is_public(address.ip()))
                .collect();
            if found.is_empty() {
                return Err(NotPublic.into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NOTIF-01: addresses inside a network can't be registered, in whatever way they are written.
    #[test]
    fn strangers_endpoints_must_be_public_https() {
        for good in [
            "https://push.example.com/x?y=1",
            "https://8.8.8.8/x",
            "https://[2a00:1450:4001::1]:8443/x",
        ] {
            assert_eq!(
                check(good, None).map(|(_, trust)| trust),
                Ok(Trust::Public),
                "{good}"
            );
        }
        for bad in [
            "http://push.example.com/x",
            "ftp://push.example.com/x",
            "file:///etc/passwd",
            "nonsense",
            "https://user@push.example.com/",
            "https://localhost/",
            "https://LOCALHOST./",
            "https://redis:6379/",
            "https://127.0.0.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://10.0.0.1/",
            "https://169.254.169.254/latest",
            "https://192.168.1.1/",
            "https://100.64.0.1/",
            "https://0.0.0.0/",
            "https://[::1]/",
            "https://[::ffff:10.0.0.1]/",
            "https://[fd00::1]/",
            "https://[fe80::1]/",
            "https://[64:ff9b::a00:1]/",
            "https://[2002:a00:1::]/",
        ] {
            assert!(check(bad, None).is_err(), "{bad}");
        }
        assert!(check(&format!("https://a.example/{}", "x".repeat(2048)), None).is_err());
    }

    /// NOTIF-01: the configured base URL is called wherever it is; nothing beside it is.
    #[test]
    fn endpoints_under_the_base_url_are_trusted() {
        let base = Url::parse("http://127.0.0.1:9000/push").unwrap();
        for good in ["http://127.0.0.1:9000/push/a", "http://127.0.0.1:9000/push"] {
            let trust = check(good, Some(&base)).map(|(_, trust)| trust);
            assert_eq!(trust, Ok(Trust::Configured), "{good}");
        }
        for bad in [
            "http://127.0.0.1:9000/pushy",
            "http://127.0.0.1:9000/push/../admin",
            "http://127.0.0.1:9000/push/%2e%2e/admin",
            "http://127.0.0.1:9001/push/a",
            "https://127.0.0.1:9000/push/a",
            "http://127.0.0.1:9000@evil.example/push/a",
        ] {
            assert!(check(bad, Some(&base)).is_err(), "{bad}");
        }
    }

    /// NOTIF-01: a name that points inside is refused when it is resolved.
    #[tokio::test]
    async fn names_of_inner_addresses_do_not_resolve() {
        let name: Name = "localhost".parse().unwrap();
        let error = PublicOnly.resolve(name).await.err().unwrap();
        assert!(error.is::<NotPublic>(), "{error}");
    }
}
