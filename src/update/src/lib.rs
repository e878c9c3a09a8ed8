//! Updates: slots, payloads, signatures, installation, factory reset.

pub mod hex;
pub mod signature;
pub mod version;
