//! The integration tests: one binary.

mod docker;
