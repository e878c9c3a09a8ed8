//! The one way that images are built and guests started.

pub mod accel;
pub mod bench;
pub mod cluster;
pub mod console;
pub mod demo;
pub mod guest;
pub mod http;
pub mod image;
pub mod interactive;
pub mod lan;
pub mod power;
pub mod process;
pub mod qmp;
pub mod seed;
pub mod ssh;
pub mod system;
