//! The integration tests: one binary.

mod rogue;
mod rogue_fixture;
