//! The edge.

use super::{Dashboard, Kind, Panel, Row};

pub(super) const DASHBOARD: Dashboard = Dashboard {
    name: "gateway",
    title: "Gateway",
    description: "The edge: sockets, REST, limits, logins, presence and uploads.",
    known_by: "carillon_gateway_sockets",
    by_chat_cluster: true,
    rows: &[
        Row {
            title: "Sockets",
            panels: &[
                Panel {
                    kind: Kind::Stacked,
                    title: "Open sockets by gateway",
                    description: "Authenticated sockets.",
                    unit: "short",
                    queries: &[(
                        "sum by (instance) (carillon_gateway_sockets{@})",
                        "{{instance}}",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Sockets closed by code",
                    description: "0: without a code; 1000 and 1001: by the client; 4000: drained, resumes elsewhere; 4008: was behind; 4009: flooded.",
                    unit: "ops",
                    queries: &[(
                        "sum by (code) (rate(carillon_gateway_sockets_closed_total{@}[$__rate_interval]))",
                        "{{code}}",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Frames received by type",
                    description: "What clients send.",
                    unit: "ops",
                    queries: &[(
                        "sum by (type) (rate(carillon_ws_frames_received_total{@}[$__rate_interval]))",
                        "{{type}}",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Events handed to sockets",
                    description: "One event counts once for each socket that follows its room.",
                    unit: "eps",
                    queries: &[(
                        "sum (rate(carillon_gateway_events_delivered_total{@}[$__rate_interval]))",
                        "events",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Typing and presence shed",
                    description: "Frames that may be lost, and were, because a socket was behind.",
                    unit: "ops",
                    queries: &[(
                        "sum (rate(carillon_gateway_events_shed_total{@}[$__rate_interval]))",
                        "frames",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Gaps filled",
                    description: "Pages read from owners because a signal was missed.",
                    unit: "ops",
                    queries: &[(
                        "sum (rate(carillon_gateway_room_pulls_total{@}[$__rate_interval]))",
                        "pages",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Time until sockets have an event",
                    description: "By gateway: one that is later than the others has too much to do, or another clock.",
                    unit: "s",
                    queries: &[(
                        "histogram_quantile(0.99, sum by (le, instance) (rate(carillon_gateway_delivery_latency_seconds_bucket{@}[$__rate_interval])))",
                        "{{instance}} 99 %",
                    )],
                },
            ],
        },
        Row {
            title: "REST",
            panels: &[
                Panel {
                    kind: Kind::Stacked,
                    title: "Requests by route",
                    description: "What is asked.",
                    unit: "reqps",
                    queries: &[(
                        "sum by (method, route) (rate(carillon_http_requests_total{@}[$__rate_interval]))",
                        "{{method}} {{route}}",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Requests by status",
                    description: "4xx is the client's doing, 503 and 504 are retried by clients, 500 is a defect.",
                    unit: "reqps",
                    queries: &[(
                        "sum by (status) (rate(carillon_http_requests_total{@}[$__rate_interval]))",
                        "{{status}}",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Time by route, 99 %",
                    description: "Until the head of an answer was ready.",
                    unit: "s",
                    queries: &[(
                        "histogram_quantile(0.99, sum by (le, method, route) (rate(carillon_http_request_duration_seconds_bucket{@}[$__rate_interval])))",
                        "{{method}} {{route}}",
                    )],
                },
            ],
        },
        Row {
            title: "Limits",
            panels: &[
                Panel {
                    kind: Kind::Lines,
                    title: "Refused by a limit",
                    description: "Requests and frames, by the limit's name.",
                    unit: "reqps",
                    queries: &[(
                        "sum by (limit) (rate(carillon_gateway_rate_limited_total{@}[$__rate_interval]))",
                        "{{limit}}",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Limits not shared",
                    description: "Decided without Redis: local counted in one gateway only, refused let nothing through.",
                    unit: "ops",
                    queries: &[(
                        "sum by (done) (rate(carillon_limits_unshared_total{@}[$__rate_interval]))",
                        "{{done}}",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Logins by outcome",
                    description: "Wrong passwords are wrong; overloaded and error are ours.",
                    unit: "ops",
                    queries: &[(
                        "sum by (outcome) (rate(carillon_auth_logins_total{@}[$__rate_interval]))",
                        "{{outcome}}",
                    )],
                },
            ],
        },
        Row {
            title: "Presence and files",
            panels: &[
                Panel {
                    kind: Kind::Lines,
                    title: "Presence changes",
                    description: "By the new state.",
                    unit: "ops",
                    queries: &[(
                        "sum by (state) (rate(carillon_presence_changes_total{@}[$__rate_interval]))",
                        "{{state}}",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Presence told",
                    description: "Changes that rooms and contacts were to be told.",
                    unit: "ops",
                    queries: &[(
                        "sum by (outcome) (rate(carillon_presence_told_total{@}[$__rate_interval]))",
                        "{{outcome}}",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Uploads by outcome",
                    description: "Refused is the client's doing, error is ours.",
                    unit: "ops",
                    queries: &[(
                        "sum by (outcome) (rate(carillon_media_uploads_total{@}[$__rate_interval]))",
                        "{{outcome}}",
                    )],
                },
                Panel {
                    kind: Kind::Lines,
                    title: "Bytes uploaded",
                    description: "Stored, by the first part of the content type.",
                    unit: "Bps",
                    queries: &[(
                        "sum by (type) (rate(carillon_media_upload_bytes_total{@}[$__rate_interval]))",
                        "{{type}}",
                    )],
                },
            ],
        },
    ],
};
