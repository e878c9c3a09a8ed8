//! Whole runs on a scratch root.
