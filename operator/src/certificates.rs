//! The authority of a cluster and the certificates of its roles (RFC 5280), and what is to be done about them next. Pure.
//!
//! A rotation keeps nothing in memory: what is to be done follows from what is stored and from what the pods say they have in use. Whom
//! to believe always goes ahead of whom to be: a certificate by a new authority is given out only when every pod believes that authority,
//! and an authority is forgotten only when no pod uses a certificate of its any more. So every two pods can talk at every moment,
//! and an operator that is killed between any two writes goes on where it was.
//!
//! Storing things, and asking pods, is not here.

use std::collections::BTreeMap;
use std::time::Duration;

use carillon_crds::Role;
use carillon_crds::config::{fingerprint, in_use};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;

use crate::pods::PodsInUse;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Life of an authority, and what must be left of it.
const AUTHORITY_LIFE: Duration = Duration::from_secs(2 * 365 * 24 * 3600);
const AUTHORITY_LEFT: Duration = Duration::from_secs(180 * 24 * 3600);
/// Life of a role's certificate, and what must be left of it. An operator may be away for a month before one ends.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
const CERTIFICATE_LEFT: Duration = Duration::from_secs(30 * 24 * 3600);
/// How far the clocks of two nodes may differ.
const BACKDATED: Duration = DAY;
/// Authorities that may be believed at once: a new one, and those whose certificates may still be in use.
const MAX_TRUSTED: usize = 4;

/// A certificate and its private key, PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// The private key, PKCS#8.
    pub key: String,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").finish_non_exhaustive()
    }
}

/// What the pods are given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificates {
    /// Of each role.
    pub roles: BTreeMap<Role, Issued>,
    /// The authorities that every pod believes, PEM, in a fixed order.
    pub trust: String,
}

/// What was done about certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The first ones were made.
    Made,
    /// Pods are told to believe a new authority as well.
    Spread,
    /// Roles have new certificates.
    Issued,
    /// The authority before this one is forgotten.
    Forgotten,
}

/// Why a stored authority can't be used.
#[derive(Debug, thiserror::Error)]
#[error("not a certificate and private key in PEM that belong together")]
pub struct UnusableAuthority;

/// What a role's certificate must be.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// DNS names of each role; the first one is the one that other roles ask for.
    pub names: BTreeMap<Role, Vec<String>>,
    /// All are to be made anew, as good as the ones that are there may be.
    pub renewed: bool,
}

/// A new authority for the cluster.
pub fn new_authority(namespace: &str, cluster: &str, now: OffsetDateTime) -> Issued {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(
        DnType::CommonName,
        // Two authorities of one cluster have different names, so that a chain says whose it is.
        format!(
            "{namespace}/{cluster} {}",
            &hex::encode(rand::random::<[u8; 4]>())
        ),
    );
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now - BACKDATED;
    params.not_after = now + AUTHORITY_LIFE;
    let key = new_key();
    let certificate = params
        .self_signed(&key)
        .expect("a certificate of checked parts always encodes");
    Issued {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    }
}

/// Whether the authority lives too short to issue anything that lives longer.
pub fn is_ageing(authority: &Issued, now: OffsetDateTime) -> bool {
    ends(&authority.certificate).is_none_or(|end| end < now + AUTHORITY_LEFT)
}

/// Whether no rotation is under way: everybody has a certificate of `authority` and believes it alone.
pub fn is_settled(authority: &Issued, held: &Certificates) -> bool {
    same_text(&held.trust, &authority.certificate)
        && held
            .roles
            .values()
            .all(|role| is_issued_by(&role.certificate, &authority.certificate))
}

/// What the pods are to be given next and why; `None` when that is what they are given already, or when pods must follow first.
pub fn advance(
    authority: &Issued,
    held: &Certificates,
    wanted: &Wanted,
    pods: &PodsInUse,
    now: OffsetDateTime,
) -> Result<Option<(Certificates, Step)>, UnusableAuthority> {
    let issuer = issuer(authority)?;
    let issue_to = |roles: &mut BTreeMap<Role, Issued>, which: &dyn Fn(&Role) -> bool| {
        for (role, names) in wanted.names.iter().filter(|(role, _)| which(role)) {
            roles.insert(*role, issue(&issuer, names, now));
        }
    };
    let trusted = split(&held.trust);
    if trusted.is_empty() {
        let mut roles = BTreeMap::new();
        issue_to(&mut roles, &|_| true);
        let trust = authority.certificate.clone();
        return Ok(Some((Certificates { roles, trust }, Step::Made)));
    }
    let is_trusted = trusted
        .iter()
        .any(|other| same_text(other, &authority.certificate));
    if !is_trusted {
        let mut both = trusted;
        both.truncate(MAX_TRUSTED - 1);
        both.push(authority.certificate.clone());
        let held = Certificates {
            trust: join(both),
            ..held.clone()
        };
        return Ok(Some((held, Step::Spread)));
    }
    let is_fit = |role: &Role| {
        held.roles.get(role).is_some_and(|held| {
            is_issued_by(&held.certificate, &authority.certificate)
                && is_whole(held)
                && ends(&held.certificate).is_some_and(|end| end > now + CERTIFICATE_LEFT)
                && names_in(&held.certificate)
                    == wanted.names.get(role).cloned().unwrap_or_default()
        })
    };
    if wanted.renewed || !wanted.names.keys().all(is_fit) {
        let by_another = held
            .roles
            .values()
            .any(|role| !is_issued_by(&role.certificate, &authority.certificate));
        if by_another && !pods.all_use(in_use::TRUST, |_| Some(fingerprint(&held.trust))) {
            return Ok(None);
        }
        let mut roles = held.roles.clone();
        issue_to(&mut roles, &|role| wanted.renewed || !is_fit(role));
        let held = Certificates {
            roles,
            trust: held.trust.clone(),
        };
        return Ok(Some((held, Step::Issued)));
    }
    let all_changed = || {
        pods.all_use(in_use::CERTIFICATE, |role| {
            held.roles
                .get(&role)
                .map(|role| fingerprint(&role.certificate))
        })
    };
    if trusted.len() > 1 && all_changed() {
        let held = Certificates {
            trust: authority.certificate.clone(),
            ..held.clone()
        };
        return Ok(Some((held, Step::Forgotten)));
    }
    Ok(None)
}

fn new_key() -> KeyPair {
    KeyPair::generate().expect("the system gives random numbers")
}

fn issuer(authority: &Issued) -> Result<Issuer<'static, KeyPair>, UnusableAuthority> {
    if !is_whole(authority) {
        return Err(UnusableAuthority);
    }
    let key = KeyPair::from_pem(&authority.key).map_err(|_| UnusableAuthority)?;
    Issuer::from_ca_cert_pem(&authority.certificate, key).map_err(|_| UnusableAuthority)
}

fn issue(issuer: &Issuer<'_, KeyPair>, names: &[String], now: OffsetDateTime) -> Issued {
    let mut params = CertificateParams::new(names.to_vec())
        .expect("names of Services are DNS names: the API server has checked them");
    params.distinguished_name = DistinguishedName::new();
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.not_before = now - BACKDATED;
    params.not_after = now + CERTIFICATE_LIFE;
    let key = new_key();
    let certificate = params
        .signed_by(&key, issuer)
        .expect("a certificate of checked parts always encodes");
    Issued {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    }
}

// === reading ===

/// Runs `look` on the certificate; `None` when the text holds none.
fn parsed<T>(pem: &str, look: impl FnOnce(&X509Certificate<'_>) -> Option<T>) -> Option<T> {
    let block = Pem::iter_from_buffer(pem.as_bytes()).next()?.ok()?;
    let (_, certificate) = X509Certificate::from_der(&block.contents).ok()?;
    look(&certificate)
}

fn ends(pem: &str) -> Option<OffsetDateTime> {
    parsed(pem, |certificate| {
        Some(certificate.validity().not_after.to_datetime())
    })
}

fn is_issued_by(pem: &str, authority: &str) -> bool {
    parsed(authority, |authority| {
        parsed(pem, |certificate| {
            let signed = certificate.verify_signature(Some(authority.public_key()));
            (certificate.issuer() == authority.subject() && signed.is_ok()).then_some(())
        })
    })
    .is_some()
}

/// Whether the key is the certificate's.
fn is_whole(issued: &Issued) -> bool {
    let Ok(key) = KeyPair::from_pem(&issued.key) else {
        return false;
    };
    parsed(&issued.certificate, |certificate| {
        let public: &[u8] = &certificate.public_key().subject_public_key.data;
        (public == rcgen::PublicKeyData::der_bytes(&key)).then_some(())
    })
    .is_some()
}

fn names_in(pem: &str) -> Vec<String> {
    parsed(pem, |certificate| {
        let names = certificate.subject_alternative_name().ok()??;
        let dns = names
            .value
            .general_names
            .iter()
            .filter_map(|name| match name {
                x509_parser::extensions::GeneralName::DNSName(name) => Some((*name).to_owned()),
                _ => None,
            });
        Some(dns.collect())
    })
    .unwrap_or_default()
}

/// The certificates of a bundle, each as PEM; what can't be read is left out.
fn split(bundle: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    bundle
        .split_inclusive(END)
        .map(|block| format!("{}\n", block.trim()))
        .filter(|block| parsed(block, |_| Some(())).is_some())
        .collect()
}

fn join(mut certificates: Vec<String>) -> String {
    certificates.sort();
    certificates.dedup();
    certificates.concat()
}

fn same_text(one: &str, other: &str) -> bool {
    fn bare(text: &str) -> String {
        text.chars().filter(|c| !c.is_whitespace()).collect()
    }
    bare(one) == bare(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
    }

    fn wanted() -> Wanted {
        Wanted {
            names: Role::ALL
                .iter()
                .map(|role| (*role, vec![format!("town-{}.chat.svc", role.name())]))
                .collect(),
            renewed: false,
        }
    }

    /// Pods that took everything at once, but for `behind`.
    fn pods(held: &Certificates, behind: Option<Role>) -> PodsInUse {
        let answers = Role::ALL.iter().map(|role| {
            let current = BTreeMap::from([
                (in_use::TRUST.to_owned(), fingerprint(&held.trust)),
                (
                    in_use::CERTIFICATE.to_owned(),
                    fingerprint(&held.roles[role].certificate),
                ),
            ]);
            let old = BTreeMap::from([
                (in_use::TRUST.to_owned(), "0".to_owned()),
                (in_use::CERTIFICATE.to_owned(), "0".to_owned()),
            ]);
            let answer = if behind == Some(*role) { old } else { current };
            (*role, "pod".to_owned(), Some(answer))
        });
        PodsInUse::new(answers.collect())
    }

    fn step(
        authority: &Issued,
        held: &Certificates,
        pods: &PodsInUse,
    ) -> Option<(Certificates, Step)> {
        advance(authority, held, &wanted(), pods, now()).unwrap()
    }

    fn first() -> (Issued, Certificates) {
        let authority = new_authority("chat", "town", now());
        let made = step(&authority, &Certificates::default(), &PodsInUse::default()).unwrap();
        assert_eq!(made.1, Step::Made);
        (authority, made.0)
    }

    #[test]
    fn the_first_certificates_are_left_alone() {
        let (authority, held) = first();
        assert!(is_settled(&authority, &held));
        assert!(!is_ageing(&authority, now()));
        assert_eq!(step(&authority, &held, &pods(&held, None)), None);
        // Nor does a pod that doesn't answer matter then.
        assert_eq!(
            step(&authority, &held, &pods(&held, Some(Role::Media))),
            None
        );
        for (role, issued) in &held.roles {
            assert!(is_whole(issued));
            assert_eq!(names_in(&issued.certificate), wanted().names[role]);
        }
    }

    #[test]
    fn an_authority_is_replaced_step_by_step_and_waits_for_every_pod() {
        let (old, mut held) = first();
        let new = new_authority("chat", "town", now());
        let mut steps = Vec::new();
        for expected in [Step::Spread, Step::Issued, Step::Forgotten] {
            if expected != Step::Spread {
                for behind in Role::ALL {
                    assert_eq!(
                        step(&new, &held, &pods(&held, Some(behind))),
                        None,
                        "{behind:?}"
                    );
                }
                assert!(!is_settled(&new, &held));
            }
            let (next, step) = step(&new, &held, &pods(&held, None)).unwrap();
            // What somebody uses now is always believed by somebody who is a step ahead or behind.
            for issued in held.roles.values().chain(next.roles.values()) {
                let certificate = &issued.certificate;
                let believed =
                    |trust: &str| split(trust).iter().any(|ca| is_issued_by(certificate, ca));
                let in_both = next.roles.values().any(|next| next == issued)
                    && held.roles.values().any(|held| held == issued);
                assert!(!in_both || (believed(&held.trust) && believed(&next.trust)));
                assert!(believed(&held.trust) || step == Step::Spread);
            }
            steps.push(step);
            held = next;
        }
        assert_eq!(steps, [Step::Spread, Step::Issued, Step::Forgotten]);
        assert!(is_settled(&new, &held));
        assert!(!held.trust.contains(old.certificate.trim()));
        assert_eq!(step(&new, &held, &pods(&held, None)), None);
    }

    #[test]
    fn what_ends_soon_or_is_broken_is_made_anew_and_nothing_else() {
        let (authority, held) = first();
        let soon = now() + CERTIFICATE_LIFE - CERTIFICATE_LEFT + Duration::from_secs(1);
        let (renewed, step) = advance(&authority, &held, &wanted(), &PodsInUse::default(), soon)
            .unwrap()
            .unwrap();
        assert_eq!(step, Step::Issued);
        assert!(
            Role::ALL
                .iter()
                .all(|role| renewed.roles[role] != held.roles[role])
        );
        for damage in [
            "",
            "nonsense",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            let mut damaged = held.clone();
            damaged.roles.get_mut(&Role::Auth).unwrap().certificate = damage.to_owned();
            // It is no authority's: as in a rotation, pods must believe the one it will be of.
            let (mended, _) = super::tests::step(&authority, &damaged, &pods(&held, None)).unwrap();
            for role in Role::ALL {
                assert_eq!(mended.roles[&role] == held.roles[&role], role != Role::Auth);
            }
        }
        let mut mixed = held.clone();
        mixed.roles.get_mut(&Role::Auth).unwrap().key = held.roles[&Role::Media].key.clone();
        assert!(super::tests::step(&authority, &mixed, &pods(&held, None)).is_some());
        let asked = Wanted {
            renewed: true,
            ..wanted()
        };
        let (renewed, _) = advance(&authority, &held, &asked, &PodsInUse::default(), now())
            .unwrap()
            .unwrap();
        assert!(
            Role::ALL
                .iter()
                .all(|role| renewed.roles[role] != held.roles[role])
        );
        assert!(is_ageing(
            &authority,
            now() + AUTHORITY_LIFE - AUTHORITY_LEFT + DAY
        ));
    }

    #[test]
    fn an_authority_without_its_key_is_refused() {
        let (authority, held) = first();
        let other = new_authority("chat", "town", now());
        let mixed = Issued {
            certificate: authority.certificate,
            key: other.key,
        };
        assert!(advance(&mixed, &held, &wanted(), &PodsInUse::default(), now()).is_err());
        assert!(!format!("{mixed:?}").contains("PRIVATE"));
    }
}
