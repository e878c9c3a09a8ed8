//! The network against the real kernel, each test in network namespaces of its own.
//!
//! Needs root, and links of the kinds veth and bridge; without them each test says so and ends.

mod containers;
mod links;
mod world;
