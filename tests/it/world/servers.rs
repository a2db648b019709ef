//! The real servers that the environment names.

use std::env;

use anyhow::{Context as _, Result};
use reqwest::Url;

use super::proxy::Proxy;

/// Addresses of the real stores.
#[derive(Clone, Debug)]
pub struct Servers {
    pub scylla: String,
    pub redis: String,
    pub rabbitmq: String,
}

/// The network to each store.
pub struct Networks {
    /// `None` for several nodes: a driver learns the addresses of the others from the first.
    pub scylla: Option<Proxy>,
    pub redis: Proxy,
    pub rabbitmq: Proxy,
}

impl Servers {
    /// The nodes of ScyllaDB or Cassandra, each `host:port`.
    pub fn nodes(&self) -> Vec<&str> {
        self.scylla.split(',').collect()
    }

    /// The same stores behind proxies.
    pub async fn behind_proxies(&self) -> Result<(Self, Networks)> {
        let scylla = match self.nodes().as_slice() {
            [node] => Some(Proxy::start(node).await?),
            _ => None,
        };
        let (redis_url, redis) = proxied(&self.redis).await?;
        let (rabbitmq_url, rabbitmq) = proxied(&self.rabbitmq).await?;
        let servers = Self {
            scylla: match &scylla {
                Some(proxy) => proxy.address.clone(),
                None => self.scylla.clone(),
            },
            redis: redis_url,
            rabbitmq: rabbitmq_url,
        };
        let networks = Networks {
            scylla,
            redis,
            rabbitmq,
        };
        Ok((servers, networks))
    }
}

async fn proxied(url: &str) -> Result<(String, Proxy)> {
    let mut url = Url::parse(url)?;
    let (host, port) = (url.host_str(), url.port());
    let target = host.zip(port).context("a URL with a host and a port")?;
    let proxy = Proxy::start(&format!("{}:{}", target.0, target.1)).await?;
    let (host, port) = proxy.address.split_once(':').context("host:port")?;
    url.set_host(Some(host))?;
    url.set_port(Some(port.parse()?))
        .map_err(|()| anyhow::anyhow!("{url} takes no port"))?;
    Ok((url.to_string(), proxy))
}

/// The real stores, or `None` after saying that `test` is skipped.
pub fn stores(test: &str) -> Option<Servers> {
    Some(Servers {
        scylla: variable(test, "CARILLON_TEST_SCYLLA")?,
        redis: variable(test, "CARILLON_TEST_REDIS")?,
        rabbitmq: variable(test, "CARILLON_TEST_RABBITMQ")?,
    })
}

/// A variable, or `None` after saying that `test` is skipped.
pub fn variable(test: &str, name: &str) -> Option<String> {
    match env::var(name) {
        Ok(value) if !value.is_empty() => Some(value),
        _ => {
            println!("CARILLON-SKIPPED {test}: {name} is not set");
            None
        }
    }
}
