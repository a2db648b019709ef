//! The gateway's metrics. Names are part of the documentation: dashboards and alerts use them.

use std::sync::LazyLock;

use carillon_telemetry::metrics::{
    Histogram, HistogramVec, IntCounterVec, IntGaugeVec, histogram, int_counter, int_gauge,
};

pub static HTTP_REQUESTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    int_counter(
        "carillon_http_requests_total",
        "Requests answered.",
        &["method", "route", "status"],
    )
});
pub static HTTP_DURATION: LazyLock<HistogramVec> = LazyLock::new(|| {
    histogram(
        "carillon_http_request_duration_seconds",
        "Time until the answer's head was ready.",
        &["method", "route"],
    )
});
pub static SOCKETS: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    int_gauge(
        "carillon_gateway_sockets",
        "Authenticated sockets that are open.",
        &[],
    )
});
pub static EVENTS_DELIVERED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    int_counter(
        "carillon_gateway_events_delivered_total",
        "Room events handed to sockets.",
        &[],
    )
});
pub static DELIVERY_LATENCY: LazyLock<Histogram> = LazyLock::new(|| {
    histogram(
        "carillon_gateway_delivery_latency_seconds",
        "Time from when a room's owner took an event until a gateway handed it to the sockets that follow the room, once per event and gateway; by the clocks of two machines.",
        &[],
    )
    .with_label_values(&[] as &[&str])
});
pub static SENDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    histogram(
        "carillon_gateway_send_duration_seconds",
        "Time until a message's sender was answered, by outcome: stored, duplicate, refused (the sender's doing), failed (ours).",
        &["outcome"],
    )
});
pub static EVENTS_SHED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    int_counter(
        "carillon_gateway_events_shed_total",
        "Typing and presence frames that were dropped because a socket was behind.",
        &[],
    )
});
pub static SOCKETS_CLOSED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    int_counter(
        "carillon_gateway_sockets_closed_total",
        "Sockets that ended, by close code (0: without one).",
        &["code"],
    )
});
pub static ROOM_PULLS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    int_counter(
        "carillon_gateway_room_pulls_total",
        "Pages of events read to fill a gap.",
        &[],
    )
});
pub static FRAMES_RECEIVED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    int_counter(
        "carillon_ws_frames_received_total",
        "Frames received on sockets, by type.",
        &["type"],
    )
});
pub static RATE_LIMITED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    int_counter(
        "carillon_gateway_rate_limited_total",
        "Requests and frames refused by a limit.",
        &["limit"],
    )
});

/// Registers every metric at once, so that each shows from the start.
pub fn register() {
    LazyLock::force(&HTTP_REQUESTS);
    LazyLock::force(&HTTP_DURATION);
    LazyLock::force(&FRAMES_RECEIVED);
    LazyLock::force(&RATE_LIMITED);
    LazyLock::force(&DELIVERY_LATENCY);
    // What alerts compare with what was before must be there before it happens for the first time.
    for outcome in ["stored", "duplicate", "refused", "failed"] {
        SENDS.with_label_values(&[outcome]);
    }
    for code in ["0", "4000", "4008", "4009"] {
        SOCKETS_CLOSED.with_label_values(&[code]);
    }
    // A metric without labels shows once its one child exists.
    SOCKETS.with_label_values(&[] as &[&str]);
    EVENTS_DELIVERED.with_label_values(&[] as &[&str]);
    EVENTS_SHED.with_label_values(&[] as &[&str]);
    ROOM_PULLS.with_label_values(&[] as &[&str]);
}
