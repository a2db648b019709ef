//! The operator.

use super::{Dashboard, Kind, Panel, Row};

pub(super) const DASHBOARD: Dashboard = Dashboard {
    name: "operator",
    title: "Operator",
    description: "What the operator does, and whether it can.",
    known_by: "carillon_operator_leader",
    by_chat_cluster: false,
    rows: &[
        Row {
            title: "Now",
            panels: &[
                Panel {
                    kind: Kind::Figure,
                    title: "Leaders",
                    description: "Operator pods that act: one in each namespace where an operator is installed.",
                    unit: "short",
                    queries: &[("sum(carillon_operator_leader{@})", "leaders")],
                },
                Panel {
                    kind: Kind::Figure,
                    title: "Reconciles",
                    description: "Passes over ChatClusters.",
                    unit: "ops",
                    queries: &[(
                        "sum (rate(carillon_operator_reconciles_total{@}[$__rate_interval]))",
                        "reconciles",
                    )],
                },
                Panel {
                    kind: Kind::Figure,
                    title: "Writes",
                    description: "Writes to the API server: none while nothing changes.",
                    unit: "wps",
                    queries: &[(
                        "sum (rate(carillon_operator_writes_total{@}[$__rate_interval]))",
                        "writes",
                    )],
                },
            ],
        },
        Row {
            title: "Reconciling",
            panels: &[
                Panel {
                    kind: Kind::Lines,
                    title: "Reconciles by result",
                    description: "An error is tried again, later and later.",
                    unit: "ops",
                    queries: &[(
                        "sum by (namespace, result) (rate(carillon_operator_reconciles_total{@}[$__rate_interval]))",
                        "{{namespace}}: {{result}}",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Time of a reconcile",
                    description: "Half, and 99 %, of the passes.",
                    unit: "s",
                    queries: &[
                        (
                            "histogram_quantile(0.5, sum by (le) (rate(carillon_operator_reconcile_duration_seconds_bucket{@}[$__rate_interval])))",
                            "half",
                        ),
                        (
                            "histogram_quantile(0.99, sum by (le) (rate(carillon_operator_reconcile_duration_seconds_bucket{@}[$__rate_interval])))",
                            "99 %",
                        ),
                    ],
                },
                Panel {
                    kind: Kind::Stacked,
                    title: "Writes by kind",
                    description: "Writes to the API server.",
                    unit: "wps",
                    queries: &[(
                        "sum by (kind, verb) (rate(carillon_operator_writes_total{@}[$__rate_interval]))",
                        "{{verb}} {{kind}}",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Leader",
                    description: "1 for the pod that acts.",
                    unit: "short",
                    queries: &[(
                        "max by (instance) (carillon_operator_leader{@})",
                        "{{instance}}",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Watches lost",
                    description: "Lost watches and other errors outside a reconcile.",
                    unit: "ops",
                    queries: &[(
                        "sum (rate(carillon_operator_watch_errors_total{@}[$__rate_interval]))",
                        "errors",
                    )],
                },
            ],
        },
    ],
};
