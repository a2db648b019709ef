//! One trace over both sides of a call (OPS-04).

use std::sync::Arc;

use carillon_domain::services::AuthService;
use carillon_telemetry::propagation;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Instrument;
use tracing_subscriber::layer::SubscriberExt;

use super::{all_of, credentials, fakes::FakeServices, start};
use crate::AuthClient;

/// OPS-04: what the service does belongs to the trace of its caller. Client and server share this thread, so one subscriber sees
/// both; that they share a trace is due to the metadata alone, since the server's task has no parent span.
#[tokio::test]
async fn a_trace_goes_on_behind_the_call() {
    let provider = SdkTracerProvider::builder().build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("tests"));
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));

    let fake = Arc::new(FakeServices::default());
    let server = start(all_of(&fake)).await;
    let client = AuthClient::connect_lazy(&server.address, credentials()).unwrap();
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let span = tracing::info_span!("request");
    propagation::set_parent(&span, parent);
    client.send_otp("+1").instrument(span).await.unwrap();
    assert_eq!(
        fake.trace_id.lock().unwrap().as_deref(),
        Some("4bf92f3577b34da6a3ce929d0e0e4736")
    );

    // Without a caller's span there is a trace all the same, another one.
    client.send_otp("+1").await.unwrap();
    let other = fake.trace_id.lock().unwrap().clone().unwrap();
    assert_ne!(other, "4bf92f3577b34da6a3ce929d0e0e4736");
}
