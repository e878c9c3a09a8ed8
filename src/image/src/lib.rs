//! The image store: load, verify, unpack.
//!
//! [`Store`] imports `docker save` archives and OCI layouts and hands out [`Image`]s whose layers overlayfs can stack.
//! [`build`] writes small images. Everything that is read is treated as hostile: digests are checked, sizes limited, and no
//! path in a layer leads out of the directory that the layer is unpacked into.

pub mod build;
pub mod decompress;
pub mod digest;
pub mod import;
pub mod layer;
pub mod limits;
pub mod manifest;
pub mod reference;
pub mod removal;
pub mod sample;
pub mod source;
pub mod store;
pub mod table;
pub mod tar;
pub mod tar_writer;
mod tree;
pub mod unpack;

pub use digest::Digest;
pub use import::Imported;
pub use limits::Limits;
pub use reference::Reference;
pub use removal::{Collected, Removed};
pub use store::{Error, Image, ImageId, Listed, Store};
