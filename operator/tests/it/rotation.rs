//! Keys and certificates change while pods go on: each step waits for every pod, whoever the operator is by then.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result, ensure};
use carillon_crds::config::{fingerprint, in_use};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::plane::{Plane, eventually};
use crate::stage::{Stage, first_order};

type Told = Arc<Mutex<BTreeMap<&'static str, String>>>;

/// A pod made by hand, with an admin port that says what it is told to say.
struct Puppet {
    role: &'static str,
    told: Told,
}

impl Puppet {
    async fn make(stage: &Stage, role: &'static str, address: &str) -> Result<Self> {
        let deployment = stage.objects("apps", "v1", "Deployment");
        let deployment = deployment.get(&format!("town-{role}")).await?;
        let template = deployment.data["spec"]["template"].clone();
        let ports = &template["spec"]["containers"][0]["ports"];
        let port = ports
            .as_array()
            .and_then(|ports| ports.iter().find(|port| port["name"] == "admin"))
            .and_then(|port| port["containerPort"].as_u64())
            .context("an admin port")?;
        let listener = TcpListener::bind((address, u16::try_from(port)?)).await?;
        let told = Told::default();
        tokio::spawn(answer(listener, told.clone()));
        let name = format!("town-{role}-1");
        let mut spec = template["spec"].clone();
        spec["nodeName"] = json!("a-node");
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": name, "labels": template["metadata"]["labels"] },
            "spec": spec,
        }))?;
        let api: Api<Pod> = Api::namespaced(stage.plane.admin.clone(), &stage.namespace);
        api.create(&PostParams::default(), &pod).await?;
        let status = json!({ "status": {
            "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }],
        } });
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(status))
            .await?;
        Ok(Puppet { role, told })
    }

    /// As a pod whose mounted files have followed.
    fn follow(&self, secrets: &Secrets) {
        let mut told = self.told.lock().expect("nobody panics with it");
        told.insert(in_use::TRUST, fingerprint(&secrets.trust));
        let own = &secrets.certificates[self.role];
        told.insert(in_use::CERTIFICATE, fingerprint(own));
        told.insert(in_use::PUBLIC_KEYS, fingerprint(&secrets.jwks));
    }
}

async fn answer(listener: TcpListener, told: Told) {
    while let Ok((mut socket, _)) = listener.accept().await {
        let mut request = [0; 1024];
        let _ = socket.read(&mut request).await;
        let body = json!({
            "status": "ready", "dependencies": [],
            "in_use": *told.lock().expect("nobody panics with it"),
        })
        .to_string();
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let _ = socket.write_all(answer.as_bytes()).await;
    }
}

/// What is stored now.
#[derive(Clone, PartialEq, Debug)]
struct Secrets {
    trust: String,
    certificates: BTreeMap<&'static str, String>,
    jwks: String,
    next: bool,
}

impl Secrets {
    async fn read(stage: &Stage) -> Result<Self> {
        let api: Api<Secret> = Api::namespaced(stage.plane.admin.clone(), &stage.namespace);
        let tls = api.get("town-certificates").await?;
        let text = |key: &str| {
            let bytes = tls.data.as_ref().and_then(|data| data.get(key));
            bytes.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned())
        };
        let jwks = stage
            .objects("", "v1", "ConfigMap")
            .get("town-jwks")
            .await?;
        let jwt = api.get("town-jwt").await?;
        Ok(Secrets {
            trust: text("ca.crt").context("ca.crt")?,
            certificates: ["auth", "gateway"]
                .into_iter()
                .filter_map(|role| Some((role, text(&format!("{role}.crt"))?)))
                .collect(),
            jwks: jwks.data["data"]["jwks.json"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            next: jwt.data.is_some_and(|data| data.contains_key("next.pem")),
        })
    }

    fn authorities(&self) -> usize {
        self.trust.matches("BEGIN CERTIFICATE").count()
    }
}

async fn ask_for(stage: &Stage, what: &str, value: &str) -> Result<()> {
    let clusters = stage.objects("carillon.chat", "v1alpha1", "ChatCluster");
    let key = format!("carillon.chat/rotate-{what}");
    let patch: Value = json!({ "metadata": { "annotations": { key: value } } });
    clusters
        .patch("town", &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}

/// Has the certificates of the roles replaced, and waits for that.
pub async fn rotate(stage: &Stage) -> Result<()> {
    let before = Secrets::read(stage).await?;
    ask_for(stage, "certificates", "now").await?;
    eventually("certificates are new", async || {
        Ok(Secrets::read(stage).await?.certificates != before.certificates)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_waits_for_every_pod() -> Result<()> {
    let Some(plane) = Plane::from_environment("rotation::an_authority_waits_for_every_pod").await?
    else {
        return Ok(());
    };
    let stage = Stage::set(&plane).await?;
    let operator = stage.replica("carillon-operator-0").await?;
    operator.start()?;
    stage.order(&first_order()).await?;
    stage.settled(&operator).await?;
    let first = Secrets::read(&stage).await?;
    let puppets = [
        Puppet::make(&stage, "auth", "127.0.71.1").await?,
        Puppet::make(&stage, "gateway", "127.0.71.2").await?,
    ];
    for puppet in &puppets {
        puppet.follow(&first);
    }
    // What each step needs of the pods: it isn't taken while one of them is behind, even by an operator that has just been started.
    let waits = async |stored: &Secrets| -> Result<()> {
        operator.kill()?;
        operator.start()?;
        let mark = operator.proxy.mark();
        eventually("the operator has looked three times", async || {
            let looks = operator.proxy.since(mark);
            let looks = looks.iter().map(|record| record.describe());
            Ok(looks.filter(|look| look.starts_with("list pods")).count() >= 3)
        })
        .await?;
        ensure!(Secrets::read(&stage).await? == *stored, "went ahead");
        Ok(())
    };
    let becomes = async |what: &str, is: &dyn Fn(&Secrets) -> bool| -> Result<Secrets> {
        eventually(what, async || Ok(is(&Secrets::read(&stage).await?))).await?;
        Secrets::read(&stage).await
    };

    ask_for(&stage, "ca", "now").await?;
    let spread = becomes("two authorities are believed", &|now| {
        now.authorities() == 2
    })
    .await?;
    ensure!(spread.certificates == first.certificates);
    puppets[0].follow(&spread);
    waits(&spread).await?;
    puppets[1].follow(&spread);
    let issued = becomes("certificates are new", &|now| {
        now.certificates != spread.certificates
    })
    .await?;
    ensure!(issued.trust == spread.trust);
    puppets[1].follow(&issued);
    waits(&issued).await?;
    puppets[0].follow(&issued);
    let ended = becomes("one authority is believed", &|now| now.authorities() == 1).await?;
    ensure!(ended.certificates == issued.certificates && ended.trust != first.trust);
    for puppet in &puppets {
        puppet.follow(&ended);
    }
    // The same wish isn't granted twice.
    operator.kill()?;
    operator.start()?;
    stage.quiet(&operator).await?;
    ensure!(Secrets::read(&stage).await? == ended, "granted twice");

    ask_for(&stage, "jwt", "now").await?;
    let published = becomes("a new key is published", &|now| {
        now.next && now.jwks != ended.jwks
    })
    .await?;
    ensure!(published.jwks.matches("\"kid\"").count() == 2);
    waits(&published).await?;
    for puppet in &puppets {
        puppet.follow(&published);
    }
    let jwt: Api<Secret> = Api::namespaced(stage.plane.admin.clone(), &stage.namespace);
    eventually("caches of others are waited for", async || {
        let annotations = jwt.get("town-jwt").await?.metadata.annotations;
        Ok(annotations.is_some_and(|map| map.contains_key("carillon.chat/rotation-due")))
    })
    .await?;
    stage.strike().await
}
