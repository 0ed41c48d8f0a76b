//! Tunnels: connections of others, carried over ours.

mod endpoint;

pub use endpoint::Endpoint;
