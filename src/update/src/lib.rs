//! Updates: slots, payloads, signatures, installation, factory reset.

pub mod apply;
pub mod channel;
pub mod dns;
pub mod entry;
pub mod fat;
pub mod fetch;
pub mod hex;
pub mod install;
pub mod local;
pub mod manifest;
pub mod pack;
pub mod payload;
pub mod reset;
pub mod signature;
pub mod slots;
pub mod storage;
pub mod system;
pub mod uki;
pub mod url;
pub mod version;
