//! Everything before a connection is up, straight-line and under one deadline.

mod target;

pub use target::Target;
