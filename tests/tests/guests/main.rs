//! Every test that boots a guest. One binary: linking several would take longer than running them.

mod bad_input;
mod bare;
mod boot_stage;
mod cluster;
mod confinement;
mod containers;
mod debian_programs;
mod demo;
mod fleet;
mod journal;
mod live;
mod netboot;
mod network;
mod power_cuts;
mod reset;
mod supervisor;
mod units;
mod update;
mod verified_boot;
