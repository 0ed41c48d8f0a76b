//! What a server can do wrong around a key re-exchange.

use std::io;
use std::time::Duration;

use super::cipher::{Cipher, Mac, Part};
use super::conn::ServerConn;
use super::kex::{HostKey, Offer};
use super::wire::{ignore, msg};

/// Long enough for the client to have read what came before: the pause is the fault, nothing waits for it to be enough.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RekeyFault {
    /// So many bytes of the next packet in the same segment as KEXINIT, a pause, then the rest; then the exchange is
    /// finished. No fault at all by the RFCs, but libssh2 on its own crashes once it has a block to decrypt: from 16
    /// bytes on with AES, from 8 on with chacha20. The packet has more than 200 bytes.
    SplitBehindKexinit(usize),
    /// Another cipher is offered than the one in use. A client that goes along gets an exchange without fault.
    OtherCipher,
    /// The cipher in use with another MAC (needs a cipher that has one). Goes on like `OtherCipher`.
    OtherMac,
    /// Nothing is offered that the client can know.
    NothingInCommon,
    /// A bit of the MAC of the KEX_ECDH_REPLY is flipped.
    BadMacInside(Part),
    /// The signature of the exchange hash is wrong in one bit.
    BadSignature,
    /// The exchange is signed, rightly, with another host key; it is finished.
    OtherHostKey,
    /// A second KEXINIT right behind the first.
    SecondKexinit,
    /// A second KEXINIT where KEX_ECDH_REPLY belongs.
    KexinitForReply,
    /// KEXINIT, and then nothing.
    NeverReplies,
    /// KEXINIT and KEX_ECDH_REPLY, and then nothing.
    NeverNewkeys,
    /// NEWKEYS right behind KEXINIT.
    NewkeysTooEarly,
    /// Data for this channel right behind our KEXINIT; then the exchange is finished.
    DataBehindKexinit(u32),
    /// Data for this channel between KEX_ECDH_REPLY and NEWKEYS; then the exchange is finished.
    DataBeforeNewkeys(u32),
    /// The connection ends behind KEX_ECDH_REPLY.
    EndsInside,
}

/// What `DataBehindKexinit` and `DataBeforeNewkeys` send, against RFC 4253 §7.1: between KEXINIT and NEWKEYS nothing of a
/// channel may be sent. (OpenSSH's client takes it all the same.)
pub const FORBIDDEN: &[u8] = b"data inside a key exchange\n";

impl ServerConn {
    /// Begins a key exchange and does this wrong. Returns `Ok` once the fault is on the wire, or where the exchange is
    /// finished after it; the error is the client's refusal to go on.
    pub fn rekey_with(&mut self, fault: RekeyFault) -> io::Result<()> {
        use RekeyFault::*;
        let offer = Offer { strict: false, ..self.offer.clone() };
        match fault {
            SplitBehindKexinit(size) => return self.split_behind_kexinit(&offer, size),
            OtherCipher => return self.rekey(&self.other_cipher(offer)?),
            OtherMac => return self.rekey(&self.other_mac(offer)?),
            NothingInCommon => return self.send_kexinit(&offer.cipher("rot13@threadline.test")),
            OtherHostKey => {
                self.host_key = HostKey::random();
                return self.rekey(&offer);
            }
            SecondKexinit => {
                let twice = self.capture(|conn| {
                    conn.send_kexinit(&offer)?;
                    conn.send_kexinit(&offer)
                })?;
                return self.write_raw(&twice);
            }
            NewkeysTooEarly => {
                let both = self.capture(|conn| {
                    conn.send_kexinit(&offer)?;
                    conn.send(&[msg::NEWKEYS])
                })?;
                return self.write_raw(&both);
            }
            DataBehindKexinit(channel) => {
                let both = self.capture(|conn| {
                    conn.send_kexinit(&offer)?;
                    conn.packet_of_data(channel, FORBIDDEN)
                })?;
                self.write_raw(&both)?;
                self.recv_kexinit()?;
                return self.finish_exchange();
            }
            _ => {}
        }
        self.send_kexinit(&offer)?;
        if fault == NeverReplies {
            return Ok(());
        }
        self.recv_kexinit()?;
        self.recv_ecdh_init()?;
        if fault == KexinitForReply {
            return self.send_kexinit(&offer);
        }
        let mut reply = self.kex_reply()?;
        match fault {
            BadMacInside(part) => return self.send_corrupted(&reply, part),
            BadSignature => {
                if let Some(last) = reply.last_mut() {
                    *last ^= 1;
                }
            }
            _ => {}
        }
        self.send(&reply)?;
        match fault {
            NeverNewkeys | BadSignature => return Ok(()),
            EndsInside => return self.shutdown_write(),
            DataBeforeNewkeys(channel) => self.packet_of_data(channel, FORBIDDEN)?,
            _ => {}
        }
        self.send_newkeys()?;
        self.recv_newkeys()
    }

    fn split_behind_kexinit(&mut self, offer: &Offer, size: usize) -> io::Result<()> {
        let kexinit = self.capture(|conn| conn.send_kexinit(offer))?;
        let next = self.seal(&ignore(&[0; 200]));
        self.write_split(&[&kexinit[..], &next].concat(), &[kexinit.len() + size], PAUSE)?;
        self.recv_kexinit()?;
        self.finish_exchange()
    }

    fn other_cipher(&self, offer: Offer) -> io::Result<Offer> {
        let used = self.agreed_before()?.ciphers[1];
        let other = Cipher::NAMES.iter().find(|(_, cipher)| *cipher != used && cipher.is_aead());
        Ok(offer.cipher(other.expect("more than one cipher").0))
    }

    fn other_mac(&self, offer: Offer) -> io::Result<Offer> {
        let agreed = self.agreed_before()?;
        if agreed.ciphers[1].is_aead() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the cipher in use has no MAC to change"));
        }
        let other = Mac::NAMES.iter().find(|(_, mac)| *mac != agreed.macs[1]);
        Ok(offer.cipher(agreed.ciphers[1].name()).mac(other.expect("more than one MAC").0))
    }
}
