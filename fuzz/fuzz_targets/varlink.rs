//! Messages of PID 1's control socket.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| orlop_init::fuzz_call(bytes));
