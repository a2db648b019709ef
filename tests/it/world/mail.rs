//! A real SMTP server that keeps what it gets.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::{certificates::Authority, process::free_port};

const USER: &str = "carillon";
const PASSWORD: &str = "a password of the mail server";

/// How the server wants to be spoken to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Security {
    None,
    StartTls,
    Tls,
}

/// The server, and the cluster's Secret for it.
pub struct MailServer {
    child: Child,
    port: u16,
    security: Security,
    directory: TempDir,
}

impl Drop for MailServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl MailServer {
    /// Starts it from the folder that the testbed made. Where there is TLS it wants a login too.
    pub async fn start(program: &str, security: Security) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let at = |name: &str| directory.path().join(name);
        for folder in ["kept", "secrets/smtp"] {
            fs::create_dir_all(at(folder))?;
        }
        let authority = Authority::new()?;
        authority.issue("localhost", &at("certificate"))?;
        let port = free_port();
        let mut command = Command::new("python3");
        command
            .arg(Path::new(program).join("server.py"))
            .env("PYTHONPATH", program)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .args(["--port", &port.to_string()])
            .arg("--keep")
            .arg(at("kept"));
        if security != Security::None {
            let mode = match security {
                Security::Tls => "tls",
                _ => "starttls",
            };
            command
                .args(["--tls", mode, "--user", USER, "--password", PASSWORD])
                .arg("--certificate")
                .arg(at("certificate/tls.crt"))
                .arg("--key")
                .arg(at("certificate/tls.key"));
            fs::write(at("secrets/smtp/ca.crt"), authority.pem())?;
            fs::write(at("secrets/smtp/username"), USER)?;
            fs::write(at("secrets/smtp/password"), PASSWORD)?;
        }
        let log = fs::File::create(at("log"))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting the mail server")?;
        let mut server = Self {
            child,
            port,
            security,
            directory,
        };
        server.ready().await?;
        Ok(server)
    }

    async fn ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while tokio::net::TcpStream::connect(("127.0.0.1", self.port))
            .await
            .is_err()
        {
            if self.child.try_wait()?.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(self.directory.path().join("log"))?;
                bail!("the mail server does not start:\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// The ChatCluster's part that sends mail here.
    pub fn spec(&self) -> String {
        let security = match self.security {
            Security::None => "security: none",
            Security::StartTls => "secretName: smtp",
            Security::Tls => "security: tls, secretName: smtp",
        };
        format!(
            "  mail: {{host: localhost, port: {}, from: chat@example.com, publicUrl: 'https://town.example.com', {security}}}\n",
            self.port
        )
    }

    /// The directory that stands for the cluster's Secrets.
    pub fn secrets(&self) -> std::path::PathBuf {
        self.directory.path().join("secrets")
    }

    /// Puts every message off from now on, or no longer.
    pub fn refuse(&self, refuses: bool) -> Result<()> {
        let file = self.directory.path().join("kept/refuse");
        match refuses {
            true => fs::write(file, "")?,
            false => fs::remove_file(file)?,
        }
        Ok(())
    }

    /// What came so far, oldest first.
    pub fn got(&self) -> Result<Vec<Value>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.directory.path().join("kept"))? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                files.push(path);
            }
        }
        files.sort();
        files
            .iter()
            .map(|file| Ok(serde_json::from_slice(&fs::read(file)?)?))
            .collect()
    }

    /// Waits for the mail of this number, from 1.
    pub async fn nth(&self, number: usize) -> Result<Value> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(mail) = self.got()?.get(number - 1) {
                return Ok(mail.clone());
            }
            ensure!(Instant::now() < deadline, "mail {number} didn't come");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The token in the link of a mail, which must have come as the server wants mail to.
    pub async fn token(&self, number: usize, to: &str, what: &str) -> Result<String> {
        let mail = self.nth(number).await?;
        let secured = self.security != Security::None;
        ensure!(
            mail["to"] == serde_json::json!([to])
                && mail["from"] == "chat@example.com"
                && mail["tls"] == secured
                && (mail["user"] == USER) == secured,
            "{mail}"
        );
        let text = mail["text"].as_str().context("text")?;
        let link = format!("https://town.example.com/#{what}=");
        let token = text.lines().find_map(|line| line.strip_prefix(&link));
        Ok(token
            .with_context(|| format!("no link in {text}"))?
            .trim()
            .to_owned())
    }
}
