//! The integration tests: one binary, one file per subject.

/// Channels over one connection: independence, windows, limits, endings, leftovers.
mod channels;
/// Ciphers: keys that change, keys that wear out, other users of libssh2's table.
mod ciphers;
/// Commands: quoting, environment, streams, timeouts, signals, process groups.
mod command;
/// A bare connection to each kind of server, for tests that have another subject.
mod connect;
/// Getting a connection: targets, host keys, authentication, limits.
mod connecting;
/// Windows: what makes room in them, and what must not stop it.
mod credit;
/// Against containers; run by `make docker-test`.
mod docker;
/// Closing and deadlines: how long anything may take.
mod endings;
/// The programs below examples/.
mod examples;
/// The tests of the tools below.
mod fixtures;
/// Tunnels: streams through the server, forwards both ways.
mod forwarding;
/// Servers that break the rules, and networks that break packets.
mod hostile;
/// Servers of other makers, with each cipher.
mod interop;
/// A TCP proxy that delays, slows, splits, falsifies, stalls and cuts.
mod proxy;
/// An SSH server that misbehaves as told.
mod rogue;
/// The rogue server against the real ssh client.
mod rogue_fixture;
/// The seam to libssh2: faults injected, other users of libssh2 beside us.
mod seam;
/// OpenSSH, Dropbear, asyncssh, paramiko and russh, thrown away afterwards.
mod servers;
/// Interactive shells on pseudo-terminals.
mod shell;
/// The throw-away sshd, the same that `threadline demo` starts.
#[path = "../../src/bin/threadline/sshd.rs"]
mod sshd;
/// The `threadline` tool as its users run it.
mod tool;
/// The tutorial's programs beside their Python originals.
mod tutorial;
/// Deadlines, counts of what this process uses, hashes, data.
mod util;
