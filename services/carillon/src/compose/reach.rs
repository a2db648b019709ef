//! Providers through which the auth role reaches people: texts to phones, and mail.

use std::sync::Arc;

use carillon_auth::{
    MailOptions, Smtp, SmtpLogin, SmtpOptions, SmtpSecurity, Twilio, TwilioOptions,
};
use carillon_crds::{
    MailSecurity,
    config::{MailConfig, ProviderConfig},
};

use crate::{config, failure::Failure};

/// Who sends one-time codes to phones.
pub fn twilio(provider: &ProviderConfig) -> Result<Twilio, Failure> {
    let missing = || Failure::usage("spec.auth.otp.twilio.secretName: missing");
    let directory = provider.credentials_dir.as_deref().ok_or_else(missing)?;
    let bad =
        |error: &dyn std::fmt::Display| Failure::usage(format!("spec.auth.otp.twilio: {error}"));
    let base_url = provider.base_url.as_deref();
    let base_url = base_url.unwrap_or(TwilioOptions::BASE_URL);
    Twilio::new(TwilioOptions {
        base_url: base_url.parse().map_err(|error| bad(&error))?,
        account_sid: config::secret(directory, "account_sid")?,
        auth_token: config::secret(directory, "auth_token")?.into(),
        service_sid: config::secret(directory, "service_sid")?,
    })
    .map_err(|error| bad(&error))
}

/// Who sends mail.
pub fn mail(cluster: &str, mail: &MailConfig) -> Result<MailOptions, Failure> {
    let bad = |error: &dyn std::fmt::Display| Failure::usage(format!("spec.mail: {error}"));
    let directory = mail.credentials_dir.as_deref();
    let in_secret = |key| directory.and_then(|directory| config::optional_secret(directory, key));
    let login: Option<SmtpLogin> = match (directory, in_secret("username")) {
        (Some(directory), Some(_)) => {
            let read = {
                let directory = directory.to_owned();
                move || {
                    let user = config::secret(&directory, "username")?;
                    Ok((user, config::secret(&directory, "password")?))
                }
            };
            // A missing one is told at start.
            read()?;
            Some(Arc::new(move || {
                read().map_err(|failure: Failure| failure.to_string())
            }))
        }
        _ => None,
    };
    let smtp = Smtp::new(SmtpOptions {
        host: mail.host.clone(),
        port: mail.port,
        security: match mail.security {
            MailSecurity::StartTls => SmtpSecurity::StartTls,
            MailSecurity::Tls => SmtpSecurity::Tls,
            MailSecurity::None => SmtpSecurity::None,
        },
        login,
        authorities: in_secret("ca.crt"),
        from_name: cluster.to_owned(),
        from: mail.from.clone(),
    })
    .map_err(|error| bad(&error))?;
    let public_url = mail.public_url.parse();
    Ok(MailOptions {
        mailer: Arc::new(smtp),
        name: cluster.to_owned(),
        public_url: public_url.map_err(|error| bad(&error))?,
    })
}
