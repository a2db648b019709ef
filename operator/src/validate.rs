//! Is a `ChatCluster` an order that can be carried out? Pure.

use carillon_crds::config::PlatformConfig;
use carillon_crds::{
    ChatCluster, ChatClusterSpec, FieldProblem, PLATFORM_VERSION, PullPolicy, Release, Target,
    may_follow, platform_config,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource;

use crate::build::ManagedStores;

/// An order that can be carried out.
#[derive(Clone, Debug)]
pub struct Order {
    /// Name of the ChatCluster.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The reference that every child carries, so that it goes when the ChatCluster goes.
    pub owner: OwnerReference,
    /// The spec.
    pub spec: ChatClusterSpec,
    /// What every role reads.
    pub config: PlatformConfig,
    /// What every role runs.
    pub image: Image,
    /// What is known of the managed stores; [`crate::managed`] finds it out.
    pub managed: ManagedStores,
}

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Repository and tag.
    pub reference: String,
    /// When the kubelet pulls it.
    pub pull_policy: &'static str,
    /// Secrets with registry credentials.
    pub pull_secrets: Vec<String>,
}

impl Order {
    /// The version and image that are ordered.
    pub fn release(&self) -> Release {
        Release {
            version: self.config.version.clone(),
            image: self.image.reference.clone(),
        }
    }
}

/// The order of `cluster`, or every problem with it.
pub fn order(cluster: &ChatCluster, default_image: &str) -> Result<Order, Vec<FieldProblem>> {
    let runs = runs(cluster);
    let version = version(cluster, PLATFORM_VERSION);
    if let Some(runs) = runs {
        may_follow(&runs.version, &version).map_err(|problem| vec![problem])?;
    }
    order_of_version(cluster, default_image, &version)
}

/// The same order, but of `release` instead of what the spec says: what an upgrade comes from.
pub fn order_of_release(
    cluster: &ChatCluster,
    default_image: &str,
    release: &Release,
) -> Result<Order, Vec<FieldProblem>> {
    let mut order = order_of_version(cluster, default_image, &release.version)?;
    order.image.reference = release.image.clone();
    Ok(order)
}

/// What was last whole and available.
fn runs(cluster: &ChatCluster) -> Option<&Release> {
    cluster.status.as_ref()?.release.as_ref()
}

/// The version that is ordered: what the spec says, else what is there already. Only a new cluster takes the operator's own,
/// `newest`: another operator restarts no pod.
fn version(cluster: &ChatCluster, newest: &str) -> String {
    let status = cluster.status.as_ref();
    let ordered_before = || status.and_then(|status| status.version.clone());
    cluster
        .spec
        .version
        .clone()
        .or_else(|| runs(cluster).map(|release| release.version.clone()))
        .or_else(ordered_before)
        .unwrap_or_else(|| newest.to_owned())
}

fn order_of_version(
    cluster: &ChatCluster,
    default_image: &str,
    version: &str,
) -> Result<Order, Vec<FieldProblem>> {
    let missing = |field: &str| {
        vec![FieldProblem::new(
            field,
            "is absent",
            "what the API server sets",
        )]
    };
    let name = cluster
        .metadata
        .name
        .clone()
        .ok_or_else(|| missing("metadata.name"))?;
    let namespace = cluster
        .metadata
        .namespace
        .clone()
        .ok_or_else(|| missing("metadata.namespace"))?;
    let owner = cluster
        .controller_owner_ref(&())
        .ok_or_else(|| missing("metadata.uid"))?;
    let target = Target::Kubernetes {
        namespace: namespace.clone(),
    };
    let spec = ChatClusterSpec {
        version: Some(version.to_owned()),
        ..cluster.spec.clone()
    };
    let config = platform_config(&name, &spec, target)?;
    let unsupported = unsupported(&cluster.spec);
    if !unsupported.is_empty() {
        return Err(unsupported);
    }
    Ok(order_of(
        cluster,
        name,
        namespace,
        owner,
        config,
        default_image,
    ))
}

/// What the API has a place for and the roles of this release refuse at start: said here, not by a pod that crashes.
fn unsupported(spec: &ChatClusterSpec) -> Vec<FieldProblem> {
    let mut problems = Vec::new();
    if spec
        .notification
        .as_ref()
        .is_some_and(|notification| notification.apns.is_some())
    {
        problems.push(FieldProblem::new(
            "spec.notification.apns",
            "this release can't push through APNs",
            "leave it out; webPush and fcm work",
        ));
    }
    problems
}

fn order_of(
    cluster: &ChatCluster,
    name: String,
    namespace: String,
    owner: OwnerReference,
    config: PlatformConfig,
    default_image: &str,
) -> Order {
    let image = image(&cluster.spec, default_image, &config.version);
    Order {
        name,
        namespace,
        owner,
        spec: cluster.spec.clone(),
        config,
        image,
        managed: ManagedStores::default(),
    }
}

fn image(spec: &ChatClusterSpec, default_image: &str, version: &str) -> Image {
    let ordered = spec.image.clone().unwrap_or_default();
    // A colon before the last slash belongs to a registry's port.
    let (default_repository, default_tag) = match default_image.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (default_image, None),
    };
    let repository = ordered.repository.as_deref().unwrap_or(default_repository);
    let tag = ordered.tag.as_deref().or(default_tag).unwrap_or(version);
    Image {
        reference: format!("{repository}:{tag}"),
        pull_policy: match ordered.pull_policy {
            Some(PullPolicy::Always) => "Always",
            Some(PullPolicy::Never) => "Never",
            Some(PullPolicy::IfNotPresent) | None => "IfNotPresent",
        },
        pull_secrets: ordered.pull_secrets.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::tests::SMALL;
    use carillon_crds::ImageSpec;

    #[test]
    fn what_this_release_cannot_do_is_said_by_field() {
        let spec: ChatClusterSpec = serde_saphyr::from_str(
            "{auth: {otp: {twilio: {secretName: t}}}, notification: {apns: {secretName: a}}}",
        )
        .unwrap();
        let fields: Vec<String> = unsupported(&spec)
            .into_iter()
            .map(|problem| problem.field)
            .collect();
        assert_eq!(fields, ["spec.notification.apns"]);
        assert!(unsupported(&ChatClusterSpec::default()).is_empty());
    }

    fn cluster(spec: &str, status: &str) -> ChatCluster {
        let mut cluster = ChatCluster::new("town", serde_saphyr::from_str(spec).unwrap());
        cluster.metadata.namespace = Some("chat".to_owned());
        cluster.metadata.uid = Some("1".to_owned());
        cluster.status = serde_saphyr::from_str(status).unwrap();
        cluster
    }

    /// What every pod is made of hangs on the order and on what ran, never on which operator builds it.
    #[test]
    fn another_operator_restarts_no_pod() {
        let runs = "{version: 0.1.3, release: {version: 0.1.3, image: 'r/carillon:0.1.3'}}";
        for spec in [SMALL.to_owned(), format!("{SMALL}version: 0.1.3\n")] {
            let cluster = cluster(&spec, runs);
            for newest in ["0.1.0", "0.1.9"] {
                assert_eq!(version(&cluster, newest), "0.1.3");
            }
            let order = order(&cluster, "r/carillon").unwrap();
            assert_eq!(order.release(), cluster.status.unwrap().release.unwrap());
        }
        // Only who has nothing yet takes what the operator was built for.
        assert_eq!(version(&cluster(SMALL, "{}"), "0.1.9"), "0.1.9");
        assert_eq!(
            version(&cluster(SMALL, "{version: 0.1.0}"), "0.1.9"),
            "0.1.0"
        );
    }

    /// Nor does its own version get into a pod by another way: those of another version differ in that version alone.
    #[test]
    fn pods_of_two_versions_differ_in_the_version_only() {
        let templates = |version: &str| {
            let spec = format!("{SMALL}version: {version}\n");
            let order = order(&cluster(&spec, "{}"), "r/carillon").unwrap();
            let children = crate::build::children(&order, &crate::build::tests::keys());
            let text = crate::build::tests::yaml_of(&children.deployments);
            let hash = crate::build::short_hash(&order.config.to_yaml());
            text.replace(&hash, "HASH").replace(version, "VERSION")
        };
        assert_eq!(templates("0.1.7"), templates("0.1.8"));
        assert!(!templates("0.1.7").contains(PLATFORM_VERSION));
    }

    #[test]
    fn what_runs_decides_what_may_be_ordered() {
        let runs = "{release: {version: 0.0.9, image: i}}";
        let problems = order(&cluster(SMALL, runs), "r/carillon").unwrap_err();
        assert_eq!(problems[0].field, "spec.version");
    }

    #[test]
    fn what_is_gone_back_to_is_the_image_that_ran() {
        let cluster = cluster(
            &format!("{SMALL}image: {{tag: broken}}\nversion: 0.1.1\n"),
            "{}",
        );
        let release = Release {
            version: "0.1.0".to_owned(),
            image: "elsewhere/carillon:x".to_owned(),
        };
        let order = order_of_release(&cluster, "r/carillon", &release).unwrap();
        assert_eq!(order.release(), release);
    }

    #[test]
    fn the_image_is_what_the_operator_was_given_unless_the_spec_says_otherwise() {
        let with = |repository: Option<&str>, tag: Option<&str>, default: &str| {
            let spec = ChatClusterSpec {
                image: Some(ImageSpec {
                    repository: repository.map(str::to_owned),
                    tag: tag.map(str::to_owned),
                    ..ImageSpec::default()
                }),
                ..ChatClusterSpec::default()
            };
            image(&spec, default, "0.1.0").reference
        };
        assert_eq!(
            with(None, None, "registry:5000/carillon:abc"),
            "registry:5000/carillon:abc"
        );
        assert_eq!(
            with(None, None, "registry:5000/carillon"),
            "registry:5000/carillon:0.1.0"
        );
        assert_eq!(
            with(Some("mine/carillon"), None, "registry/carillon:abc"),
            "mine/carillon:abc"
        );
        assert_eq!(
            with(None, Some("t"), "registry/carillon:abc"),
            "registry/carillon:t"
        );
    }
}
