//! A `ChatCluster` from a YAML file, for `carillon up -f`.

use kube_core::Resource;
use serde_json::Value;

use crate::ChatCluster;

/// Why a file is not a `ChatCluster`.
#[derive(Debug, thiserror::Error)]
pub enum ChatClusterFileError {
    /// It isn't YAML, or a field is unknown or of the wrong type; the text names the field and the line.
    #[error("{0}")]
    Malformed(String),
    /// It is YAML of something else.
    #[error("{field}: found {found}, expected {expected}")]
    NotAChatCluster {
        /// `apiVersion` or `kind`.
        field: &'static str,
        /// What the file says.
        found: String,
        /// What it should say.
        expected: String,
    },
}

/// Reads one `ChatCluster`. Unknown fields, wrong types and other kinds are refused by name; whether the values make
/// sense together is [`crate::platform_config`]'s to say.
pub fn parse_chat_cluster(yaml: &str) -> Result<ChatCluster, ChatClusterFileError> {
    let malformed = |error: serde_saphyr::Error| ChatClusterFileError::Malformed(error.to_string());
    let document: Value = serde_saphyr::from_str(yaml).map_err(malformed)?;
    let Some(top) = document.as_object() else {
        return Err(ChatClusterFileError::Malformed(
            "expected a ChatCluster, found no mapping".to_owned(),
        ));
    };
    expect_text(
        top.get("apiVersion"),
        "apiVersion",
        &ChatCluster::api_version(&()),
    )?;
    expect_text(top.get("kind"), "kind", &ChatCluster::kind(&()))?;
    for key in top.keys() {
        if !["apiVersion", "kind", "metadata", "spec", "status"].contains(&key.as_str()) {
            return Err(ChatClusterFileError::Malformed(format!(
                "unknown field `{key}`, expected one of `apiVersion`, `kind`, `metadata`, `spec`"
            )));
        }
    }
    let cluster: ChatCluster = serde_saphyr::from_str(yaml).map_err(malformed)?;
    if cluster
        .metadata
        .name
        .as_deref()
        .unwrap_or_default()
        .is_empty()
    {
        return Err(ChatClusterFileError::Malformed(
            "metadata.name: missing".to_owned(),
        ));
    }
    Ok(cluster)
}

fn expect_text(
    found: Option<&Value>,
    field: &'static str,
    expected: &str,
) -> Result<(), ChatClusterFileError> {
    let found = match found {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => "nothing".to_owned(),
    };
    if found == expected {
        return Ok(());
    }
    Err(ChatClusterFileError::NotAChatCluster {
        field,
        found,
        expected: expected.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "apiVersion: carillon.chat/v1alpha1\nkind: ChatCluster\nmetadata: {name: town}\n";

    #[test]
    fn an_empty_spec_is_a_cluster() {
        let cluster = parse_chat_cluster(&format!("{HEAD}spec: {{}}\n")).unwrap();
        assert_eq!(cluster.metadata.name.as_deref(), Some("town"));
        assert_eq!(cluster.spec, crate::ChatClusterSpec::default());
    }

    #[test]
    fn the_design_example_is_read_whole() {
        let cluster =
            parse_chat_cluster(&format!("{HEAD}{}", crate::mapping::tests::DESIGN_SPEC)).unwrap();
        assert_eq!(cluster.spec.version.as_deref(), Some("0.1.0"));
        assert_eq!(
            cluster
                .spec
                .referenced_secrets()
                .keys()
                .map(String::as_str)
                .collect::<Vec<_>>(),
            [
                "apns", "fcm", "rabbit", "s3", "scylla", "town-tls", "twilio", "vapid"
            ]
        );
    }

    /// A certificate may be issued because of the Ingress that names it: nothing may wait for it.
    #[test]
    fn pods_mount_every_secret_but_the_certificate() {
        let cluster =
            parse_chat_cluster(&format!("{HEAD}{}", crate::mapping::tests::DESIGN_SPEC)).unwrap();
        for (name, secret) in cluster.spec.referenced_secrets() {
            assert_eq!(secret.mounted, name != "town-tls", "{name}");
            assert_eq!(secret.fields.len(), 1, "{name}");
        }
    }

    #[test]
    fn unknown_fields_are_refused_by_name_at_every_depth() {
        for (text, name) in [
            ("spec: {gatway: {replicas: 2}}", "gatway"),
            ("spec: {gateway: {replica: 2}}", "replica"),
            ("spec: {media: {store: {s4: {}}}}", "s4"),
            ("spec: {scylla: {manged: {}}}", "manged"),
            ("spec: {}\nspecs: {}", "specs"),
        ] {
            let error = parse_chat_cluster(&format!("{HEAD}{text}\n"))
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("unknown field") && error.contains(name),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn the_examples_are_read_and_make_sense() {
        for (file, target) in [
            (
                "chatcluster.yaml",
                crate::Target::Embedded {
                    data_dir: "/data".into(),
                },
            ),
            (
                "kubernetes.yaml",
                crate::Target::Embedded {
                    data_dir: "/data".into(),
                },
            ),
            (
                "kubernetes.yaml",
                crate::Target::Kubernetes {
                    namespace: "chat".to_owned(),
                },
            ),
        ] {
            let path = format!("{}/../examples/{file}", env!("CARGO_MANIFEST_DIR"));
            let cluster = parse_chat_cluster(&std::fs::read_to_string(&path).unwrap()).unwrap();
            assert_eq!(
                crate::validate_spec("town", &cluster.spec, &target),
                [],
                "{file} for {target:?}"
            );
        }
    }

    #[test]
    fn wrong_types_and_other_kinds_are_refused() {
        for (text, part) in [
            (format!("{HEAD}spec: {{gateway: {{replicas: two}}}}"), "two"),
            (format!("{HEAD}spec: 3"), "spec"),
            (HEAD.to_owned(), "spec"),
            (
                "apiVersion: v1\nkind: ChatCluster\nmetadata: {name: a}\nspec: {}".to_owned(),
                "apiVersion",
            ),
            (
                "apiVersion: carillon.chat/v1alpha1\nkind: Pod\nmetadata: {name: a}\nspec: {}"
                    .to_owned(),
                "kind",
            ),
            (
                "apiVersion: carillon.chat/v1alpha1\nkind: ChatCluster\nmetadata: {}\nspec: {}"
                    .to_owned(),
                "metadata.name",
            ),
            ("a: [".to_owned(), ""),
            ("just text".to_owned(), "mapping"),
            (String::new(), "mapping"),
        ] {
            let error = parse_chat_cluster(&text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
