//! carillon-operator: brings up what a `ChatCluster` orders, keeps it so, and tells the truth about it.
//!
//! A reconcile is five named steps, in [`reconcile`]:
//! 1. [`dereference`]: read everything the decision needs from the API server. I/O only, decides nothing.
//! 2. [`validate`]: is the order one that can be run? Pure.
//! 3. [`build`]: order → child objects. Pure, no client; one file per kind of child, with golden files.
//! 4. [`apply`]: write what differs, in a documented order, and delete what nobody orders any more.
//! 5. [`status`]: what was seen → conditions. Pure; written only when it changed.
//!
//! Not here: the types and defaults of the order (`carillon-crds`), what the roles do with their configuration, and how stores are
//! run, but for the small ones of [`managed`].

pub mod apply;
pub mod backup;
pub mod build;
pub mod certificates;
pub mod check;
pub mod context;
pub mod controller;
pub mod credentials;
pub mod dereference;
pub mod foreign;
pub mod http;
pub mod keys;
pub mod leader;
pub mod lookout;
pub mod managed;
pub mod metrics;
pub mod pods;
pub mod probe;
pub mod readiness;
pub mod reconcile;
pub mod settings;
pub mod status;
pub mod term;
pub mod upgrade;
pub mod validate;

/// The one field manager of everything the operator writes.
pub const FIELD_MANAGER: &str = "carillon-operator";
