//! Push.

use super::{Dashboard, Kind, Panel, Row};

pub(super) const DASHBOARD: Dashboard = Dashboard {
    name: "push",
    title: "Push",
    description: "From a committed message to the push provider.",
    known_by: "carillon_ready",
    by_chat_cluster: true,
    rows: &[
        Row {
            title: "Now",
            panels: &[
                Panel {
                    kind: Kind::Figure,
                    title: "Taken by providers",
                    description: "Share of attempts of the last 5 minutes. Objective: 99 %.",
                    unit: "percentunit",
                    queries: &[("1 - max(carillon:push_failures:ratio_rate5m{@})", "taken")],
                },
                Panel {
                    kind: Kind::Figure,
                    title: "Jobs queued",
                    description: "One for up to 200 recipients of a message.",
                    unit: "ops",
                    queries: &[(
                        r#"sum (rate(carillon_message_push_jobs_total{@, outcome="queued"}[$__rate_interval]))"#,
                        "queued",
                    )],
                },
                Panel {
                    kind: Kind::Figure,
                    title: "Jobs dropped",
                    description: "Within 10 minutes: their recipients are not told.",
                    unit: "short",
                    queries: &[(
                        r#"sum(increase(carillon_message_push_jobs_total{@, outcome!~"queued|unneeded"}[10m]))"#,
                        "dropped",
                    )],
                },
            ],
        },
        Row {
            title: "Jobs",
            panels: &[
                Panel {
                    kind: Kind::Lines,
                    title: "Jobs by outcome",
                    description: "Unneeded: nobody in the room was offline. An error's code: dropped after a minute of trying.",
                    unit: "ops",
                    queries: &[(
                        "sum by (outcome) (rate(carillon_message_push_jobs_total{@}[$__rate_interval]))",
                        "{{outcome}}",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Hints dropped",
                    description: "Push jobs that did not fit into a full queue in memory, and signals.",
                    unit: "ops",
                    queries: &[(
                        "sum by (kind, reason) (rate(carillon_message_hints_dropped_total{@}[$__rate_interval]))",
                        "{{kind}}: {{reason}}",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Queue operations",
                    description: "Publishing, and working off.",
                    unit: "ops",
                    queries: &[(
                        r#"sum by (store, operation) (rate(carillon_store_operation_duration_seconds_count{@, store=~"rabbitmq|embedded", operation=~"publish|process|push.*"}[$__rate_interval]))"#,
                        "{{store}} {{operation}}",
                    )],
                },
            ],
        },
        Row {
            title: "Deliveries",
            panels: &[
                Panel {
                    kind: Kind::Stacked,
                    title: "Deliveries by outcome",
                    description: "Gone: the device is forgotten. Rejected: the provider refuses for good. Retry: it comes again. Limited: the person had enough.",
                    unit: "ops",
                    queries: &[(
                        "sum by (provider, outcome) (rate(carillon_push_deliveries_total{@}[$__rate_interval]))",
                        "{{provider}}: {{outcome}}",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Time of a delivery",
                    description: "One request to a provider, with what it needs before.",
                    unit: "s",
                    queries: &[
                        (
                            "histogram_quantile(0.5, sum by (le, provider) (rate(carillon_push_delivery_duration_seconds_bucket{@}[$__rate_interval])))",
                            "{{provider}} half",
                        ),
                        (
                            "histogram_quantile(0.99, sum by (le, provider) (rate(carillon_push_delivery_duration_seconds_bucket{@}[$__rate_interval])))",
                            "{{provider}} 99 %",
                        ),
                    ],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Failures",
                    description: "Share of attempts that were rejected or come again.",
                    unit: "percentunit",
                    queries: &[
                        (
                            "max by (namespace, chatcluster) (carillon:push_failures:ratio_rate5m{@})",
                            "{{namespace}}/{{chatcluster}} 5 min",
                        ),
                        (
                            "max by (namespace, chatcluster) (carillon:push_failures:ratio_rate1h{@})",
                            "{{namespace}}/{{chatcluster}} 1 h",
                        ),
                    ],
                },
            ],
        },
    ],
};
