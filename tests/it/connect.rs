//! A bare connection to each kind of server, for tests that have another subject.
#![allow(dead_code, reason = "helpers for all files of the tests")]

use std::time::Duration;

use threadline::{Client, ClientBuilder};

use crate::proxy::Proxy;
use crate::sshd::Sshd;

/// What a test that is about something else waits for at most. The machine may be busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A builder that gets in: the server's port, user, key and known hosts.
pub fn builder(server: &Sshd) -> ClientBuilder {
    Client::builder(server.host())
        .port(server.port())
        .user(server.user())
        .identity(server.identity())
        .agent(false)
        .known_hosts(server.known_hosts())
}

/// A connection.
#[track_caller]
pub fn client(server: &Sshd) -> Client {
    builder(server).connect().unwrap_or_else(|e| panic!("cannot connect: {e}\n{}", server.log()))
}

/// A builder that gets in through a proxy.
pub fn builder_via(server: &Sshd, proxy: &Proxy) -> ClientBuilder {
    let port = proxy.control().port();
    let known = server.known_hosts_for(port).expect("a known-hosts file for the proxy's port");
    builder_without_known_hosts(server).port(port).known_hosts(known)
}

fn builder_without_known_hosts(server: &Sshd) -> ClientBuilder {
    Client::builder(server.host()).user(server.user()).identity(server.identity()).agent(false)
}

/// A connection through a proxy.
#[track_caller]
pub fn client_via(server: &Sshd, proxy: &Proxy) -> Client {
    builder_via(server, proxy).connect().unwrap_or_else(|e| panic!("cannot connect: {e}\n{}", server.log()))
}
