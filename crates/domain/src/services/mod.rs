//! What the roles offer to each other and to the edge. Each trait is implemented by the service itself and by an rpc client, so
//! that a caller can't tell where it runs.

mod accounts;
mod auth;
mod media;
mod messages;
mod notifications;
mod people;
mod presence;

pub use accounts::{AccountService, FoundUsers};
pub use auth::{AuthService, Login, NewAccount, TokenVerifier};
pub use media::{MediaService, NewMedia};
pub use messages::{
    EventPage, HistoryQuery, MessageService, NewRoom, ResolvedRoom, Restriction, RoomChange,
    RoomHead, RoomOverview, RoomSummary, RoomView, SendOutcome,
};
pub use notifications::{NewPushTarget, NotificationService};
pub use people::PeopleService;
pub use presence::PresenceService;
