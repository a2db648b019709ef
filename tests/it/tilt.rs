//! The development loop of the Tiltfile, without Tilt: a Starlark interpreter says what it asks for, and that is looked at and run.

use std::{
    collections::BTreeSet,
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        process::CommandExt as _,
    },
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::world::{
    client::http,
    control_plane::{ControlPlane, program},
    process::free_port,
    servers,
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ is in the project's root")
}

/// The folder with the programs that a developer has, and the interpreter.
struct Machine {
    programs: TempDir,
    interpreter: String,
}

impl Machine {
    fn from_environment(test: &str) -> Result<Option<Self>> {
        let Some(interpreter) = servers::variable(test, "CARILLON_TEST_TILTFILE") else {
            return Ok(None);
        };
        let programs = tempfile::tempdir()?;
        for (name, variable) in [
            ("kubectl", "CARILLON_TEST_KUBECTL"),
            ("helm", "CARILLON_TEST_HELM"),
        ] {
            let Some(path) = servers::variable(test, variable) else {
                return Ok(None);
            };
            symlink(path, programs.path().join(name))?;
        }
        Ok(Some(Self {
            programs,
            interpreter,
        }))
    }

    /// A program of its own under this name, before those of the machine.
    fn pretend(&self, name: &str, script: &str) -> Result<()> {
        let path = self.programs.path().join(name);
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n"))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new(program);
        command
            .current_dir(root())
            .stdin(Stdio::null())
            .env("KUBECONFIG", "/dev/null")
            .env("PATH", format!("{}:{path}", self.programs.path().display()));
        command
    }

    /// What the Tiltfile asks for, with these settings.
    fn load(&self, settings: &Value) -> Result<Plan> {
        let output = self
            .command(&self.interpreter)
            .args(["Tiltfile", &settings.to_string()])
            .output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8_lossy(&output.stdout);
        let calls = text.lines().map(serde_json::from_str);
        Plan::new(calls.collect::<Result<_, _>>()?)
    }
}

/// The calls of a Tiltfile, and the objects that it has applied.
struct Plan {
    calls: Vec<Value>,
    objects: Vec<Value>,
}

impl Plan {
    fn new(calls: Vec<Value>) -> Result<Self> {
        let mut objects = Vec::new();
        for call in calls.iter().filter(|call| call["function"] == "k8s_yaml") {
            let given = call["args"][0].as_str().context("a text or a file")?;
            let text = match given.contains('\n') {
                true => given.to_owned(),
                false => std::fs::read_to_string(root().join(given))?,
            };
            for text in text.split("\n---\n").filter(|text| text.contains("kind: ")) {
                objects.push(serde_saphyr::from_str(text).with_context(|| text.to_owned())?);
            }
        }
        Ok(Self { calls, objects })
    }

    fn calls(&self, function: &str) -> Vec<&Value> {
        let calls = self.calls.iter();
        calls.filter(|call| call["function"] == function).collect()
    }

    fn call(&self, function: &str, name: &str) -> Option<&Value> {
        self.calls(function)
            .into_iter()
            .find(|call| call["args"][0] == name)
    }

    fn object(&self, kind: &str, name: &str) -> Result<&Value> {
        self.objects
            .iter()
            .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
            .with_context(|| format!("no {kind} {name}"))
    }

    /// Everything that it names is there: files, scripts, resources that others wait for, ports that are forwarded.
    fn is_consistent(&self) -> Result<()> {
        let mut names: BTreeSet<&str> = self
            .objects
            .iter()
            .filter_map(|object| object["metadata"]["name"].as_str())
            .collect();
        let mut files: Vec<&Value> = Vec::new();
        let mut commands: Vec<&str> = Vec::new();
        for call in &self.calls {
            let named = &call["kwargs"];
            files.extend(named["deps"].as_array().into_iter().flatten());
            if call["function"] == "watch_file" {
                files.push(&call["args"][0]);
            }
            commands.extend(named["serve_cmd"].as_str());
            if call["function"] == "custom_build" {
                commands.extend(call["args"][1].as_str());
            }
            if call["function"] == "local_resource" {
                names.extend(call["args"][0].as_str());
            }
            names.extend(named["new_name"].as_str());
        }
        for file in files {
            let file = file.as_str().context("a path")?;
            ensure!(root().join(file).exists(), "{file} is not there");
        }
        for command in commands {
            let script = command.split(' ').next().unwrap_or_default();
            let mode = std::fs::metadata(root().join(script))?.permissions().mode();
            ensure!(mode & 0o111 != 0, "{script} can't be run");
        }
        for call in self
            .calls("k8s_resource")
            .iter()
            .chain(&self.calls("local_resource"))
        {
            let waits = call["kwargs"]["resource_deps"].as_array();
            for name in waits.into_iter().flatten().chain([&call["args"][0]]) {
                let name = name.as_str().context("a name")?;
                ensure!(names.contains(name), "{name} is no resource");
            }
            for forward in call["kwargs"]["port_forwards"]
                .as_array()
                .into_iter()
                .flatten()
            {
                let (_, port) = forward
                    .as_str()
                    .and_then(|f| f.split_once(':'))
                    .context("ports")?;
                let name = call["args"][0].as_str().context("a name")?;
                let container =
                    &self.object("Deployment", name)?["spec"]["template"]["spec"]["containers"][0];
                let ports = container["ports"].as_array().context("ports")?;
                let open = ports
                    .iter()
                    .any(|open| open["containerPort"].as_u64() == port.parse().ok());
                ensure!(open, "{name} has no port {port}");
            }
        }
        Ok(())
    }
}

/// OP-03: what `tilt up` does by default, and by each setting.
#[test]
fn the_tiltfile_asks_for_a_whole_loop() -> Result<()> {
    let Some(machine) = Machine::from_environment("tilt::the_tiltfile_asks_for_a_whole_loop")?
    else {
        return Ok(());
    };
    let plan = machine.load(&json!({"namespace": "mine"}))?;
    plan.is_consistent()?;
    plan.object("Namespace", "mine")?;
    plan.object("CustomResourceDefinition", "chatclusters.carillon.chat")?;
    for object in &plan.objects {
        let is_global = ["Namespace", "CustomResourceDefinition"]
            .iter()
            .any(|kind| object["kind"] == *kind);
        ensure!(
            is_global || object["metadata"]["namespace"] == "mine",
            "{object}"
        );
    }
    // The image that is built is the one that the ChatCluster asks for, and Tilt knows where in it.
    let town = plan.object("ChatCluster", "town")?;
    let image = plan.call("custom_build", "carillon").context("an image")?;
    ensure!(
        town["spec"]["image"]["repository"] == image["args"][0],
        "{town}"
    );
    let kind = plan.call("k8s_kind", "ChatCluster").context("the kind")?;
    ensure!(
        kind["kwargs"]["image_object"]["json_path"] == "{.spec.image}",
        "{kind}"
    );
    // The platform takes the order.
    let order = carillon_crds::parse_chat_cluster(&town.to_string())
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    let target = carillon_crds::Target::Kubernetes {
        namespace: "mine".into(),
    };
    carillon_crds::platform_config("town", &order.spec, target)
        .map_err(|problems| anyhow::anyhow!(carillon_crds::describe_problems(&problems)))?;
    for store in ["scylla", "redis", "rabbitmq"] {
        plan.object("Deployment", store)?;
        plan.object("Service", store)?;
    }
    // Prometheus and Grafana are given the chart's own files.
    let chart = root().join("charts/carillon-operator");
    let rules = std::fs::read_to_string(chart.join("rules/carillon.yaml"))?;
    let prometheus = plan.object("ConfigMap", "prometheus")?;
    ensure!(prometheus["data"]["carillon.yaml"] == rules);
    let given = plan.object("ConfigMap", "grafana-dashboards")?["data"].as_object();
    let dashboards = std::fs::read_dir(chart.join("dashboards"))?.count();
    ensure!(given.is_some_and(|given| given.len() == dashboards));

    let plan = machine
        .load(&json!({"operator-in-cluster": true, "no-stores": true, "no-monitoring": true}))?;
    plan.is_consistent()?;
    ensure!(plan.call("local_resource", "operator").is_none());
    let operator = plan.object("Deployment", "carillon-carillon-operator")?;
    let image = &operator["spec"]["template"]["spec"]["containers"][0]["image"];
    ensure!(image == "carillon-operator:dev", "{image}");
    plan.call("custom_build", "carillon-operator")
        .context("its image")?;
    for left_out in ["scylla", "prometheus", "grafana"] {
        ensure!(
            plan.object("Deployment", left_out).is_err(),
            "{left_out} is there"
        );
    }
    Ok(())
}

/// OP-03: an API server takes every object, and the operator of the loop leads.
#[tokio::test(flavor = "multi_thread")]
async fn cluster_takes_the_loop() -> Result<()> {
    let test = "tilt::cluster_takes_the_loop";
    let Some(machine) = Machine::from_environment(test)? else {
        return Ok(());
    };
    let Some(plane) = ControlPlane::from_environment(test).await? else {
        return Ok(());
    };
    let plan = machine.load(&json!({"namespace": plane.namespace}))?;
    let list = json!({"apiVersion": "v1", "kind": "List", "items": plan.objects});
    let file = machine.programs.path().join("objects.json");
    std::fs::write(&file, list.to_string())?;
    let file = file.display().to_string();
    plane.kubectl(&[
        "apply",
        "--server-side",
        "--force-conflicts",
        "--validate=strict",
        "--dry-run=server",
        "-f",
        &file,
    ])?;

    let operator = plan
        .call("local_resource", "operator")
        .context("operator")?;
    let command = operator["kwargs"]["serve_cmd"]
        .as_str()
        .context("serve_cmd")?;
    let port = free_port();
    let mut running = machine
        .command("sh")
        .args(["-euc", command])
        .env("KUBECONFIG", &plane.kubeconfig)
        .env("CARILLON_OPERATOR", program("carillon-operator"))
        .env("HTTP_PORT", port.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    let leads = async {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let answer = http()
                .get(format!("http://127.0.0.1:{port}/metrics"))
                .send()
                .await;
            if let Ok(answer) = answer
                && answer.text().await?.contains("carillon_operator_leader 1")
            {
                return Ok(());
            }
            if running.try_wait()?.is_some() || Instant::now() > deadline {
                bail!("{command} does not lead");
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let led = leads.await;
    end(&mut running)?;
    led
}

/// Ends a process and what it started.
fn end(running: &mut std::process::Child) -> Result<()> {
    let _ = Command::new("kill")
        .args(["-KILL", "--", &format!("-{}", running.id())])
        .status()?;
    running.wait()?;
    Ok(())
}

/// OP-03: the port is forwarded to the Service's own, again and again.
#[test]
fn the_gateway_is_forwarded() -> Result<()> {
    let Some(machine) = Machine::from_environment("tilt::the_gateway_is_forwarded")? else {
        return Ok(());
    };
    let plan = machine.load(&json!({"namespace": "mine"}))?;
    let gateway = plan.call("local_resource", "gateway").context("gateway")?;
    let command = gateway["kwargs"]["serve_cmd"]
        .as_str()
        .context("serve_cmd")?;
    let log = machine.programs.path().join("log");
    machine.pretend(
        "kubectl",
        &format!(
            "case \"$*\" in *' get service '*) echo 80 ;; *) echo \"$*\" >>{:?} ;; esac",
            log
        ),
    )?;
    let mut running = machine
        .command("sh")
        .args(["-euc", command])
        .process_group(0)
        .spawn()?;
    let deadline = Instant::now() + Duration::from_secs(60);
    let expected = "--namespace mine port-forward service/town-gateway 8080:80\n";
    // Twice: it goes on after the first has ended.
    while std::fs::read_to_string(&log).unwrap_or_default() != expected.repeat(2) {
        if Instant::now() > deadline {
            end(&mut running)?;
            bail!("{:?}", std::fs::read_to_string(&log));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    end(&mut running)
}

/// OP-03: the build leaves an image under the name that Tilt gives. Docker itself isn't asked: what it would get is looked at.
#[test]
fn cluster_image_is_built_for_tilt() -> Result<()> {
    let test = "tilt::cluster_image_is_built_for_tilt";
    let Some(machine) = Machine::from_environment(test)? else {
        return Ok(());
    };
    // Where images are built anyway this costs little.
    if servers::variable(test, "CARILLON_TEST_OPERATOR_IMAGE").is_none() {
        return Ok(());
    }
    let plan = machine.load(&json!({"operator-in-cluster": true}))?;
    let build = plan
        .call("custom_build", "carillon-operator")
        .context("an image")?;
    let command = build["args"][1].as_str().context("a command")?;
    let log = machine.programs.path().join("log");
    machine.pretend("docker", &format!("echo \"$*\" >>{log:?}"))?;
    let images = tempfile::tempdir()?;
    let output = machine
        .command("sh")
        .args(["-euc", command])
        .env("EXPECTED_REF", "carillon-operator:tilt-1")
        .env("TILT_IMAGES", images.path())
        .output()?;
    ensure!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let said = std::fs::read_to_string(&log)?;
    let archive = images.path().join("carillon-operator.tar");
    let [load, tag] = said.lines().collect::<Vec<_>>()[..] else {
        bail!("docker was asked {said:?}");
    };
    ensure!(
        load == format!("load --input {}", archive.display()),
        "{load}"
    );
    let loaded = tag
        .strip_prefix("tag ")
        .and_then(|rest| rest.strip_suffix(" carillon-operator:tilt-1"))
        .with_context(|| tag.to_owned())?;
    let manifest = Command::new("tar")
        .args(["-xOf", &archive.display().to_string(), "manifest.json"])
        .output()?;
    let manifest: Value = serde_json::from_slice(&manifest.stdout)?;
    ensure!(manifest[0]["RepoTags"][0] == loaded, "{manifest}");
    Ok(())
}
