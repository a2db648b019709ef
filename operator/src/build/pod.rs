//! What the pods of all roles, and of the migration, have in common: volumes, environment, security.

use carillon_crds::config::{JWKS_DIR, MEDIA_DIR, SECRETS_DIR, TLS_DIR};
use carillon_crds::{ManagedStore, Role};
use serde_json::{Value, json};

use super::config_map::{CONFIG_KEY, JWKS_KEY, config_name, jwks_name};
use super::secret::{
    SIGNING_KEY, TRUST, certificate_key, jwt_secret_name, private_key_key, tls_secret_name,
};
use crate::validate::Order;

/// The user that owns nothing in the image.
const NOBODY: i64 = 65532;

/// Volumes of a pod and where they are mounted.
pub(super) struct Volumes {
    pub(super) volumes: Vec<Value>,
    pub(super) mounts: Vec<Value>,
}

impl Volumes {
    /// What every pod has: its configuration, the credentials of the stores, and `/tmp`.
    pub(super) fn with_configuration(order: &Order) -> Self {
        let mut volumes = Volumes {
            volumes: Vec::new(),
            mounts: Vec::new(),
        };
        volumes
            .volumes
            .push(json!({ "name": "tmp", "emptyDir": { "sizeLimit": "1Gi" } }));
        volumes
            .mounts
            .push(json!({ "name": "tmp", "mountPath": "/tmp" }));
        volumes.volumes.push(json!({
            "name": "config",
            "configMap": { "name": config_name(order), "items": [{ "key": CONFIG_KEY, "path": CONFIG_KEY }] },
        }));
        // A file and not the directory, so that `/etc/carillon` has room for the other mounts.
        volumes.mounts.push(json!({
            "name": "config",
            "mountPath": carillon_crds::config::CONFIG_FILE,
            "subPath": CONFIG_KEY,
            "readOnly": true,
        }));
        volumes
    }

    /// Mounts the Secret `secret_name` where the configuration expects credentials for `purpose`.
    pub(super) fn add_secret(&mut self, purpose: &str, secret_name: &str) {
        self.volumes.push(json!({ "name": purpose, "secret": { "secretName": secret_name, "defaultMode": 0o440 } }));
        self.mounts.push(json!({ "name": purpose, "mountPath": format!("{SECRETS_DIR}/{purpose}"), "readOnly": true }));
    }

    /// The same for a managed store, whose Secret has more in it than roles need.
    fn add_login(&mut self, purpose: &str, secret_name: &str) {
        let items = ["username", "password"].map(|key| json!({ "key": key, "path": key }));
        self.volumes.push(json!({
            "name": purpose,
            "secret": { "secretName": secret_name, "defaultMode": 0o440, "items": items },
        }));
        self.mounts.push(json!({ "name": purpose, "mountPath": format!("{SECRETS_DIR}/{purpose}"), "readOnly": true }));
    }

    fn add_secret_key(&mut self, purpose: &str, secret_name: &str, key: &str) {
        self.volumes.push(json!({
            "name": purpose,
            "secret": { "secretName": secret_name, "defaultMode": 0o440, "items": [{ "key": key, "path": key }] },
        }));
        self.mounts.push(json!({ "name": purpose, "mountPath": format!("{SECRETS_DIR}/{purpose}"), "readOnly": true }));
    }

    fn add_certificate(&mut self, order: &Order, role: Role) {
        self.volumes.push(json!({
            "name": "tls",
            "secret": {
                "secretName": tls_secret_name(&order.name),
                "defaultMode": 0o440,
                "items": [
                    { "key": certificate_key(role), "path": "tls.crt" },
                    { "key": private_key_key(role), "path": "tls.key" },
                    { "key": TRUST, "path": "ca.crt" },
                ],
            },
        }));
        self.mounts
            .push(json!({ "name": "tls", "mountPath": TLS_DIR, "readOnly": true }));
    }

    /// Credentials of the stores: those that the user gave, and those of managed ones.
    pub(super) fn add_store_credentials(&mut self, order: &Order, stores: &[Store]) {
        let spec = &order.spec;
        for store in stores {
            let secret_name = match store {
                Store::Scylla => spec
                    .external_scylla()
                    .map(|scylla| scylla.secret_name.clone()),
                Store::Redis => spec.external_redis().map(|redis| redis.secret_name.clone()),
                Store::Rabbitmq => spec
                    .external_rabbitmq()
                    .map(|rabbitmq| rabbitmq.secret_name.clone()),
            };
            match secret_name {
                Some(Some(secret_name)) => self.add_secret(store.purpose(), &secret_name),
                Some(None) => {}
                None => self.add_login(store.purpose(), &store.managed().secret_name(&order.name)),
            }
        }
    }

    /// What a pod of `role` has.
    pub(super) fn for_role(order: &Order, role: Role) -> Self {
        let mut volumes = Volumes::with_configuration(order);
        volumes.volumes.push(json!({
            "name": "jwks",
            "configMap": { "name": jwks_name(order), "items": [{ "key": JWKS_KEY, "path": JWKS_KEY }] },
        }));
        volumes
            .mounts
            .push(json!({ "name": "jwks", "mountPath": JWKS_DIR, "readOnly": true }));
        volumes.add_certificate(order, role);
        volumes.add_store_credentials(order, stores_of(role));
        let spec = &order.spec;
        match role {
            Role::Auth => {
                volumes.add_secret_key("jwt", &jwt_secret_name(&order.name), SIGNING_KEY);
                if let Some(otp) = spec.auth.as_ref().and_then(|auth| auth.otp.as_ref()) {
                    volumes.add_secret("twilio", &otp.twilio.secret_name);
                }
                if let Some(mail) = &spec.mail
                    && let Some(secret_name) = &mail.secret_name
                {
                    volumes.add_secret("mail", secret_name);
                }
            }
            Role::Media => volumes.add_media_store(order),
            Role::Notification => {
                let notification = spec.notification.clone().unwrap_or_default();
                for (purpose, provider) in [
                    ("web-push", notification.web_push),
                    ("fcm", notification.fcm),
                    ("apns", notification.apns),
                ] {
                    if let Some(provider) = provider {
                        volumes.add_secret(purpose, &provider.secret_name);
                    }
                }
            }
            Role::Gateway | Role::Message | Role::Presence => {}
        }
        volumes
    }

    fn add_media_store(&mut self, order: &Order) {
        if let Some(s3) = order.spec.s3() {
            self.add_secret("s3", &s3.secret_name);
        }
        if let Some(directory) = order.spec.media_directory() {
            self.volumes.push(match &directory.persistent_volume_claim {
                Some(claim) => json!({ "name": "media", "persistentVolumeClaim": { "claimName": claim.claim_name } }),
                None => json!({ "name": "media", "emptyDir": {} }),
            });
            self.mounts
                .push(json!({ "name": "media", "mountPath": MEDIA_DIR }));
        }
    }
}

/// A store that roles depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Store {
    Scylla,
    Redis,
    Rabbitmq,
}

impl Store {
    fn managed(self) -> ManagedStore {
        match self {
            Store::Scylla => ManagedStore::Scylla,
            Store::Redis => ManagedStore::Redis,
            Store::Rabbitmq => ManagedStore::Rabbitmq,
        }
    }

    fn purpose(self) -> &'static str {
        self.managed().name()
    }
}

/// The stores whose credentials a role is given: those it opens, and no other.
fn stores_of(role: Role) -> &'static [Store] {
    match role {
        Role::Gateway => &[Store::Redis],
        Role::Auth | Role::Presence | Role::Media => &[Store::Scylla, Store::Redis],
        Role::Message | Role::Notification => &[Store::Scylla, Store::Redis, Store::Rabbitmq],
    }
}

/// The stores that a migration changes.
pub(super) const MIGRATED_STORES: &[Store] = &[Store::Scylla];

/// Security of a pod, as the `restricted` Pod Security Standard wants it.
pub(super) fn pod_security() -> Value {
    json!({
        "runAsNonRoot": true,
        "runAsUser": NOBODY,
        "runAsGroup": NOBODY,
        "fsGroup": NOBODY,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": { "type": "RuntimeDefault" },
    })
}

/// Security of a container, as the `restricted` Pod Security Standard wants it, and a read-only root.
pub(super) fn container_security() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": { "drop": ["ALL"] },
    })
}

/// Who a pod is.
pub(super) fn environment() -> Value {
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": path } } });
    json!([
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_IP", "status.podIP"),
    ])
}

/// Secrets to pull the image with.
pub(super) fn image_pull_secrets(order: &Order) -> Value {
    order
        .image
        .pull_secrets
        .iter()
        .map(|name| json!({ "name": name }))
        .collect()
}
