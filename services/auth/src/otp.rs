//! One-time codes to phones: the provider port, and the provider of development clusters (AUTH-03).

use async_trait::async_trait;
use carillon_domain::{Error, ErrorCode, Result};
use subtle::ConstantTimeEq;

/// Sends codes and checks them. Limits of sends and attempts are [`crate::Auth`]'s business, not the provider's.
#[async_trait]
pub trait OtpProvider: Send + Sync {
    /// Sends a code to an E.164 number.
    async fn send(&self, phone_number: &str) -> Result<()>;

    /// Whether this is the code that was sent last.
    async fn check(&self, phone_number: &str, code: &str) -> Result<bool>;
}

/// The provider of development clusters: sends nothing, and the code is always [`DevOtp::CODE`].
#[derive(Debug)]
pub struct DevOtp(());

impl DevOtp {
    /// The code of every number.
    pub const CODE: &'static str = "123456";

    /// `FailedPrecondition` unless the cluster says that it is in development mode.
    pub fn new(dev_mode: bool) -> Result<Self> {
        if dev_mode {
            Ok(Self(()))
        } else {
            Err(Error::new(
                ErrorCode::FailedPrecondition,
                "the development provider of one-time passwords is only for clusters in development mode",
            ))
        }
    }
}

#[async_trait]
impl OtpProvider for DevOtp {
    async fn send(&self, _phone_number: &str) -> Result<()> {
        Ok(())
    }

    async fn check(&self, _phone_number: &str, code: &str) -> Result<bool> {
        Ok(code.as_bytes().ct_eq(Self::CODE.as_bytes()).into())
    }
}
