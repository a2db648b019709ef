//! Stores that are managed: who brings each one up, under which password, whether it is there, and what can't be carried out.
//!
//! Who does is chosen once. A resource of the store's own operator, or a StatefulSet, that is there stays what it is; where
//! neither is, the store's Secret remembers who brought up what its password opens, so that volumes that outlived an earlier
//! ChatCluster are found again. Only where there is nothing at all does it count whether the store's own operator is installed.
//!
//! What the children look like is in [`crate::build`]. The password of a RabbitMQ that its own operator brings up is that operator's
//! to make.

use carillon_crds::{ChatCluster, DeletionPolicy, FieldProblem, ManagedStore, SecretUse};
use k8s_openapi::api::core::v1::Secret;
use kube::core::PartialObjectMeta;
use kube::{Api, Client, Resource, ResourceExt};
use rand::Rng;
use rand::distr::Alphanumeric;
use serde_json::Value;
use sha_crypt::{PasswordHasher, ShaCrypt};

use crate::build::{self, Maker, ManagedStores, RabbitmqCluster, ScyllaCluster};
use crate::context::Context;
use crate::credentials::{KeyError, Store, text, write};
use crate::dereference::Live;
use crate::status::MissingSecret;
use crate::validate::Order;

/// The one user of a managed store: the one that ScyllaDB and Cassandra begin with.
pub const USER: &str = "cassandra";
/// Key of the user's name in a store's Secret.
pub const USERNAME: &str = "username";
/// Key of the password in a store's Secret.
pub const PASSWORD: &str = "password";
/// Key of the lines of configuration that give Redis its password, in its Secret.
pub const REDIS_LOGIN: &str = "login.conf";
/// Key of those that give RabbitMQ its user, in its Secret.
pub const RABBITMQ_LOGIN: &str = "default_user.conf";
/// Key of the password as ScyllaDB keeps it, in its Secret.
const SALTED_PASSWORD: &str = "salted_password";
/// Annotation of a store's Secret: who brings up what it opens.
const MADE_BY: &str = "carillon.chat/store-made-by";

/// Letters and digits of a password: 190 bits.
const PASSWORD_LENGTH: usize = 32;

// === who brings it up ===

/// Finds out who brings up each store that `cluster` has managed.
pub async fn look(
    client: &Client,
    cluster: &ChatCluster,
    live: &Live,
) -> Result<ManagedStores, kube::Error> {
    let scylla = choose::<ScyllaCluster>(client, cluster, live, ManagedStore::Scylla).await?;
    let rabbitmq = choose::<RabbitmqCluster>(client, cluster, live, ManagedStore::Rabbitmq).await?;
    let hibernated = cluster.spec.hibernated == Some(true);
    let ran = has_run(cluster, live);
    let mut unmade = Vec::new();
    // Who has never run makes what isn't there.
    for store in ManagedStore::ALL.into_iter().filter(|_| ran) {
        if cluster.spec.manages(store)
            && found(live, cluster, store).is_none()
            && secret_of(client, cluster, store).await?.is_none()
        {
            unmade.push(store);
        }
    }
    Ok(ManagedStores {
        scylla,
        rabbitmq,
        asleep: hibernated && !has_pods(live),
        unmade,
        salted_password: None,
    })
}

/// Whether roles ever ran: then messages are somewhere. Deployments come after the stores and their Secrets, so that whoever was
/// stopped on the way to them goes on.
fn has_run(cluster: &ChatCluster, live: &Live) -> bool {
    let status = cluster.status.as_ref();
    !live.deployments.is_empty() || status.is_some_and(|status| status.release.is_some())
}

/// Whether a role still has pods that may talk to a store.
pub fn has_pods(live: &Live) -> bool {
    live.deployments.iter().any(|deployment| {
        let status = deployment.status.as_ref();
        deployment.spec.replicas != Some(0)
            || status.is_some_and(|status| status.replicas.unwrap_or(0) > 0)
    })
}

async fn choose<K>(
    client: &Client,
    cluster: &ChatCluster,
    live: &Live,
    store: ManagedStore,
) -> Result<Maker, kube::Error>
where
    K: Resource<DynamicType = ()>,
{
    if !cluster.spec.manages(store) {
        return Ok(Maker::default());
    }
    if let Some(maker) = found(live, cluster, store) {
        return Ok(maker);
    }
    let secret = secret_of(client, cluster, store).await?;
    if let Some(maker) = secret.as_ref().and_then(remembered) {
        return Ok(maker);
    }
    Ok(match is_served::<K>(client).await? {
        true => Maker::Operator,
        false => Maker::StatefulSet,
    })
}

async fn secret_of(
    client: &Client,
    cluster: &ChatCluster,
    store: ManagedStore,
) -> Result<Option<PartialObjectMeta<Secret>>, kube::Error> {
    let namespace = cluster.metadata.namespace.as_deref().unwrap_or_default();
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    secrets
        .get_metadata_opt(&store.secret_name(&cluster.name_any()))
        .await
}

/// Who brought up what is there.
fn found(live: &Live, cluster: &ChatCluster, store: ManagedStore) -> Option<Maker> {
    let name = store.object_name(&cluster.name_any());
    let is_asked_for = match store {
        ManagedStore::Scylla => live.scylla_cluster.is_some(),
        ManagedStore::Rabbitmq => live.rabbitmq_cluster.is_some(),
        ManagedStore::Redis => false,
    };
    if is_asked_for {
        return Some(Maker::Operator);
    }
    let is_ours = live.stateful_sets.iter().any(|set| set.name_any() == name);
    is_ours.then_some(Maker::StatefulSet)
}

fn remembered(secret: &PartialObjectMeta<Secret>) -> Option<Maker> {
    Maker::from_name(secret.annotations().get(MADE_BY)?)
}

/// Whether the API server knows the kind.
pub async fn is_served<K: Resource<DynamicType = ()>>(
    client: &Client,
) -> Result<bool, kube::Error> {
    match client.list_api_group_resources(&K::api_version(&())).await {
        Ok(list) => Ok(list
            .resources
            .iter()
            .any(|resource| resource.kind == K::kind(&()))),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the API server knows no such object, or no such kind: of a group that it doesn't know it says so in plain text, which
/// `get_opt` takes for a failure.
pub fn is_absent(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

// === what can't be carried out ===

/// What of the order doesn't fit who brings the stores up, or what is there. Pure.
pub fn problems(order: &Order, live: &Live) -> Vec<FieldProblem> {
    let mut problems: Vec<FieldProblem> = order
        .managed
        .unmade
        .iter()
        .filter_map(|store| unmade(order, *store))
        .collect();
    let spec = &order.spec;
    let nodes = [
        (
            ManagedStore::Scylla,
            "spec.scylla.managed.members",
            spec.managed_scylla().map(|scylla| scylla.members()),
        ),
        (
            ManagedStore::Rabbitmq,
            "spec.rabbitmq.managed.replicas",
            spec.managed_rabbitmq().map(|rabbitmq| rabbitmq.replicas()),
        ),
    ];
    for (store, field, nodes) in nodes {
        if nodes.is_some_and(|nodes| nodes > 1) && order.managed.maker(store) == Maker::StatefulSet
        {
            problems.push(FieldProblem::new(
                field,
                format!(
                    "more than one needs {}'s own operator, from the beginning",
                    store.name()
                ),
                "1",
            ));
        }
    }
    for store in ManagedStore::ALL {
        let (Some(ordered), Some(there)) = (
            spec.managed_storage(store),
            volumes_there(order, live, store),
        ) else {
            continue;
        };
        let field = format!("spec.{}.managed.storage", store.name());
        let refuse = |part: &str, there: String| {
            let problem = "can't be changed: volumes stay as they were made";
            FieldProblem::new(format!("{field}.{part}"), problem, there)
        };
        let amount = carillon_crds::parse_quantity;
        if amount(ordered.size()) != amount(&there.0) {
            problems.push(refuse("size", there.0.clone()));
        }
        // Which class the default is, is written into volumes later on, and not into what orders them.
        if ordered.storage_class_name != there.1 {
            let class = there.1.unwrap_or_else(|| "left out".to_owned());
            problems.push(refuse("storageClassName", class));
        }
    }
    problems
}

/// Nobody is moved to an empty store for having left a field out. Redis and RabbitMQ may be had empty by whoever asks for it in so
/// many words; messages are never left behind.
fn unmade(order: &Order, store: ManagedStore) -> Option<FieldProblem> {
    let spec = &order.spec;
    let left_out = match store {
        ManagedStore::Scylla => spec.scylla.is_none(),
        ManagedStore::Redis => spec.redis.is_none(),
        ManagedStore::Rabbitmq => spec.rabbitmq.is_none(),
    };
    let name = store.name();
    let field = match left_out {
        true => format!("spec.{name}"),
        false => format!("spec.{name}.managed"),
    };
    let allowed = match store {
        ManagedStore::Scylla => format!(
            "spec.scylla.external with the ScyllaDB that it used; if it was a managed one that somebody deleted, make Secret {} \
             with the keys username and password again",
            store.secret_name(&order.name)
        ),
        _ if !left_out => return None,
        _ => {
            format!(
                "spec.{name}.external with the one that it used, or managed: {{}} for an empty one"
            )
        }
    };
    let problem = "this ChatCluster runs already, and no managed one was made for it";
    Some(FieldProblem::new(field, problem, allowed))
}

/// Size and class that the volumes of `store` were ordered with.
fn volumes_there(
    order: &Order,
    live: &Live,
    store: ManagedStore,
) -> Option<(String, Option<String>)> {
    let texts = |size: Option<&Value>, class: Option<&Value>| {
        let class = class.and_then(Value::as_str).map(str::to_owned);
        Some((size?.as_str()?.to_owned(), class))
    };
    if order.managed.maker(store) == Maker::Operator {
        return match store {
            ManagedStore::Scylla => {
                let spec = &live.scylla_cluster.as_ref()?.spec;
                let storage = spec.pointer("/datacenter/racks/0/storage")?;
                texts(storage.get("capacity"), storage.get("storageClassName"))
            }
            ManagedStore::Rabbitmq => {
                let storage = live.rabbitmq_cluster.as_ref()?.spec.get("persistence")?;
                texts(storage.get("storage"), storage.get("storageClassName"))
            }
            ManagedStore::Redis => None,
        };
    }
    let name = store.object_name(&order.name);
    let set = live
        .stateful_sets
        .iter()
        .find(|set| set.name_any() == name)?;
    let claim = set.spec.volume_claim_templates.as_ref()?.first()?;
    let spec = claim.spec.as_ref()?;
    let requests = spec.resources.as_ref()?.requests.as_ref()?;
    let size = requests.get("storage")?.0.clone();
    Some((size, spec.storage_class_name.clone()))
}

// === whether it is there ===

/// The managed stores that aren't up yet, with what is waited for. Pure.
pub fn waiting(order: &Order, live: &Live) -> Vec<(&'static str, String)> {
    let mut waiting = Vec::new();
    for store in ManagedStore::ALL {
        if !order.spec.manages(store) {
            continue;
        }
        let name = store.object_name(&order.name);
        let (is_up, what) = match (order.managed.maker(store), store) {
            (Maker::Operator, ManagedStore::Scylla) => {
                let found = live.scylla_cluster.as_ref();
                let is_up = found.is_some_and(|found| has(&found.status, "Available"));
                (is_up, format!("ScyllaCluster {name} isn't available"))
            }
            (Maker::Operator, _) => {
                let found = live.rabbitmq_cluster.as_ref();
                let is_up = found.is_some_and(|found| has(&found.status, "AllReplicasReady"));
                (
                    is_up,
                    format!("RabbitmqCluster {name} has nodes that aren't ready"),
                )
            }
            (Maker::StatefulSet, _) => {
                let set = live.stateful_sets.iter().find(|set| set.name_any() == name);
                let status = set.and_then(|set| set.status.as_ref());
                let ready = status.and_then(|status| status.ready_replicas).unwrap_or(0);
                (ready > 0, format!("StatefulSet {name} has no ready pod"))
            }
        };
        if !is_up {
            waiting.push((store.name(), what));
        }
    }
    waiting
}

fn has(status: &Value, type_: &str) -> bool {
    let conditions = status.get("conditions").and_then(Value::as_array);
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == type_ && condition["status"] == "True")
}

// === passwords ===

/// Makes the Secrets of the stores that a StatefulSet or a `ScyllaCluster` is for, and puts into the order what children need of
/// them.
pub async fn ensure_secrets(
    context: &Context,
    cluster: &ChatCluster,
    order: &mut Order,
    live: &Live,
) -> Result<(), KeyError> {
    let secrets = Store::new(context, cluster, &order.namespace);
    for store in ManagedStore::ALL {
        let maker = order.managed.maker(store);
        if !order.spec.manages(store) || is_anothers(store, maker) {
            continue;
        }
        let name = store.secret_name(&order.name);
        let mut secret = match secrets.get(&name).await? {
            Some(secret) => secret,
            // Its data can be read with that password only; a Redis that is given another one would refuse the roles until it starts anew.
            None if found(live, cluster, store).is_some() => {
                return Err(KeyError::Lost {
                    secret: name,
                    store: store.name(),
                });
            }
            None => secrets.create(&new_secret(order, store, maker)).await?,
        };
        let owners = owners(order, store);
        let is_as_ordered = secret
            .metadata
            .owner_references
            .as_deref()
            .unwrap_or_default()
            == owners.as_deref().unwrap_or_default();
        if !is_as_ordered {
            secret.metadata.owner_references = owners;
            secrets.replace(&secret).await?;
        }
        if store == ManagedStore::Scylla {
            order.managed.salted_password = text(&secret, SALTED_PASSWORD);
        }
    }
    Ok(())
}

/// Whether the password is made by the store's own operator.
fn is_anothers(store: ManagedStore, maker: Maker) -> bool {
    store == ManagedStore::Rabbitmq && maker == Maker::Operator
}

/// The Secret of a store that its own operator makes, when it isn't there yet.
pub async fn missing_secret(
    client: &Client,
    order: &Order,
) -> Result<Option<MissingSecret>, kube::Error> {
    let store = ManagedStore::Rabbitmq;
    if !order.spec.manages(store) || !is_anothers(store, order.managed.rabbitmq) {
        return Ok(None);
    }
    let name = store.secret_name(&order.name);
    let api: Api<Secret> = Api::namespaced(client.clone(), &order.namespace);
    let secret: Option<PartialObjectMeta<Secret>> = api.get_metadata_opt(&name).await?;
    let needed_by = SecretUse {
        fields: vec!["spec.rabbitmq.managed".to_owned()],
        mounted: true,
    };
    Ok(secret
        .is_none()
        .then_some(MissingSecret { name, needed_by }))
}

/// What data is opened with stays as long as the data.
fn owners(
    order: &Order,
    store: ManagedStore,
) -> Option<Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference>> {
    match order.spec.managed_deletion(store) {
        DeletionPolicy::Retain => None,
        DeletionPolicy::Delete => Some(vec![order.owner.clone()]),
    }
}

fn new_secret(order: &Order, store: ManagedStore, maker: Maker) -> Secret {
    let password: String = rand::rng()
        .sample_iter(Alphanumeric)
        .take(PASSWORD_LENGTH)
        .map(char::from)
        .collect();
    let mut secret = build::own_secret(order, store.secret_name(&order.name), store.name());
    secret.metadata.owner_references = owners(order, store);
    let annotations = secret.annotations_mut();
    annotations.insert(MADE_BY.to_owned(), maker.name().to_owned());
    let (user, more) = match (store, maker) {
        (ManagedStore::Scylla, Maker::StatefulSet) => (USER, None),
        (ManagedStore::Scylla, Maker::Operator) => {
            (USER, Some((SALTED_PASSWORD, salted(&password))))
        }
        (ManagedStore::Redis, _) => {
            let line = format!("requirepass {password}\n");
            ("default", Some((REDIS_LOGIN, line)))
        }
        (ManagedStore::Rabbitmq, _) => {
            let lines = format!("default_user = carillon\ndefault_pass = {password}\n");
            ("carillon", Some((RABBITMQ_LOGIN, lines)))
        }
    };
    let more = more.map(|(key, text)| (key.to_owned(), text));
    let login = [
        (USERNAME.to_owned(), user.to_owned()),
        (PASSWORD.to_owned(), password),
    ];
    write(&mut secret, login.into_iter().chain(more));
    secret
}

/// A password as crypt(3) keeps it with SHA-512, which is how ScyllaDB takes that of its first user.
fn salted(password: &str) -> String {
    let mut salt = [0; 12];
    rand::rng().fill(&mut salt);
    ShaCrypt::SHA512
        .hash_password_with_salt(password.as_bytes(), &salt)
        .expect("a salt of twelve bytes is neither too short nor too long")
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::tests::order_of;
    use serde_json::json;
    use sha_crypt::PasswordVerifier;

    const MANAGED: &str = "media: {replicas: 1, store: {directory: {ephemeral: true}}}\n";

    fn live(order: &Order) -> Live {
        let children = build::children(order, &crate::build::tests::keys());
        Live {
            stateful_sets: children.stateful_sets,
            scylla_cluster: children.scylla_cluster,
            rabbitmq_cluster: children.rabbitmq_cluster,
            ..Live::default()
        }
    }

    fn fields(order: &Order, live: &Live) -> Vec<String> {
        let problems = problems(order, live).into_iter();
        problems.map(|problem| problem.field).collect()
    }

    #[test]
    fn volumes_stay_as_they_were_made() {
        for maker in [Maker::StatefulSet, Maker::Operator] {
            let with = |spec: &str| {
                let mut order = order_of(&format!("{MANAGED}{spec}"));
                order.managed.scylla = maker;
                order.managed.rabbitmq = maker;
                order
            };
            let there = live(&with(""));
            assert_eq!(fields(&with(""), &there), [""; 0]);
            let same = "scylla: {managed: {storage: {size: 10240Mi}}}";
            assert_eq!(fields(&with(same), &there), [""; 0]);
            let other = "scylla: {managed: {storage: {size: 20Gi}}}\nrabbitmq: {managed: {storage: {storageClassName: fast}}}\n";
            assert_eq!(
                fields(&with(other), &there),
                [
                    "spec.scylla.managed.storage.size",
                    "spec.rabbitmq.managed.storage.storageClassName"
                ]
            );
        }
    }

    /// A field that was left out of a ChatCluster that runs, by mistake or since an earlier release, is no order for an empty store.
    #[test]
    fn who_runs_is_not_moved_to_an_empty_store() {
        let with = |spec: &str| {
            let mut order = order_of(&format!("{MANAGED}{spec}"));
            order.managed.unmade = ManagedStore::ALL.to_vec();
            order
        };
        assert_eq!(
            fields(&with(""), &Live::default()),
            ["spec.scylla", "spec.redis", "spec.rabbitmq"]
        );
        let asked = "scylla: {managed: {}}\nredis: {managed: {}}\nrabbitmq: {managed: {}}\n";
        assert_eq!(
            fields(&with(asked), &Live::default()),
            ["spec.scylla.managed"]
        );
    }

    #[test]
    fn who_has_no_deployment_and_no_release_has_never_run() {
        let mut cluster = ChatCluster::new("town", Default::default());
        let mut there = Live::default();
        assert!(!has_run(&cluster, &there), "a first creation goes on");
        let order = order_of(MANAGED);
        there.deployments = build::children(&order, &crate::build::tests::keys()).deployments;
        assert!(has_run(&cluster, &there));
        there.deployments.clear();
        let status = json!({ "release": { "version": "0.1.0", "image": "i" } });
        cluster.status = serde_json::from_value(status).unwrap();
        assert!(has_run(&cluster, &there), "somebody deleted them");
    }

    #[test]
    fn more_than_one_node_needs_the_stores_own_operator() {
        let spec = "scylla: {managed: {members: 3}}\nrabbitmq: {managed: {replicas: 3}}\n";
        let mut order = order_of(&format!("{MANAGED}{spec}"));
        assert_eq!(
            fields(&order, &Live::default()),
            [
                "spec.scylla.managed.members",
                "spec.rabbitmq.managed.replicas"
            ]
        );
        order.managed.scylla = Maker::Operator;
        order.managed.rabbitmq = Maker::Operator;
        assert!(problems(&order, &Live::default()).is_empty());
    }

    #[test]
    fn a_store_is_waited_for_until_it_says_that_it_is_up() {
        let mut order = order_of(MANAGED);
        let mut there = live(&order);
        let names = |order: &Order, live: &Live| -> Vec<&str> {
            waiting(order, live)
                .into_iter()
                .map(|(name, _)| name)
                .collect()
        };
        assert_eq!(names(&order, &there), ["scylla", "redis", "rabbitmq"]);
        for set in &mut there.stateful_sets {
            set.status =
                serde_json::from_value(json!({ "replicas": 1, "readyReplicas": 1 })).unwrap();
        }
        assert!(waiting(&order, &there).is_empty());
        order.managed.scylla = Maker::Operator;
        order.managed.rabbitmq = Maker::Operator;
        let mut there = Live {
            stateful_sets: there.stateful_sets,
            ..live(&order)
        };
        assert_eq!(names(&order, &there), ["scylla", "rabbitmq"]);
        let is = |type_: &str| json!({ "conditions": [{ "type": type_, "status": "True" }] });
        there.scylla_cluster.as_mut().unwrap().status = is("Available");
        there.rabbitmq_cluster.as_mut().unwrap().status = is("AllReplicasReady");
        assert!(waiting(&order, &there).is_empty());
    }

    /// A Secret opens what it says, and says who made that.
    #[test]
    fn secrets_have_what_the_stores_read() {
        let order = order_of(MANAGED);
        let secret = new_secret(&order, ManagedStore::Scylla, Maker::Operator);
        let password = text(&secret, PASSWORD).unwrap();
        assert_eq!(password.len(), PASSWORD_LENGTH);
        let salted = text(&secret, SALTED_PASSWORD).unwrap();
        assert!(salted.starts_with("$6$"), "{salted}");
        let verified = ShaCrypt::SHA512.verify_password(password.as_bytes(), salted.as_str());
        assert!(verified.is_ok());
        assert!(secret.metadata.owner_references.is_none(), "it stays");
        let meta: PartialObjectMeta<Secret> = serde_json::from_value(json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": secret.metadata,
        }))
        .unwrap();
        assert_eq!(remembered(&meta), Some(Maker::Operator));
        let secret = new_secret(&order, ManagedStore::Redis, Maker::StatefulSet);
        let password = text(&secret, PASSWORD).unwrap();
        assert_eq!(
            text(&secret, REDIS_LOGIN).unwrap(),
            format!("requirepass {password}\n")
        );
    }
}
