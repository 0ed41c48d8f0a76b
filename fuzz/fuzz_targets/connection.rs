//! A hostile peer's payloads among operations of ours, in any order: no panic, no channel lost, nothing unreadable sent.
#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| threadline::fuzzing::connection(script));
