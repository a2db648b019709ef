//! Grafana dashboards, written from a short description of each: a title, a sentence, a unit and queries per panel.
//!
//! What every panel and dashboard has in common (datasource, variables, places in the grid) is here once. Only core panels are
//! used: nothing has to be installed in Grafana.

mod gateway;
mod messages;
mod operator;
mod overview;
mod push;
mod stores;

use serde_json::{Value, json};

/// A dashboard's file name, without its ending, and its JSON.
pub fn all() -> Vec<(&'static str, String)> {
    const ALL: [Dashboard; 6] = [
        overview::DASHBOARD,
        messages::DASHBOARD,
        gateway::DASHBOARD,
        stores::DASHBOARD,
        push::DASHBOARD,
        operator::DASHBOARD,
    ];
    ALL.iter()
        .map(|dashboard| {
            let mut text = serde_json::to_string_pretty(&dashboard.json())
                .expect("a JSON value is always printable");
            text.push('\n');
            (dashboard.name, text)
        })
        .collect()
}

/// The version of Grafana's dashboard model that this is; later Grafanas migrate it when they load it.
const SCHEMA_VERSION: u32 = 39;
/// Columns of the grid.
const COLUMNS: u32 = 24;

struct Dashboard {
    name: &'static str,
    title: &'static str,
    description: &'static str,
    /// The metric whose labels fill the variables.
    known_by: &'static str,
    /// Whether its series have a ChatCluster.
    by_chat_cluster: bool,
    rows: &'static [Row],
}

struct Row {
    title: &'static str,
    panels: &'static [Panel],
}

struct Panel {
    kind: Kind,
    title: &'static str,
    description: &'static str,
    /// A unit of Grafana's: `s`, `percentunit`, `reqps`, …
    unit: &'static str,
    /// Queries and legends. `@` in a query stands for the chosen namespaces and ChatClusters.
    queries: &'static [(&'static str, &'static str)],
}

#[derive(Clone, Copy)]
enum Kind {
    /// One figure: the last.
    Figure,
    /// Lines over time.
    Lines,
    /// Lines over time on each other, for parts of a whole.
    Stacked,
}

impl Kind {
    /// Width and height in the grid.
    fn size(self) -> (u32, u32) {
        match self {
            Kind::Figure => (4, 4),
            Kind::Lines | Kind::Stacked => (8, 8),
        }
    }
}

fn datasource() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

impl Dashboard {
    fn json(&self) -> Value {
        json!({
            "uid": format!("carillon-{}", self.name),
            "title": format!("Carillon / {}", self.title),
            "description": self.description,
            "tags": ["carillon"],
            "schemaVersion": SCHEMA_VERSION,
            "version": 1,
            "editable": true,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-1h", "to": "now"},
            "timezone": "browser",
            "annotations": {"list": []},
            "links": [{
                "type": "dashboards",
                "title": "Carillon",
                "tags": ["carillon"],
                "asDropdown": true,
                "includeVars": true,
                "keepTime": true,
            }],
            "templating": {"list": self.variables()},
            "panels": self.panels(),
        })
    }

    fn variables(&self) -> Vec<Value> {
        let mut variables = vec![json!({
            "type": "datasource",
            "name": "datasource",
            "label": "Data source",
            "query": "prometheus",
            "current": {},
            "refresh": 1,
        })];
        variables.push(choice(
            "namespace",
            "Namespace",
            &format!("label_values({}, namespace)", self.known_by),
        ));
        if self.by_chat_cluster {
            variables.push(choice(
                "chatcluster",
                "ChatCluster",
                &format!(
                    "label_values({}{{namespace=~\"$namespace\"}}, chatcluster)",
                    self.known_by
                ),
            ));
        }
        variables
    }

    fn panels(&self) -> Vec<Value> {
        let chosen = if self.by_chat_cluster {
            r#"namespace=~"$namespace", chatcluster=~"$chatcluster""#
        } else {
            r#"namespace=~"$namespace""#
        };
        let mut panels: Vec<Value> = Vec::new();
        let mut y = 0;
        for row in self.rows {
            panels.push(json!({
                "id": panels.len() + 1,
                "type": "row",
                "title": row.title,
                "collapsed": false,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
            }));
            y += 1;
            let (mut x, mut tallest) = (0, 0);
            for panel in row.panels {
                let (width, height) = panel.kind.size();
                if x + width > COLUMNS {
                    (x, y, tallest) = (0, y + tallest, 0);
                }
                let place = json!({"x": x, "y": y, "w": width, "h": height});
                panels.push(panel.json(panels.len() + 1, &place, chosen));
                x += width;
                tallest = tallest.max(height);
            }
            y += tallest;
        }
        panels
    }
}

/// A variable with any number of a label's values.
fn choice(name: &str, label: &str, query: &str) -> Value {
    json!({
        "type": "query",
        "name": name,
        "label": label,
        "datasource": datasource(),
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": true,
        "includeAll": true,
        "current": {"text": ["All"], "value": ["$__all"]},
    })
}

impl Panel {
    fn json(&self, id: usize, place: &Value, chosen: &str) -> Value {
        let targets: Vec<Value> = ('A'..)
            .zip(self.queries)
            .map(|(letter, (query, legend))| {
                json!({
                    "refId": letter.to_string(),
                    "datasource": datasource(),
                    "expr": query.replace('@', chosen),
                    "legendFormat": legend,
                    "range": true,
                    "editorMode": "code",
                })
            })
            .collect();
        let (kind, custom, options) = match self.kind {
            Kind::Figure => (
                "stat",
                json!({}),
                json!({
                    "colorMode": "value",
                    "graphMode": "area",
                    "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": false},
                }),
            ),
            Kind::Lines | Kind::Stacked => (
                "timeseries",
                json!({
                    "lineWidth": 1,
                    "fillOpacity": if matches!(self.kind, Kind::Stacked) { 25 } else { 5 },
                    "showPoints": "never",
                    "stacking": {"mode": if matches!(self.kind, Kind::Stacked) { "normal" } else { "none" }},
                }),
                json!({
                    "legend": {"displayMode": "list", "placement": "bottom", "showLegend": true},
                    "tooltip": {"mode": "multi", "sort": "desc"},
                }),
            ),
        };
        json!({
            "id": id,
            "type": kind,
            "title": self.title,
            "description": self.description,
            "datasource": datasource(),
            "gridPos": place,
            "fieldConfig": {"defaults": {"unit": self.unit, "custom": custom}, "overrides": []},
            "options": options,
            "targets": targets,
        })
    }
}
