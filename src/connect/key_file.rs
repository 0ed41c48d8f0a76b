//! Private key files, as far as we look into them: is it encrypted, and whose is it. libssh2 does the rest.

use std::io;
use std::path::Path;

use zeroize::Zeroizing;

/// No private key is larger; a wrong file should not be read whole.
const MAX_SIZE: u64 = 1024 * 1024;

/// A key file's text, zeroed when dropped, and what its header says.
pub(crate) struct KeyFile {
    pub text: Zeroizing<String>,
    pub encrypted: bool,
    /// The public key's blob; OpenSSH's format has it in the clear.
    pub public: Option<Vec<u8>>,
}

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
    let (encrypted, public) = match openssh_header(&text) {
        Some(header) => (header.encrypted, Some(header.public)),
        None => (text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED"), None),
    };
    Ok(KeyFile { text, encrypted, public })
}

struct Header {
    encrypted: bool,
    public: Vec<u8>,
}

/// The clear part of an OpenSSH private key (PROTOCOL.key).
fn openssh_header(text: &str) -> Option<Header> {
    let body = text.split_once("-----BEGIN OPENSSH PRIVATE KEY-----")?.1;
    let body = body.split_once("-----END")?.0;
    let packed: Zeroizing<String> = Zeroizing::new(body.split_ascii_whitespace().collect());
    let bytes = Zeroizing::new(decode_base64(&packed)?);
    let mut rest = bytes.strip_prefix(b"openssh-key-v1\0")?;
    let _cipher = take_string(&mut rest)?;
    let kdf = take_string(&mut rest)?;
    let _options = take_string(&mut rest)?;
    let _count = rest.get(..4)?;
    rest = &rest[4..];
    let public = take_string(&mut rest)?.to_vec();
    Some(Header { encrypted: kdf != b"none", public })
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
