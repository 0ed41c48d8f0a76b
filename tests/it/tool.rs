//! The `threadline` tool as its users run it.
