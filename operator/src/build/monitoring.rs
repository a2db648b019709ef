//! What Prometheus and Grafana read of one ChatCluster, when it asks for it: PodMonitor, PrometheusRule, dashboards.
//!
//! Rules and dashboards are the files of the operator's chart, which are for all ChatClusters, cut down to one: two ChatClusters that
//! ask for them would otherwise record the same series twice, alert for each other, and replace each other's dashboards. The rules
//! about the operator and its dashboard are not here: they are the chart's.

use std::collections::BTreeMap;

use carillon_crds::MonitoringSpec;
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use super::labels::{instance, match_labels, metadata};
use super::{object, short_hash};
use crate::foreign::{PodMonitor, PrometheusRule};
use crate::validate::Order;

const RULES: &str = include_str!("../../../charts/carillon-operator/rules/carillon.yaml");
/// The group of rules that is about the operator.
const OPERATOR_GROUP: &str = "carillon-operator";

const DASHBOARDS: [(&str, &str); 5] = [
    (
        "overview",
        include_str!("../../../charts/carillon-operator/dashboards/overview.json"),
    ),
    (
        "messages",
        include_str!("../../../charts/carillon-operator/dashboards/messages.json"),
    ),
    (
        "gateway",
        include_str!("../../../charts/carillon-operator/dashboards/gateway.json"),
    ),
    (
        "stores",
        include_str!("../../../charts/carillon-operator/dashboards/stores.json"),
    ),
    (
        "push",
        include_str!("../../../charts/carillon-operator/dashboards/push.json"),
    ),
];

const INTERVAL: &str = "30s";

pub(super) fn pod_monitor(order: &Order) -> Option<PodMonitor> {
    let wanted = asked(order)?.pod_monitor.as_ref()?;
    if wanted.enabled == Some(false) {
        return None;
    }
    let mut metadata = metadata(order, order.name.clone(), None);
    add(&mut metadata.labels, wanted.labels.as_ref());
    let from_label = |label: &str, target: &str| json!({ "sourceLabels": [format!("__meta_kubernetes_pod_label_{label}")], "targetLabel": target });
    Some(PodMonitor::new(
        metadata,
        json!({
            "selector": match_labels(instance(order)),
            "podMetricsEndpoints": [{
                "port": "admin",
                "interval": wanted.interval.as_deref().unwrap_or(INTERVAL),
                "relabelings": [
                    from_label("app_kubernetes_io_instance", "chatcluster"),
                    from_label("app_kubernetes_io_component", "role"),
                ],
            }],
        }),
    ))
}

pub(super) fn prometheus_rule(order: &Order) -> Option<PrometheusRule> {
    let wanted = asked(order)?.prometheus_rule.as_ref()?;
    if wanted.enabled == Some(false) {
        return None;
    }
    let text = match &wanted.runbook_base_url {
        Some(url) => RULES.replace("docs/runbooks/", &format!("{}/", url.trim_end_matches('/'))),
        None => RULES.to_owned(),
    };
    let mut rules: Value = serde_saphyr::from_str(&text).expect("the rules are YAML: see the test");
    let groups = rules["groups"].as_array_mut().expect("groups of rules");
    groups.retain(|group| group["name"] != OPERATOR_GROUP);
    let matchers = format!(
        "namespace=\"{}\", chatcluster=\"{}\"",
        order.namespace, order.name
    );
    for group in groups {
        for rule in group["rules"].as_array_mut().expect("rules of a group") {
            let scoped = scoped(rule["expr"].as_str().unwrap_or_default(), &matchers);
            rule["expr"] = Value::String(scoped);
        }
    }
    let mut metadata = metadata(order, order.name.clone(), None);
    add(&mut metadata.labels, wanted.labels.as_ref());
    Some(PrometheusRule::new(metadata, rules))
}

pub(super) fn dashboards(order: &Order) -> Vec<ConfigMap> {
    let Some(wanted) = asked(order).and_then(|monitoring| monitoring.dashboards.as_ref()) else {
        return Vec::new();
    };
    if wanted.enabled == Some(false) {
        return Vec::new();
    }
    let found_by = BTreeMap::from([("grafana_dashboard".to_owned(), "1".to_owned())]);
    let dashboard = |(name, text): &(&str, &str)| {
        let mut metadata = metadata(order, format!("{}-dashboard-{name}", order.name), None);
        add(
            &mut metadata.labels,
            Some(wanted.labels.as_ref().unwrap_or(&found_by)),
        );
        add(&mut metadata.annotations, wanted.annotations.as_ref());
        // Of one name for all namespaces: Grafana's sidecar puts them all into one folder.
        let file = format!("carillon-{}-{}-{name}.json", order.namespace, order.name);
        let data = BTreeMap::from([(file, dashboard_of(order, name, text))]);
        object(json!({ "metadata": metadata, "data": data }))
    };
    DASHBOARDS.iter().map(dashboard).collect()
}

fn asked(order: &Order) -> Option<&MonitoringSpec> {
    order.spec.monitoring.as_ref()
}

/// The operator's own labels can't be replaced: it finds its children by them.
fn add(map: &mut Option<BTreeMap<String, String>>, more: Option<&BTreeMap<String, String>>) {
    for (key, value) in more.into_iter().flatten() {
        map.get_or_insert_default()
            .entry(key.clone())
            .or_insert_with(|| value.clone());
    }
}

/// A dashboard that shows one ChatCluster, links to its others only, and has an address of its own.
fn dashboard_of(order: &Order, name: &str, text: &str) -> String {
    let mut dashboard: Value = serde_json::from_str(text).expect("a dashboard is JSON");
    let whose = format!("{}/{}", order.namespace, order.name);
    let variables = dashboard["templating"]["list"]
        .as_array_mut()
        .expect("a dashboard has variables");
    for variable in variables {
        let value = match variable["name"].as_str() {
            Some("namespace") => &order.namespace,
            Some("chatcluster") => &order.name,
            _ => continue,
        };
        // Of the type `constant` there is one value, and nobody is asked to choose.
        *variable = json!({
            "name": variable["name"],
            "type": "constant",
            "hide": 2,
            "query": value,
            "current": { "text": value, "value": value },
        });
    }
    let title = dashboard["title"].as_str().unwrap_or_default();
    let title = title.trim_start_matches("Carillon / ").to_owned();
    dashboard["title"] = json!(format!("{whose} / {title}"));
    // At most 40 characters.
    dashboard["uid"] = json!(format!("carillon-{}-{name}", short_hash(&whose)));
    dashboard["tags"] = json!(["carillon", whose]);
    for link in dashboard["links"].as_array_mut().into_iter().flatten() {
        link["tags"] = json!([whose]);
    }
    dashboard.to_string()
}

/// `expression` with `matchers` in each of its selectors: of our own metrics, of what is recorded of them, and of `up`.
fn scoped(expression: &str, matchers: &str) -> String {
    let mut scoped = String::new();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        let word = |rest: &str| {
            rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
                .unwrap_or(rest.len())
        };
        let length = match first {
            // No expression has a quote within a text.
            '"' => rest[1..].find('"').map_or(rest.len(), |end| end + 2),
            _ => word(rest).max(first.len_utf8()),
        };
        let (token, after) = rest.split_at(length);
        scoped.push_str(token);
        rest = after;
        if !(token.starts_with("carillon") || token == "up") {
            continue;
        }
        match rest.strip_prefix('{') {
            Some(selector) => {
                scoped.push_str(&format!("{{{matchers}, "));
                rest = selector;
            }
            None => scoped.push_str(&format!("{{{matchers}}}")),
        }
    }
    scoped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::tests::{SMALL, order_of, yaml_of};

    const ALL: &str = "
monitoring:
  podMonitor: {labels: {release: prometheus, app.kubernetes.io/instance: theirs}, interval: 1m}
  prometheusRule: {labels: {release: prometheus}, runbookBaseUrl: 'https://wiki.example.com/r/'}
  dashboards: {annotations: {grafana_folder: Chat}}
";

    fn all() -> Order {
        order_of(&format!("{SMALL}{ALL}"))
    }

    #[test]
    fn pod_monitors() {
        insta::assert_snapshot!(yaml_of(&pod_monitor(&all())));
    }

    #[test]
    fn nothing_is_made_unless_asked_for() {
        for spec in [
            "",
            "monitoring: {}",
            "monitoring: {podMonitor: {enabled: false}, prometheusRule: {enabled: false}, dashboards: {enabled: false}}",
        ] {
            let order = order_of(&format!("{SMALL}{spec}"));
            assert!(pod_monitor(&order).is_none());
            assert!(prometheus_rule(&order).is_none());
            assert!(dashboards(&order).is_empty());
        }
        let order = order_of(&format!(
            "{SMALL}monitoring: {{podMonitor: {{}}, prometheusRule: {{}}, dashboards: {{}}}}"
        ));
        assert!(pod_monitor(&order).is_some());
        assert!(prometheus_rule(&order).is_some());
        assert_eq!(dashboards(&order).len(), 5);
    }

    #[test]
    fn selectors_are_cut_down_to_one_cluster() {
        for (expression, expected) in [
            ("carillon_ready == 0", "carillon_ready{M} == 0"),
            (
                "up{chatcluster!=\"\"} == 0",
                "up{M, chatcluster!=\"\"} == 0",
            ),
            (
                "sum by (chatcluster) (rate(carillon_a_total{b=~\"up|carillon_c\"}[5m])) / carillon:d:ratio_rate1h",
                "sum by (chatcluster) (rate(carillon_a_total{M, b=~\"up|carillon_c\"}[5m])) / carillon:d:ratio_rate1h{M}",
            ),
            (
                "group(carillon_ready offset 30m) unless on (role) x",
                "group(carillon_ready{M} offset 30m) unless on (role) x",
            ),
            (
                "label_replace(rate(carillon_a[5m]), \"of\", \"\", \"\", \"\")",
                "label_replace(rate(carillon_a{M}[5m]), \"of\", \"\", \"\", \"\")",
            ),
        ] {
            assert_eq!(scoped(expression, "M"), expected);
        }
    }

    #[test]
    fn rules_are_about_this_cluster_and_not_about_the_operator() {
        let rule = prometheus_rule(&all()).unwrap();
        let text = rule.spec.to_string();
        assert!(text.contains("https://wiki.example.com/r/CarillonStoreAway.md"));
        assert!(!text.contains("docs/runbooks") && !text.contains("carillon_operator"));
        let mut alerts = 0;
        for group in rule.spec["groups"].as_array().unwrap() {
            for rule in group["rules"].as_array().unwrap() {
                let expression = rule["expr"].as_str().unwrap();
                assert!(
                    expression.contains("{namespace=\"chat\", chatcluster=\"town\""),
                    "{expression}"
                );
                alerts += usize::from(rule.get("alert").is_some());
            }
        }
        assert!(alerts >= 20, "{alerts}");
    }

    #[test]
    fn dashboards_are_about_this_cluster() {
        let maps = dashboards(&all());
        let mut addresses = std::collections::BTreeSet::new();
        for map in &maps {
            let metadata = &map.metadata;
            assert_eq!(metadata.labels.as_ref().unwrap()["grafana_dashboard"], "1");
            assert_eq!(
                metadata.annotations.as_ref().unwrap()["grafana_folder"],
                "Chat"
            );
            let data = map.data.as_ref().unwrap();
            let (file, text) = data.iter().next().unwrap();
            assert!(file.starts_with("carillon-chat-town-"), "{file}");
            let dashboard: Value = serde_json::from_str(text).unwrap();
            assert!(
                dashboard["title"]
                    .as_str()
                    .unwrap()
                    .starts_with("chat/town / ")
            );
            let uid = dashboard["uid"].as_str().unwrap().to_owned();
            assert!(uid.len() <= 40 && addresses.insert(uid));
            let constants: Vec<&Value> = dashboard["templating"]["list"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|variable| variable["type"] == "constant")
                .map(|variable| &variable["query"])
                .collect();
            assert_eq!(constants, ["chat", "town"], "{file}");
        }
        assert_eq!(maps.len(), DASHBOARDS.len());
    }
}
