//! Faults that a test asks for: a panic in a callback or in the transport thread, to prove that it ends one
//! connection and nothing else. Without the feature `_faults` nothing can ask.

/// Where to panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "_faults"), allow(dead_code, reason = "only tests make them"))]
#[non_exhaustive]
pub enum Fault {
    /// The method's `init`, at the next NEWKEYS.
    Init,
    /// The method's `decomp`, at the next packet.
    Decomp,
    /// The IGNORE callback, at the next committed packet.
    Ignore,
    /// The DISCONNECT callback.
    Disconnect,
    /// The SEND callback, at the next packet.
    Send,
    /// The RECV callback, at the next read.
    Recv,
    /// The transport thread's own loop.
    Loop,
    /// No panic: the next packet, in either direction, is one too many under its key.
    WornKey,
}

/// Panics if `wanted` is the fault to strike here; once.
#[inline]
pub(crate) fn strike(wanted: &mut Option<Fault>, here: Fault) {
    if *wanted == Some(here) {
        *wanted = None;
        panic!("injected fault: {here:?}");
    }
}

/// The text of a panic's payload.
pub(crate) fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without text".into())
}
