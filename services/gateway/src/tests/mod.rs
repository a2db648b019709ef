//! The gateway from outside, over a scripted town.

mod http;
mod ws;
