//! Any bytes as packets and private keys, and sealed packets that were changed: refused, and nothing else happens.
#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| threadline::fuzzing::ciphers(script));
