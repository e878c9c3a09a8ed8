//! Datagrams of sd_notify(3).

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| orlop_init::fuzz_notification(bytes));
