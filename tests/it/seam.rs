//! The seam to libssh2: faults injected, other users of libssh2 beside us.
