//! Updates as a whole.

mod minisign;
