//! Unit files of every kind, and what is done with them.

#![no_main]

#[allow(dead_code)]
#[path = "../../src/unit/tests/fuzz/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::unit_file(bytes));
