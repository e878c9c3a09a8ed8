//! Every test that boots a guest. One binary: linking several would take longer than running them.

mod bad_input;
mod bare;
mod boot_stage;
mod containers;
mod demo;
mod fleet;
mod network;
mod supervisor;
mod verified_boot;
