//! Is a `ChatCluster` an order that can be carried out? Pure.

use carillon_crds::config::PlatformConfig;
use carillon_crds::{
    ChatCluster, ChatClusterSpec, FieldProblem, PullPolicy, Target, platform_config,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource;

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

/// The order of `cluster`, or every problem with it.
pub fn order(cluster: &ChatCluster, default_image: &str) -> Result<Order, Vec<FieldProblem>> {
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
    let config = platform_config(&name, &cluster.spec, target)?;
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
    if spec.auth.as_ref().is_some_and(|auth| auth.otp.is_some()) {
        problems.push(FieldProblem::new(
            "spec.auth.otp.twilio",
            "this release has no Twilio provider",
            "leave it out; phone login is then refused",
        ));
    }
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
        assert_eq!(fields, ["spec.auth.otp.twilio", "spec.notification.apns"]);
        assert!(unsupported(&ChatClusterSpec::default()).is_empty());
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
