//! A picture of a ChatCluster in the terminal; plain text when nobody looks.

use std::{fmt::Write as _, io::IsTerminal as _};

use anyhow::Result;
use serde_json::{Value, json};

/// Conditions that say whether a store answers, and the store's name.
const STORES: [(&str, &str); 4] = [
    ("ScyllaReady", "scylla"),
    ("RedisReady", "redis"),
    ("RabbitmqReady", "rabbitmq"),
    ("ObjectStoreReady", "object store"),
];

/// Prints the picture.
pub fn print(cluster: &Value) -> Result<()> {
    let is_terminal = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    print!("{}", picture(cluster, is_terminal));
    Ok(())
}

/// Prints what the picture is made of: the names are this command's own and stay.
pub fn print_json(cluster: &Value) -> Result<()> {
    let status = &cluster["status"];
    let json = json!({
        "name": cluster["metadata"]["name"],
        "namespace": cluster["metadata"]["namespace"],
        "paused": cluster["spec"]["paused"] == true,
        "upToDate": status["observedGeneration"] == cluster["metadata"]["generation"],
        "version": status["version"],
        "endpoint": status["endpoint"],
        "readyComponents": status["readyComponents"],
        "components": status["components"].as_array().cloned().unwrap_or_default(),
        "stores": STORES
            .iter()
            .filter_map(|(kind, store)| Some((*store, condition(cluster, kind)?)))
            .map(|(store, condition)| json!({"name": store, "status": condition["status"], "message": condition["message"]}))
            .collect::<Vec<_>>(),
        "conditions": conditions(cluster),
    });
    println!("{}", serde_json::to_string_pretty(&json)?);
    Ok(())
}

fn conditions(cluster: &Value) -> &[Value] {
    cluster["status"]["conditions"]
        .as_array()
        .map_or(&[], Vec::as_slice)
}

fn condition<'a>(cluster: &'a Value, kind: &str) -> Option<&'a Value> {
    conditions(cluster)
        .iter()
        .find(|condition| condition["type"] == kind)
}

/// How something is.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Health {
    Good,
    Bad,
    Unknown,
}

impl Health {
    /// Of a condition: whether it is true, or false where that is what's good.
    fn of(condition: &Value) -> Self {
        let good = match condition["type"].as_str() {
            Some("Degraded" | "Progressing") => "False",
            _ => "True",
        };
        match condition["status"].as_str() {
            Some("True" | "False") if condition["status"] == good => Health::Good,
            Some("True" | "False") => Health::Bad,
            _ => Health::Unknown,
        }
    }

    fn mark(self, colours: bool) -> &'static str {
        match (self, colours) {
            (Health::Good, true) => "\x1b[32m●\x1b[0m",
            (Health::Bad, true) => "\x1b[31m●\x1b[0m",
            (Health::Unknown, true) => "\x1b[33m○\x1b[0m",
            (Health::Good, false) => "ok ",
            (Health::Bad, false) => "BAD",
            (Health::Unknown, false) => "?  ",
        }
    }
}

/// The text without what a terminal would take as a command: messages quote what others wrote.
fn text(value: &Value) -> String {
    let text = value.as_str().unwrap_or("-");
    text.chars().filter(|c| !c.is_control()).collect()
}

fn picture(cluster: &Value, colours: bool) -> String {
    let mut out = String::new();
    let status = &cluster["status"];
    let metadata = &cluster["metadata"];
    let mut line = |text: String| {
        let _ = writeln!(out, "{}", text.trim_end());
    };
    line(format!(
        "ChatCluster {}/{}  version {}  endpoint {}",
        text(&metadata["namespace"]),
        text(&metadata["name"]),
        text(&status["version"]),
        text(&status["endpoint"])
    ));
    if cluster["spec"]["paused"] == true {
        line("paused: the operator leaves it as it is".into());
    }
    if status["observedGeneration"] != metadata["generation"] {
        line("the operator has not seen the last change yet".into());
    }

    line(String::new());
    line("Components".into());
    for component in status["components"].as_array().into_iter().flatten() {
        let number = |name: &str| component[name].as_u64().unwrap_or_default();
        let (ready, desired) = (number("readyReplicas"), number("desiredReplicas"));
        let health = match ready >= desired {
            true => Health::Good,
            false => Health::Bad,
        };
        let count = format!("{ready}/{desired}");
        line(format!(
            "  {} {:<14} {count:>7}  {:<12} {}",
            health.mark(colours),
            text(&component["name"]),
            text(&component["version"]),
            bar(ready, desired, colours)
        ));
    }
    line(String::new());
    line("Stores".into());
    for (kind, store) in STORES {
        let Some(condition) = condition(cluster, kind) else {
            continue;
        };
        let health = Health::of(condition);
        let why = match health {
            Health::Good => String::new(),
            _ => text(&condition["message"]),
        };
        line(format!("  {} {store:<14} {why}", health.mark(colours)));
    }
    line(String::new());
    line("Conditions".into());
    for condition in conditions(cluster) {
        if STORES.iter().any(|(kind, _)| condition["type"] == *kind) {
            continue;
        }
        line(format!(
            "  {} {:<14} {:<8} {}",
            Health::of(condition).mark(colours),
            text(&condition["type"]),
            text(&condition["status"]),
            text(&condition["message"])
        ));
    }
    out
}

/// A mark for each pod, as long as they fit.
fn bar(ready: u64, desired: u64, colours: bool) -> String {
    const WIDEST: u64 = 30;
    if !colours || desired > WIDEST {
        return String::new();
    }
    let ready = ready.min(desired);
    "■".repeat(ready as usize) + &"□".repeat((desired - ready) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> Value {
        json!({
            "metadata": {"name": "town", "namespace": "chat", "generation": 3},
            "spec": {},
            "status": {
                "observedGeneration": 3,
                "version": "0.1.0",
                "endpoint": "https://chat.example.com",
                "components": [
                    {"name": "gateway", "desiredReplicas": 3, "readyReplicas": 2, "version": "0.1.0"},
                    {"name": "auth", "desiredReplicas": 1, "readyReplicas": 1, "version": "0.1.0"},
                ],
                "conditions": [
                    {"type": "Available", "status": "False", "message": "gateway needs 3 pods and has 2"},
                    {"type": "Degraded", "status": "False", "message": ""},
                    {"type": "RedisReady", "status": "False", "message": "redis is\u{1b}[2J away"},
                    {"type": "ScyllaReady", "status": "True", "message": "ok"},
                ],
            },
        })
    }

    #[test]
    fn a_pipe_gets_plain_text() {
        let expected = "\
ChatCluster chat/town  version 0.1.0  endpoint https://chat.example.com

Components
  BAD gateway            2/3  0.1.0
  ok  auth               1/1  0.1.0

Stores
  ok  scylla
  BAD redis          redis is[2J away

Conditions
  BAD Available      False    gateway needs 3 pods and has 2
  ok  Degraded       False
";
        assert_eq!(picture(&cluster(), false), expected);
    }

    #[test]
    fn a_terminal_gets_colours_and_nobody_elses_commands() {
        let shown = picture(&cluster(), true);
        assert!(
            shown.contains("\x1b[31m●") && shown.contains("■■□"),
            "{shown}"
        );
        assert!(!shown.contains("\x1b[2J"), "{shown}");
    }

    #[test]
    fn what_the_operator_has_not_seen_is_said() {
        let mut cluster = cluster();
        cluster["metadata"]["generation"] = json!(4);
        cluster["spec"]["paused"] = json!(true);
        let shown = picture(&cluster, false);
        assert!(
            shown.contains("paused") && shown.contains("not seen the last change"),
            "{shown}"
        );
    }

    #[test]
    fn nothing_known_is_no_panic() {
        let shown = picture(&json!({"metadata": {"name": "new"}}), false);
        assert!(shown.contains("ChatCluster -/new"), "{shown}");
    }
}
