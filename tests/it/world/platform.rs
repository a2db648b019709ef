//! A platform to test: one process on embedded stores, or several on the real ones.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use carillon_crds::config::{OtpProvider, PlatformConfig, TlsNames};
use tempfile::TempDir;

use super::{
    certificates::Authority,
    client,
    clock::WallClock,
    disk::Disk,
    process::{Process, free_port},
    servers::Servers,
};

/// ChatCluster fields that make tests quick: cheap hashes, and limits that a test doesn't hit.
pub const QUICK: &str = "
  gateway:
    limits: {authPerMinute: 100000, requestsPerMinute: 1000000, messagesPerSecond: 100000}
  auth:
    devMode: true
    argon2: {memoryKib: 8192, iterations: 1, parallelism: 1}
";

/// Size of the disk of [`Up::start_on_a_disk`]: more than a long run writes.
const DISK_MIB: usize = 768;

/// `carillon up` on a directory of its own.
pub struct Up {
    pub process: Process,
    pub base: String,
    pub grpc: String,
    pub admin: String,
    /// Where the data is, if that is a disk of its own.
    pub disk: Option<Arc<Disk>>,
    /// Its clock, if it has one of its own.
    pub clock: Option<WallClock>,
    pub directory: TempDir,
    arguments: Vec<String>,
}

impl Up {
    /// Starts it and waits until it is ready. `spec` is YAML under `spec:`, indented by two.
    pub async fn start(spec: &str) -> Result<Self> {
        Self::start_in(spec, tempfile::tempdir()?, None, None).await
    }

    /// The same with its data on a small disk and by a clock of its own, where the machine allows that.
    pub async fn start_on_a_disk(spec: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let disk = Disk::mount(&directory.path().join("data"), DISK_MIB)?.map(Arc::new);
        let clock = WallClock::new(directory.path(), "up")?;
        Self::start_in(spec, directory, disk, clock).await
    }

    /// The same with Secrets: a directory with one folder per Secret.
    pub async fn start_with_secrets(spec: &str, secrets: &Path) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        copy_tree(secrets, &directory.path().join("data/secrets"))?;
        Self::start_in(spec, directory, None, None).await
    }

    async fn start_in(
        spec: &str,
        directory: TempDir,
        disk: Option<Arc<Disk>>,
        clock: Option<WallClock>,
    ) -> Result<Self> {
        let file = directory.path().join("chatcluster.yaml");
        fs::write(
            &file,
            format!(
                "apiVersion: carillon.chat/v1alpha1\nkind: ChatCluster\nmetadata: {{name: test}}\nspec:{spec}\n"
            ),
        )?;
        let [http, grpc, admin] =
            [free_port(), free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
        let text = |path: &Path| path.display().to_string();
        let arguments = [
            "up",
            "-f",
            &text(&file),
            "--data-dir",
            &text(&directory.path().join("data")),
            "--listen",
            &http,
            "--grpc-listen",
            &grpc,
            "--admin-listen",
            &admin,
            "--log",
            "info",
        ]
        .map(str::to_owned)
        .to_vec();
        let process = Process::start_by(clock.as_ref(), "up", directory.path(), &arguments)?;
        let mut up = Self {
            process,
            disk,
            clock,
            base: format!("http://{http}"),
            grpc: format!("http://{grpc}"),
            admin: format!("http://{admin}"),
            directory,
            arguments,
        };
        up.ready().await?;
        Ok(up)
    }

    async fn ready(&mut self) -> Result<()> {
        let admin = self.admin.clone();
        wait_ready(&admin, || self.process.is_running())
            .await
            .map_err(|error| error.context(self.process.output()))
    }

    /// SIGKILL, then the same command again.
    pub async fn kill_and_restart(&mut self) -> Result<()> {
        self.process.kill();
        self.restart().await
    }

    /// Starts it again after it ended; again and again while its disk is full, as a supervisor would.
    pub async fn restart(&mut self) -> Result<()> {
        let is_full = |disk: &Option<Arc<Disk>>| disk.as_ref().is_some_and(|disk| disk.is_full());
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let full = is_full(&self.disk);
            self.process = self.start_again()?;
            match self.ready().await {
                Err(_) if Instant::now() < deadline && (full || is_full(&self.disk)) => {
                    self.process.kill();
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                started => return started,
            }
        }
    }

    /// The same command once more, whatever becomes of it.
    pub fn start_again(&self) -> Result<Process> {
        Process::start_by(
            self.clock.as_ref(),
            "up",
            self.directory.path(),
            &self.arguments,
        )
    }
}

/// Waits until `/ready` of an admin port says so.
pub async fn wait_ready(admin: &str, mut alive: impl FnMut() -> bool) -> Result<()> {
    let http = client::http();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Ok(response) = http.get(format!("{admin}/ready")).send().await
            && response.status().is_success()
        {
            return Ok(());
        }
        if !alive() {
            bail!("the process ended before it was ready");
        }
        if Instant::now() > deadline {
            bail!("{admin} is not ready within 60 s");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Roles as processes on the real stores, in a keyspace of their own.
pub struct RealCluster {
    pub directory: TempDir,
    pub gateways: Vec<Role>,
    pub messages: Vec<Role>,
    pub others: Vec<Role>,
    /// The ChatCluster's name, and so the keyspace's beginning.
    pub name: String,
    /// Whether each role goes by a clock of its own, where the machine allows that.
    clocks: bool,
    /// What every role is configured with, but for its ports.
    config: Option<PlatformConfig>,
}

/// One role's process.
pub struct Role {
    pub process: Process,
    pub base: String,
    pub admin: String,
    pub name: String,
    /// Its clock, if it has one of its own.
    pub clock: Option<WallClock>,
    arguments: Vec<String>,
}

impl Role {
    /// Starts the same process again, with the same ports.
    pub async fn restart(&mut self, directory: &Path) -> Result<()> {
        self.process =
            Process::start_by(self.clock.as_ref(), &self.name, directory, &self.arguments)?;
        self.ready().await
    }

    /// Waits until it is ready.
    pub async fn ready(&mut self) -> Result<()> {
        let admin = self.admin.clone();
        wait_ready(&admin, || self.process.is_running())
            .await
            .map_err(|error| error.context(self.process.output()))
    }
}

/// What a test may want otherwise.
#[derive(Default, Clone)]
pub struct RealOptions {
    pub gateways: usize,
    pub messages: usize,
    /// YAML under `spec:`, indented by two; the stores are added.
    pub spec: String,
    /// A directory with one folder per Secret.
    pub secrets: Option<PathBuf>,
    /// Each role by a clock of its own, where the machine allows that.
    pub clocks: bool,
    /// A directory with user and password for Redis.
    pub redis_secret: Option<PathBuf>,
    /// A directory with backups: the newest is restored before any role starts.
    pub restore: Option<PathBuf>,
}

impl RealCluster {
    /// Migrates a new keyspace and starts every role.
    pub async fn start(servers: &Servers, options: &RealOptions) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let name = format!("t{}", &uuid::Uuid::new_v4().simple().to_string()[..10]);
        let mut cluster = Self {
            directory,
            gateways: vec![],
            messages: vec![],
            others: vec![],
            name,
            clocks: options.clocks,
            config: None,
        };
        let keys = cluster.directory.path().join("keys");
        fs::create_dir(&keys)?;
        let signing = make_keys()?;
        let base = cluster.config(servers, options, &keys, &signing)?;
        let certificates = cluster.directory.path().join("certificates");
        if let Some(tls) = &base.tls {
            Authority::new()?.issue_all(&tls.names, &certificates)?;
        }
        let migrate = cluster.write_config("migrate", &base)?;
        let mut migration = Process::start(
            "migrate",
            cluster.directory.path(),
            &["migrate".into(), "--config".into(), migrate],
        )?;
        match migration.wait(Duration::from_secs(60))? {
            Some(0) => {}
            status => bail!(
                "carillon migrate ended with {status:?}:\n{}",
                migration.output()
            ),
        }
        if let Some(place) = &options.restore {
            cluster.restore(place)?;
        }
        for role in ["auth", "presence", "media", "notification"] {
            let role = cluster.start_role(role, role, &base)?;
            cluster.others.push(role);
        }
        for n in 0..options.messages.max(1) {
            let role = cluster.start_role("message", &format!("message-{n}"), &base)?;
            cluster.messages.push(role);
        }
        for n in 0..options.gateways.max(1) {
            let role = cluster.start_role("gateway", &format!("gateway-{n}"), &base)?;
            cluster.gateways.push(role);
        }
        for role in cluster
            .others
            .iter_mut()
            .chain(&mut cluster.messages)
            .chain(&mut cluster.gateways)
        {
            role.ready().await?;
        }
        cluster.config = Some(base);
        Ok(cluster)
    }

    /// Restores the newest backup of a directory.
    fn restore(&self, place: &Path) -> Result<()> {
        let directory = self.directory.path();
        let (config, place) = (
            directory.join("migrate.yaml").display().to_string(),
            place.display().to_string(),
        );
        let arguments = ["restore", "--config", &config, "--from", &place].map(str::to_owned);
        let mut restore = Process::start("restore", directory, &arguments)?;
        match restore.wait(Duration::from_secs(120))? {
            Some(0) => Ok(()),
            status => bail!(
                "carillon restore ended with {status:?}:\n{}",
                restore.output()
            ),
        }
    }

    /// Starts one more message replica; it may not be ready yet.
    pub fn add_message(&mut self) -> Result<()> {
        let base = self.config.as_ref().context("the cluster runs")?;
        let role = self.start_role("message", &format!("message-{}", self.messages.len()), base)?;
        self.messages.push(role);
        Ok(())
    }

    /// The names in the roles' certificates.
    pub fn names(&self) -> Option<TlsNames> {
        Some(self.config.as_ref()?.tls.as_ref()?.names.clone())
    }

    /// The configuration as the operator would derive it, with loopback peers.
    fn config(
        &self,
        servers: &Servers,
        options: &RealOptions,
        keys: &Path,
        signing: &Keys,
    ) -> Result<PlatformConfig> {
        let yaml = format!(
            "apiVersion: carillon.chat/v1alpha1\nkind: ChatCluster\nmetadata: {{name: {name}}}\nspec:{spec}
  scylla: {{external: {{contactPoints: {scylla:?}, datacenter: datacenter1, keyspace: {name}, replicationFactor: {replicas}}}}}
  redis: {{external: {{url: {redis:?}}}}}
  rabbitmq: {{external: {{secretName: rabbit}}}}
  media: {{store: {{directory: {{ephemeral: true}}}}, replicas: 1}}
",
            name = self.name,
            spec = options.spec,
            scylla = servers.nodes(),
            replicas = servers.nodes().len(),
            redis = servers.redis,
        );
        let cluster = carillon_crds::parse_chat_cluster(&yaml)
            .map_err(|error| anyhow::anyhow!("{error}\n{yaml}"))?;
        let target = carillon_crds::Target::Kubernetes {
            namespace: "test".into(),
        };
        let mut config = carillon_crds::platform_config(&self.name, &cluster.spec, target)
            .map_err(|problems| anyhow::anyhow!(carillon_crds::describe_problems(&problems)))?;
        config.keys = carillon_crds::config::KeysConfig {
            signing_key_file: keys.join("jwt.pem"),
            jwks_file: keys.join("jwks.json"),
            internal_token_file: None,
        };
        fs::write(keys.join("jwt.pem"), &signing.pem)?;
        fs::write(keys.join("jwks.json"), &signing.jwks)?;
        if let carillon_crds::config::StoresConfig::External(stores) = &mut config.stores {
            stores.rabbitmq.url = Some(servers.rabbitmq.clone());
            stores.rabbitmq.credentials_dir = None;
            stores
                .redis
                .credentials_dir
                .clone_from(&options.redis_secret);
        }
        if let (Some(secrets), Some(web_push)) =
            (&options.secrets, &mut config.notification.web_push)
        {
            web_push.credentials_dir = Some(secrets.join("vapid"));
        }
        if let (Some(secrets), Some(mail)) = (&options.secrets, &mut config.mail) {
            mail.credentials_dir = Some(secrets.join("smtp"));
        }
        if let (Some(secrets), OtpProvider::Twilio(twilio)) =
            (&options.secrets, &mut config.auth.otp_provider)
        {
            twilio.credentials_dir = Some(secrets.join("twilio"));
        }
        config.media.blob = carillon_crds::config::BlobConfig::Directory {
            path: self.directory.path().join("media"),
        };
        let ports: Vec<u16> = (0..5).map(|_| free_port()).collect();
        (
            config.auth.grpc_port,
            config.presence.grpc_port,
            config.media.grpc_port,
        ) = (ports[0], ports[1], ports[2]);
        config.notification.grpc_port = ports[3];
        let peer = |port: u16| format!("https://127.0.0.1:{port}");
        config.peers = Some(carillon_crds::config::Peers {
            auth: peer(ports[0]),
            presence: peer(ports[1]),
            media: peer(ports[2]),
            notification: peer(ports[3]),
            message: peer(ports[4]),
            message_headless: peer(ports[4]),
        });
        Ok(config)
    }

    fn write_config(&self, name: &str, config: &PlatformConfig) -> Result<String> {
        let path = self.directory.path().join(format!("{name}.yaml"));
        fs::write(&path, config.to_yaml())?;
        Ok(path.display().to_string())
    }

    fn start_role(&self, role: &str, name: &str, base: &PlatformConfig) -> Result<Role> {
        let mut config = base.clone();
        config.admin_port = free_port();
        match role {
            "message" => config.message.grpc_port = free_port(),
            "gateway" => config.gateway.http_port = free_port(),
            _ => {}
        }
        if let Some(tls) = &mut config.tls {
            let directory = self.directory.path().join("certificates").join(role);
            tls.certificate_file = directory.join("tls.crt");
            tls.key_file = directory.join("tls.key");
            tls.trust_file = directory.join("ca.crt");
        }
        let path = self.write_config(name, &config)?;
        let arguments = [
            "serve",
            role,
            "--config",
            &path,
            "--bind",
            "127.0.0.1",
            "--name",
            name,
        ]
        .map(str::to_owned)
        .to_vec();
        let clock = match self.clocks {
            true => WallClock::new(self.directory.path(), name)?,
            false => None,
        };
        let process = Process::start_by(clock.as_ref(), name, self.directory.path(), &arguments)?;
        Ok(Role {
            process,
            clock,
            base: format!("http://127.0.0.1:{}", config.gateway.http_port),
            admin: format!("http://127.0.0.1:{}", config.admin_port),
            name: name.to_owned(),
            arguments,
        })
    }
}

struct Keys {
    pem: String,
    jwks: String,
}

/// Keys as the operator makes them.
fn make_keys() -> Result<Keys> {
    let (pem, jwks) =
        carillon_auth::SigningKeys::generate().map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(Keys { pem, jwks })
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?
        } else {
            fs::copy(entry.path(), target).map(|_| ())?
        }
    }
    Ok(())
}
