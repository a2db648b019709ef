//! Ring 4: a real API server, the operator from its chart, real pods of our own image, and people who chat through two gateway
//! pods. The test for unit-sized promises of the operator is in its own crate; this one is the whole way.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    rotation::Strict,
    upgrades,
    world::{control_plane, script::Stage, servers},
};

const NAMESPACE: &str = "carillon-it";
const CRD: &str = "chatclusters.carillon.chat";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ is in the project's root")
}

/// The cluster that the environment names, and the tools to reach it.
pub struct Kubernetes {
    kubectl: PathBuf,
    helm: PathBuf,
    kubeconfig: PathBuf,
    image: String,
    operator_image: String,
    stores: servers::Servers,
}

impl Kubernetes {
    fn from_environment(test: &str) -> Option<Self> {
        let kubeconfig = servers::variable(test, "CARILLON_TEST_KUBECONFIG")?;
        Some(Self {
            kubectl: servers::variable(test, "CARILLON_TEST_KUBECTL")?.into(),
            helm: servers::variable(test, "CARILLON_TEST_HELM")?.into(),
            kubeconfig: kubeconfig.into(),
            image: servers::variable(test, "CARILLON_TEST_IMAGE")?,
            operator_image: servers::variable(test, "CARILLON_TEST_OPERATOR_IMAGE")?,
            stores: servers::stores(test)?,
        })
    }

    fn run(&self, program: &Path, arguments: &[&str]) -> Result<Output> {
        let output = Command::new(program)
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .output()
            .with_context(|| format!("running {}", program.display()))?;
        Ok(output)
    }

    /// `kubectl` in the test's namespace; its output. Fails with what it said.
    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.run(&self.kubectl, &[&["-n", NAMESPACE], arguments].concat())?;
        ensure!(
            output.status.success(),
            "kubectl {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(
            &self.kubectl(&[&["get", "-o", "json"], arguments].concat())?,
        )?)
    }

    /// `kubectl apply -f` of a text; what it said, and whether it took it.
    pub fn apply(&self, text: &str) -> Result<(bool, String)> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("object.yaml");
        std::fs::write(&file, text)?;
        let file = file.display().to_string();
        let output = self.run(
            &self.kubectl,
            &["-n", NAMESPACE, "apply", "--validate=strict", "-f", &file],
        )?;
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok((output.status.success(), said))
    }

    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        let output = self.run(&self.helm, &[&["-n", NAMESPACE], arguments].concat())?;
        ensure!(
            output.status.success(),
            "helm {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A ChatCluster on the real stores.
    pub fn chat_cluster(&self, name: &str, more: &str) -> String {
        let rabbit = self
            .stores
            .rabbitmq
            .rsplit_once('@')
            .map_or(self.stores.rabbitmq.as_str(), |(_, host)| host);
        format!(
            "apiVersion: carillon.chat/v1alpha1
kind: ChatCluster
metadata: {{name: {name}}}
spec:
  gateway: {{replicas: 2, limits: {{authPerMinute: 100000, requestsPerMinute: 100000, messagesPerSecond: 1000}}}}
  auth: {{replicas: 1, devMode: true, argon2: {{memoryKib: 8192, iterations: 1, parallelism: 1}}}}
  message: {{replicas: 2}}
  presence: {{replicas: 1}}
  media: {{replicas: 1, store: {{directory: {{ephemeral: true}}}}}}
  notification: {{replicas: 1}}
  scylla: {{external: {{contactPoints: [{scylla:?}], datacenter: datacenter1, keyspace: {keyspace}, replicationFactor: 1}}}}
  redis: {{external: {{url: {redis:?}}}}}
  rabbitmq: {{external: {{url: \"amqp://{rabbit}\", secretName: rabbit}}}}
{more}",
            scylla = self.stores.scylla,
            redis = self.stores.redis,
            keyspace = name.replace('-', "_"),
        )
    }

    /// Waits for a condition of a ChatCluster; an error shows its status and pods.
    pub fn wait_condition(&self, name: &str, condition: &str, status: &str) -> Result<Value> {
        let deadline = Instant::now() + Duration::from_secs(240);
        loop {
            let cluster = self.get(&["chatcluster", name])?;
            let found = conditions(&cluster)
                .into_iter()
                .find(|found| found["type"] == condition);
            if let Some(found) = found
                && found["status"] == status
            {
                return Ok(found);
            }
            if Instant::now() > deadline {
                let pods = self
                    .kubectl(&["get", "pods,jobs,events", "-o", "wide"])
                    .unwrap_or_default();
                let logs = self.kubectl(&[
                    "logs",
                    "-l",
                    "app.kubernetes.io/managed-by=carillon-operator",
                    "--tail=20",
                    "--all-containers",
                    "--prefix",
                ]);
                bail!(
                    "{condition} is not {status} after 240 s: {:#}\n{pods}\n{}",
                    cluster["status"],
                    logs.unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// The addresses of the ready gateway pods.
    fn gateways(&self, name: &str) -> Result<Vec<String>> {
        let pods = self.get(&[
            "pods",
            "-l",
            &format!("app.kubernetes.io/instance={name},app.kubernetes.io/component=gateway"),
        ])?;
        let pods = pods["items"].as_array().context("items")?;
        Ok(pods
            .iter()
            .filter_map(|pod| pod["status"]["podIP"].as_str())
            .map(|ip| format!("http://{ip}:8080"))
            .collect())
    }
}

fn conditions(cluster: &Value) -> Vec<Value> {
    cluster["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default()
}

/// Takes away what a test made, also when it fails.
struct CleanUp<'a> {
    kubernetes: &'a Kubernetes,
    crd: bool,
}

impl Drop for CleanUp<'_> {
    fn drop(&mut self) {
        let delete = |what: &[&str]| {
            let arguments = [
                &[
                    "delete",
                    "--wait=true",
                    "--timeout=120s",
                    "--ignore-not-found",
                ],
                what,
            ]
            .concat();
            if let Err(error) = self.kubernetes.run(&self.kubernetes.kubectl, &arguments) {
                eprintln!("{what:?} may be left behind: {error:#}");
            }
        };
        delete(&["namespace", NAMESPACE]);
        if self.crd {
            delete(&["crd", CRD]);
        }
    }
}

/// OP-01, OP-02, RT-08 and the way: helm install, kubectl apply, two people on two gateway pods, a pod killed, bad
/// ChatClusters refused, and nothing left after a delete.
#[tokio::test(flavor = "multi_thread")]
async fn helm_install_apply_chat_delete() -> Result<()> {
    let Some(kubernetes) = Kubernetes::from_environment("cluster::helm_install_apply_chat_delete")
    else {
        return Ok(());
    };
    let kubernetes = &kubernetes;
    let _definition = control_plane::DEFINITION.lock().await;
    kubernetes.run(&kubernetes.kubectl, &["create", "namespace", NAMESPACE])?;
    let chart = root()
        .join("charts/carillon-operator")
        .display()
        .to_string();
    // Helm installs a chart's CRDs once, and never changes nor removes them.
    let crds = format!("{chart}/crds");
    let had_crd = kubernetes.kubectl(&["get", "crd", CRD]).is_ok();
    if had_crd {
        kubernetes.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &crds])?;
    }
    let _clean_up = CleanUp {
        kubernetes,
        crd: !had_crd,
    };
    let (operator, operator_tag) = kubernetes
        .operator_image
        .rsplit_once(':')
        .context("an image with a tag")?;
    let (platform, platform_tag) = kubernetes
        .image
        .rsplit_once(':')
        .context("an image with a tag")?;
    kubernetes.helm(&[
        "install",
        "carillon",
        &chart,
        "--set",
        &format!("image.repository={operator},image.tag={operator_tag},image.pullPolicy=Never,platformImage.repository={platform},platformImage.tag={platform_tag}"),
        "--wait",
        "--timeout=180s",
    ])?;
    kubernetes.helm(&["test", "carillon", "--timeout=120s"])?;
    println!("operator installed, and it says that it acts");

    bad_chat_clusters(kubernetes)?;

    let credentials = kubernetes
        .stores
        .rabbitmq
        .split_once("://")
        .and_then(|(_, rest)| rest.rsplit_once('@'))
        .map_or("guest:guest", |(user, _)| user);
    let (user, password) = credentials.split_once(':').context("user:password")?;
    kubernetes.kubectl(&[
        "create",
        "secret",
        "generic",
        "rabbit",
        &format!("--from-literal=username={user}"),
        &format!("--from-literal=password={password}"),
    ])?;
    let name = format!("it-{}", &uuid::Uuid::new_v4().simple().to_string()[..6]);
    let more = format!("  image: {{pullPolicy: Never}}\n{}", upgrades::MORE);
    let started = Instant::now();
    let (taken, said) = kubernetes.apply(&kubernetes.chat_cluster(&name, &more))?;
    ensure!(taken, "{said}");
    kubernetes.wait_condition(&name, "Available", "True")?;
    println!("available {} s after apply", started.elapsed().as_secs());
    let columns = kubernetes.kubectl(&["get", "chatcluster", &name])?;
    for needed in ["VERSION", "AVAILABLE", "READY", "ENDPOINT", "True"] {
        ensure!(columns.contains(needed), "no {needed} in {columns}");
    }
    let cluster = kubernetes.get(&["chatcluster", &name])?;
    ensure!(
        cluster["status"]["observedGeneration"] == cluster["metadata"]["generation"],
        "{}",
        cluster["status"]
    );

    let gateways = kubernetes.gateways(&name)?;
    ensure!(gateways.len() == 2, "{gateways:?}");
    for script in [
        include_str!("scripts/conversation.chat"),
        include_str!("scripts/away.chat"),
        include_str!("scripts/changes.chat"),
        include_str!("scripts/devices.chat"),
        include_str!("scripts/moderation.chat"),
        include_str!("scripts/receipts.chat"),
        include_str!("scripts/privacy.chat"),
        include_str!("scripts/disappearing.chat"),
    ] {
        Stage::new(gateways.clone()).run(script).await?;
    }
    let service = kubernetes.get(&["service", &format!("{name}-gateway")])?;
    let ip = service["spec"]["clusterIP"].as_str().context("clusterIP")?;
    let port = service["spec"]["ports"][0]["port"]
        .as_u64()
        .context("port")?;
    let service = format!("http://{ip}:{port}");
    Stage::new(vec![service.clone()])
        .run(include_str!("scripts/conversation.chat"))
        .await?;
    println!("scripts ran over two pods and the Service");

    // Owners of rooms die: both message pods, one after the other; what was acknowledged stays, sends go on.
    let mut stage = Stage::new(gateways.clone());
    stage.run("alice: register\nbob: register\nalice: create #r\nbob: join #r\nalice: post #r \"before\" as b").await?;
    let pods = kubernetes.get(&[
        "pods",
        "-l",
        &format!("app.kubernetes.io/instance={name},app.kubernetes.io/component=message"),
    ])?;
    for pod in pods["items"].as_array().context("items")? {
        let pod = pod["metadata"]["name"].as_str().context("name")?;
        kubernetes.kubectl(&["delete", "pod", pod, "--grace-period=0", "--force"])?;
        kubernetes.kubectl(&[
            "rollout",
            "status",
            &format!("deployment/{name}-message"),
            "--timeout=120s",
        ])?;
    }
    stage
        .run("bob: post #r \"after\"\nalice: history #r = \"before\" \"after\"")
        .await?;

    upgrades::run(kubernetes, &chart, &name, &service).await?;
    nothing_changes_by_itself(kubernetes, &name)?;
    // The last, for the key of tokens goes on changing for a while.
    keys_rotate_under_load(kubernetes, &name).await?;

    kubernetes.kubectl(&["delete", "chatcluster", &name, "--timeout=60s"])?;
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let left = kubernetes.get(&[
            "deployments,replicasets,pods,services,configmaps,secrets,serviceaccounts,jobs,poddisruptionbudgets,networkpolicies,horizontalpodautoscalers",
            "-l",
            &format!("app.kubernetes.io/instance={name}"),
        ])?;
        let left: Vec<String> = left["items"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|i| format!("{}/{}", i["kind"], i["metadata"]["name"]))
            .collect();
        if left.is_empty() {
            break;
        }
        ensure!(Instant::now() < deadline, "left after the delete: {left:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
    kubernetes.helm(&["uninstall", "carillon", "--wait"])?;
    Ok(())
}

/// Contradictory and unknown fields are refused at apply; what only the operator can know becomes a condition naming the field.
fn bad_chat_clusters(kubernetes: &Kubernetes) -> Result<()> {
    let cluster = |spec: &str| {
        format!(
            "apiVersion: carillon.chat/v1alpha1\nkind: ChatCluster\nmetadata: {{name: bad}}\nspec: {spec}\n"
        )
    };
    for (spec, needle) in [
        ("{gatewayy: {}}", "gatewayy"),
        (
            "{message: {replicas: 2, autoscaling: {minReplicas: 1, maxReplicas: 3}}}",
            "spec.message",
        ),
        (
            "{message: {autoscaling: {minReplicas: 5, maxReplicas: 3}}}",
            "spec.message",
        ),
        ("{gateway: {replicas: -1}}", "spec.gateway.replicas"),
    ] {
        let (taken, said) = kubernetes.apply(&cluster(spec))?;
        ensure!(!taken && said.contains(needle), "{spec}: {said}");
    }
    let (taken, said) = kubernetes.apply(&cluster("{version: 99.0.0}"))?;
    ensure!(taken, "{said}");
    let condition = kubernetes.wait_condition("bad", "SpecValid", "False")?;
    ensure!(
        condition["message"].to_string().contains("spec.version"),
        "{condition}"
    );
    kubernetes.kubectl(&["delete", "chatcluster", "bad", "--timeout=60s"])?;
    Ok(())
}

/// The authority with all certificates, and the key of tokens, change in running pods: no request fails, and no pod is replaced. In the long form
/// the new key signs at the end; in the short one it is known to every pod.
async fn keys_rotate_under_load(kubernetes: &Kubernetes, name: &str) -> Result<()> {
    let started = Instant::now();
    let label = format!("app.kubernetes.io/instance={name}");
    let pods = || -> Result<Vec<String>> {
        let pods = kubernetes.get(&["pods", "-l", &label])?;
        let items = pods["items"].as_array().cloned().unwrap_or_default();
        Ok(items
            .iter()
            .map(|pod| {
                format!(
                    "{} {}",
                    pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["restartCount"]
                )
            })
            .collect())
    };
    let text = |secret: &str, key: &str| -> Result<String> {
        let secret = kubernetes.get(&["secret", &format!("{name}-{secret}")])?;
        Ok(secret["data"][key].as_str().unwrap_or_default().to_owned())
    };
    let tls = || -> Result<[String; 2]> {
        Ok([
            text("certificates", "ca.crt")?,
            text("certificates", "gateway.crt")?,
        ])
    };
    let gateways = kubernetes.gateways(name)?;
    let (before, first) = (pods()?, tls()?);
    let authority = text("ca", "ca.crt")?;
    let signing = text("jwt", "signing.pem")?;
    let mut traffic = Strict::start(&gateways).await?;
    traffic.flow().await?;
    for what in ["ca", "jwt"] {
        kubernetes.kubectl(&[
            "annotate",
            "chatcluster",
            name,
            &format!("carillon.chat/rotate-{what}=now"),
        ])?;
    }
    let is_long = std::env::var_os("CARILLON_TEST_LONG").is_some();
    let deadline = Instant::now() + Duration::from_secs(600);
    loop {
        traffic.flow().await?;
        let now = tls()?;
        // Only the new authority is left.
        let certificates =
            now[0] == text("ca", "ca.crt")? && now[0] != authority && now[1] != first[1];
        let jwt = kubernetes.get(&["secret", &format!("{name}-jwt")])?;
        let due = jwt["metadata"]["annotations"]["carillon.chat/rotation-due"].is_string();
        let changed = jwt["data"]["signing.pem"] != signing.as_str();
        if certificates && due && (changed || !is_long) {
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "certificates: {certificates}, due: {due}, changed: {changed}"
        );
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    traffic.flow().await?;
    let sent = traffic.end().await?;
    ensure!(
        pods()? == before,
        "pods were replaced: {before:?}, {:?}",
        pods()?
    );
    println!(
        "keys rotated within {} s, {sent} requests meanwhile, none failed",
        started.elapsed().as_secs()
    );
    Ok(())
}

/// Operators' users complain of writes on every pass: once settled, a pass writes nothing.
fn nothing_changes_by_itself(kubernetes: &Kubernetes, name: &str) -> Result<()> {
    kubernetes.wait_condition(name, "Available", "True")?;
    kubernetes.wait_condition(name, "Progressing", "False")?;
    let poked = format!("{name}-gateway");
    let versions = || -> Result<Vec<String>> {
        let label = format!("app.kubernetes.io/instance={name}");
        let kinds = "configmaps,secrets,serviceaccounts,services,deployments,jobs,poddisruptionbudgets,networkpolicies";
        let children = kubernetes.get(&[kinds, "-l", &label])?;
        let mut versions = Vec::new();
        for child in children["items"].as_array().into_iter().flatten() {
            if child["kind"] == "Service" && child["metadata"]["name"] == poked.as_str() {
                continue;
            }
            versions.push(format!(
                "{}/{} {}",
                child["kind"], child["metadata"]["name"], child["metadata"]["resourceVersion"]
            ));
        }
        let cluster = kubernetes.get(&["chatcluster", name])?;
        versions.push(format!(
            "ChatCluster {}",
            cluster["metadata"]["resourceVersion"]
        ));
        Ok(versions)
    };
    let before = versions()?;
    let passes = reconciles(kubernetes)?;
    // A child that somebody touched makes the operator look again.
    kubernetes.kubectl(&["annotate", "service", &poked, "example.com/poke=1"])?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while reconciles(kubernetes)? <= passes {
        ensure!(
            Instant::now() < deadline,
            "the operator took no notice of a child that was touched"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    let after = versions()?;
    ensure!(
        before == after,
        "written although nothing changed: {before:?} {after:?}"
    );
    Ok(())
}

/// Passes that the operator has ended, by its own metrics.
fn reconciles(kubernetes: &Kubernetes) -> Result<f64> {
    let metrics = kubernetes.kubectl(&[
        "get",
        "--raw",
        &format!(
            "/api/v1/namespaces/{NAMESPACE}/pods/{}:8081/proxy/metrics",
            operator_pod(kubernetes)?
        ),
    ])?;
    let passes = metrics
        .lines()
        .filter(|line| line.starts_with("carillon_operator_reconciles_total"))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum();
    Ok(passes)
}

fn operator_pod(kubernetes: &Kubernetes) -> Result<String> {
    let pods = kubernetes.get(&["pods", "-l", "app.kubernetes.io/name=carillon-operator"])?;
    let name = pods["items"][0]["metadata"]["name"].as_str();
    Ok(name.context("the operator's pod")?.to_owned())
}
