//! Private key files, as far as we look into them: is it encrypted, and whose is it. libssh2 does the rest, but for 3DES.

use std::io;
use std::path::Path;

use zeroize::Zeroizing;

use crate::error::escape;
use crate::transport::triple_des;

const ARMOUR: (&str, &str) = ("-----BEGIN OPENSSH PRIVATE KEY-----", "-----END OPENSSH PRIVATE KEY-----");
const MAGIC: &[u8] = b"openssh-key-v1\0";
/// The cipher of PROTOCOL.key that the bundled libssh2 does not have.
const TRIPLE_DES: &str = "3des-cbc";
/// As ssh-keygen does; libssh2 reads no line of more than 128 characters.
const LINE: usize = 70;

/// No private key is larger; a wrong file should not be read whole.
const MAX_SIZE: u64 = 1024 * 1024;

/// A key file's text, zeroed when dropped, and what its header says.
pub(crate) struct KeyFile {
    pub text: Zeroizing<String>,
    pub encrypted: bool,
    /// The public key's blob; OpenSSH's format has it in the clear.
    pub public: Option<Vec<u8>>,
    /// What it is encrypted with; OpenSSH's format names it.
    cipher: Option<String>,
}

impl KeyFile {
    /// The text and the passphrase for libssh2 to read it with; the error is what to tell the user.
    pub fn for_libssh2(
        self,
        passphrase: Option<Zeroizing<String>>,
        ciphers: &[String],
    ) -> Result<(Zeroizing<String>, Option<Zeroizing<String>>), String> {
        match (&self.cipher, &passphrase) {
            (Some(cipher), Some(passphrase)) if cipher == TRIPLE_DES => {
                let text = without_triple_des(&self.text, passphrase).ok_or(WRONG_PASSPHRASE)?;
                Ok((text, None))
            }
            (Some(cipher), Some(_)) if !ciphers.contains(cipher) => Err(format!(
                "the key is encrypted with {}, which is not known here; encrypt it anew with ssh-keygen -p -Z aes256-ctr",
                escape(cipher)
            )),
            _ => Ok((self.text, passphrase)),
        }
    }
}

/// What is told about a key that does not open.
pub(crate) const WRONG_PASSPHRASE: &str = "wrong passphrase, or the file is damaged";

/// Reads a key file.
pub(crate) fn read(path: &Path) -> io::Result<KeyFile> {
    let size = std::fs::metadata(path)?.len();
    if size > MAX_SIZE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too large for a key"));
    }
    let text = Zeroizing::new(std::fs::read_to_string(path)?);
    if !text.contains("PRIVATE KEY-----") {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no private key (is it the .pub file?)"));
    }
    let (encrypted, public, cipher) = match unpack(&text).as_ref().and_then(|bytes| Parts::of(bytes)) {
        Some(parts) => {
            let cipher = String::from_utf8_lossy(parts.cipher).into_owned();
            (parts.kdf != b"none", Some(parts.public.to_vec()), Some(cipher))
        }
        None => (text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED"), None, None),
    };
    Ok(KeyFile { text, encrypted, public, cipher })
}

/// The bytes of a key in OpenSSH's format.
fn unpack(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let body = text.split_once(ARMOUR.0)?.1;
    let body = body.split_once("-----END")?.0;
    let packed: Zeroizing<String> = Zeroizing::new(body.split_ascii_whitespace().collect());
    Some(Zeroizing::new(decode_base64(&packed)?))
}

/// An OpenSSH private key (PROTOCOL.key): all but the private part is in the clear.
struct Parts<'k> {
    cipher: &'k [u8],
    kdf: &'k [u8],
    kdf_options: &'k [u8],
    public: &'k [u8],
    /// The private part and what follows it; a key that is cut off is libssh2's to refuse.
    rest: &'k [u8],
}

impl<'k> Parts<'k> {
    fn of(bytes: &'k [u8]) -> Option<Parts<'k>> {
        let mut rest = bytes.strip_prefix(MAGIC)?;
        let cipher = take_string(&mut rest)?;
        let kdf = take_string(&mut rest)?;
        let kdf_options = take_string(&mut rest)?;
        let _count = rest.get(..4)?;
        rest = &rest[4..];
        let public = take_string(&mut rest)?;
        Some(Parts { cipher, kdf, kdf_options, public, rest })
    }
}

/// The same key as a text that is not encrypted; `None` if the passphrase does not open it.
fn without_triple_des(text: &str, passphrase: &str) -> Option<Zeroizing<String>> {
    let bytes = unpack(text)?;
    let Parts { kdf, mut kdf_options, public, mut rest, .. } = Parts::of(&bytes)?;
    if kdf != b"bcrypt" {
        return None;
    }
    let salt = take_string(&mut kdf_options)?;
    let rounds = u32::from_be_bytes(kdf_options.try_into().ok()?);
    let private = triple_des::decrypt(passphrase.as_bytes(), salt, rounds, take_string(&mut rest)?)?;
    // It begins with a random number, twice.
    if private.get(..4)? != private.get(4..8)? {
        return None;
    }
    let mut plain = Zeroizing::new(Vec::with_capacity(bytes.len()));
    plain.extend_from_slice(MAGIC);
    for string in [b"none".as_slice(), b"none", b""] {
        put_string(&mut plain, string);
    }
    plain.extend_from_slice(&1u32.to_be_bytes());
    put_string(&mut plain, public);
    put_string(&mut plain, &private);
    Some(armour(&plain))
}

/// What `ssh-keygen` makes of a key's bytes.
fn armour(bytes: &[u8]) -> Zeroizing<String> {
    use base64::Engine;
    let packed = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(bytes));
    // Enough from the start: a text that grows leaves copies behind.
    let mut text = Zeroizing::new(String::with_capacity(2 * packed.len() + 100));
    text.push_str(ARMOUR.0);
    text.push('\n');
    for (at, letter) in packed.chars().enumerate() {
        if at > 0 && at % LINE == 0 {
            text.push('\n');
        }
        text.push(letter);
    }
    text.push('\n');
    text.push_str(ARMOUR.1);
    text.push('\n');
    text
}

fn put_string(bytes: &mut Vec<u8>, string: &[u8]) {
    // No key is anywhere near 4 GiB: its file is not.
    let len = u32::try_from(string.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes.extend_from_slice(string);
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

/// Takes a string off the front of SSH wire data (RFC 4251 §5).
pub(crate) fn take_string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = u32::from_be_bytes(rest.get(..4)?.try_into().ok()?) as usize;
    let string = rest.get(4..4usize.checked_add(len)?)?;
    *rest = &rest[4 + len..];
    Some(string)
}

/// The algorithm named in the data of a public-key request (RFC 4252 §7).
pub(crate) fn signed_algorithm(data: &[u8]) -> Option<&[u8]> {
    let mut rest = data;
    let _session = take_string(&mut rest)?;
    rest = rest.get(1..)?;
    let _user = take_string(&mut rest)?;
    let _service = take_string(&mut rest)?;
    let _method = take_string(&mut rest)?;
    rest = rest.get(1..)?;
    take_string(&mut rest)
}
