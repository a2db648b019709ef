//! `carillon.notification.v1.NotificationService`: the server of a `NotificationService`, and the client that is one.

use std::sync::Arc;

use async_trait::async_trait;
use carillon_domain::{
    Error, Result,
    account::Identity,
    push::PushProvider,
    services::{NewPushTarget, NotificationService},
};
use tonic::{Request, Response, Status, transport::Channel};

use crate::{
    PeerRole,
    connection::{self, Connection, Credentials, For},
    gate::handle,
    proto::notification::{
        self as pb, notification_service_client::NotificationServiceClient,
        notification_service_server as server,
    },
    values,
};

// === server ===

/// Offers a `NotificationService` over gRPC; mount it with [`crate::serve`].
#[derive(Clone)]
pub struct NotificationServer {
    service: Arc<dyn NotificationService>,
}

impl NotificationServer {
    /// Makes a server of the service.
    pub fn new(service: Arc<dyn NotificationService>) -> Self {
        Self { service }
    }

    pub(crate) fn into_tonic(self) -> server::NotificationServiceServer<Self> {
        server::NotificationServiceServer::new(self)
    }
}

#[tonic::async_trait]
impl server::NotificationService for NotificationServer {
    async fn register_device(
        &self,
        request: Request<pb::RegisterDeviceRequest>,
    ) -> Result<Response<pb::RegisterDeviceResponse>, Status> {
        handle(request, |caller, register| async move {
            let target = target(register)?;
            self.service.register(&caller.identity()?, target).await?;
            Ok(pb::RegisterDeviceResponse {})
        })
        .await
    }

    async fn unregister_device(
        &self,
        request: Request<pb::UnregisterDeviceRequest>,
    ) -> Result<Response<pb::UnregisterDeviceResponse>, Status> {
        handle(request, |caller, _| async move {
            self.service.unregister(&caller.identity()?).await?;
            Ok(pb::UnregisterDeviceResponse {})
        })
        .await
    }
}

// === client ===

/// A `NotificationService` that runs in another process.
#[derive(Clone)]
pub struct NotificationClient {
    rpc: Connection<NotificationServiceClient<Channel>>,
}

impl NotificationClient {
    /// Connects to `endpoint` (such as `http://notification:50051`) on first use. Must be called within a runtime.
    pub fn connect_lazy(endpoint: &str, credentials: Credentials) -> Result<Self> {
        let client = NotificationServiceClient::new(connection::channel(
            endpoint,
            PeerRole::Notification,
            &credentials,
        )?);
        Ok(Self {
            rpc: Connection::new(
                server::SERVICE_NAME,
                client,
                credentials,
                values::CALL_DEADLINE,
            ),
        })
    }
}

#[async_trait]
impl NotificationService for NotificationClient {
    async fn register(&self, who: &Identity, target: NewPushTarget) -> Result<()> {
        self.rpc
            .call(
                "RegisterDevice",
                For::Identity(who),
                target_to_proto(target),
                |mut c, r| async move { c.register_device(r).await },
            )
            .await?;
        Ok(())
    }

    async fn unregister(&self, who: &Identity) -> Result<()> {
        let request = pb::UnregisterDeviceRequest {};
        self.rpc
            .call(
                "UnregisterDevice",
                For::Identity(who),
                request,
                |mut c, r| async move { c.unregister_device(r).await },
            )
            .await?;
        Ok(())
    }
}

// === values ===

fn target_to_proto(target: NewPushTarget) -> pb::RegisterDeviceRequest {
    let provider = match target.provider {
        PushProvider::Fcm => pb::PushProvider::Fcm,
        PushProvider::Apns => pb::PushProvider::Apns,
        PushProvider::WebPush => pb::PushProvider::WebPush,
    };
    pb::RegisterDeviceRequest {
        provider: provider.into(),
        token: target.token,
        p256dh: target.p256dh,
        auth: target.auth,
    }
}

fn target(register: pb::RegisterDeviceRequest) -> Result<NewPushTarget> {
    let provider = match register.provider() {
        pb::PushProvider::Fcm => PushProvider::Fcm,
        pb::PushProvider::Apns => PushProvider::Apns,
        pb::PushProvider::WebPush => PushProvider::WebPush,
        pb::PushProvider::Unspecified => {
            return Err(Error::invalid("provider", "fcm, apns or web_push"));
        }
    };
    Ok(NewPushTarget {
        provider,
        token: register.token,
        p256dh: register.p256dh,
        auth: register.auth,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_comes_back_as_it_was() {
        for provider in [PushProvider::Fcm, PushProvider::Apns, PushProvider::WebPush] {
            for (p256dh, auth) in [
                (None, None),
                (Some("key".to_owned()), Some("secret".to_owned())),
            ] {
                let back = target(target_to_proto(NewPushTarget {
                    provider,
                    token: "token".into(),
                    p256dh: p256dh.clone(),
                    auth: auth.clone(),
                }))
                .unwrap();
                assert_eq!(back.provider, provider);
                assert_eq!(
                    (back.token.as_str(), back.p256dh, back.auth),
                    ("token", p256dh, auth)
                );
            }
        }
        assert!(target(pb::RegisterDeviceRequest::default()).is_err());
    }
}
