//! The operator as a process, with the rights that its chart gives it, on a real control plane.
//!
//! Between the two stands a [`proxy`] that keeps a record of every request, kills the operator after a chosen write, or holds an
//! answer back. No node runs here: a [`stage`] plays it, and the Deployment and Job controllers and autoscalers too.
//! Whether real pods come up is for `tests/it/cluster.rs`. `CARILLON_TEST_CONTROL_PLANE` names the control plane
//! (`testbed/control-plane`); without it a test says `CARILLON-SKIPPED`. `CARILLON_TEST_LONG` makes them as thorough as
//! they can be.

mod backups;
mod charts;
mod crash;
mod drains;
mod drift;
mod edge;
mod leaders;
mod managed;
mod monitors;
mod plane;
mod probe;
mod process;
mod proxy;
mod quiet;
mod rights;
mod rotation;
mod scale;
mod sleep;
mod stage;
mod upgrade;
