//! Any SOCKS client, however its bytes are cut: no panic, and how they are cut does not matter.
#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| threadline::fuzzing::socks(script));
