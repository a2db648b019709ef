//! What every reconcile is handed.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::core::ObjectMeta;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use crate::apply::Change;
use crate::lookout::Lookout;
use crate::metrics::Metrics;
use crate::probe::Prober;
use crate::readiness::ReadinessClient;

/// Shared by all reconciles; holds no state about any cluster but when its messages were last probed, and whom to ask about its stores.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// Image of the roles, unless a ChatCluster says otherwise.
    pub image: String,
    /// What is counted.
    pub metrics: Metrics,
    /// Asks pods how they are.
    pub readiness: Arc<ReadinessClient>,
    /// Looks at stores between passes.
    pub lookout: Arc<Lookout>,
    /// Sends probe messages.
    pub prober: Prober,
    recorder: Recorder,
}

impl Context {
    /// A context; `identity` is who Events are from.
    pub fn new(client: Client, image: String, identity: String, metrics: Metrics) -> Self {
        let reporter = Reporter {
            controller: crate::FIELD_MANAGER.to_owned(),
            instance: Some(identity),
        };
        Context {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            image,
            metrics,
            readiness: Arc::new(ReadinessClient::new()),
            lookout: Arc::new(Lookout::new()),
            prober: Prober::default(),
        }
    }

    /// Publishes an Event about a ChatCluster. A lost Event is logged and changes nothing else.
    /// Events of one reason are counted together; `about` a child, each child is counted by itself.
    pub async fn event(
        &self,
        cluster: &ObjectReference,
        type_: EventType,
        reason: &str,
        action: &str,
        about: Option<&Change>,
        note: String,
    ) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            // The API server takes at most 1 kB.
            note: Some(note.chars().take(1000).collect()),
            action: action.to_owned(),
            secondary: about.map(|change| ObjectReference {
                kind: Some(change.kind.clone()),
                name: Some(change.name.clone()),
                namespace: cluster.namespace.clone(),
                ..ObjectReference::default()
            }),
        };
        if let Err(error) = self.recorder.publish(&event, cluster).await {
            tracing::warn!(%error, reason, "an Event was lost");
        }
    }
}

/// A reference to a ChatCluster for Events.
pub fn reference_to(metadata: &ObjectMeta) -> ObjectReference {
    ObjectReference {
        api_version: Some("carillon.chat/v1alpha1".to_owned()),
        kind: Some("ChatCluster".to_owned()),
        name: metadata.name.clone(),
        namespace: metadata.namespace.clone(),
        uid: metadata.uid.clone(),
        ..ObjectReference::default()
    }
}
