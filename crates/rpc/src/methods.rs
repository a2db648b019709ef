//! Every gRPC method that a server may offer, read from the descriptors, and who may call it.

use std::{collections::HashMap, sync::LazyLock};

use prost::Message as _;
use prost_types::FileDescriptorSet;

use crate::{proto, tls::PeerRole};

/// Who may call a method.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// Anybody.
    Public,
    /// The cluster's roles, and people with an access token.
    Authenticated,
    /// The cluster's roles only.
    Internal,
}

/// A known method.
#[derive(Debug)]
pub(crate) struct Method {
    /// With its package.
    pub(crate) service: String,
    pub(crate) name: String,
    pub(crate) access: Access,
    /// The roles that call it, where roles are known by their certificates.
    pub(crate) callers: &'static [PeerRole],
    /// Whether calls from outside the cluster are counted by address.
    pub(crate) guessable: bool,
}

/// Which roles call which service. Whoever breaks into one role can't speak for it to services that it has no business with.
fn callers_of(service: &str) -> &'static [PeerRole] {
    match service {
        "carillon.message.v1.MessageService" => {
            &[PeerRole::Gateway, PeerRole::Message, PeerRole::Media]
        }
        "carillon.presence.v1.PresenceService" => &[PeerRole::Gateway, PeerRole::Message],
        "carillon.auth.v1.AccountService"
        | "carillon.auth.v1.AuthService"
        | "carillon.people.v1.PeopleService"
        | "carillon.media.v1.MediaService"
        | "carillon.notification.v1.NotificationService" => &[PeerRole::Gateway],
        _ => &[],
    }
}

/// Methods that need no credentials (AUTH-16).
const PUBLIC: [&str; 12] = [
    "/carillon.auth.v1.AuthService/Register",
    "/carillon.auth.v1.AuthService/Login",
    "/carillon.auth.v1.AuthService/SendOTP",
    "/carillon.auth.v1.AuthService/VerifyOTP",
    "/carillon.auth.v1.AuthService/RefreshToken",
    "/carillon.auth.v1.AuthService/ValidateToken",
    "/carillon.auth.v1.AccountService/VerifyEmail",
    "/carillon.auth.v1.AccountService/ForgotPassword",
    "/carillon.auth.v1.AccountService/ResetPassword",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
];

/// Public methods that try a secret, or make somebody else work: strangers are let in only so often.
const GUESSABLE: [&str; 8] = [
    "/carillon.auth.v1.AuthService/Register",
    "/carillon.auth.v1.AuthService/Login",
    "/carillon.auth.v1.AuthService/SendOTP",
    "/carillon.auth.v1.AuthService/VerifyOTP",
    "/carillon.auth.v1.AuthService/RefreshToken",
    "/carillon.auth.v1.AccountService/VerifyEmail",
    "/carillon.auth.v1.AccountService/ForgotPassword",
    "/carillon.auth.v1.AccountService/ResetPassword",
];

/// Methods that take the word of a gateway for something, or answer without regard to a reader.
const INTERNAL: [&str; 8] = [
    "/carillon.auth.v1.AuthService/RedeemTicket",
    "/carillon.message.v1.MessageService/Locate",
    "/carillon.message.v1.MessageService/GetHeads",
    "/carillon.message.v1.MessageService/GetOverviews",
    "/carillon.message.v1.MessageService/GetTail",
    "/carillon.people.v1.PeopleService/GetHidden",
    "/carillon.presence.v1.PresenceService/Renew",
    "/carillon.presence.v1.PresenceService/Release",
];

static METHODS: LazyLock<HashMap<String, Method>> = LazyLock::new(|| {
    [
        proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    ]
    .into_iter()
    // Made by the compiler at build time; a test reads them all.
    .filter_map(|descriptors| FileDescriptorSet::decode(descriptors).ok())
    .flat_map(|descriptors| descriptors.file)
    .flat_map(methods_of)
    .collect()
});

/// The method at a path such as `/carillon.auth.v1.AuthService/Login`; `None` if there is no such method.
pub(crate) fn find(path: &str) -> Option<&'static Method> {
    METHODS.get(path)
}

#[cfg(test)]
pub(crate) fn all() -> impl Iterator<Item = (&'static str, &'static Method)> {
    METHODS.iter().map(|(path, method)| (path.as_str(), method))
}

fn methods_of(file: prost_types::FileDescriptorProto) -> Vec<(String, Method)> {
    let package = file.package().to_owned();
    let mut methods = Vec::new();
    for service in &file.service {
        let service_name = format!("{package}.{}", service.name());
        for method in &service.method {
            let path = format!("/{service_name}/{}", method.name());
            let access = access_of(&path);
            let method = Method {
                service: service_name.clone(),
                name: method.name().to_owned(),
                access,
                callers: callers_of(&service_name),
                guessable: GUESSABLE.contains(&path.as_str()),
            };
            methods.push((path, method));
        }
    }
    methods
}

fn access_of(path: &str) -> Access {
    if PUBLIC.contains(&path) {
        Access::Public
    } else if INTERNAL.contains(&path) {
        Access::Internal
    } else {
        Access::Authenticated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AUTH-16: the lists name methods that exist, so that a renamed one can't silently change who may call it.
    #[test]
    fn the_lists_name_real_methods() {
        for path in PUBLIC {
            assert_eq!(find(path).map(|m| m.access), Some(Access::Public), "{path}");
        }
        for path in GUESSABLE {
            assert!(find(path).is_some_and(|m| m.guessable), "{path}");
        }
        for path in INTERNAL {
            assert_eq!(
                find(path).map(|m| m.access),
                Some(Access::Internal),
                "{path}"
            );
        }
    }

    /// Every method with its access: a new one must be put on a list on purpose, or need a token.
    #[test]
    fn who_may_call_what() {
        let mut table: Vec<_> = METHODS
            .iter()
            .map(|(path, method)| format!("{:?} {path} {:?}", method.access, method.callers))
            .collect();
        table.sort();
        insta::assert_snapshot!(table.join("\n"));
    }
}
