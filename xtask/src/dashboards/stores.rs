//! The stores, as the platform sees them.

use super::{Dashboard, Kind, Panel, Row};

pub(super) const DASHBOARD: Dashboard = Dashboard {
    name: "stores",
    title: "Stores",
    description: "ScyllaDB, Redis, RabbitMQ or the embedded store, as the platform sees them.",
    known_by: "carillon_dependency_up",
    by_chat_cluster: true,
    rows: &[
        Row {
            title: "Now",
            panels: &[
                Panel {
                    kind: Kind::Figure,
                    title: "Stores away",
                    description: "Stores that a process needs and gets no answer from.",
                    unit: "short",
                    queries: &[("count(carillon_dependency_up{@} == 0) or vector(0)", "away")],
                },
                Panel {
                    kind: Kind::Figure,
                    title: "Operations",
                    description: "On all stores.",
                    unit: "ops",
                    queries: &[(
                        "sum (rate(carillon_store_operation_duration_seconds_count{@}[$__rate_interval]))",
                        "operations",
                    )],
                },
                Panel {
                    kind: Kind::Figure,
                    title: "99 % are done within",
                    description: "Over all stores and operations.",
                    unit: "s",
                    queries: &[(
                        "histogram_quantile(0.99, sum by (le) (rate(carillon_store_operation_duration_seconds_bucket{@}[$__rate_interval])))",
                        "99 %",
                    )],
                },
            ],
        },
        Row {
            title: "By store",
            panels: &[
                Panel {
                    kind: Kind::Lines,
                    title: "Answers",
                    description: "1 while a store answers every process of a role.",
                    unit: "short",
                    queries: &[(
                        "min by (role, dependency) (carillon_dependency_up{@})",
                        "{{role}} → {{dependency}}",
                    )],
                },
                Panel {
                    kind: Kind::Stacked,
                    title: "Operations by store",
                    description: "As many as the roles ask for.",
                    unit: "ops",
                    queries: &[(
                        "sum by (store) (rate(carillon_store_operation_duration_seconds_count{@}[$__rate_interval]))",
                        "{{store}}",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Time of an operation",
                    description: "Half of them, and 99 % of them, are done within this.",
                    unit: "s",
                    queries: &[
                        (
                            "histogram_quantile(0.5, sum by (le, store) (rate(carillon_store_operation_duration_seconds_bucket{@}[$__rate_interval])))",
                            "{{store}} half",
                        ),
                        (
                            "histogram_quantile(0.99, sum by (le, store) (rate(carillon_store_operation_duration_seconds_bucket{@}[$__rate_interval])))",
                            "{{store}} 99 %",
                        ),
                    ],
                },
            ],
        },
        Row {
            title: "By operation",
            panels: &[
                Panel {
                    kind: Kind::Lines,
                    title: "Slowest operations, 99 %",
                    description: "The ten slowest.",
                    unit: "s",
                    queries: &[(
                        "topk(10, histogram_quantile(0.99, sum by (le, store, operation) (rate(carillon_store_operation_duration_seconds_bucket{@}[$__rate_interval]))))",
                        "{{store}} {{operation}}",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Most frequent operations",
                    description: "The ten most frequent.",
                    unit: "ops",
                    queries: &[(
                        "topk(10, sum by (store, operation) (rate(carillon_store_operation_duration_seconds_count{@}[$__rate_interval])))",
                        "{{store}} {{operation}}",
                    )],
                },
                Panel {
                    kind: Kind::Stacked,
                    title: "Time spent waiting",
                    description: "Seconds of waiting per second, by operation: the ten that the platform waits for most.",
                    unit: "short",
                    queries: &[(
                        "topk(10, sum by (store, operation) (rate(carillon_store_operation_duration_seconds_sum{@}[$__rate_interval])))",
                        "{{store}} {{operation}}",
                    )],
                },
            ],
        },
    ],
};
