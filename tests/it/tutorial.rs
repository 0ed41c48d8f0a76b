//! The tutorial's programs beside their Python originals.
