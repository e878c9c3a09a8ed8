//! Imports that are cut off, and several at once.
