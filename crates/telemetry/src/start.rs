use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracerProvider},
};
use tracing::{Level, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use crate::logs::{Lines, LogFormat};

/// What a process says of itself, and where its traces go.
#[derive(Clone, Debug)]
pub struct Options {
    /// `service.name`, for example `carillon-gateway`.
    pub service: String,
    /// `service.instance.id`: the replica.
    pub instance: String,
    /// `service.version`.
    pub version: String,
    /// gRPC endpoint of an OTLP receiver; without one, spans are made (logs have trace ids) but not sent.
    pub otlp_endpoint: Option<String>,
    /// Share of new traces that are sent, 0 to 1. A caller's decision is kept.
    pub trace_ratio: f64,
    /// How log lines look.
    pub log_format: LogFormat,
    /// `RUST_LOG`-like filter, for example `info` or `carillon=debug,info`.
    pub log_filter: String,
}

/// Telemetry could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The endpoint is no URL, for example.
    #[error(
        "telemetry.otlpEndpoint {endpoint:?} can't be used; give an http:// or https:// URL of an OTLP gRPC receiver"
    )]
    Exporter {
        /// What was given.
        endpoint: String,
        /// Why not.
        #[source]
        source: opentelemetry_otlp::ExporterBuildError,
    },
    /// The filter has a syntax error.
    #[error(
        "the log filter {filter:?} is malformed; write it like \"info\" or \"carillon=debug,info\""
    )]
    Filter {
        /// What was given.
        filter: String,
        /// Why not.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// A subscriber is set already.
    #[error("telemetry was started twice in one process")]
    Twice,
}

/// Running telemetry; [`Telemetry::shutdown`] sends what is left.
pub struct Telemetry {
    provider: SdkTracerProvider,
}

/// Starts logs and traces for this process. Call it inside of a tokio runtime, once.
pub fn start(options: &Options) -> Result<Telemetry, StartError> {
    let filter = EnvFilter::builder()
        .parse(&options.log_filter)
        .map_err(|source| StartError::Filter {
            filter: options.log_filter.clone(),
            source,
        })?;
    let resource = Resource::builder()
        .with_service_name(options.service.clone())
        .with_attribute(KeyValue::new("service.version", options.version.clone()))
        .with_attribute(KeyValue::new(
            "service.instance.id",
            options.instance.clone(),
        ))
        .build();
    let sampler = match options.otlp_endpoint {
        Some(_) => Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(options.trace_ratio))),
        // Spans have ids for log lines and answers all the same; nobody would get more.
        None => Sampler::AlwaysOff,
    };
    let mut provider = SdkTracerProvider::builder()
        .with_resource(resource)
        .with_sampler(sampler);
    if let Some(endpoint) = &options.otlp_endpoint {
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint.clone())
            .build()
            .map_err(|source| StartError::Exporter {
                endpoint: endpoint.clone(),
                source,
            })?;
        provider = provider.with_batch_exporter(exporter);
    }
    let provider = provider.build();
    let traces = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("carillon"))
        // Each would cost something for every span, of the unsampled ones too: lines of code and thread ids as attributes, clock
        // readings at every entry, and a current context that only other OpenTelemetry libraries would ask for.
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_context_activation(false)
        // Spans of libraries would be most of what is sent, and say little. Spans of steps (at the level of debugging) are made only
        // if somebody gets them; events of that level never are.
        // Without the hint, everything that libraries log at a finer level would be made, passed on, and dropped here: a tenth of a busy
        // gateway's time.
        .with_filter(
            tracing_subscriber::filter::filter_fn(|metadata| {
                let is_ours = metadata.target().starts_with("carillon");
                is_ours && (metadata.is_span() || *metadata.level() <= Level::INFO)
            })
            .with_max_level_hint(match options.otlp_endpoint {
                Some(_) => LevelFilter::DEBUG,
                None => LevelFilter::INFO,
            }),
        );
    let lines = tracing_subscriber::fmt::layer()
        .event_format(Lines(options.log_format))
        .with_writer(std::io::stderr)
        .with_filter(filter);
    tracing_subscriber::registry()
        .with(traces)
        .with(lines)
        .try_init()
        .map_err(|_| StartError::Twice)?;
    Ok(Telemetry { provider })
}

impl Telemetry {
    /// Sends the spans that wait, for at most a few seconds. Blocks: call it outside of async tasks.
    pub fn shutdown(self) {
        if let Err(error) = self
            .provider
            .shutdown_with_timeout(std::time::Duration::from_secs(3))
        {
            tracing::debug!(%error, "traces may be incomplete");
        }
    }
}
