//! Accounts, logins and tokens, contacts and blocks: the auth role, and the check of access tokens that every other role does by itself.
//!
//! [`Auth`] is the role: it implements [`carillon_domain::services::AuthService`] and [`carillon_domain::services::AccountService`]
//! over ports, and [`People`] beside it [`carillon_domain::services::PeopleService`]. [`Verifier`] implements
//! [`carillon_domain::services::TokenVerifier`] with the public keys alone. This is the only crate that knows JWT and password
//! hashes. It serves nothing; requests per address are limited by the gateway, and one-time codes and mails are sent by an
//! [`OtpProvider`] and a [`Mailer`] that are handed in: [`Twilio`] and [`Smtp`] open the only connections.

mod changes;
mod erase;
mod history;
mod keys;
mod letters;
mod limits;
mod mail;
mod names;
mod otp;
mod password;
mod people;
mod post;
mod profiles;
mod recovery;
mod service;
#[cfg(test)]
mod tests;
mod token;
mod twilio;
mod verifier;

pub use keys::{KeyError, SigningKeys, VerifyingKeys, jwks};
pub use mail::{
    Mail, MailError, MailOptions, MailOptionsError, Mailer, Smtp, SmtpLogin, SmtpOptions,
    SmtpSecurity,
};
pub use otp::{DevOtp, OtpProvider};
pub use password::PasswordOptions;
pub use people::People;
pub use service::{Auth, AuthOptions, AuthOptionsError, Ports};
pub use token::{ACCESS_AUDIENCE, REFRESH_AUDIENCE};
pub use twilio::{Twilio, TwilioError, TwilioOptions};
pub use verifier::Verifier;
