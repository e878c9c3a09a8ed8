//! Updates as a whole.

mod apply;
mod download;
mod install;
mod minisign;
mod payload;
mod power_cut;
mod simulation;
mod world;
