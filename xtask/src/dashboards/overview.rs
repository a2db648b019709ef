//! The page to look at first.

use super::{Dashboard, Kind, Panel, Row};

pub(super) const DASHBOARD: Dashboard = Dashboard {
    name: "overview",
    title: "Overview",
    description: "How the platform is, in one page: objectives, traffic, and what is not well.",
    known_by: "carillon_ready",
    by_chat_cluster: true,
    rows: &[
        Row {
            title: "Now",
            panels: &[
                Panel {
                    kind: Kind::Figure,
                    title: "Open sockets",
                    description: "Authenticated sockets at all gateways.",
                    unit: "short",
                    queries: &[("sum(carillon_gateway_sockets{@})", "sockets")],
                },
                Panel {
                    kind: Kind::Figure,
                    title: "Messages",
                    description: "Messages committed to room logs.",
                    unit: "mps",
                    queries: &[(
                        r#"sum(rate(carillon_message_events_total{@, kind="message"}[$__rate_interval]))"#,
                        "messages",
                    )],
                },
                Panel {
                    kind: Kind::Figure,
                    title: "Sends acknowledged",
                    description: "Share of sends of the last 5 minutes that did not fail by our doing. Objective: 99.9 %.",
                    unit: "percentunit",
                    queries: &[(
                        "1 - max(carillon:send_failures:ratio_rate5m{@})",
                        "acknowledged",
                    )],
                },
                Panel {
                    kind: Kind::Figure,
                    title: "Deliveries within 1 s",
                    description: "Share of events of the last 5 minutes that gateways handed to sockets within a second. Objective: 99 %.",
                    unit: "percentunit",
                    queries: &[(
                        "1 - max(carillon:deliveries_slow:ratio_rate5m{@})",
                        "in time",
                    )],
                },
                Panel {
                    kind: Kind::Figure,
                    title: "Pushes taken",
                    description: "Share of attempts of the last 5 minutes that push providers took. Objective: 99 %.",
                    unit: "percentunit",
                    queries: &[("1 - max(carillon:push_failures:ratio_rate5m{@})", "taken")],
                },
                Panel {
                    kind: Kind::Figure,
                    title: "Alerts",
                    description: "Alerts of this platform that fire.",
                    unit: "short",
                    queries: &[(
                        r#"count(ALERTS{alertstate="firing", alertname=~"Carillon.*"}) or vector(0)"#,
                        "firing",
                    )],
                },
            ],
        },
        Row {
            title: "Objectives: how fast the error budget of 30 days burns (1: it lasts just so long; 14.4: it is gone in two days)",
            panels: &[
                Panel {
                    kind: Kind::Lines,
                    title: "Sends",
                    description: "Failed sends against a budget of 0.1 %.",
                    unit: "short",
                    queries: &[
                        (
                            "max by (namespace, chatcluster) (carillon:send_failures:ratio_rate1h{@}) / 0.001",
                            "{{namespace}}/{{chatcluster}} 1 h",
                        ),
                        (
                            "max by (namespace, chatcluster) (carillon:send_failures:ratio_rate6h{@}) / 0.001",
                            "{{namespace}}/{{chatcluster}} 6 h",
                        ),
                    ],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Deliveries",
                    description: "Events later than a second against a budget of 1 %.",
                    unit: "short",
                    queries: &[
                        (
                            "max by (namespace, chatcluster) (carillon:deliveries_slow:ratio_rate1h{@}) / 0.01",
                            "{{namespace}}/{{chatcluster}} 1 h",
                        ),
                        (
                            "max by (namespace, chatcluster) (carillon:deliveries_slow:ratio_rate6h{@}) / 0.01",
                            "{{namespace}}/{{chatcluster}} 6 h",
                        ),
                    ],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Pushes",
                    description: "Failed attempts to push against a budget of 1 %.",
                    unit: "short",
                    queries: &[
                        (
                            "max by (namespace, chatcluster) (carillon:push_failures:ratio_rate1h{@}) / 0.01",
                            "{{namespace}}/{{chatcluster}} 1 h",
                        ),
                        (
                            "max by (namespace, chatcluster) (carillon:push_failures:ratio_rate6h{@}) / 0.01",
                            "{{namespace}}/{{chatcluster}} 6 h",
                        ),
                    ],
                },
            ],
        },
        Row {
            title: "Traffic",
            panels: &[
                Panel {
                    kind: Kind::Stacked,
                    title: "Events by kind",
                    description: "Events committed to room logs: messages, edits, deletes, joins and so on.",
                    unit: "eps",
                    queries: &[(
                        "sum by (kind) (rate(carillon_message_events_total{@}[$__rate_interval]))",
                        "{{kind}}",
                    )],
                },
                Panel {
                    kind: Kind::Stacked,
                    title: "REST requests by status",
                    description: "Requests that gateways answered.",
                    unit: "reqps",
                    queries: &[(
                        "sum by (status) (rate(carillon_http_requests_total{@}[$__rate_interval]))",
                        "{{status}}",
                    )],
                },
                Panel {
                    kind: Kind::Stacked,
                    title: "Sends by outcome",
                    description: "Refused is the sender's doing, failed is ours.",
                    unit: "reqps",
                    queries: &[(
                        "sum by (outcome) (rate(carillon_gateway_send_duration_seconds_count{@}[$__rate_interval]))",
                        "{{outcome}}",
                    )],
                },
            ],
        },
        Row {
            title: "Health",
            panels: &[
                Panel {
                    kind: Kind::Lines,
                    title: "Ready processes by role",
                    description: "Processes that say they can work. Which role has too few is in the ChatCluster's status.",
                    unit: "short",
                    queries: &[(
                        "sum by (namespace, chatcluster, role) (carillon_ready{@})",
                        "{{namespace}}/{{chatcluster}} {{role}}",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Stores that answer",
                    description: "1 while every process of a role reaches a store, 0 while one does not.",
                    unit: "short",
                    queries: &[(
                        "min by (role, dependency) (carillon_dependency_up{@})",
                        "{{role}} → {{dependency}}",
                    )],
                },
                Panel {
                    kind: Kind::Stacked,
                    title: "Versions",
                    description: "Processes by version: two while a rollout is under way.",
                    unit: "short",
                    queries: &[("count by (version) (carillon_ready{@})", "{{version}}")],
                },
            ],
        },
    ],
};
