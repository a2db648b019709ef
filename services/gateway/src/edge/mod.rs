//! What every request passes on its way in and out.

mod ahead;
mod body;
mod caller;
mod limits;
mod origin;
mod pass;
mod problem;
mod rest_of_body;
mod transfers;

pub use body::{JsonBody, OptionalJsonBody, PathParams, QueryParams, describe_json};
pub use caller::{Caller, ClientAddress, PeerAddress, bearer, client_info, cookie};
pub use limits::Limits;
pub use origin::{AllowedOrigins, cors};
pub use pass::{RequestContext, pass};
pub use problem::Problem;
pub use rest_of_body::read_rest;
pub use transfers::{Transfer, Transfers};
