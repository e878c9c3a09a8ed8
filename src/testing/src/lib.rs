//! What the tests of several crates need to start servers of their own on loopback, and to ask them.

mod authority;
mod etcdctl;
mod ports;
mod process;

pub use authority::{Authority, Signed, write_certificates};
pub use etcdctl::Etcdctl;
pub use ports::{free_address, free_port};
pub use process::{Process, log_to_stderr};
