//! What the tests of several crates need to start servers of their own on loopback.

mod authority;
mod ports;
mod process;

pub use authority::{Authority, Signed, write_certificates};
pub use ports::{free_address, free_port};
pub use process::{Process, log_to_stderr};
