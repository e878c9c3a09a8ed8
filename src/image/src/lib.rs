//! The image store: load, verify, unpack.
