//! A Prometheus of the test's own, and the rules of the chart at a test's pace.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::world::{client::http, platform::RealCluster, process::free_port};

/// How long something may take to be seen by Prometheus.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Longer than a probe of a store that doesn't answer, so that a scrape ends in time also then.
const SCRAPE_INTERVAL: &str = "2500ms";

/// The operator's chart, which the rules and dashboards are in.
pub fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ is in the project's root")
        .join("charts/carillon-operator")
}

/// The rules as they are installed.
pub fn rules() -> Result<String> {
    let file = chart().join("rules/carillon.yaml");
    std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))
}

/// The rules for a test, where an outage lasts seconds: every window (`[5m]`, `offset 30m`) is replaced by a short one that still
/// holds some scrapes, the order of their lengths kept, and every `for:` by a second. Names and thresholds stay.
pub fn quick_rules() -> Result<String> {
    let mut text = rules()?;
    for (window, quick) in [
        ("5m", "10s"),
        ("10m", "11s"),
        ("15m", "11s"),
        ("30m", "11s"),
        ("1h", "12s"),
        ("2h", "13s"),
        ("6h", "14s"),
        ("1d", "15s"),
        ("3d", "16s"),
    ] {
        text = text
            .replace(&format!("[{window}]"), &format!("[{quick}]"))
            .replace(&format!("offset {window}"), &format!("offset {quick}"));
    }
    let lines = text
        .lines()
        .map(|line| match line.trim_start().starts_with("for: ") {
            true => "        for: 1s",
            false => line,
        });
    let text = lines.collect::<Vec<_>>().join("\n");
    let left = text
        .split('[')
        .skip(1)
        .filter_map(|rest| rest.split_once(']'))
        .find(|(range, _)| range.ends_with(['m', 'h', 'd']));
    ensure!(left.is_none(), "a window stayed long: {left:?}");
    Ok(text)
}

/// A process to scrape, and its labels.
pub struct Target {
    /// `host:port` of the admin server.
    pub address: String,
    /// `label: value`, for example of `role`.
    pub labels: Vec<(&'static str, String)>,
}

impl Target {
    /// A role of the platform, as the chart's PodMonitor labels it.
    pub fn of_role(admin: &str, role: &str) -> Self {
        Self {
            address: admin.trim_start_matches("http://").to_owned(),
            labels: vec![
                ("namespace", "test".into()),
                ("chatcluster", "town".into()),
                ("role", role.into()),
            ],
        }
    }

    /// Every process of a cluster.
    pub fn of_cluster(cluster: &RealCluster) -> Vec<Self> {
        let roles = cluster
            .gateways
            .iter()
            .chain(&cluster.messages)
            .chain(&cluster.others);
        roles
            .map(|role| {
                let name = role.name.split('-').next().unwrap_or_default();
                Self::of_role(&role.admin, name)
            })
            .collect()
    }
}

/// A running Prometheus.
pub struct Prometheus {
    child: Child,
    base: String,
    directory: TempDir,
}

impl Prometheus {
    /// Scrapes these targets and works by the quick rules; `programs` is the folder with the program.
    pub async fn start(programs: &str, targets: &[Target]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let file = |name: &str| directory.path().join(name);
        std::fs::write(file("rules.yaml"), quick_rules()?)?;
        let mut config = format!(
            "global: {{scrape_interval: {SCRAPE_INTERVAL}, scrape_timeout: {SCRAPE_INTERVAL}, evaluation_interval: 1s}}\n\
             rule_files: [rules.yaml]\nscrape_configs:\n- job_name: carillon\n  static_configs:\n"
        );
        for target in targets {
            let labels = target.labels.iter();
            let labels: Vec<String> = labels
                .map(|(label, value)| format!("{label}: {value:?}"))
                .collect();
            config.push_str(&format!(
                "  - {{targets: [{:?}], labels: {{{}}}}}\n",
                target.address,
                labels.join(", ")
            ));
        }
        std::fs::write(file("prometheus.yaml"), config)?;
        let address = format!("127.0.0.1:{}", free_port());
        let log = std::fs::File::create(file("log"))?;
        let child = Command::new(Path::new(programs).join("prometheus"))
            .arg(format!(
                "--config.file={}",
                file("prometheus.yaml").display()
            ))
            .arg(format!("--storage.tsdb.path={}", file("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting prometheus")?;
        let mut started = Self {
            child,
            base: format!("http://{address}"),
            directory,
        };
        started.ready().await?;
        Ok(started)
    }

    async fn ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let url = format!("{}/-/ready", self.base);
        loop {
            if http()
                .get(&url)
                .send()
                .await
                .is_ok_and(|answer| answer.status() == 200)
            {
                return Ok(());
            }
            if self.child.try_wait()?.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(self.directory.path().join("log"));
                bail!("prometheus does not start:\n{}", log.unwrap_or_default());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The series that a query gives now.
    pub async fn query(&self, query: &str) -> Result<Vec<Value>> {
        let url = format!("{}/api/v1/query", self.base);
        let url = reqwest::Url::parse_with_params(&url, [("query", query)])?;
        let answer = http().get(url).send().await?;
        let answer: Value = answer.json().await?;
        ensure!(answer["status"] == "success", "{query}: {answer}");
        Ok(answer["data"]["result"]
            .as_array()
            .cloned()
            .unwrap_or_default())
    }

    /// Whether a query gives a figure now: a quotient of two zeros is none.
    pub async fn has_data(&self, query: &str) -> Result<bool> {
        let found = self.query(query).await?;
        Ok(found
            .iter()
            .any(|series| series["value"][1].as_str().is_some_and(|v| v != "NaN")))
    }

    /// The alerts that fire now; with `since`, those that fired at some time since then.
    pub async fn firing(&self, since: Option<Instant>) -> Result<BTreeSet<String>> {
        let query = match since {
            None => r#"ALERTS{alertstate="firing"}"#.to_owned(),
            Some(since) => format!(
                r#"last_over_time(ALERTS{{alertstate="firing"}}[{}s])"#,
                since.elapsed().as_secs().max(1)
            ),
        };
        let series = self.query(&query).await?;
        Ok(series
            .iter()
            .filter_map(|series| series["metric"]["alertname"].as_str())
            .map(str::to_owned)
            .collect())
    }

    /// Waits until all of these have fired since a point in time.
    pub async fn wait_fired(&self, since: Instant, wanted: &[&str]) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let fired = self.firing(Some(since)).await?;
            let missing: Vec<_> = wanted
                .iter()
                .filter(|name| !fired.contains(**name))
                .collect();
            if missing.is_empty() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{missing:?} did not fire; {fired:?} did"
            );
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Waits until none fires and none is about to.
    pub async fn wait_quiet(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let alerts = self.query("ALERTS").await?;
            if alerts.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let left: Vec<_> = alerts.iter().map(|alert| &alert["metric"]).collect();
                bail!("did not clear: {left:#?}");
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
