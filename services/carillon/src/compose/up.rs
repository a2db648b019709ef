//! `carillon up`: the whole platform in one process.

use std::{io::IsTerminal as _, net::SocketAddr, sync::Arc, time::Duration};

use carillon_domain::{ReplicaId, services::PresenceService};
use carillon_message::SoleOwner;
use carillon_rpc::{
    AccountServer, AuthServer, InterceptorOptions, MediaServer, MessageServer, NotificationServer,
    PeopleServer, PresenceServer, RoleServices, ServeOptions, Serving,
};
use carillon_runtime::{
    ready::{Dependency, Readiness},
    tasks::Tasks,
};
use tokio::sync::watch;

use super::{bind, roles, start_telemetry, stores};
use crate::{cli::Up, config, failure::Failure, keys};

/// Pushes under way at once.
const PUSH_CONCURRENCY: usize = 16;

/// Runs until a signal.
pub async fn up(options: Up) -> Result<(), Failure> {
    let started = std::time::Instant::now();
    let (config, data_dir) = config::from_chat_cluster(&options.file, options.data_dir)?;
    let telemetry = start_telemetry(&config, "carillon", "up", &options.log)?;
    let stop = carillon_runtime::stop_on_signals()
        .map_err(|error| Failure::software(format!("can't handle signals: {error}")))?;

    // Ports first: a taken one must not cost a look at the stores.
    let public = options
        .listen
        .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], config.gateway.http_port)));
    let http = bind(
        "REST and WebSocket",
        public,
        "another carillon may be running; choose another with --listen 127.0.0.1:PORT",
    )?;
    let grpc = bind(
        "gRPC",
        options.grpc_listen,
        "choose another with --grpc-listen 127.0.0.1:PORT",
    )?;
    let admin = bind(
        "health and metrics",
        options.admin_listen,
        "choose another with --admin-listen 127.0.0.1:PORT",
    )?;

    let stores::EmbeddedStores {
        wide,
        fast,
        queue,
        probe,
        source,
    } = stores::open_embedded(&data_dir)?;
    keys::ensure(&config.keys)?;
    let blobs = stores::open_blobs(&config.media.blob)?;

    let signing = roles::signing_keys(&config.keys)?;
    // Nobody changes the keys of one machine while it runs.
    let (_, published) = watch::channel(carillon_auth::jwks(&signing).into());
    let verifier = roles::verifier(&config, signing.verifying_keys(), &fast);
    let auth = roles::auth(&config, signing, &wide, &fast)?;
    let people = roles::people(&wide, &fast);
    let presence = roles::presence(&config, &wide, &fast);
    let told: Arc<dyn PresenceService> = presence.clone();
    let replica = ReplicaId("up".to_owned());
    let messages = roles::message(
        &wide,
        &fast,
        queue.clone(),
        told.clone(),
        Arc::new(SoleOwner),
        replica,
        None,
    );
    let media = roles::media(&config, &wide, blobs.clone(), messages.clone());
    let notification = roles::notification(&config, &wide, &fast, queue)?;
    let calls = roles::GatewayCalls {
        auth: auth.clone(),
        accounts: auth.clone(),
        verifier: verifier.clone(),
        people: people.clone(),
        messages: messages.clone(),
        presence: told.clone(),
        media: media.clone(),
        notifications: notification.clone(),
    };
    let limiters = roles::limiters(&config, &fast);
    let probes = vec![probe.clone()];
    let gateway = roles::gateway(&config, &fast, calls, limiters.clone(), published, probes);
    let internal_token = config::internal_token(&config)?;
    let interceptor = InterceptorOptions::new(&internal_token, verifier.clone())?
        .limiting_strangers(roles::strangers(&config), limiters.shared);
    let max_upload_bytes = usize::try_from(config.media.max_upload_bytes).unwrap_or(usize::MAX);
    let services = RoleServices {
        auth: Some(AuthServer::new(auth.clone(), verifier)),
        account: Some(AccountServer::new(auth.clone())),
        people: Some(PeopleServer::new(people)),
        message: Some(MessageServer::new(messages)),
        presence: Some(PresenceServer::new(told)),
        media: Some(MediaServer::new(media.clone(), max_upload_bytes)),
        notification: Some(NotificationServer::new(notification.clone())),
    };

    let addresses = [&http, &grpc, &admin].map(|listener| {
        listener
            .local_addr()
            .map(|a| a.to_string())
            .unwrap_or_default()
    });
    let readiness = Arc::new(Readiness::new(
        vec![Dependency::required(probe), Dependency::optional(blobs)],
        stop.clone(),
    ));
    let mut tasks = Tasks::new(stop.clone());
    tasks.spawn("the gateway", gateway.run(http, stop.clone()));
    tasks.spawn(
        "gRPC",
        carillon_rpc::serve(
            grpc,
            services,
            ServeOptions::new(interceptor),
            Serving::default(),
            stop.clone(),
        ),
    );
    tasks.spawn(
        "the admin server",
        carillon_runtime::admin::serve(admin, readiness, stop.clone()),
    );
    tasks.spawn(
        "backups",
        super::backup_socket::serve(data_dir.clone(), source, stop.clone()),
    );
    tasks.spawn(
        "erasing",
        roles::erasing_accounts(auth.clone(), stop.clone()),
    );
    tasks.spawn(
        "erasing uploads",
        roles::erasing_uploads(media.clone(), &wide, stop.clone()),
    );
    let sweeping = stop.clone();
    tasks.spawn("presence", async move { presence.run(sweeping).await });
    let pushing = stop.clone();
    tasks.spawn("push", async move {
        notification.run(PUSH_CONCURRENCY, pushing).await
    });

    greet(
        &config.cluster,
        &addresses,
        &data_dir,
        started.elapsed(),
        config.auth.dev_mode,
    );
    let patience = Duration::from_secs(config.gateway.drain_seconds + 5);
    let ended = tasks.run(patience).await.map_err(Failure::software);
    let _ = tokio::task::spawn_blocking(move || telemetry.shutdown()).await;
    ended
}

/// Says where everything is and what to try: on a terminal with a little weight, in a pipe plain.
fn greet(
    cluster: &str,
    [http, grpc, admin]: &[String; 3],
    data_dir: &std::path::Path,
    after: Duration,
    dev_mode: bool,
) {
    let (bold, plain) = if std::io::stdout().is_terminal() {
        ("\x1b[1m", "\x1b[0m")
    } else {
        ("", "")
    };
    println!(
        "{bold}{cluster} is ready{plain} after {} ms: http://{http}",
        after.as_millis()
    );
    println!("  browser    http://{http}/            register twice (two windows), say hello");
    println!("  REST       http://{http}/api/v1      curl -s http://{http}/ready");
    println!("  WebSocket  ws://{http}/api/v1/ws");
    println!("  gRPC       {grpc}");
    println!("  metrics    http://{admin}/metrics");
    println!("  data       {}", data_dir.display());
    if dev_mode {
        println!(
            "  devMode is on: the one-time code of every phone is 123456. Don't use it for real people."
        );
    }
    println!("Stop with Ctrl-C; what was acknowledged is on disk.");
}
