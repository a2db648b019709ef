//! Reading the configuration and the files that it names. Each error says which file and what is expected of it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use carillon_adapters::{Login, UserPassword};
use carillon_crds::{
    Target,
    config::{PlatformConfig, RabbitmqConfig, RedisConfig},
};

use carillon_domain::{Error, ErrorCode};

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

/// The token by which roles know each other where there is no TLS between them.
pub fn internal_token(config: &PlatformConfig) -> Result<String, Failure> {
    let Some(file) = &config.keys.internal_token_file else {
        return Err(Failure::usage(
            "the configuration needs tls, or keys.internalTokenFile",
        ));
    };
    read(file, "the internal token").map(|text| text.trim().to_owned())
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

/// Where Redis is, and who asks: `spec.redis.external.url`, or key `url` of the Secret.
pub fn redis(config: &RedisConfig) -> Result<(String, Option<Login>), Failure> {
    let Some(directory) = &config.credentials_dir else {
        return Ok((config.url.clone(), None));
    };
    let url = optional_secret(directory, "url").unwrap_or_else(|| config.url.clone());
    Ok((url, Some(login(directory, false)?)))
}

/// Where RabbitMQ is, and who asks: `spec.rabbitmq.external.url`, or key `url` of the Secret.
pub fn rabbitmq(config: &RabbitmqConfig) -> Result<(String, Option<Login>), Failure> {
    match (&config.url, &config.credentials_dir) {
        (Some(url), None) => Ok((url.clone(), None)),
        (url, Some(directory)) => {
            let url = match (optional_secret(directory, "url"), url) {
                (Some(url), _) => url,
                (None, Some(url)) => url.clone(),
                (None, None) => secret(directory, "url")?,
            };
            Ok((url, Some(login(directory, false)?)))
        }
        (None, None) => Err(Failure::usage(
            "stores.rabbitmq needs a url, or a Secret with the key url",
        )),
    }
}

/// User and password of a mounted Secret, read anew whenever they are asked for: from the files `username` and `password`, or from the file
/// `url`. They are read once at once, so that a missing one is told at start.
pub fn login(directory: &Path, needs_user: bool) -> Result<Login, Failure> {
    read_login(directory, needs_user)?;
    let directory = directory.to_owned();
    Ok(Login::new(move || {
        read_login(&directory, needs_user).map_err(|failure| {
            Error::new(ErrorCode::Unavailable, "a credential can't be read").caused_by(failure)
        })
    }))
}

fn read_login(directory: &Path, needs_user: bool) -> Result<UserPassword, Failure> {
    if let Some(url) = optional_secret(directory, "url") {
        let no_url =
            |_| Failure::usage(format!("{} holds no URL", directory.join("url").display()));
        let url = url::Url::parse(&url).map_err(no_url)?;
        let decoded = |text: &str| {
            percent_encoding::percent_decode_str(text)
                .decode_utf8_lossy()
                .into_owned()
        };
        let user = decoded(url.username());
        return Ok(UserPassword {
            user: (!user.is_empty()).then_some(user),
            password: decoded(url.password().unwrap_or_default()),
        });
    }
    let user = match needs_user {
        true => Some(secret(directory, "username")?),
        false => optional_secret(directory, "username"),
    };
    Ok(UserPassword {
        user: user.filter(|user| !user.is_empty()),
        password: secret(directory, "password")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user_password(user: Option<&str>, password: &str) -> UserPassword {
        UserPassword {
            user: user.map(str::to_owned),
            password: password.to_owned(),
        }
    }

    #[test]
    fn a_password_is_read_from_its_file_or_from_a_url() {
        let directory = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(directory.path().join(file), text).unwrap();
        assert!(read_login(directory.path(), false).is_err());
        write("password", "p@ss/word\n");
        let is = |expected: UserPassword| {
            assert!(read_login(directory.path(), false).unwrap() == expected);
        };
        is(user_password(None, "p@ss/word"));
        let error = read_login(directory.path(), true).err().unwrap();
        assert!(error.to_string().contains("username"), "{error}");
        write("username", "ann");
        is(user_password(Some("ann"), "p@ss/word"));
        write("url", "amqp://bob:p%40ss@rabbitmq:5672/%2f");
        is(user_password(Some("bob"), "p@ss"));
        let config = RabbitmqConfig {
            url: Some("amqp://elsewhere".into()),
            credentials_dir: Some(directory.path().into()),
        };
        let (url, login) = rabbitmq(&config).unwrap();
        assert_eq!(url, "amqp://bob:p%40ss@rabbitmq:5672/%2f");
        assert!(login.is_some());
        write("url", "no url");
        assert!(rabbitmq(&config).is_err());
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load(Path::new("/nowhere/config.yaml")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/config.yaml"));
        assert_eq!(error.status, crate::failure::USAGE);
    }
}
