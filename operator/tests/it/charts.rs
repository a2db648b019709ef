//! What the charts render is what the API server takes, and their `helm test` passes where all is well and only there.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::{Map, Value, json};

use crate::plane::{OPERATOR_CHART, Plane, RELEASE, documents, variable};
use crate::proxy::{Log, Proxy};
use crate::stage::{NAME, STORES, Stage};

const CLUSTER_CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/chatcluster");
const VALUES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../helm/values");

// === schemas ===

/// A schema that knows every field there is, from one of the API server.
fn strict(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    let is_either = map
        .get("format")
        .is_some_and(|format| format == "int-or-string")
        || map.contains_key("x-kubernetes-int-or-string");
    if is_either {
        map.insert("type".to_owned(), json!(["string", "integer"]));
    }
    let is_open = map.contains_key("x-kubernetes-preserve-unknown-fields");
    if map.contains_key("properties") && !is_open {
        map.entry("additionalProperties").or_insert(json!(false));
    }
    // A field may be called `properties` or `format` too; its value is a schema then.
    for inner in ["properties", "definitions"] {
        if let Some(Value::Object(inner)) = map.get_mut(inner) {
            inner.values_mut().for_each(strict);
        }
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(inner) {
            strict(inner);
        }
    }
}

/// What a definition refers to, and what that refers to.
fn closure(name: &str, all: &Map<String, Value>, found: &mut Map<String, Value>) {
    let Some(definition) = all.get(name).filter(|_| !found.contains_key(name)) else {
        return;
    };
    found.insert(name.to_owned(), definition.clone());
    let text = definition.to_string();
    for reference in text.split("\"#/definitions/").skip(1) {
        if let Some(end) = reference.find('"') {
            closure(&reference[..end], all, found);
        }
    }
}

/// Writes a schema for each kind that the API server knows.
async fn write_schemas(client: &Client, folder: &Path) -> Result<usize> {
    let request = http::Request::get("/openapi/v2").body(Vec::new())?;
    let mut served: Value = serde_json::from_str(&client.request_text(request).await?)?;
    strict(&mut served);
    // Written as text, taken as a number too.
    served["definitions"]["io.k8s.apimachinery.pkg.api.resource.Quantity"]["type"] =
        json!(["string", "number"]);
    let all = served["definitions"].as_object().context("definitions")?;
    let mut written = 0;
    for (name, definition) in all {
        let kinds = definition["x-kubernetes-group-version-kind"].as_array();
        let Some([kind]) = kinds.map(Vec::as_slice) else {
            continue;
        };
        let text = |field: &str| kind[field].as_str().unwrap_or_default();
        let group = match text("group") {
            "" => text("version"),
            group => group,
        };
        let file = format!(
            "{group}_{}_{}.json",
            text("kind").to_lowercase(),
            text("version")
        );
        let mut definitions = Map::new();
        closure(name, all, &mut definitions);
        let schema = json!({ "$ref": format!("#/definitions/{name}"), "definitions": definitions });
        std::fs::write(folder.join(file), schema.to_string())?;
        written += 1;
    }
    Ok(written)
}

/// Whether kubeconform takes these manifests, and what it says.
fn conforms(program: &str, schemas: &Path, manifests: &str) -> Result<(bool, String)> {
    let place = schemas.join("{{.Group}}_{{.ResourceKind}}_{{.ResourceAPIVersion}}.json");
    let mut child = Command::new(program)
        .args(["-strict", "-summary", "-schema-location"])
        .arg(place)
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("kubeconform")?;
    let mut input = child.stdin.take().context("its input")?;
    input.write_all(manifests.as_bytes())?;
    drop(input);
    let output = child.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok((
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_charts_render_conforms_to_the_schemas() -> Result<()> {
    let test = "charts::what_charts_render_conforms_to_the_schemas";
    let Some(program) = variable(test, "CARILLON_TEST_KUBECONFORM") else {
        return Ok(());
    };
    let Some(plane) = Plane::from_environment(test).await? else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let schemas = write_schemas(&plane.admin, folder.path()).await?;
    ensure!(schemas > 100, "{schemas} schemas");
    let monitoring = "monitoring.podMonitor.enabled=true,monitoring.prometheusRule.enabled=true,monitoring.dashboards.enabled=true";
    let places = "replicas=3,watchNamespaces={a,b},nodeSelector.a=b,tolerations[0].key=a,tolerations[0].operator=Exists,imagePullSecrets[0].name=a,podAnnotations.a=b,priorityClassName=a";
    let check = "check.image.repository=registry.example.com/o,check.imagePullSecrets[0].name=a,labels.a=b,annotations.a=b";
    let mut cases: Vec<(&str, Vec<String>)> = vec![
        (OPERATOR_CHART, vec![]),
        (OPERATOR_CHART, vec!["--set".into(), monitoring.into()]),
        (OPERATOR_CHART, vec!["--set".into(), places.into()]),
        (CLUSTER_CHART, vec![]),
        (CLUSTER_CHART, vec!["--set".into(), check.into()]),
    ];
    for stage in ["development", "staging", "production"] {
        for (chart, file) in [(OPERATOR_CHART, RELEASE), (CLUSTER_CHART, NAME)] {
            let values = format!("{VALUES}/{stage}/{file}.yaml");
            cases.push((chart, vec!["--values".into(), values]));
        }
    }
    let mut last = String::new();
    for (chart, arguments) in &cases {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let rendered = plane.template(chart, NAME, "chat", &arguments)?;
        let (taken, said) = conforms(&program, folder.path(), &rendered)?;
        ensure!(taken, "{chart} with {arguments:?}: {said}");
        last = rendered;
    }
    // It would say so if it didn't.
    for (right, wrong) in [
        ("kind: ChatCluster", "kind: ChatCastle"),
        ("restartPolicy:", "restartPolitics:"),
        ("runAsUser: 65532", "runAsUser: nobody"),
        ("\nspec:\n", "\nspec:\n  unheard: of\n"),
    ] {
        let manifests = last.replacen(right, wrong, 1);
        ensure!(manifests != last, "no {right} in {last}");
        let (taken, said) = conforms(&program, folder.path(), &manifests)?;
        ensure!(!taken, "{wrong}: {said}");
    }
    println!("{} renderings, {schemas} schemas", cases.len());
    Ok(())
}

// === helm test ===

/// Runs the program of a test's pod as that pod would: with its arguments, environment and account.
async fn run(
    plane: &Plane,
    namespace: &str,
    pod: &Value,
    wait: Option<u32>,
) -> Result<(bool, String)> {
    let account = pod["spec"]["serviceAccountName"]
        .as_str()
        .context("an account")?;
    let proxy = Proxy::start("check", plane.anonymous()?, Log::default()).await?;
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{ "name": "test", "cluster": { "server": proxy.url } }],
        "users": [{ "name": "test", "user": { "token": plane.token(namespace, account).await? } }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
    });
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("kubeconfig");
    std::fs::write(&file, kubeconfig.to_string())?;
    let container = &pod["spec"]["containers"][0];
    let texts = |list: &Value| -> Vec<String> {
        let list = list.as_array().into_iter().flatten();
        list.map(|text| text.as_str().unwrap_or_default().to_owned())
            .collect()
    };
    let mut environment: BTreeMap<String, String> = BTreeMap::new();
    for variable in container["env"].as_array().into_iter().flatten() {
        // The one that isn't written out is the pod's namespace.
        let value = variable["value"].as_str().unwrap_or(namespace);
        let name = variable["name"].as_str().context("a name")?;
        environment.insert(name.to_owned(), value.to_owned());
    }
    let mut arguments = texts(&container["args"]);
    if let Some(wait) = wait {
        let given = arguments.iter().position(|argument| argument == "--wait");
        arguments.truncate(given.unwrap_or(arguments.len()));
        arguments.extend(["--wait".to_owned(), wait.to_string()]);
    }
    let output = tokio::task::spawn_blocking(move || {
        Command::new(env!("CARGO_BIN_EXE_carillon-operator"))
            .args(arguments)
            .env("KUBECONFIG", file)
            .envs(environment)
            .output()
    });
    let output = output.await?.context("the operator's program")?;
    drop(folder);
    Ok((
        output.status.success(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    ))
}

async fn may(plane: &Plane, namespace: &str, verb: &str, name: Option<&str>) -> Result<bool> {
    let api: Api<SubjectAccessReview> = Api::all(plane.admin.clone());
    let review = serde_json::from_value(json!({ "spec": {
        "user": format!("system:serviceaccount:{namespace}:{NAME}-check"),
        "resourceAttributes": { "namespace": namespace, "group": "carillon.chat", "resource": "chatclusters", "name": name, "verb": verb },
    } }))?;
    let answer = api.create(&PostParams::default(), &review).await?;
    Ok(answer.status.context("a status")?.allowed)
}

#[tokio::test(flavor = "multi_thread")]
async fn their_tests_pass_when_all_is_well_and_not_before() -> Result<()> {
    let test = "charts::their_tests_pass_when_all_is_well_and_not_before";
    let Some(plane) = Plane::from_environment(test).await? else {
        return Ok(());
    };
    let stage = Stage::set(&plane).await?;
    let namespace = stage.namespace.clone();
    let only = ["--show-only", "templates/tests/check.yaml"];
    let mut pods = Vec::new();
    for (chart, release) in [(OPERATOR_CHART, RELEASE), (CLUSTER_CHART, NAME)] {
        let rendered = documents(&plane.template(chart, release, &namespace, &only)?)?;
        ensure!(
            rendered
                .iter()
                .all(|object| object["metadata"]["annotations"]["helm.sh/hook"] == "test"),
            "{rendered:?}"
        );
        // The namespace takes restricted pods only.
        for object in rendered {
            let kind = object["kind"].as_str().context("a kind")?;
            let (group, version) = object["apiVersion"]
                .as_str()
                .context("apiVersion")?
                .rsplit_once('/')
                .unwrap_or(("", "v1"));
            stage
                .objects(group, version, kind)
                .create(
                    &PostParams::default(),
                    &serde_json::from_value(object.clone())?,
                )
                .await
                .with_context(|| format!("{kind} of {chart}"))?;
            if kind == "Pod" {
                pods.push(object);
            }
        }
    }
    let [of_operator, of_cluster] = pods.as_slice() else {
        anyhow::bail!("{} pods", pods.len());
    };
    let (passed, said) = run(&plane, &namespace, of_operator, Some(0)).await?;
    ensure!(!passed && said.contains("Lease"), "no operator: {said}");
    let (passed, said) = run(&plane, &namespace, of_cluster, Some(0)).await?;
    ensure!(
        !passed && said.contains("can't be read"),
        "no cluster: {said}"
    );

    let operator = stage.replica("carillon-operator-0").await?;
    operator.start()?;
    let (passed, said) = run(&plane, &namespace, of_operator, None).await?;
    ensure!(passed, "{said}");
    stage.edge.break_at(Some("send"));
    stage.order(STORES).await?;
    stage
        .wait_condition("Available", "False", "ProbeFailed")
        .await?;
    let (passed, said) = run(&plane, &namespace, of_cluster, Some(0)).await?;
    ensure!(!passed && said.contains("ProbeFailed"), "{said}");
    stage.edge.break_at(None);
    let (passed, said) = run(&plane, &namespace, of_cluster, None).await?;
    ensure!(passed, "{said}\n{}", operator.said());

    // This one ChatCluster may be read, and nothing else.
    ensure!(may(&plane, &namespace, "get", Some(NAME)).await?);
    for (verb, name) in [
        ("get", Some("other")),
        ("list", None),
        ("patch", Some(NAME)),
    ] {
        ensure!(
            !may(&plane, &namespace, verb, name).await?,
            "{verb} {name:?}"
        );
    }
    stage.strike().await
}
