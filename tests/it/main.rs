//! The whole system, from outside: processes of the real binary, the public API, and scripts of what people do.
//!
//! Ring 3 runs on embedded stores always, and on the real ones when `CARILLON_TEST_SCYLLA`, `CARILLON_TEST_REDIS` and
//! `CARILLON_TEST_RABBITMQ` name them. Ring 4 needs `CARILLON_TEST_KUBECONFIG`. What can't run says `CARILLON-SKIPPED`.

mod accounts;
mod backup;
mod bad_input;
mod cluster;
mod docs;
mod embedded;
mod erasure;
mod faults;
mod grpc;
mod layout;
mod limits;
mod mail;
mod monitoring;
mod moves;
mod people;
mod plans;
mod plugin;
mod push;
mod real;
mod rotation;
mod stores_fail;
mod tilt;
mod traces;
mod upgrades;
mod world;
