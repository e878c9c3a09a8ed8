//! Every test that boots a guest. One binary: linking several would take longer than running them.

mod bad_input;
mod demo;
mod network;
