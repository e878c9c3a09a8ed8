//! The log: writer, reader and output formats.
//!
//! [`writer`] is the role `orlop journal`; [`reader`] and [`follow`] read the files that it leaves, without it, and so does
//! [`forward`], the role `orlop forward`.
//! The files' format is described in `docs/journal-format.md`.

pub mod clock;
pub mod control;
pub mod entry;
pub mod filter;
pub mod follow;
pub mod format;
pub mod forward;
pub mod kmsg;
pub mod limit;
pub mod lines;
pub mod reader;
mod recover;
pub mod render;
pub mod scan;
pub mod segments;
pub mod store;
pub mod when;
pub mod writer;
