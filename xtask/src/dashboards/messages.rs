//! The way of a message.

use super::{Dashboard, Kind, Panel, Row};

pub(super) const DASHBOARD: Dashboard = Dashboard {
    name: "messages",
    title: "Messages",
    description: "The way of a message: decided, written, told, delivered.",
    known_by: "carillon_ready",
    by_chat_cluster: true,
    rows: &[
        Row {
            title: "Sending",
            panels: &[
                Panel {
                    kind: Kind::Stacked,
                    title: "Sends by outcome",
                    description: "Stored and duplicate were acknowledged; refused is the sender's doing, failed is ours.",
                    unit: "reqps",
                    queries: &[(
                        "sum by (outcome) (rate(carillon_gateway_send_duration_seconds_count{@}[$__rate_interval]))",
                        "{{outcome}}",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Time of a send",
                    description: "From a gateway's taking of a send until its answer.",
                    unit: "s",
                    queries: &[
                        (
                            r#"histogram_quantile(0.5, sum by (le) (rate(carillon_gateway_send_duration_seconds_bucket{@, outcome=~"stored|duplicate"}[$__rate_interval])))"#,
                            "half",
                        ),
                        (
                            r#"histogram_quantile(0.95, sum by (le) (rate(carillon_gateway_send_duration_seconds_bucket{@, outcome=~"stored|duplicate"}[$__rate_interval])))"#,
                            "95 %",
                        ),
                        (
                            r#"histogram_quantile(0.99, sum by (le) (rate(carillon_gateway_send_duration_seconds_bucket{@, outcome=~"stored|duplicate"}[$__rate_interval])))"#,
                            "99 %",
                        ),
                    ],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Time until sockets have it",
                    description: "From the owner's taking of an event until gateways handed it to sockets; by the clocks of two machines.",
                    unit: "s",
                    queries: &[
                        (
                            "histogram_quantile(0.5, sum by (le) (rate(carillon_gateway_delivery_latency_seconds_bucket{@}[$__rate_interval])))",
                            "half",
                        ),
                        (
                            "histogram_quantile(0.95, sum by (le) (rate(carillon_gateway_delivery_latency_seconds_bucket{@}[$__rate_interval])))",
                            "95 %",
                        ),
                        (
                            "histogram_quantile(0.99, sum by (le) (rate(carillon_gateway_delivery_latency_seconds_bucket{@}[$__rate_interval])))",
                            "99 %",
                        ),
                    ],
                },
            ],
        },
        Row {
            title: "Room logs",
            panels: &[
                Panel {
                    kind: Kind::Stacked,
                    title: "Events by kind",
                    description: "Events committed.",
                    unit: "eps",
                    queries: &[(
                        "sum by (kind) (rate(carillon_message_events_total{@}[$__rate_interval]))",
                        "{{kind}}",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Time of an append",
                    description: "One write of a batch to the log, the proof of ownership with it.",
                    unit: "s",
                    queries: &[
                        (
                            r#"histogram_quantile(0.5, sum by (le) (rate(carillon_message_append_duration_seconds_bucket{@, outcome="ok"}[$__rate_interval])))"#,
                            "half",
                        ),
                        (
                            r#"histogram_quantile(0.95, sum by (le) (rate(carillon_message_append_duration_seconds_bucket{@, outcome="ok"}[$__rate_interval])))"#,
                            "95 %",
                        ),
                        (
                            r#"histogram_quantile(0.99, sum by (le) (rate(carillon_message_append_duration_seconds_bucket{@, outcome="ok"}[$__rate_interval])))"#,
                            "99 %",
                        ),
                    ],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Appends by outcome",
                    description: "Anything but ok means that nothing of a batch was acknowledged.",
                    unit: "wps",
                    queries: &[(
                        "sum by (outcome) (rate(carillon_message_append_duration_seconds_count{@}[$__rate_interval]))",
                        "{{outcome}}",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Events per append",
                    description: "How much is written together: it grows with load, and keeps the store's work small.",
                    unit: "short",
                    queries: &[(
                        "sum (rate(carillon_message_events_total{@}[$__rate_interval])) / sum (rate(carillon_message_append_duration_seconds_count{@}[$__rate_interval]))",
                        "events",
                    )],
                },
            ],
        },
        Row {
            title: "Ownership and hints",
            panels: &[
                Panel {
                    kind: Kind::Lines,
                    title: "Partitions acquired",
                    description: "By outcome. Some at every restart of a replica; many at other times mean that replicas lose their leases.",
                    unit: "ops",
                    queries: &[(
                        "sum by (outcome) (rate(carillon_message_partition_acquisitions_total{@}[$__rate_interval]))",
                        "{{outcome}}",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Calls routed again",
                    description: "Calls that met a replica that is no longer the owner, or no replica at all, by why.",
                    unit: "ops",
                    queries: &[(
                        "sum by (reason) (rate(carillon_rpc_reroutes_total{@}[$__rate_interval]))",
                        "{{reason}}",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Hints dropped",
                    description: "Signals to gateways, and push jobs, that were dropped; gateways read later what they missed.",
                    unit: "ops",
                    queries: &[(
                        "sum by (kind, reason) (rate(carillon_message_hints_dropped_total{@}[$__rate_interval]))",
                        "{{kind}}: {{reason}}",
                    )],
                },
            ],
        },
        Row {
            title: "Calls between roles",
            panels: &[
                Panel {
                    kind: Kind::Lines,
                    title: "gRPC calls by method",
                    description: "Calls to every role.",
                    unit: "reqps",
                    queries: &[(
                        "sum by (service, method) (rate(carillon_rpc_requests_total{@}[$__rate_interval]))",
                        "{{service}}/{{method}}",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "gRPC calls by code",
                    description: "Anything but OK is a refusal or a failure.",
                    unit: "reqps",
                    queries: &[(
                        "sum by (code) (rate(carillon_rpc_requests_total{@}[$__rate_interval]))",
                        "{{code}}",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "gRPC time, 99 %",
                    description: "By method.",
                    unit: "s",
                    queries: &[(
                        "histogram_quantile(0.99, sum by (le, service, method) (rate(carillon_rpc_request_duration_seconds_bucket{@}[$__rate_interval])))",
                        "{{service}}/{{method}}",
                    )],
                },
            ],
        },
    ],
};
