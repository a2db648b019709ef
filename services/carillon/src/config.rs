//! Reading the configuration and the files that it names. Each error says which file and what is expected of it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use carillon_crds::{
    Target,
    config::{PlatformConfig, RabbitmqConfig, RedisConfig},
};

use crate::failure::Failure;

/// The configuration of a cluster's roles.
pub fn load(path: &Path) -> Result<PlatformConfig, Failure> {
    let text = read(path, "the configuration")?;
    PlatformConfig::from_yaml(&text)
        .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
}

/// The configuration that a ChatCluster means on one machine, and the cluster's name.
pub fn from_chat_cluster(
    path: &Path,
    data_dir: Option<PathBuf>,
) -> Result<(PlatformConfig, PathBuf), Failure> {
    let text = read(path, "a ChatCluster")?;
    let cluster = carillon_crds::parse_chat_cluster(&text).map_err(|error| {
        Failure::usage(format!(
            "{} is no valid ChatCluster: {error}",
            path.display()
        ))
    })?;
    let name = cluster.metadata.name.clone().unwrap_or_default();
    let data_dir = data_dir.unwrap_or_else(|| Path::new(".carillon").join(&name));
    let target = Target::Embedded {
        data_dir: data_dir.clone(),
    };
    let config =
        carillon_crds::platform_config(&name, &cluster.spec, target).map_err(|problems| {
            Failure::usage(format!(
                "{} is no valid ChatCluster:\n{}",
                path.display(),
                carillon_crds::describe_problems(&problems)
            ))
        })?;
    Ok((config, data_dir))
}

/// A file that must be there.
pub fn read(path: &Path, what: &str) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| {
        Failure::usage(format!(
            "can't read {what} from {}: {error}",
            path.display()
        ))
    })
}

/// One key of a mounted Secret.
pub fn secret(directory: &Path, key: &str) -> Result<String, Failure> {
    read(&directory.join(key), "a credential").map(|text| text.trim().to_owned())
}

/// One key of a mounted Secret that may be missing.
pub fn optional_secret(directory: &Path, key: &str) -> Option<String> {
    fs::read_to_string(directory.join(key))
        .ok()
        .map(|text| text.trim().to_owned())
}

/// The URL of Redis, with the password of the Secret in it if there is one.
pub fn redis_url(config: &RedisConfig) -> Result<String, Failure> {
    with_credentials(&config.url, config.credentials_dir.as_deref())
}

/// The URL of RabbitMQ: `spec.rabbitmq.external.url`, or key `url` of the Secret.
pub fn rabbitmq_url(config: &RabbitmqConfig) -> Result<String, Failure> {
    match (&config.url, &config.credentials_dir) {
        (Some(url), directory) => with_credentials(url, directory.as_deref()),
        (None, Some(directory)) => secret(directory, "url"),
        (None, None) => Err(Failure::usage(
            "stores.rabbitmq needs a url, or a Secret with the key url",
        )),
    }
}

fn with_credentials(url: &str, directory: Option<&Path>) -> Result<String, Failure> {
    let Some(directory) = directory else {
        return Ok(url.to_owned());
    };
    if let Some(url) = optional_secret(directory, "url") {
        return Ok(url);
    }
    let password = secret(directory, "password")?;
    let user = optional_secret(directory, "username").unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(Failure::usage(format!("{url:?} is no URL")));
    };
    Ok(format!(
        "{scheme}://{}:{}@{rest}",
        percent(&user),
        percent(&password)
    ))
}

/// Percent-encodes what may not stand in the user part of a URL (RFC 3986).
fn percent(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_of_a_secret_is_put_into_the_url() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("password"), "p@ss/word\n").unwrap();
        let config = RedisConfig {
            url: "redis://redis:6379".into(),
            credentials_dir: Some(directory.path().into()),
        };
        assert_eq!(
            redis_url(&config).unwrap(),
            "redis://:p%40ss%2Fword@redis:6379"
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load(Path::new("/nowhere/config.yaml")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/config.yaml"));
        assert_eq!(error.status, crate::failure::USAGE);
    }
}
