//! Writes what differs between what is ordered and what there is.
//!
//! Order, so that nothing starts before what it needs is there: ServiceAccounts, ConfigMaps, Services, NetworkPolicies,
//! PodDisruptionBudgets, managed stores, the migration Job; and once the gate is open: Deployments, autoscalers, Ingresses; then what
//! nobody orders any more is deleted; last, what monitors it.
//!
//! Every write is a server-side apply by one field manager. Fields that others set are left alone, so that an
//! autoscaler, an injector or a person's own annotation is not fought with.

pub mod difference;

use std::collections::BTreeSet;
use std::fmt::Debug;

use carillon_crds::ChatCluster;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use self::difference::{Difference, difference, with_hash};
use crate::FIELD_MANAGER;
use crate::build::Children;
use crate::dereference::{Live, is_owned_by, names};
use crate::foreign::Served;
use crate::metrics::Metrics;

/// Holds `spec.replicas` between the moment the operator lets go of it and the moment the autoscaler takes it: a field
/// that nobody owns falls back to its default, one pod.
const HANDOVER_MANAGER: &str = "carillon-operator-handover";

/// Why a write failed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The API server refused.
    #[error("{kind} {name}: {source}")]
    Api {
        /// Kind of the child.
        kind: String,
        /// Its name.
        name: String,
        /// What the API server said.
        source: kube::Error,
    },
    /// Something of that name exists and belongs to somebody else.
    #[error(
        "{kind} {name}: exists already and doesn't belong to this ChatCluster; rename or delete one of the two"
    )]
    NotOurs {
        /// Kind of the child.
        kind: String,
        /// Its name.
        name: String,
    },
}

/// One write, for Events and logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What was done.
    pub action: ChangeAction,
    /// Kind of the child.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// What was done to a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeAction {
    /// It was not there, or not any more.
    Created,
    /// The order is another than last time.
    Updated,
    /// Somebody had changed it.
    Repaired,
    /// Nobody orders it any more.
    Deleted,
}

/// Writes for one ChatCluster; collects what was done.
pub struct Applier<'a> {
    /// The API server.
    pub client: &'a Client,
    /// Counts writes.
    pub metrics: &'a Metrics,
    /// The owner of all children.
    pub cluster: &'a ChatCluster,
    /// What was done so far.
    pub changes: Vec<Change>,
}

impl<'a> Applier<'a> {
    /// An applier that has done nothing yet.
    pub fn new(client: &'a Client, metrics: &'a Metrics, cluster: &'a ChatCluster) -> Self {
        Applier {
            client,
            metrics,
            cluster,
            changes: Vec::new(),
        }
    }

    /// Everything that may be there before the schema is migrated.
    pub async fn apply_foundations(
        &mut self,
        children: &Children,
        live: &Live,
    ) -> Result<(), ApplyError> {
        self.apply_all(&children.service_accounts, &live.service_accounts)
            .await?;
        self.apply_all(&children.config_maps, &live.config_maps)
            .await?;
        self.apply_all(&children.services, &live.services).await?;
        self.apply_all(&children.network_policies, &live.network_policies)
            .await?;
        self.apply_all(
            &children.pod_disruption_budgets,
            &live.pod_disruption_budgets,
        )
        .await?;
        self.apply_all(&children.stateful_sets, &live.stateful_sets)
            .await?;
        if let Some(cluster) = &children.scylla_cluster {
            self.apply(cluster, live.scylla_cluster.as_ref()).await?;
        }
        if let Some(cluster) = &children.rabbitmq_cluster {
            self.apply(cluster, live.rabbitmq_cluster.as_ref()).await?;
        }
        Ok(())
    }

    /// Makes the migration Job when there is none of its name. A Job that was made for another order is left as it is: what it
    /// runs can't be changed.
    pub async fn start_migration(
        &mut self,
        children: &Children,
        live: &Live,
    ) -> Result<(), ApplyError> {
        self.start_job(&children.migration_job, live).await
    }

    /// The same for the Job that restores the backup that the ChatCluster begins with.
    pub async fn start_restore(
        &mut self,
        children: &Children,
        live: &Live,
    ) -> Result<(), ApplyError> {
        match &children.restore_job {
            Some(job) => self.start_job(job, live).await,
            None => Ok(()),
        }
    }

    async fn start_job(&mut self, job: &Job, live: &Live) -> Result<(), ApplyError> {
        let found = find(&live.jobs, job);
        if found.is_some_and(|live| !may_be_applied(job, live)) {
            return Ok(());
        }
        self.apply(job, found).await
    }

    /// The pods of the first `roles` roles, and what scales and publishes them.
    pub async fn apply_workloads(
        &mut self,
        children: &Children,
        live: &Live,
        roles: usize,
    ) -> Result<(), ApplyError> {
        for deployment in children.deployments.iter().take(roles) {
            self.apply_deployment(deployment, children, live).await?;
        }
        self.apply_all(&children.autoscalers, &live.autoscalers)
            .await?;
        self.apply_all(&children.ingresses, &live.ingresses).await
    }

    /// While the gate is closed to the roles after the first `roles`: only mends Deployments whose order has not changed since it
    /// was last open.
    pub async fn repair_workloads(
        &mut self,
        children: &Children,
        live: &Live,
        roles: usize,
    ) -> Result<(), ApplyError> {
        for deployment in children.deployments.iter().skip(roles) {
            let found = find(&live.deployments, deployment);
            if found.is_some_and(|live| matches!(compare(deployment, live), Difference::Drift(_))) {
                self.apply_deployment(deployment, children, live).await?;
            }
        }
        Ok(())
    }

    /// Deletes children that nobody orders any more. With `workloads_current` also what pods of an earlier template may
    /// still need: earlier configurations. `before` is what an upgrade that is under way may have to go back to.
    pub async fn delete_orphans(
        &mut self,
        children: &Children,
        live: &Live,
        workloads_current: bool,
        before: Option<&Children>,
    ) -> Result<(), ApplyError> {
        self.delete_unordered(&children.ingresses, &live.ingresses)
            .await?;
        self.delete_unordered(&children.autoscalers, &live.autoscalers)
            .await?;
        self.delete_unordered(&children.deployments, &live.deployments)
            .await?;
        // Volumes stay unless it was ordered otherwise. What other operators were asked for is never taken away here: it holds data.
        self.delete_unordered(&children.stateful_sets, &live.stateful_sets)
            .await?;
        self.delete_unordered(
            &children.pod_disruption_budgets,
            &live.pod_disruption_budgets,
        )
        .await?;
        self.delete_unordered(&children.network_policies, &live.network_policies)
            .await?;
        self.delete_unordered(&children.services, &live.services)
            .await?;
        let jobs: Vec<Job> = std::iter::once(children)
            .chain(before)
            .map(|children| children.migration_job.clone())
            .chain(children.restore_job.clone())
            .collect();
        self.delete_unordered(&jobs, &live.jobs).await?;
        self.delete_unordered(&children.service_accounts, &live.service_accounts)
            .await?;
        if workloads_current {
            let ordered = [&children.config_maps[..], &children.dashboards].concat();
            self.delete_unordered(&ordered, &live.config_maps).await?;
        }
        Ok(())
    }

    /// What monitors it, where the API server knows such kinds. Comes after everything else: nobody who chats needs it. What is refused
    /// keeps nothing else away; the first refusal is told.
    pub async fn apply_monitors(
        &mut self,
        children: &Children,
        live: &Live,
        served: Served,
    ) -> Result<(), ApplyError> {
        let dashboards = self
            .apply_all(&children.dashboards, &live.config_maps)
            .await;
        let pod_monitors = match served.pod_monitors {
            true => {
                self.monitor(&children.pod_monitors, &live.pod_monitors)
                    .await
            }
            false => Ok(()),
        };
        let rules = match served.prometheus_rules {
            true => {
                self.monitor(&children.prometheus_rules, &live.prometheus_rules)
                    .await
            }
            false => Ok(()),
        };
        dashboards.and(pod_monitors).and(rules)
    }

    async fn monitor<K>(&mut self, desired: &[K], live: &[K]) -> Result<(), ApplyError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        self.apply_all(desired, live).await?;
        self.delete_unordered(desired, live).await
    }

    /// Deletes one child, and what it made.
    pub async fn delete<K>(&mut self, child: &K) -> Result<(), ApplyError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let parameters = DeleteParams::background().preconditions(Preconditions {
            uid: child.uid(),
            resource_version: None,
        });
        self.metrics.wrote(&K::kind(&()), "delete");
        match self.api::<K>().delete(&child.name_any(), &parameters).await {
            Ok(_) => self.note(ChangeAction::Deleted, child),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
            Err(source) => return Err(api_error(child, source)),
        }
        Ok(())
    }

    async fn apply_all<K>(&mut self, desired: &[K], live: &[K]) -> Result<(), ApplyError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        for child in desired {
            self.apply(child, find(live, child)).await?;
        }
        Ok(())
    }

    async fn apply_deployment(
        &mut self,
        desired: &Deployment,
        children: &Children,
        live: &Live,
    ) -> Result<(), ApplyError> {
        let found = find(&live.deployments, desired);
        if let Some(found) = found
            && desired.spec.replicas.is_none()
            && compare(desired, found) != Difference::None
        {
            let least = children
                .autoscalers
                .iter()
                .find(|autoscaler| autoscaler.metadata.name == desired.metadata.name)
                .and_then(|autoscaler| autoscaler.spec.min_replicas)
                .unwrap_or(1);
            self.hand_replicas_over(found, least).await?;
        }
        self.apply(desired, found).await
    }

    /// An autoscaler leaves a Deployment of no pods alone, so `least` of them are there when it takes over.
    async fn hand_replicas_over(
        &mut self,
        live: &Deployment,
        least: i32,
    ) -> Result<(), ApplyError> {
        let ours = live.managed_fields().iter().any(|entry| {
            entry.manager.as_deref() == Some(FIELD_MANAGER)
                && entry
                    .fields_v1
                    .as_ref()
                    .is_some_and(|fields| fields.0.pointer("/f:spec/f:replicas").is_some())
        });
        let Some(replicas) = live.spec.replicas.filter(|_| ours) else {
            return Ok(());
        };
        let name = live.name_any();
        let patch = json!({
            "apiVersion": Deployment::api_version(&()),
            "kind": Deployment::kind(&()),
            "metadata": { "name": name },
            "spec": { "replicas": replicas.max(least) },
        });
        self.metrics.wrote("Deployment", "apply");
        self.api::<Deployment>()
            .patch(
                &name,
                &PatchParams::apply(HANDOVER_MANAGER).force(),
                &Patch::Apply(patch),
            )
            .await
            .map_err(|source| api_error(live, source))?;
        Ok(())
    }

    async fn apply<K>(&mut self, desired: &K, live: Option<&K>) -> Result<(), ApplyError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        let name = desired.name_any();
        let action = match live {
            Some(live) => match compare(desired, live) {
                Difference::None => return Ok(()),
                Difference::OtherOrder => ChangeAction::Updated,
                Difference::Drift(path) => {
                    tracing::info!(kind = %K::kind(&()), name, path, "changed by somebody else");
                    ChangeAction::Repaired
                }
            },
            None => {
                // Server-side apply would merge into whatever is there.
                let found = self
                    .api::<K>()
                    .get_opt(&name)
                    .await
                    .map_err(|source| api_error(desired, source))?;
                if found.is_some_and(|found| !is_owned_by(&found, self.cluster)) {
                    return Err(ApplyError::NotOurs {
                        kind: K::kind(&()).into_owned(),
                        name,
                    });
                }
                ChangeAction::Created
            }
        };
        let mut applied = self.server_side_apply(desired).await;
        if live.is_some()
            && let Err(kube::Error::Api(status)) = &applied
            && status.code == 422
        {
            // Server-side apply finds a port by its number: one that somebody gave another number stays beside ours, and two of
            // one name are refused. A merge replaces lists as a whole.
            self.metrics.wrote(&K::kind(&()), "merge");
            let parameters = PatchParams {
                field_manager: Some(FIELD_MANAGER.to_owned()),
                ..PatchParams::default()
            };
            self.api::<K>()
                .patch(&name, &parameters, &Patch::Merge(with_hash(desired)))
                .await
                .map_err(|source| api_error(desired, source))?;
            applied = self.server_side_apply(desired).await;
        }
        applied.map_err(|source| api_error(desired, source))?;
        self.note(action, desired);
        Ok(())
    }

    async fn server_side_apply<K>(&self, desired: &K) -> Result<K, kube::Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        self.metrics.wrote(&K::kind(&()), "apply");
        self.api::<K>()
            .patch(
                &desired.name_any(),
                &PatchParams::apply(FIELD_MANAGER).force(),
                &Patch::Apply(with_hash(desired)),
            )
            .await
    }

    async fn delete_unordered<K>(&mut self, desired: &[K], live: &[K]) -> Result<(), ApplyError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let ordered: BTreeSet<String> = names(desired);
        for child in live {
            if !ordered.contains(&child.name_any()) && child.meta().deletion_timestamp.is_none() {
                self.delete(child).await?;
            }
        }
        Ok(())
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(
            self.client.clone(),
            self.cluster
                .metadata
                .namespace
                .as_deref()
                .unwrap_or_default(),
        )
    }

    fn note<K: Resource<DynamicType = ()>>(&mut self, action: ChangeAction, child: &K) {
        self.changes.push(Change {
            action,
            kind: K::kind(&()).into_owned(),
            name: child.meta().name.clone().unwrap_or_default(),
        });
    }
}

/// Whether every Deployment that is ordered is there as ordered.
pub fn workloads_as_ordered(children: &Children, live: &Live) -> bool {
    children.deployments.iter().all(|deployment| {
        find(&live.deployments, deployment).is_some_and(|live| is_as_ordered(deployment, live))
    })
}

/// Whether a Deployment is there as ordered.
pub fn is_as_ordered(desired: &Deployment, live: &Deployment) -> bool {
    compare(desired, live) == Difference::None
}

/// Whether what a Job runs is what is ordered, whatever became of its other fields: of what we set only the template can't be changed.
fn may_be_applied(desired: &Job, live: &Job) -> bool {
    let template =
        |job: &Job| json!({ "spec": { "template": job.spec.as_ref().map(|spec| &spec.template) } });
    difference(&template(desired), &template(live)) == Difference::None
}

fn find<'a, K: Resource>(live: &'a [K], desired: &K) -> Option<&'a K> {
    live.iter()
        .find(|live| live.meta().name == desired.meta().name)
}

fn compare<K: Serialize + Resource<DynamicType = ()>>(desired: &K, live: &K) -> Difference {
    // An object that is going away is as good as changed by its deletion; it is made anew when it is gone.
    if live.meta().deletion_timestamp.is_some() {
        return Difference::None;
    }
    difference(&with_hash(desired), &to_value(live))
}

fn to_value<K: Serialize>(object: &K) -> Value {
    serde_json::to_value(object).expect("API objects have string keys only and always serialize")
}

fn api_error<K: Resource<DynamicType = ()>>(child: &K, source: kube::Error) -> ApplyError {
    ApplyError::Api {
        kind: K::kind(&()).into_owned(),
        name: child.meta().name.clone().unwrap_or_default(),
        source,
    }
}
