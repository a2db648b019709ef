//! What every reconcile is handed.

use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::core::ObjectMeta;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use crate::apply::Change;
use crate::foreign::Definitions;
use crate::lookout::Lookout;
use crate::metrics::Metrics;
use crate::probe::Prober;
use crate::readiness::ReadinessClient;

/// Events after which it is forgotten which ones repeat. The recorder keeps each whole for some minutes: with a thousand clusters
/// that come up at once, these would be most of the operator's memory.
const REMEMBERED: usize = 256;

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
    /// Which kinds of others the API server knows.
    pub definitions: Definitions,
    /// Sends probe messages.
    pub prober: Prober,
    reporter: Reporter,
    /// With the number of Events that it was given.
    recorder: Mutex<(Recorder, usize)>,
}

impl Context {
    /// A context; `identity` is who Events are from.
    pub fn new(client: Client, image: String, identity: String, metrics: Metrics) -> Self {
        let reporter = Reporter {
            controller: crate::FIELD_MANAGER.to_owned(),
            instance: Some(identity),
        };
        Context {
            recorder: Mutex::new((Recorder::new(client.clone(), reporter.clone()), 0)),
            reporter,
            client,
            image,
            metrics,
            readiness: Arc::new(ReadinessClient::new()),
            lookout: Arc::new(Lookout::new()),
            definitions: Definitions::default(),
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
        let about = about.map(|change| ObjectReference {
            kind: Some(change.kind.clone()),
            name: Some(change.name.clone()),
            namespace: cluster.namespace.clone(),
            ..ObjectReference::default()
        });
        let event = event(type_, reason, action, about, &note);
        publish(&self.recorder(), &event, cluster).await;
    }

    /// The same for what was done to several children, of which `note` is the list. It is never counted with another one: that
    /// would keep the first one's list.
    pub async fn list_event(
        &self,
        cluster: &ObjectReference,
        reason: &str,
        action: &str,
        note: String,
    ) {
        let event = event(EventType::Normal, reason, action, None, &note);
        publish(&self.new_recorder(), &event, cluster).await;
    }

    /// The recorder that counts what repeats.
    fn recorder(&self) -> Recorder {
        let mut recorder = self.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        if recorder.1 == REMEMBERED {
            *recorder = (self.new_recorder(), 0);
        }
        recorder.1 += 1;
        recorder.0.clone()
    }

    fn new_recorder(&self) -> Recorder {
        Recorder::new(self.client.clone(), self.reporter.clone())
    }
}

fn event(
    type_: EventType,
    reason: &str,
    action: &str,
    secondary: Option<ObjectReference>,
    note: &str,
) -> Event {
    Event {
        type_,
        reason: reason.to_owned(),
        // The API server takes at most 1 kB.
        note: Some(note.chars().take(1000).collect()),
        action: action.to_owned(),
        secondary,
    }
}

async fn publish(recorder: &Recorder, event: &Event, cluster: &ObjectReference) {
    if let Err(error) = recorder.publish(event, cluster).await {
        tracing::warn!(%error, reason = event.reason, "an Event was lost");
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
