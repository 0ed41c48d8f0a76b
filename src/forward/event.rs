//! What a forward tells of its connections.

use crate::error::Error;

/// Something that happened to one connection of a [`Forward`](crate::Forward).
///
/// `peer` is where the connection came from and `target` where it was to lead; what the server or a SOCKS client said in
/// them is not to be trusted: escape it before showing it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ForwardEvent {
    /// It is through, from end to end.
    Opened {
        /// Counts the connections of one [`Client`](crate::Client).
        connection: u64,
        /// Where it came from.
        peer: String,
        /// Where it leads.
        target: String,
    },
    /// It did not come about: the target could not be reached, the server does not allow it, or there were too many.
    Refused {
        /// Counts the connections of one [`Client`](crate::Client).
        connection: u64,
        /// Where it came from.
        peer: String,
        /// Where it was to lead; empty if that was not said.
        target: String,
        /// Why.
        error: Error,
    },
    /// It has ended.
    Closed {
        /// Counts the connections of one [`Client`](crate::Client).
        connection: u64,
        /// Where it came from.
        peer: String,
        /// Where it led.
        target: String,
        /// Bytes from this side to the other.
        sent: u64,
        /// Bytes from the other side to this.
        received: u64,
        /// Why it was cut off, if it did not end by itself.
        error: Option<Error>,
    },
}
