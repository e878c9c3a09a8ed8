//! What units and the kernel say to the journal, and the moments that users ask for.

#![no_main]

#[allow(dead_code)]
#[path = "../../src/journal/tests/fuzz/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::text(bytes));
