//! What every request passes on its way in and out.

mod body;
mod caller;
mod limits;
mod origin;
mod pass;
mod problem;
mod transfers;

pub use body::{JsonBody, OptionalJsonBody, PathParams, QueryParams, describe_json};
pub use caller::{Caller, ClientAddress, PeerAddress, bearer, client_info, cookie};
pub use limits::{Limits, forget_idle_clients};
pub use origin::{AllowedOrigins, cors};
pub use pass::{RequestContext, pass};
pub use problem::Problem;
pub use transfers::{Transfer, Transfers};
