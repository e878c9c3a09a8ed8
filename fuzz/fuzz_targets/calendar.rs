//! Calendar expressions.

#![no_main]

#[allow(dead_code)]
#[path = "../../src/unit/tests/fuzz/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::calendar(bytes));
