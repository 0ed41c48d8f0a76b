//! Getting a connection: targets, host keys, authentication, limits.
