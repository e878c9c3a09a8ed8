//! Files of the journal: read, shown and written anew.

#![no_main]

#[allow(dead_code)]
#[path = "../../src/journal/tests/fuzz/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::segment(bytes));
