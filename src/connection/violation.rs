//! How a peer can break RFC 4254: one variant per breach. Each of them ends the connection.

/// A breach of RFC 4254 by the peer.
///
/// Nothing can be repaired after one: the two ends no longer agree on windows, numbers or the order of replies.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    /// A payload without even a message number.
    #[error("an empty payload")]
    Empty,
    /// A message of the transport or authentication layer where a channel message belongs (RFC 4250 §4.1).
    #[error("message number {number} is below 80 and does not belong to the connection protocol")]
    BelowConnection {
        /// The message number.
        number: u8,
    },
    /// A message that ends before its fields do, or a string longer than what is left of the message.
    #[error("{message} is cut short in its field \"{field}\"")]
    Truncated {
        /// The message, as the RFC names it.
        message: &'static str,
        /// The field, as the RFC names it.
        field: &'static str,
    },
    /// A message for a channel number that names no channel.
    #[error("{message} for channel {channel}, which does not exist")]
    UnknownChannel {
        /// The message.
        message: &'static str,
        /// The number as received.
        channel: u32,
    },
    /// A message for a channel whose open has not been answered yet (RFC 4254 §5.1).
    #[error("{message} for channel {channel}, which is not open yet")]
    NotOpen {
        /// The message.
        message: &'static str,
        /// Our number of the channel.
        channel: u32,
    },
    /// An answer to an open, for a channel that is not being opened by us (RFC 4254 §5.1).
    #[error("{message} for channel {channel}, which we are not opening")]
    NotOpening {
        /// The message.
        message: &'static str,
        /// Our number of the channel.
        channel: u32,
    },
    /// Data in a message longer than the maximum packet size we advertised (RFC 4254 §5.2).
    #[error("{bytes} bytes of data in one message on channel {channel}, where {limit} is the most we accept")]
    PacketTooLarge {
        /// Our number of the channel.
        channel: u32,
        /// Bytes of data in the message.
        bytes: u32,
        /// What we advertised.
        limit: u32,
    },
    /// Data beyond the window we granted (RFC 4254 §5.2).
    #[error("{bytes} bytes of data on channel {channel}, where the window allows {window}")]
    WindowExceeded {
        /// Our number of the channel.
        channel: u32,
        /// Bytes of data in the message.
        bytes: u32,
        /// Bytes the peer had been told it may send.
        window: u32,
    },
    /// A window grown past 2^32-1 (RFC 4254 §5.2).
    #[error("channel {channel}: a window of {window} cannot grow by {bytes}, it would pass 4294967295")]
    WindowOverflow {
        /// Our number of the channel.
        channel: u32,
        /// The window before.
        window: u32,
        /// The growth asked for.
        bytes: u32,
    },
    /// Data after the peer's EOF (RFC 4254 §5.3).
    #[error("{bytes} bytes of data on channel {channel} after its EOF")]
    DataAfterEof {
        /// Our number of the channel.
        channel: u32,
        /// Bytes of data in the message.
        bytes: u32,
    },
    /// A second EOF (RFC 4254 §5.3).
    #[error("a second EOF on channel {channel}")]
    EofAfterEof {
        /// Our number of the channel.
        channel: u32,
    },
    /// A reply on a channel where no request waits for one (RFC 4254 §5.4).
    #[error("a reply on channel {channel}, where no request waits for one")]
    ReplyWithoutRequest {
        /// Our number of the channel.
        channel: u32,
    },
    /// A reply to a global request, where none waits for one (RFC 4254 §4).
    #[error("a reply to a global request, where none waits for one")]
    GlobalReplyWithoutRequest,
    /// The peer asks faster than it takes our answers.
    #[error("{replies} answers of {bytes} bytes wait to be sent: the peer asks but does not read")]
    ReplyFlood {
        /// Answers not sent.
        replies: usize,
        /// Their length in bytes.
        bytes: usize,
    },
    /// The peer opens more channels than we have decided about.
    #[error("{opens} channel opens of the peer wait for an answer")]
    OpenFlood {
        /// Opens not answered.
        opens: usize,
    },
}
