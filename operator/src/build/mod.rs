//! Order → child objects. Pure and client-free: the same order always gives the same objects. One file per kind.

mod autoscaler;
mod backup_job;
mod config_map;
mod deployment;
mod ingress;
mod labels;
mod migration_job;
mod monitoring;
mod network_policy;
mod pod;
mod pod_disruption_budget;
mod secret;
mod service;
mod service_account;
mod stores;

use carillon_crds::{Autoscaling, Role};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::{Ingress, NetworkPolicy};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Resource;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::foreign::{PodMonitor, PrometheusRule};
use crate::validate::Order;

pub use backup_job::{BACKUP_LABEL, backup_cron_job, backup_job, backup_job_name};
pub use labels::{
    COMPONENT_LABEL, INSTANCE_LABEL, MANAGED_BY, MANAGED_BY_LABEL, MIGRATION_COMPONENT,
    RESTORE_COMPONENT, VERSION_LABEL, instance_selector,
};
pub use migration_job::name as migration_job_name;
pub use secret::{
    AUTHORITY_CERTIFICATE, AUTHORITY_KEY, NEXT_SIGNING_KEY, SIGNING_KEY, TRUST,
    authority_secret_name, certificate_key, certificate_names, jwt_secret_name, own_secret,
    private_key_key, tls_secret_name,
};
pub use stores::{Maker, ManagedStores, RabbitmqCluster, ScyllaCluster};

/// Everything that an order wants to exist, but for the Secrets of [`crate::credentials`].
#[derive(Clone, Debug)]
pub struct Children {
    /// One per role, and one for the migration.
    pub service_accounts: Vec<ServiceAccount>,
    /// The configuration, the public keys, and the authorities for integrators.
    pub config_maps: Vec<ConfigMap>,
    /// When they are asked for. Also ConfigMaps, but nothing that runs needs them.
    pub dashboards: Vec<ConfigMap>,
    /// One per role, and the headless one of the message role.
    pub services: Vec<Service>,
    /// Who may talk to whom.
    pub network_policies: Vec<NetworkPolicy>,
    /// One per role.
    pub pod_disruption_budgets: Vec<PodDisruptionBudget>,
    /// The managed stores that the store's own operator doesn't bring up.
    pub stateful_sets: Vec<StatefulSet>,
    /// A managed ScyllaDB, where its own operator brings it up.
    pub scylla_cluster: Option<ScyllaCluster>,
    /// A managed RabbitMQ, where its own operator brings it up.
    pub rabbitmq_cluster: Option<RabbitmqCluster>,
    /// The step that gates the Deployments.
    pub migration_job: Job,
    /// The other step that gates them, when the ChatCluster begins with a backup.
    pub restore_job: Option<Job>,
    /// One per role.
    pub deployments: Vec<Deployment>,
    /// For the roles that are autoscaled.
    pub autoscalers: Vec<HorizontalPodAutoscaler>,
    /// When the gateway has a host.
    pub ingresses: Vec<Ingress>,
    /// When it is asked for.
    pub pod_monitors: Vec<PodMonitor>,
    /// When it is asked for.
    pub prometheus_rules: Vec<PrometheusRule>,
}

impl Children {
    /// Also keeps the configuration that pods of an earlier release are started with.
    pub fn keep_configuration_of(&mut self, before: &Children) {
        let names = crate::dereference::names(&self.config_maps);
        let others = before.config_maps.iter().filter(|other| {
            other
                .metadata
                .name
                .as_ref()
                .is_some_and(|name| !names.contains(name))
        });
        self.config_maps.extend(others.cloned());
    }
}

/// What is public of an order's keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// The public halves of the keys that sign tokens, did or will, as a JWK set.
    pub jwks: String,
    /// The authorities whose certificates the roles have, PEM.
    pub trust: String,
}

/// The children of `order`, with the keys of its Secrets.
pub fn children(order: &Order, keys: &Keys) -> Children {
    let mut config_maps = config_map::build(order, keys);
    config_maps.extend(stores::config_maps(order));
    let mut services = service::build(order);
    services.extend(stores::services(order));
    let mut network_policies = network_policy::build(order);
    network_policies.extend(stores::network_policies(order));
    let mut pod_disruption_budgets = pod_disruption_budget::build(order);
    pod_disruption_budgets.extend(stores::pod_disruption_budgets(order));
    Children {
        service_accounts: service_account::build(order),
        config_maps,
        dashboards: monitoring::dashboards(order),
        services,
        network_policies,
        pod_disruption_budgets,
        stateful_sets: stores::stateful_sets(order),
        scylla_cluster: stores::scylla_cluster(order),
        rabbitmq_cluster: stores::rabbitmq_cluster(order),
        migration_job: migration_job::build(order),
        restore_job: backup_job::restore(order),
        deployments: Role::ALL
            .iter()
            .map(|role| deployment::build(order, *role))
            .collect(),
        autoscalers: autoscaler::build(order),
        ingresses: ingress::build(order),
        pod_monitors: monitoring::pod_monitor(order).into_iter().collect(),
        prometheus_rules: monitoring::prometheus_rule(order).into_iter().collect(),
    }
}

/// The kinds of others that the order's monitoring needs; `None` when it asks for no monitoring.
pub fn monitoring_kinds(order: &Order) -> Option<Vec<String>> {
    let kinds = [
        monitoring::pod_monitor(order).map(|_| PodMonitor::kind(&()).into_owned()),
        monitoring::prometheus_rule(order).map(|_| PrometheusRule::kind(&()).into_owned()),
    ];
    let kinds: Vec<String> = kinds.into_iter().flatten().collect();
    let asked = !kinds.is_empty() || !monitoring::dashboards(order).is_empty();
    asked.then_some(kinds)
}

/// Where clients reach the platform.
pub fn endpoint(order: &Order) -> String {
    let gateway = order.spec.gateway.clone().unwrap_or_default();
    match (&gateway.host, &gateway.tls) {
        (Some(host), Some(_)) => format!("https://{host}"),
        (Some(host), None) => format!("http://{host}"),
        (None, _) => format!(
            "http://{}.{}.svc:{}",
            object_name(order, Role::Gateway),
            order.namespace,
            service::gateway_port(order)
        ),
    }
}

/// Name of the Deployment of `role`; also of its Service, ServiceAccount, budget and autoscaler.
pub fn object_name(order: &Order, role: Role) -> String {
    carillon_crds::service_name(&order.name, role)
}

/// What autoscaling the order wants for `role`.
fn autoscaling(order: &Order, role: Role) -> Option<&Autoscaling> {
    if is_hibernated(order) {
        return None;
    }
    match role {
        Role::Gateway => order.spec.gateway.as_ref()?.autoscaling.as_ref(),
        Role::Message => order.spec.message.as_ref()?.autoscaling.as_ref(),
        Role::Auth | Role::Presence | Role::Media | Role::Notification => None,
    }
}

/// Fixed number of pods of `role`; `None` when an autoscaler decides.
fn replicas(order: &Order, role: Role) -> Option<i32> {
    if is_hibernated(order) {
        return Some(0);
    }
    if autoscaling(order, role).is_some() {
        return None;
    }
    let spec = &order.spec;
    let ordered = match role {
        Role::Gateway => spec.gateway.as_ref().and_then(|gateway| gateway.replicas),
        Role::Auth => spec.auth.as_ref().and_then(|auth| auth.replicas),
        Role::Message => spec.message.as_ref().and_then(|message| message.replicas),
        Role::Presence => spec
            .presence
            .as_ref()
            .and_then(|presence| presence.replicas),
        Role::Media => spec.media.as_ref().and_then(|media| media.replicas),
        Role::Notification => spec
            .notification
            .as_ref()
            .and_then(|notification| notification.replicas),
    };
    Some(ordered.unwrap_or(carillon_crds::default_replicas(role)))
}

/// Whether no pod is wanted.
pub fn is_hibernated(order: &Order) -> bool {
    order.spec.hibernated == Some(true)
}

/// Ready pods without which `role` is not available: the ordered number, or an autoscaler's least.
pub fn needed_replicas(order: &Order, role: Role) -> i32 {
    match autoscaling(order, role) {
        Some(autoscaling) => autoscaler::least_replicas(autoscaling),
        None => replicas(order, role).unwrap_or(carillon_crds::default_replicas(role)),
    }
}

/// First ten hex digits of the SHA-256 of some text: enough to tell versions of one object apart.
pub(crate) fn short_hash(text: &str) -> String {
    hex::encode(&Sha256::digest(text.as_bytes())[..5])
}

/// A typed object from a literal, which reads like the YAML it becomes.
fn object<K: DeserializeOwned>(literal: Value) -> K {
    serde_json::from_value(literal)
        .expect("the literal has the shape of its kind: every one is built in a test")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use carillon_crds::ChatCluster;
    use serde::Serialize;

    /// An order from the YAML of a spec, as `chat/town` would give it.
    pub(crate) fn order_of(spec_yaml: &str) -> Order {
        let mut cluster = ChatCluster::new("town", serde_saphyr::from_str(spec_yaml).unwrap());
        cluster.metadata.namespace = Some("chat".to_owned());
        cluster.metadata.uid = Some("11111111-2222-3333-4444-555555555555".to_owned());
        crate::validate::order(&cluster, "registry.example.com/carillon:0.1.0").unwrap()
    }

    /// The smallest spec that Kubernetes can run.
    pub(crate) const SMALL: &str = "
media: {replicas: 1, store: {directory: {ephemeral: true}}}
scylla: {external: {contactPoints: ['scylla:9042'], datacenter: dc1}}
redis: {external: {url: 'redis://redis:6379'}}
rabbitmq: {external: {url: 'amqp://rabbitmq:5672'}}
";

    /// A spec with everything that changes what is built.
    pub(crate) const FULL: &str = "
image: {pullPolicy: Never, pullSecrets: [registry]}
gateway: {host: chat.example.com, tls: {secretName: town-tls}, ingressClassName: nginx, port: 80, drain: 45s, autoscaling: {minReplicas: 2, maxReplicas: 8}}
auth: {replicas: 3, otp: {twilio: {secretName: twilio}}, resources: {requests: {cpu: 200m, memory: 512Mi}, limits: {memory: 2Gi}}}
mail: {host: smtp.example.com, from: chat@example.com, secretName: smtp}
message: {autoscaling: {minReplicas: 3, maxReplicas: 12, target: {connections: 20000}}}
media: {store: {s3: {bucket: town, endpoint: 'https://s3.example.com', secretName: s3}}}
notification: {fcm: {secretName: fcm}, webPush: {secretName: vapid}}
scylla: {external: {contactPoints: ['scylla:9042'], datacenter: dc1, secretName: scylla}}
redis: {external: {url: 'redis://redis:6379', secretName: redis}}
rabbitmq: {external: {secretName: rabbit}}
";

    /// Keys that every test's cluster has.
    pub(crate) fn keys() -> Keys {
        Keys {
            jwks: r#"{"keys":[]}"#.to_owned(),
            trust: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(),
        }
    }

    pub(crate) fn yaml_of<T: Serialize>(objects: &T) -> String {
        serde_saphyr::to_string(&serde_json::to_value(objects).unwrap()).unwrap()
    }

    #[test]
    fn the_endpoint_is_where_clients_would_go() {
        assert_eq!(
            endpoint(&order_of(SMALL)),
            "http://town-gateway.chat.svc:8080"
        );
        assert_eq!(endpoint(&order_of(FULL)), "https://chat.example.com");
    }

    /// What a stranger may not do to a pod holds for every pod the operator orders.
    #[test]
    fn every_pod_is_restricted_and_has_no_token() {
        for spec in [SMALL, FULL] {
            let children = children(&order_of(spec), &keys());
            let mut pods: Vec<_> = children
                .deployments
                .iter()
                .map(|deployment| deployment.spec.template.spec.clone().unwrap())
                .collect();
            pods.push(children.migration_job.spec.unwrap().template.spec.unwrap());
            assert_eq!(pods.len(), 7);
            for pod in pods {
                assert_eq!(pod.automount_service_account_token, Some(false));
                let security = pod.security_context.unwrap();
                assert_eq!(
                    (security.run_as_non_root, security.run_as_user),
                    (Some(true), Some(65532))
                );
                assert_eq!(security.seccomp_profile.unwrap().type_, "RuntimeDefault");
                for container in pod.containers {
                    let security = container.security_context.unwrap();
                    assert_eq!(security.allow_privilege_escalation, Some(false));
                    assert_eq!(security.read_only_root_filesystem, Some(true));
                    assert_eq!(security.capabilities.unwrap().drop.unwrap(), ["ALL"]);
                    assert!(
                        container
                            .resources
                            .unwrap()
                            .requests
                            .unwrap()
                            .contains_key("memory")
                    );
                }
            }
        }
    }

    /// The signing key is mounted by the auth role alone.
    #[test]
    fn only_auth_can_read_the_signing_key() {
        let children = children(&order_of(FULL), &keys());
        for deployment in children.deployments {
            let name = deployment.metadata.name.clone().unwrap();
            let pod = deployment.spec.template.spec.unwrap();
            let mounts_key = pod.volumes.unwrap().iter().any(|volume| {
                volume
                    .secret
                    .as_ref()
                    .is_some_and(|secret| secret.secret_name.as_deref() == Some("town-jwt"))
            });
            assert_eq!(mounts_key, name == "town-auth", "{name}");
        }
    }

    /// Pods follow their keys and certificates while they run: a rotation rolls none.
    #[test]
    fn other_keys_roll_no_pod() {
        let templates = |keys: &Keys| -> Vec<String> {
            children(&order_of(SMALL), keys)
                .deployments
                .iter()
                .map(|deployment| yaml_of(&deployment.spec.template))
                .collect()
        };
        let others = Keys {
            jwks: r#"{"keys":[{}]}"#.to_owned(),
            trust: "other".to_owned(),
        };
        assert_eq!(templates(&keys()), templates(&others));
    }

    /// Each role is given its own private key, and none the authority's.
    #[test]
    fn a_pod_is_given_its_own_certificate_alone() {
        for (role, deployment) in Role::ALL
            .iter()
            .zip(children(&order_of(FULL), &keys()).deployments)
        {
            let pod = deployment.spec.template.spec.unwrap();
            let mut given = Vec::new();
            for volume in pod.volumes.unwrap() {
                let Some(secret) = volume.secret else {
                    continue;
                };
                assert_ne!(secret.secret_name.as_deref(), Some("town-ca"));
                if secret.secret_name.as_deref() == Some("town-certificates") {
                    given.extend(secret.items.unwrap().into_iter().map(|item| item.key));
                }
            }
            assert_eq!(
                given,
                [
                    certificate_key(*role),
                    private_key_key(*role),
                    TRUST.to_owned()
                ]
            );
        }
    }

    /// Nothing that a pod is made of changes: after waking up the roles have the templates they went to sleep with.
    #[test]
    fn hibernation_takes_the_pods_and_nothing_else() {
        for spec in [SMALL, FULL] {
            let awake = children(&order_of(spec), &keys());
            let asleep = children(&order_of(&format!("{spec}hibernated: true\n")), &keys());
            assert!(asleep.autoscalers.is_empty());
            for (awake, asleep) in awake.deployments.iter().zip(&asleep.deployments) {
                assert_eq!(asleep.spec.replicas, Some(0));
                assert_eq!(
                    yaml_of(&awake.spec.template),
                    yaml_of(&asleep.spec.template)
                );
            }
            assert_eq!(yaml_of(&awake.services), yaml_of(&asleep.services));
            assert_eq!(yaml_of(&awake.config_maps), yaml_of(&asleep.config_maps));
            assert_eq!(yaml_of(&awake.ingresses), yaml_of(&asleep.ingresses));
        }
    }

    /// A pod whose configuration or image did not change keeps its template, whatever else the order changes.
    #[test]
    fn an_unrelated_change_rolls_no_pod() {
        let template = |spec: &str| {
            let children = children(&order_of(spec), &keys());
            yaml_of(
                &children
                    .deployments
                    .iter()
                    .map(|deployment| &deployment.spec.template)
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(
            template(SMALL),
            template(&format!(
                "{SMALL}auth: {{replicas: 5}}\npresence: {{replicas: 4}}\n"
            ))
        );
        assert_ne!(
            template(SMALL),
            template(&format!("{SMALL}auth: {{accessTokenTtl: 5m}}\n"))
        );
    }
}
