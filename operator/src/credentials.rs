//! Reads and writes the three Secrets of a cluster's own: `NAME-jwt` with the keys that sign tokens, `NAME-ca` with the authority, which no
//! pod is given, and `NAME-certificates` with the certificates of the roles.
//!
//! Each is read by name, made when it isn't there, and replaced only as it was read (by `resourceVersion`): of two operators that are at it,
//! one fails and looks again. What is to be done is decided by [`keys`] and [`certificates`].
//!
//! A rotation is asked for by an annotation of the ChatCluster, [`ROTATE_JWT`] and so on, with any value that it hasn't had yet; a Secret
//! remembers the value that it was last rotated for.

use std::collections::BTreeMap;
use std::time::Duration;

use carillon_crds::{ChatCluster, Role};
use futures::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use time::OffsetDateTime;

use crate::build::{
    self, AUTHORITY_CERTIFICATE, AUTHORITY_KEY, Keys, NEXT_SIGNING_KEY, SIGNING_KEY, TRUST,
    certificate_key, private_key_key,
};
use crate::certificates::{self, Certificates, Issued, Wanted};
use crate::context::Context;
use crate::dereference;
use crate::keys::{self, SigningKeys};
use crate::pods::{self, PodsInUse};
use crate::validate::Order;

/// How the annotations begin that ask for a rotation.
pub const ROTATE: &str = "carillon.chat/rotate-";
/// Annotation of a ChatCluster: the key that signs tokens is to be replaced.
pub const ROTATE_JWT: &str = "carillon.chat/rotate-jwt";
/// Annotation of a ChatCluster: the authority is to be replaced, and with it every certificate.
pub const ROTATE_CA: &str = "carillon.chat/rotate-ca";
/// Annotation of a ChatCluster: the certificates of the roles are to be replaced.
pub const ROTATE_CERTIFICATES: &str = "carillon.chat/rotate-certificates";
/// Annotation of a Secret: the value of the ChatCluster's annotation that it was last rotated for.
const ROTATED_FOR: &str = "carillon.chat/rotated-for";
/// Annotation of a Secret: see [`SigningKeys::due`].
const DUE: &str = "carillon.chat/rotation-due";

/// Annotation of a Secret: the longest life of a refresh token, in seconds, since the keys before the one that signs were forgotten.
const LONGEST_TTL: &str = "carillon.chat/longest-refresh-token-ttl";

/// Pods asked at the same time what they have in use.
const PODS_ASKED_AT_ONCE: usize = 16;

/// Why the cluster's own keys can't be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The API server refused.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// The Secret exists, and is somebody else's, or an earlier ChatCluster's that is being taken away.
    #[error(
        "Secret {0} isn't this ChatCluster's: give it another name, or wait until it has gone with an earlier ChatCluster"
    )]
    NotOurs(String),
    /// The Secret is gone, and what it opens is there.
    #[error(
        "Secret {secret} is gone, and {store} keeps its data under the password in it: make the Secret again with the keys username and password"
    )]
    Lost {
        /// Name of the Secret.
        secret: String,
        /// The store.
        store: &'static str,
    },
    /// The Secret exists, but somebody put something else in it.
    #[error("Secret {secret}: {problem}; delete the Secret to have a new one made{effect}")]
    Unusable {
        /// Name of the Secret.
        secret: String,
        /// What is wrong.
        problem: String,
        /// What that does.
        effect: &'static str,
    },
}

/// The keys of a cluster, and what was done about them.
pub struct Credentials {
    /// What children are built with.
    pub keys: Keys,
    /// Reason and note of an Event for each step of a rotation.
    pub steps: Vec<(&'static str, String)>,
    /// Whether a rotation waits for pods: they are worth a look soon.
    pub is_waiting: bool,
}

/// The keys and certificates of the cluster: made when they aren't there, and taken a step further when a rotation is under way, asked for
/// or due.
pub async fn credentials(
    context: &Context,
    cluster: &ChatCluster,
    order: &Order,
) -> Result<Credentials, KeyError> {
    let now = OffsetDateTime::now_utc();
    let store = Store::new(context, cluster, &order.namespace);
    let mut steps = Vec::new();
    let asked = |annotation: &str| cluster.annotations().get(annotation).map(String::as_str);

    // What there is.
    let jwt = store
        .ensure(build::jwt_secret_name(&order.name), || {
            let mut secret = build::own_secret(order, build::jwt_secret_name(&order.name), "auth");
            let made = SigningKeys {
                signing: keys::new_signing_key_pem(),
                ..SigningKeys::default()
            };
            write_signing_keys(&mut secret, &made);
            remember(&mut secret, asked(ROTATE_JWT));
            remember_ttl(&mut secret, order.config.auth.refresh_ttl_seconds);
            secret
        })
        .await?;
    let authority_secret = store
        .ensure(build::authority_secret_name(&order.name), || {
            let mut secret =
                build::own_secret(order, build::authority_secret_name(&order.name), "platform");
            let made = certificates::new_authority(&order.namespace, &order.name, now);
            write_authority(&mut secret, &made);
            remember(&mut secret, asked(ROTATE_CA));
            secret
        })
        .await?;
    let tls = store.get(&build::tls_secret_name(&order.name)).await?;
    let mut signing = read_signing_keys(&jwt);
    let mut authority = read_authority(&authority_secret);
    let mut held = tls.as_ref().map(read_certificates).unwrap_or_default();

    // Who must follow before it goes on. Without pods everything may be done at once.
    let is_waiting = signing.waits_for_pods() || !certificates::is_settled(&authority, &held);
    let pods = if is_waiting {
        ask(context, cluster, order).await?
    } else {
        PodsInUse::default()
    };

    // Tokens that are out there may have been made when they lived longer.
    let refresh_ttl = Duration::from_secs(longest_ttl(&jwt, order));
    let rotate = is_asked(&jwt, asked(ROTATE_JWT));
    let unusable_jwt = |_| KeyError::Unusable {
        secret: jwt.name_any(),
        problem: "holds no Ed25519 private key in PKCS#8 PEM".to_owned(),
        effect: " (it ends every session)",
    };
    let next = signing
        .advance(rotate, &pods, refresh_ttl, now)
        .map_err(unusable_jwt)?;
    if let Some((next, step)) = next {
        let mut secret = jwt.clone();
        write_signing_keys(&mut secret, &next);
        // A wish that comes while one is being granted waits.
        if step == keys::Step::Published {
            remember(&mut secret, asked(ROTATE_JWT));
        }
        let longest = match step {
            // No token is left that was made when they lived longer.
            keys::Step::Forgotten => order.config.auth.refresh_ttl_seconds,
            _ => longest_ttl(&jwt, order),
        };
        remember_ttl(&mut secret, longest);
        store.replace(&secret).await?;
        steps.push(tell_key(step));
        signing = next;
    } else if remembered_ttl(&jwt) < Some(order.config.auth.refresh_ttl_seconds) {
        let mut secret = jwt.clone();
        remember_ttl(&mut secret, order.config.auth.refresh_ttl_seconds);
        store.replace(&secret).await?;
    }
    let jwks = signing.jwks().map_err(unusable_jwt)?;

    let is_old = certificates::is_ageing(&authority, now);
    if certificates::is_settled(&authority, &held)
        && (is_old || is_asked(&authority_secret, asked(ROTATE_CA)))
    {
        authority = certificates::new_authority(&order.namespace, &order.name, now);
        let mut secret = authority_secret.clone();
        write_authority(&mut secret, &authority);
        remember(&mut secret, asked(ROTATE_CA));
        store.replace(&secret).await?;
        steps.push(("AuthorityMade", "a new authority was made".to_owned()));
    }
    let wanted = Wanted {
        names: build::certificate_names(order),
        renewed: tls
            .as_ref()
            .is_some_and(|tls| is_asked(tls, asked(ROTATE_CERTIFICATES))),
    };
    let next = certificates::advance(&authority, &held, &wanted, &pods, now).map_err(|error| {
        KeyError::Unusable {
            secret: authority_secret.name_any(),
            problem: error.to_string(),
            effect: ", and all certificates with it",
        }
    })?;
    if let Some((next, step)) = next {
        let made = tls.is_none();
        let mut secret = tls.unwrap_or_else(|| {
            build::own_secret(order, build::tls_secret_name(&order.name), "platform")
        });
        write_certificates(&mut secret, &next);
        // A new authority doesn't yet answer a wish for new certificates.
        if step != certificates::Step::Spread {
            remember(&mut secret, asked(ROTATE_CERTIFICATES));
        }
        match made {
            true => drop(store.create(&secret).await?),
            false => store.replace(&secret).await?,
        }
        steps.extend(tell_certificates(step));
        held = next;
    }
    let is_waiting = signing.waits_for_pods() || !certificates::is_settled(&authority, &held);
    if is_waiting {
        tell_waiting(order, &signing, &held, &pods);
    }
    Ok(Credentials {
        keys: Keys {
            jwks,
            trust: held.trust,
        },
        steps,
        is_waiting,
    })
}

/// What every pod says that it has in use.
async fn ask(
    context: &Context,
    cluster: &ChatCluster,
    order: &Order,
) -> Result<PodsInUse, kube::Error> {
    let pods = dereference::pods(&context.client, cluster).await?;
    let talking: Vec<_> = pods.iter().filter_map(pods::talking).collect();
    let answers = futures::stream::iter(talking)
        .map(|(role, name, address)| async move {
            let answer = match address {
                Some(address) => {
                    let port = order.config.admin_port;
                    context.readiness.ask(&name, &address, port).await
                }
                None => None,
            };
            (role, name, answer.map(|answer| answer.in_use))
        })
        .buffered(PODS_ASKED_AT_ONCE)
        .collect()
        .await;
    Ok(PodsInUse::new(answers))
}

fn tell_waiting(order: &Order, signing: &SigningKeys, held: &Certificates, pods: &PodsInUse) {
    use carillon_crds::config::{fingerprint, in_use};
    let trust = fingerprint(&held.trust);
    let jwks = signing.jwks().map(|jwks| fingerprint(&jwks));
    let mut behind: Vec<&str> = pods
        .behind(in_use::TRUST, |_| Some(trust.clone()))
        .chain(pods.behind(in_use::PUBLIC_KEYS, |_| jwks.as_ref().ok().cloned()))
        .collect();
    behind.sort_unstable();
    behind.dedup();
    tracing::info!(
        namespace = order.namespace,
        cluster = order.name,
        behind = behind.join(", "),
        "a rotation is under way"
    );
}

fn tell_key(step: keys::Step) -> (&'static str, String) {
    let (reason, note) = match step {
        keys::Step::Published => (
            "SigningKeyPublished",
            "a new key is published; it signs when every pod knows it",
        ),
        keys::Step::Known => (
            "SigningKeyKnown",
            "every pod knows the new key; it signs when caches of the key set have expired",
        ),
        keys::Step::Signing => ("SigningKeyChanged", "the new key is given to auth"),
        keys::Step::Ending => (
            "SigningKeyInUse",
            "every token is signed by the new key; the one before it goes with its last token",
        ),
        keys::Step::Forgotten => (
            "SigningKeyForgotten",
            "the key before this one is forgotten",
        ),
    };
    (reason, note.to_owned())
}

fn tell_certificates(step: certificates::Step) -> Option<(&'static str, String)> {
    let (reason, note) = match step {
        certificates::Step::Made => return None,
        certificates::Step::Spread => (
            "AuthoritySpread",
            "pods are told to believe the new authority as well",
        ),
        certificates::Step::Issued => (
            "CertificatesIssued",
            "roles have new certificates; pods take them within two minutes",
        ),
        certificates::Step::Forgotten => {
            ("AuthorityForgotten", "only the new authority is believed")
        }
    };
    Some((reason, note.to_owned()))
}

// === Secrets ===

/// The Secrets of one ChatCluster's own.
pub(crate) struct Store<'a> {
    api: Api<Secret>,
    context: &'a Context,
    cluster: &'a ChatCluster,
}

impl<'a> Store<'a> {
    /// Those of `cluster`, in `namespace`.
    pub(crate) fn new(context: &'a Context, cluster: &'a ChatCluster, namespace: &str) -> Self {
        Store {
            api: Api::namespaced(context.client.clone(), namespace),
            context,
            cluster,
        }
    }

    /// The Secret; made when it isn't there.
    async fn ensure(
        &self,
        name: String,
        make: impl FnOnce() -> Secret,
    ) -> Result<Secret, KeyError> {
        if let Some(found) = self.get(&name).await? {
            return Ok(found);
        }
        self.create(&make()).await
    }

    /// The Secret, if it is there; an error if it isn't the ChatCluster's.
    pub(crate) async fn get(&self, name: &str) -> Result<Option<Secret>, KeyError> {
        match self.api.get_opt(name).await? {
            Some(found) if !is_ours(&found, self.cluster) => {
                Err(KeyError::NotOurs(name.to_owned()))
            }
            found => Ok(found),
        }
    }

    /// What was made. Where two operators race, one fails and looks again.
    pub(crate) async fn create(&self, secret: &Secret) -> Result<Secret, KeyError> {
        self.context.metrics.wrote("Secret", "create");
        Ok(self.api.create(&parameters(), secret).await?)
    }

    pub(crate) async fn replace(&self, secret: &Secret) -> Result<(), kube::Error> {
        self.context.metrics.wrote("Secret", "update");
        self.api
            .replace(&secret.name_any(), &parameters(), secret)
            .await
            .map(|_| ())
    }
}

fn parameters() -> PostParams {
    PostParams {
        field_manager: Some(crate::FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    }
}

/// Whether it carries the controller reference of `cluster`, and not of an earlier one of the same name; or nobody's and our labels:
/// somebody took the reference away.
fn is_ours(secret: &Secret, cluster: &ChatCluster) -> bool {
    let mut owners = secret.owner_references().iter();
    if let Some(owner) = owners.find(|owner| owner.controller == Some(true)) {
        return Some(&owner.uid) == cluster.metadata.uid.as_ref();
    }
    let labels = secret.labels();
    labels.get(build::MANAGED_BY_LABEL).map(String::as_str) == Some(build::MANAGED_BY)
        && labels.get(build::INSTANCE_LABEL) == cluster.metadata.name.as_ref()
}

fn is_asked(secret: &Secret, asked: Option<&str>) -> bool {
    asked.is_some_and(|asked| {
        secret
            .annotations()
            .get(ROTATED_FOR)
            .is_none_or(|for_| for_ != asked)
    })
}

fn remember(secret: &mut Secret, asked: Option<&str>) {
    if let Some(asked) = asked {
        let annotations = secret.annotations_mut();
        annotations.insert(ROTATED_FOR.to_owned(), asked.to_owned());
    }
}

fn remembered_ttl(secret: &Secret) -> Option<u64> {
    secret.annotations().get(LONGEST_TTL)?.parse().ok()
}

fn longest_ttl(secret: &Secret, order: &Order) -> u64 {
    let now = order.config.auth.refresh_ttl_seconds;
    remembered_ttl(secret).unwrap_or_default().max(now)
}

fn remember_ttl(secret: &mut Secret, seconds: u64) {
    let annotations = secret.annotations_mut();
    annotations.insert(LONGEST_TTL.to_owned(), seconds.to_string());
}

pub(crate) fn text(secret: &Secret, key: &str) -> Option<String> {
    let bytes = secret.data.as_ref()?.get(key)?;
    Some(String::from_utf8_lossy(&bytes.0).into_owned())
}

pub(crate) fn write(secret: &mut Secret, texts: impl IntoIterator<Item = (String, String)>) {
    secret.data = Some(
        texts
            .into_iter()
            .map(|(key, text)| (key, ByteString(text.into_bytes())))
            .collect(),
    );
}

fn read_signing_keys(secret: &Secret) -> SigningKeys {
    SigningKeys {
        signing: text(secret, SIGNING_KEY).unwrap_or_default(),
        next: text(secret, NEXT_SIGNING_KEY),
        due: secret.annotations().get(DUE).cloned(),
    }
}

fn write_signing_keys(secret: &mut Secret, keys: &SigningKeys) {
    let signing = (SIGNING_KEY.to_owned(), keys.signing.clone());
    let next = keys
        .next
        .clone()
        .map(|next| (NEXT_SIGNING_KEY.to_owned(), next));
    write(secret, [signing].into_iter().chain(next));
    let annotations = secret.annotations_mut();
    match &keys.due {
        Some(due) => annotations.insert(DUE.to_owned(), due.clone()),
        None => annotations.remove(DUE),
    };
}

fn read_authority(secret: &Secret) -> Issued {
    Issued {
        certificate: text(secret, AUTHORITY_CERTIFICATE).unwrap_or_default(),
        key: text(secret, AUTHORITY_KEY).unwrap_or_default(),
    }
}

fn write_authority(secret: &mut Secret, authority: &Issued) {
    let certificate = (
        AUTHORITY_CERTIFICATE.to_owned(),
        authority.certificate.clone(),
    );
    let key = (AUTHORITY_KEY.to_owned(), authority.key.clone());
    write(secret, [certificate, key]);
}

fn read_certificates(secret: &Secret) -> Certificates {
    let issued = |role: Role| {
        Some(Issued {
            certificate: text(secret, &certificate_key(role))?,
            key: text(secret, &private_key_key(role))?,
        })
    };
    Certificates {
        roles: Role::ALL
            .into_iter()
            .filter_map(|role| Some((role, issued(role)?)))
            .collect::<BTreeMap<_, _>>(),
        trust: text(secret, TRUST).unwrap_or_default(),
    }
}

fn write_certificates(secret: &mut Secret, certificates: &Certificates) {
    let trust = (TRUST.to_owned(), certificates.trust.clone());
    let roles = certificates.roles.iter().flat_map(|(role, issued)| {
        [
            (certificate_key(*role), issued.certificate.clone()),
            (private_key_key(*role), issued.key.clone()),
        ]
    });
    write(secret, [trust].into_iter().chain(roles));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::tests::{SMALL, order_of};

    #[test]
    fn what_is_written_is_read_back() {
        let order = order_of(SMALL);
        let mut secret = build::own_secret(&order, "s".to_owned(), "platform");
        let keys = SigningKeys {
            signing: "a".to_owned(),
            next: Some("b".to_owned()),
            due: Some("2026-01-01T00:00:00Z".to_owned()),
        };
        write_signing_keys(&mut secret, &keys);
        assert_eq!(read_signing_keys(&secret), keys);
        let keys = SigningKeys {
            signing: "c".to_owned(),
            ..SigningKeys::default()
        };
        write_signing_keys(&mut secret, &keys);
        assert_eq!(read_signing_keys(&secret), keys);
        let issued = |name: &str| Issued {
            certificate: format!("{name} certificate"),
            key: format!("{name} key"),
        };
        write_authority(&mut secret, &issued("authority"));
        assert_eq!(read_authority(&secret), issued("authority"));
        let certificates = Certificates {
            roles: Role::ALL
                .into_iter()
                .map(|role| (role, issued(role.name())))
                .collect(),
            trust: "trust".to_owned(),
        };
        write_certificates(&mut secret, &certificates);
        assert_eq!(read_certificates(&secret), certificates);
        assert!(
            text(&secret, AUTHORITY_KEY).is_none(),
            "pods would be given it"
        );
    }

    #[test]
    fn a_secret_of_somebody_else_is_left_alone() {
        let order = order_of(SMALL);
        let mut cluster = ChatCluster::new("town", Default::default());
        cluster.metadata.uid = Some(order.owner.uid.clone());
        let own = build::own_secret(&order, "town-ca".to_owned(), "platform");
        assert!(is_ours(&own, &cluster));
        let mut orphan = own.clone();
        orphan.metadata.owner_references = None;
        assert!(is_ours(&orphan, &cluster));
        let mut foreign = orphan.clone();
        foreign.metadata.labels = None;
        assert!(!is_ours(&foreign, &cluster));
        // Of one that was deleted a moment ago.
        cluster.metadata.uid = Some("another".to_owned());
        assert!(!is_ours(&own, &cluster));
    }

    #[test]
    fn the_longest_life_of_tokens_is_remembered() {
        let order = order_of(&format!("{SMALL}auth: {{refreshTokenTtl: 1d}}\n"));
        let mut secret = build::own_secret(&order, "town-jwt".to_owned(), "auth");
        assert_eq!(longest_ttl(&secret, &order), 86_400);
        remember_ttl(&mut secret, 30 * 86_400);
        assert_eq!(longest_ttl(&secret, &order), 30 * 86_400);
        remember_ttl(&mut secret, 60);
        assert_eq!(longest_ttl(&secret, &order), 86_400);
    }

    #[test]
    fn a_rotation_is_asked_for_once() {
        let mut secret = build::own_secret(&order_of(SMALL), "s".to_owned(), "auth");
        assert!(!is_asked(&secret, None));
        assert!(is_asked(&secret, Some("1")));
        remember(&mut secret, Some("1"));
        assert!(!is_asked(&secret, Some("1")));
        assert!(is_asked(&secret, Some("2")));
        remember(&mut secret, None);
        assert!(is_asked(&secret, Some("2")));
    }
}
