//! The control plane that the environment names: an administrator's client, and namespaces with the chart's rights in them.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use tokio::sync::{Mutex, OnceCell};

/// Longest wait for anything that should come about at once. Generous: the machine may have other work.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Name of the operator's release: of its ServiceAccount, its Roles and its Lease.
pub const RELEASE: &str = "carillon-operator";

/// Definitions that are there for all tests; who wants to be without them has the proxy forget their group.
const MONITORS: [&str; 2] = [
    "monitoring.coreos.com_podmonitors.yaml",
    "monitoring.coreos.com_prometheusrules.yaml",
];

/// The operator's chart.
pub const OPERATOR_CHART: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/carillon-operator");

/// The definition is installed once for all tests of this program.
static DEFINED: OnceCell<()> = OnceCell::const_new();

/// Whoever asks for definitions of other operators, or for there to be none, has the control plane's for himself.
pub static OTHERS: Mutex<()> = Mutex::const_new(());

/// Whether to be as thorough as possible.
pub fn is_long() -> bool {
    std::env::var("CARILLON_TEST_LONG").is_ok_and(|value| !value.is_empty())
}

/// What other operators define: group and resource, as the files are called.
const OTHER_DEFINITIONS: &[&str] = &[
    "scylla.scylladb.com_scyllaclusters",
    "rabbitmq.com_rabbitmqclusters",
];

/// A control plane, and access to it as its administrator.
#[derive(Clone)]
pub struct Plane {
    pub admin: Client,
    config: Config,
    helm: PathBuf,
    /// Definitions of other operators' kinds.
    definitions: PathBuf,
}

impl Plane {
    /// The control plane, or `None` after saying that `test` is skipped.
    pub async fn from_environment(test: &str) -> Result<Option<Self>> {
        let (Some(kubeconfig), Some(helm), Some(definitions)) = (
            variable(test, "CARILLON_TEST_CONTROL_PLANE"),
            variable(test, "CARILLON_TEST_HELM"),
            variable(test, "CARILLON_TEST_DEFINITIONS"),
        ) else {
            return Ok(None);
        };
        let _ = rustls::crypto::ring::default_provider().install_default();
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let mut config =
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        // A refusal is an answer.
        config.default_retry = false;
        let plane = Plane {
            admin: Client::try_from(config.clone())?,
            config,
            helm: helm.into(),
            definitions: definitions.into(),
        };
        DEFINED.get_or_try_init(|| plane.define()).await?;
        Ok(Some(plane))
    }

    async fn define(&self) -> Result<()> {
        for definition in [
            carillon_crds::chat_cluster_crd(),
            carillon_crds::chat_backup_crd(),
        ] {
            self.define_one(definition).await?;
        }
        for file in MONITORS {
            let text = std::fs::read_to_string(self.definitions.join(file))
                .with_context(|| format!("{file} of {}", self.definitions.display()))?;
            self.define_one(serde_saphyr::from_str(&text)?).await?;
        }
        Ok(())
    }

    async fn define_one(&self, definition: CustomResourceDefinition) -> Result<()> {
        let api: Api<CustomResourceDefinition> = Api::all(self.admin.clone());
        let name = definition.metadata.name.clone().context("a name")?;
        api.patch(
            &name,
            &PatchParams::apply("test").force(),
            &Patch::Apply(definition),
        )
        .await?;
        eventually("the definition is established", async || {
            let found = api.get(&name).await?;
            let conditions = found.status.and_then(|status| status.conditions);
            Ok(conditions
                .into_iter()
                .flatten()
                .any(|condition| condition.type_ == "Established" && condition.status == "True"))
        })
        .await
    }

    /// Installs the definitions that other operators publish, and waits until they are served.
    pub async fn define_others(&self) -> Result<()> {
        for file in OTHER_DEFINITIONS {
            let text = std::fs::read_to_string(self.definitions.join(format!("{file}.yaml")))?;
            self.define_one(serde_saphyr::from_str(&text)?).await?;
        }
        Ok(())
    }

    /// Takes them away, with everything of theirs.
    pub async fn forget_others(&self) -> Result<()> {
        let api: Api<CustomResourceDefinition> = Api::all(self.admin.clone());
        for name in OTHER_DEFINITIONS {
            let (group, plural) = name.split_once('_').context("a name")?;
            let name = format!("{plural}.{group}");
            if api.get_opt(&name).await?.is_some() {
                api.delete(&name, &DeleteParams::background()).await?;
            }
            eventually("the definition is gone", async || {
                Ok(api.get_opt(&name).await?.is_none())
            })
            .await?;
        }
        Ok(())
    }

    /// A new namespace that takes restricted pods only, with the ServiceAccount and the rights that the chart makes for an
    /// operator that watches `namespaces` besides.
    pub async fn namespace(&self) -> Result<String> {
        let api: Api<Namespace> = Api::all(self.admin.clone());
        let namespace: Namespace = serde_json::from_value(json!({ "metadata": {
            "generateName": "it-",
            "labels": { "pod-security.kubernetes.io/enforce": "restricted" },
        } }))?;
        let made = api.create(&PostParams::default(), &namespace).await?;
        let name = made.metadata.name.context("a name")?;
        for document in self.chart(&name)? {
            let kind = document["kind"].as_str().context("kind")?;
            let (group, version) = document["apiVersion"]
                .as_str()
                .context("apiVersion")?
                .rsplit_once('/')
                .unwrap_or(("", "v1"));
            let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
            let api: Api<DynamicObject> =
                Api::namespaced_with(self.admin.clone(), &name, &resource);
            let object = document["metadata"]["name"].as_str().context("name")?;
            api.patch(
                object,
                &PatchParams::apply("test").force(),
                &Patch::Apply(&document),
            )
            .await?;
        }
        Ok(name)
    }

    /// What the chart makes of accounts and rights for a release in `namespace`.
    pub fn chart(&self, namespace: &str) -> Result<Vec<Value>> {
        let only = ["templates/serviceaccount.yaml", "templates/rbac.yaml"];
        let only = only.map(|file| ["--show-only", file]).concat();
        documents(&self.template(OPERATOR_CHART, RELEASE, namespace, &only)?)
    }

    /// `helm template` of a chart.
    pub fn template(
        &self,
        chart: &str,
        release: &str,
        namespace: &str,
        more: &[&str],
    ) -> Result<String> {
        let output = Command::new(&self.helm)
            .args(["template", release, chart, "--namespace", namespace])
            .args(["--kube-version", "1.34.0"])
            .args(more)
            .output()
            .with_context(|| format!("running {}", self.helm.display()))?;
        ensure!(
            output.status.success(),
            "helm: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// A token of a ServiceAccount.
    pub async fn token(&self, namespace: &str, account: &str) -> Result<String> {
        let api: Api<ServiceAccount> = Api::namespaced(self.admin.clone(), namespace);
        let request: TokenRequest = serde_json::from_value(
            json!({ "spec": { "audiences": [], "expirationSeconds": 7200 } }),
        )?;
        let made = api
            .create_token_request(account, &PostParams::default(), &request)
            .await?;
        made.status
            .and_then(|status| status.token)
            .context("a token")
    }

    /// A client that is nobody by itself: what it forwards carries its own token.
    pub fn anonymous(&self) -> Result<Client> {
        let mut config = self.config.clone();
        config.auth_info = AuthInfo::default();
        Ok(Client::try_from(config)?)
    }

    /// Begins the removal of a namespace and everything in it.
    pub async fn remove(&self, namespace: &str) -> Result<()> {
        let api: Api<Namespace> = Api::all(self.admin.clone());
        api.delete(namespace, &DeleteParams::background()).await?;
        Ok(())
    }
}

/// The objects of a chart's output.
pub fn documents(text: &str) -> Result<Vec<Value>> {
    text.split("\n---")
        .filter(|document| document.contains("kind:"))
        .map(|document| {
            serde_saphyr::from_str(document.trim_start_matches("---")).context("the chart")
        })
        .collect()
}

/// Waits until `holds`; fails after [`PATIENCE`].
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds().await? {
        ensure!(
            tokio::time::Instant::now() < deadline,
            "not after {} s: {what}",
            PATIENCE.as_secs()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// A variable, or `None` after saying that `test` is skipped.
pub fn variable(test: &str, name: &str) -> Option<String> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty());
    if value.is_none() {
        println!("CARILLON-SKIPPED {test}: {name} is not set");
    }
    value
}
