//! Any payload: no panic, and what is understood survives being written and read again.
#![no_main]

libfuzzer_sys::fuzz_target!(|payload: &[u8]| threadline::fuzzing::wire(payload));
