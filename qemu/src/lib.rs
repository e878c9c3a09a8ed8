//! The one way that images are built and guests started.

pub mod image;
