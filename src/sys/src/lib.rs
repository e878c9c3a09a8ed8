//! Safe, thin wrappers for the kernel interfaces that no good crate covers.
