//! OPS-04: one trace from the socket through message, store and RabbitMQ to the push.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value,
};

/// A span as a receiver got it.
#[derive(Clone, Debug)]
struct Span {
    trace: Vec<u8>,
    id: Vec<u8>,
    parent: Vec<u8>,
    name: String,
    service: String,
}

/// An OTLP receiver that keeps what it gets.
#[derive(Clone, Default)]
struct Receiver(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let mut spans = self.0.lock().expect("no test panics while it holds this");
        for resource in request.into_inner().resource_spans {
            let attributes = resource
                .resource
                .map(|resource| resource.attributes)
                .unwrap_or_default();
            let service = attributes
                .into_iter()
                .find(|attribute| attribute.key == "service.name")
                .and_then(|attribute| attribute.value?.value);
            let service = match service {
                Some(any_value::Value::StringValue(name)) => name,
                _ => String::new(),
            };
            for span in resource
                .scope_spans
                .into_iter()
                .flat_map(|scope| scope.spans)
            {
                spans.push(Span {
                    trace: span.trace_id,
                    id: span.span_id,
                    parent: span.parent_span_id,
                    name: span.name,
                    service: service.clone(),
                });
            }
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Receiver {
    async fn start() -> Result<(Self, String)> {
        let receiver = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = format!("http://{}", listener.local_addr()?);
        let service = TraceServiceServer::new(receiver.clone());
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
        Ok((receiver, address))
    }

    /// The spans of the trace that has a span of such a name.
    fn trace_with(&self, name: impl Fn(&str) -> bool) -> Vec<Span> {
        let spans = self.0.lock().expect("no test panics while it holds this");
        let Some(trace) = spans
            .iter()
            .find(|span| name(&span.name))
            .map(|span| span.trace.clone())
        else {
            return Vec::new();
        };
        spans
            .iter()
            .filter(|span| span.trace == trace)
            .cloned()
            .collect()
    }
}

/// OPS-04 on every role as a process of its own and the real stores.
#[tokio::test(flavor = "multi_thread")]
async fn one_trace_from_socket_to_push() -> Result<()> {
    use crate::{
        push::Endpoint,
        world::{
            platform::{QUICK, RealCluster, RealOptions},
            script::Stage,
            servers,
        },
    };
    let Some(servers) = servers::stores("traces::one_trace_from_socket_to_push") else {
        return Ok(());
    };
    let (receiver, address) = Receiver::start().await?;
    let endpoint = Endpoint::start().await?;
    let spec = format!(
        "{QUICK}  telemetry: {{otlpEndpoint: {address:?}, traceRatio: 1}}\n{}",
        endpoint.spec()
    );
    let cluster = RealCluster::start(
        &servers,
        &RealOptions {
            spec,
            secrets: Some(endpoint.secrets().into()),
            ..Default::default()
        },
    )
    .await?;
    let mut stage = Stage::new(vec![cluster.gateways[0].base.clone()]);
    stage
        .run("alice: register\nbob: register\nalice: connect\nalice: dm bob")
        .await?;
    endpoint.register(&mut stage, "bob").await?;
    stage
        .run("alice: send @alice+bob \"are you there?\"")
        .await?;
    endpoint.wait_for(1).await?;

    let needed: BTreeSet<&str> = [
        "carillon-gateway",
        "carillon-message",
        "carillon-notification",
    ]
    .into();
    let deadline = Instant::now() + Duration::from_secs(30);
    let trace = loop {
        let trace =
            receiver.trace_with(|name| name.starts_with("process ") && name.ends_with(".push"));
        let services: BTreeSet<&str> = trace.iter().map(|span| span.service.as_str()).collect();
        let names: BTreeSet<&str> = trace.iter().map(|span| span.name.as_str()).collect();
        if needed.is_subset(&services)
            && names.iter().any(|name| name.starts_with("publish "))
            && names.contains("room_log.append")
        {
            break trace;
        }
        ensure!(
            Instant::now() < deadline,
            "the trace has {names:?} of {services:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    // Every span hangs on another one of the trace, up to one root at the gateway.
    let by_id: BTreeMap<&[u8], &Span> = trace
        .iter()
        .map(|span| (span.id.as_slice(), span))
        .collect();
    let roots: Vec<&Span> = trace
        .iter()
        .filter(|span| !by_id.contains_key(span.parent.as_slice()))
        .collect();
    ensure!(
        roots.len() == 1 && roots[0].service == "carillon-gateway",
        "roots: {roots:?}"
    );
    let push = trace
        .iter()
        .find(|span| span.name.starts_with("process "))
        .context("push")?;
    let mut chain = vec![push.name.as_str()];
    let mut at = push;
    while let Some(parent) = by_id.get(at.parent.as_slice()) {
        chain.push(&parent.name);
        at = parent;
    }
    println!("trace: {}", chain.join(" < "));
    ensure!(
        trace.iter().any(|span| span.name.starts_with("scylla.")),
        "no span of the store: {:?}",
        trace.iter().map(|s| &s.name).collect::<Vec<_>>()
    );
    Ok(())
}
