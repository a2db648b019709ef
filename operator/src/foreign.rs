//! Kinds that the API server knows only where somebody installed their definitions, and whether it does.
//!
//! One question a minute is asked for the whole operator, whatever the number of ChatClusters. Not here: what the objects hold
//! ([`crate::build`]), and whether anybody wants them.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::NamespaceResourceScope;
use kube::core::ObjectMeta;
use kube::{Client, Resource};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// API group and version of the Prometheus operator.
const MONITORING: (&str, &str) = ("monitoring.coreos.com", "v1");

/// How long an answer about definitions counts.
pub const ASKED_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// What is known of a kind at compile time.
pub trait Kind: Clone + std::fmt::Debug + Send + Sync + 'static {
    /// As in `kind:`.
    const KIND: &'static str;
    /// As in a URL.
    const PLURAL: &'static str;
}

/// Says how pods are scraped.
#[derive(Clone, Debug)]
pub struct OfPodMonitor;

impl Kind for OfPodMonitor {
    const KIND: &'static str = "PodMonitor";
    const PLURAL: &'static str = "podmonitors";
}

/// Says what is recorded, and when somebody is told.
#[derive(Clone, Debug)]
pub struct OfPrometheusRule;

impl Kind for OfPrometheusRule {
    const KIND: &'static str = "PrometheusRule";
    const PLURAL: &'static str = "prometheusrules";
}

/// A PodMonitor.
pub type PodMonitor = Monitoring<OfPodMonitor>;
/// A PrometheusRule.
pub type PrometheusRule = Monitoring<OfPrometheusRule>;

/// An object of the Prometheus operator; of its spec only the author knows the shape.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", bound = "")]
pub struct Monitoring<K> {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    /// As of every object.
    pub metadata: ObjectMeta,
    /// What is ordered.
    #[serde(default)]
    pub spec: Value,
    #[serde(skip)]
    of: PhantomData<K>,
}

impl<K: Kind> Monitoring<K> {
    /// An object with this spec.
    pub fn new(metadata: ObjectMeta, spec: Value) -> Self {
        Monitoring {
            api_version: Self::api_version(&()).into_owned(),
            kind: K::KIND.to_owned(),
            metadata,
            spec,
            of: PhantomData,
        }
    }
}

impl<K: Kind> Resource for Monitoring<K> {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        K::KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        MONITORING.0.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        MONITORING.1.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Which of these kinds the API server knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// PodMonitors.
    pub pod_monitors: bool,
    /// PrometheusRules.
    pub prometheus_rules: bool,
}

impl Served {
    /// Whether a kind is among them, by its name.
    pub fn has(self, kind: &str) -> bool {
        match kind {
            OfPodMonitor::KIND => self.pod_monitors,
            OfPrometheusRule::KIND => self.prometheus_rules,
            _ => false,
        }
    }
}

/// Asks the API server which kinds it knows, and remembers the answer for a while.
#[derive(Default)]
pub struct Definitions {
    last: Mutex<Option<(Instant, Served)>>,
}

impl Definitions {
    /// What the API server knows, as of at most [`ASKED_AGAIN_AFTER`] ago; when it can't be asked, what it knew before.
    pub async fn served(&self, client: &Client) -> Served {
        let last = *self.lock();
        if let Some((asked, served)) = last
            && asked.elapsed() < ASKED_AGAIN_AFTER
        {
            return served;
        }
        let served = match ask(client).await {
            Ok(served) => served,
            Err(error) => {
                tracing::warn!(%error, group = MONITORING.0, "can't ask for definitions");
                last.map(|(_, served)| served).unwrap_or_default()
            }
        };
        *self.lock() = Some((Instant::now(), served));
        served
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(Instant, Served)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn ask(client: &Client) -> Result<Served, kube::Error> {
    let group_version = format!("{}/{}", MONITORING.0, MONITORING.1);
    let known = match client.list_api_group_resources(&group_version).await {
        Ok(known) => known,
        Err(error) if is_unknown(&error) => return Ok(Served::default()),
        Err(error) => return Err(error),
    };
    let has = |plural: &str| known.resources.iter().any(|found| found.name == plural);
    Ok(Served {
        pod_monitors: has(OfPodMonitor::PLURAL),
        prometheus_rules: has(OfPrometheusRule::PLURAL),
    })
}

/// Whether the API server says that it doesn't know what it was asked for.
pub fn is_unknown(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found())
}
