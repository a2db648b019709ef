//! Mail to people: the port, and SMTP (AUTH-10). What is written, and when, is not here.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use lettre::{
    Address, AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor,
    message::{Mailbox, header::ContentType},
    transport::smtp::{
        authentication::Credentials,
        client::{Certificate, CertificateStore, Tls, TlsParameters},
        extension::ClientId,
    },
};
use url::Url;
use uuid::Uuid;

/// Longest time for each step of a conversation with the server.
const STEP: Duration = Duration::from_secs(20);

/// A message to one address.
pub struct Mail {
    /// The address, as the account has it.
    pub to: String,
    /// One line.
    pub subject: &'static str,
    /// Plain text.
    pub text: String,
}

/// Why a message didn't leave. Says nothing of whom it was for.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct MailError {
    /// What happened, for the log.
    pub reason: String,
    /// Whether it is of no use to try again.
    pub is_final: bool,
}

/// Hands messages to somebody who delivers them.
#[async_trait]
pub trait Mailer: Send + Sync {
    /// Returns once the message was taken. May take minutes.
    async fn send(&self, mail: &Mail) -> Result<(), MailError>;
}

/// What the auth role needs to write to people.
#[derive(Clone)]
pub struct MailOptions {
    /// Who delivers.
    pub mailer: Arc<dyn Mailer>,
    /// The cluster's name, as texts call it.
    pub name: String,
    /// Where people reach the cluster: links lead there.
    pub public_url: Url,
}

/// How a connection to an SMTP server is secured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SmtpSecurity {
    /// Begins in the clear and must change to TLS before anything is said (RFC 3207).
    StartTls,
    /// TLS from the first byte (RFC 8314).
    Tls,
    /// In the clear: for a server on the same host or network.
    None,
}

/// User and password, asked for before each message: they may be replaced while the process runs.
pub type SmtpLogin = Arc<dyn Fn() -> Result<(String, String), String> + Send + Sync>;

/// Where mail goes.
#[derive(Clone)]
pub struct SmtpOptions {
    /// Name or address of the server; its certificate must be for it.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// See [`SmtpSecurity`].
    pub security: SmtpSecurity,
    /// `None`: the server asks for no login.
    pub login: Option<SmtpLogin>,
    /// Authorities (PEM) that may have signed the server's certificate, instead of the web's.
    pub authorities: Option<String>,
    /// Name that people see as the sender.
    pub from_name: String,
    /// Address of the sender.
    pub from: String,
}

/// Options of mail that can't be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct MailOptionsError(String);

/// Mail over SMTP. A connection per message: there are few, and each takes the newest password.
pub struct Smtp {
    options: SmtpOptions,
    tls: Tls,
    from: Mailbox,
}

// === impl Smtp ===

impl Smtp {
    /// Connects to nothing yet.
    pub fn new(options: SmtpOptions) -> Result<Self, MailOptionsError> {
        let bad =
            |what: &str, error: &dyn fmt::Display| MailOptionsError(format!("{what}: {error}"));
        let address: Address = options
            .from
            .parse()
            .map_err(|error| bad("the sender's address", &error))?;
        let parameters = || {
            let builder = TlsParameters::builder(options.host.clone());
            let builder = match &options.authorities {
                None => builder.certificate_store(CertificateStore::WebpkiRoots),
                Some(pem) => builder
                    .certificate_store(CertificateStore::None)
                    .add_root_certificate(
                        Certificate::from_pem(pem.as_bytes())
                            .map_err(|error| bad("ca.crt", &error))?,
                    ),
            };
            builder
                .build_rustls()
                .map_err(|error| bad("TLS to the mail server", &error))
        };
        let tls = match options.security {
            SmtpSecurity::StartTls => Tls::Required(parameters()?),
            SmtpSecurity::Tls => Tls::Wrapper(parameters()?),
            SmtpSecurity::None => Tls::None,
        };
        Ok(Self {
            from: Mailbox::new(Some(options.from_name.clone()), address),
            tls,
            options,
        })
    }

    fn message(&self, mail: &Mail) -> Result<Message, MailError> {
        let unfit = |_| final_error("the address or the text can't be sent as mail");
        let to: Address = mail
            .to
            .parse()
            .map_err(|_| final_error("the address can't be sent mail"))?;
        let domain = self.from.email.domain();
        Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, to))
            .subject(mail.subject)
            .date_now()
            .message_id(Some(format!("<{}@{domain}>", Uuid::new_v4())))
            .header(ContentType::TEXT_PLAIN)
            .body(mail.text.clone())
            .map_err(unfit)
    }

    fn transport(&self) -> Result<AsyncSmtpTransport<Tokio1Executor>, MailError> {
        let mut builder =
            AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(self.options.host.clone())
                .port(self.options.port)
                .timeout(Some(STEP))
                .hello_name(ClientId::Domain(self.from.email.domain().to_owned()))
                .tls(self.tls.clone());
        if let Some(login) = &self.options.login {
            let (user, password) = login().map_err(|reason| MailError {
                reason,
                is_final: false,
            })?;
            builder = builder.credentials(Credentials::new(user, password));
        }
        Ok(builder.build())
    }
}

#[async_trait]
impl Mailer for Smtp {
    async fn send(&self, mail: &Mail) -> Result<(), MailError> {
        let message = self.message(mail)?;
        match self.transport()?.send(message).await {
            Ok(_) => Ok(()),
            // A server's own words may repeat the address: only its code is told.
            Err(error) => Err(MailError {
                is_final: error.is_permanent(),
                reason: match error.status() {
                    Some(code) => format!("the mail server answered {code}"),
                    None if error.is_timeout() => "the mail server didn't answer in time".into(),
                    None if error.is_tls() => "no TLS with the mail server".into(),
                    None if error.is_client() => {
                        "the mail server doesn't offer what is needed (STARTTLS, a login, UTF-8)"
                            .into()
                    }
                    None => "no connection to the mail server, or it broke".into(),
                },
            }),
        }
    }
}

fn final_error(reason: &str) -> MailError {
    MailError {
        reason: reason.to_owned(),
        is_final: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> SmtpOptions {
        SmtpOptions {
            host: "localhost".into(),
            port: 25,
            security: SmtpSecurity::None,
            login: None,
            authorities: None,
            from_name: "town".into(),
            from: "chat@example.com".into(),
        }
    }

    /// AUTH-10: what a message's text or address holds can't become another header or recipient.
    #[test]
    fn nothing_is_smuggled_into_headers() {
        let smtp = Smtp::new(options()).unwrap();
        let mail = |to: &str| Mail {
            to: to.into(),
            subject: "Hello",
            text: "first\r\n.\r\nRCPT TO:<eve@example.com>\r\n".into(),
        };
        for bad in [
            "a@b.c\r\nBcc: eve@example.com",
            "a@b.c>, <eve@example.com",
            "a b@c.d",
        ] {
            let refused = smtp.message(&mail(bad)).err().unwrap();
            assert!(refused.is_final, "{bad}");
        }
        let message = smtp.message(&mail("ann@example.com")).unwrap();
        let text = String::from_utf8(message.formatted()).unwrap();
        let (headers, _) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            headers.contains("From: town <chat@example.com>"),
            "{headers}"
        );
        assert!(!headers.contains("eve@"), "{headers}");
        assert_eq!(message.envelope().to().len(), 1);
    }

    #[test]
    fn options_that_cannot_work_are_refused() {
        let bad_sender = SmtpOptions {
            from: "nobody".into(),
            ..options()
        };
        let bad_authority = SmtpOptions {
            security: SmtpSecurity::Tls,
            authorities: Some(
                "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----".into(),
            ),
            ..options()
        };
        assert!(Smtp::new(bad_sender).is_err());
        assert!(Smtp::new(bad_authority).is_err());
    }
}
