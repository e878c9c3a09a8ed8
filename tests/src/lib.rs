//! End-to-end tests that boot guests.
