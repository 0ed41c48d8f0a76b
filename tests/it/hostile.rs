//! Servers that break the rules, and networks that break packets.
