//! The `threadline` tool.
fn main() {}
