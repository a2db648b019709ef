//! Certificates of a cluster of processes, as the operator makes them for pods.

use std::{fs, path::Path};

use anyhow::Result;
use carillon_crds::config::TlsNames;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// An authority of its own.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Ok(Self(CertifiedIssuer::self_signed(
            params,
            KeyPair::generate()?,
        )?))
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate of each role in a folder of its own.
    pub fn issue_all(&self, names: &TlsNames, directory: &Path) -> Result<()> {
        for (role, name) in by_role(names) {
            self.issue(name, &directory.join(role))?;
            fs::write(directory.join(role).join("ca.crt"), self.pem())?;
        }
        Ok(())
    }

    /// A certificate for `name`, and its key.
    pub fn issue(&self, name: &str, directory: &Path) -> Result<()> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = params.signed_by(&key, &self.0)?;
        fs::create_dir_all(directory)?;
        fs::write(directory.join("tls.crt"), certificate.pem())?;
        fs::write(directory.join("tls.key"), key.serialize_pem())?;
        Ok(())
    }
}

/// The name of each role.
pub fn by_role(names: &TlsNames) -> [(&'static str, &str); 6] {
    [
        ("gateway", &names.gateway),
        ("auth", &names.auth),
        ("message", &names.message),
        ("presence", &names.presence),
        ("media", &names.media),
        ("notification", &names.notification),
    ]
}
