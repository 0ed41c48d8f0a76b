//! Everything before a connection is up, straight-line and under one deadline.

mod target;
mod tcp;

pub use target::Target;
