//! Servers and clients of this crate over real connections of this machine, with scripted services behind them.

mod agreement;
mod errors;
pub(crate) mod fakes;
mod gate;
mod routed;
mod serving;
mod tls;
mod traces;

use std::sync::Arc;

use carillon_domain::Result;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use self::fakes::{FakeServices, FakeVerifier};
use crate::{
    AccountServer, AuthServer, Credentials, InterceptorOptions, MediaServer, MessageServer,
    NotificationServer, PeopleServer, PresenceServer, RoleServices, ServeOptions, Serving, serve,
};

/// The secret of the roles in these tests.
const INTERNAL: &str = "internal-token-of-the-tests";

/// Upload limit in these tests: above tonic's default for messages.
const MAX_UPLOAD: usize = 6 * 1024 * 1024;

/// A server that ends when this is dropped.
struct Running {
    address: String,
    serving: Serving,
    stop: CancellationToken,
    task: JoinHandle<Result<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        self.task.abort();
    }
}

fn credentials() -> Credentials {
    Credentials::internal(INTERNAL).unwrap()
}

fn options() -> ServeOptions {
    ServeOptions::new(InterceptorOptions::new(INTERNAL, Arc::new(FakeVerifier)).unwrap())
}

/// Every service, all served by one fake.
fn all_of(fake: &Arc<FakeServices>) -> RoleServices {
    RoleServices {
        auth: Some(AuthServer::new(fake.clone(), Arc::new(FakeVerifier))),
        message: Some(MessageServer::new(fake.clone())),
        account: Some(AccountServer::new(fake.clone())),
        people: Some(PeopleServer::new(fake.clone())),
        presence: Some(PresenceServer::new(fake.clone())),
        media: Some(MediaServer::new(fake.clone(), MAX_UPLOAD)),
        notification: Some(NotificationServer::new(fake.clone())),
    }
}

async fn start(services: RoleServices) -> Running {
    start_with(services, options()).await
}

async fn start_with(services: RoleServices, options: ServeOptions) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let serving = Serving::default();
    let stop = CancellationToken::new();
    let task = tokio::spawn(serve(
        listener,
        services,
        options,
        serving.clone(),
        stop.clone(),
    ));
    Running {
        address,
        serving,
        stop,
        task,
    }
}
