//! Packet lengths that block-wise methods can decrypt.

/// The bytes of a packet length.
pub(super) const LENGTH: usize = 4;

/// How packets of one direction are framed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Framing {
    pub block: u32,
    pub length: LengthField,
}

/// Where the packet length stands when the first block has been decrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LengthField {
    /// In the block, as a part of what is encrypted.
    Inside,
    /// In the block, in the clear.
    InClear,
    /// Before the block, in the clear: encrypt-then-MAC.
    Before,
}

impl Framing {
    /// Whether a packet of this length is a whole number of blocks.
    pub fn accepts(self, length: u32) -> bool {
        let blocks = match self.length {
            LengthField::Inside => length.checked_add(4),
            LengthField::InClear | LengthField::Before => Some(length),
        };
        blocks.is_some_and(|bytes| bytes >= self.block && bytes % self.block == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_blocks_are_accepted() {
        let with = |length| Framing { block: 16, length };
        for (length, bad, good) in [
            (LengthField::Inside, [0, 1, 13, 16, u32::MAX], [12, 28, 32764]),
            (LengthField::InClear, [0, 1, 12, 15, u32::MAX], [16, 32, 32768]),
            (LengthField::Before, [0, 1, 12, 17, u32::MAX], [16, 32, 32768]),
        ] {
            assert!(good.iter().all(|&n| with(length).accepts(n)), "{length:?}");
            assert!(!bad.iter().any(|&n| with(length).accepts(n)), "{length:?}");
        }
    }
}
