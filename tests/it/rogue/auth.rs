//! The server's side of RFC 4252: anybody gets in by the methods that the script names, nobody by others.

use std::io;

use super::conn::ServerConn;
use super::wire::{invalid, message, msg, Reader};

/// Who got in, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    pub user: String,
    pub method: String,
    /// The methods refused before, in order.
    pub refused: Vec<String>,
}

impl ServerConn {
    /// Lets anybody in who sends a password or signs with a key, whatever it is.
    pub fn accept_any_auth(&mut self) -> io::Result<Login> {
        self.accept_auth(&["password", "publickey"])
    }

    /// Lets anybody in by one of these methods. "none" is refused unless it is among them.
    pub fn accept_auth(&mut self, methods: &[&str]) -> io::Result<Login> {
        self.accept_service("ssh-userauth")?;
        let mut refused = Vec::new();
        loop {
            let payload = self.expect(msg::USERAUTH_REQUEST)?;
            let mut fields = Reader::message(&payload, msg::USERAUTH_REQUEST)?;
            let (user, _service, method) = (fields.text()?, fields.text()?, fields.text()?);
            if !methods.contains(&method.as_str()) {
                self.refuse_auth(methods)?;
                refused.push(method);
            } else if let Some(query) = key_query(&method, fields)? {
                self.send(&query)?;
            } else {
                self.send(&[msg::USERAUTH_SUCCESS])?;
                return Ok(Login { user, method, refused });
            }
        }
    }

    /// Grants the service that the client asks for first.
    pub fn accept_service(&mut self, name: &str) -> io::Result<()> {
        let payload = self.expect(msg::SERVICE_REQUEST)?;
        let asked = Reader::message(&payload, msg::SERVICE_REQUEST)?.text()?;
        if asked != name {
            return Err(invalid(format!("the client asks for the service {asked}")));
        }
        self.send(&message(msg::SERVICE_ACCEPT).string(name).done())
    }

    /// Refuses an attempt and says which methods can continue.
    pub fn refuse_auth(&mut self, can_continue: &[&str]) -> io::Result<()> {
        self.send(&message(msg::USERAUTH_FAILURE).names(can_continue).bool(false).done())
    }

    /// Text to show before authentication (RFC 4252 §5.4).
    pub fn auth_banner(&mut self, text: &str) -> io::Result<()> {
        self.send(&message(msg::USERAUTH_BANNER).string(text).string("").done())
    }
}

/// The PK_OK, if this is a question whether a key would do rather than a signature (RFC 4252 §7).
fn key_query(method: &str, mut fields: Reader<'_>) -> io::Result<Option<Vec<u8>>> {
    if method != "publickey" || fields.bool()? {
        return Ok(None);
    }
    let (algorithm, blob) = (fields.string()?, fields.string()?);
    Ok(Some(message(msg::USERAUTH_PK_OK).string(algorithm).string(blob).done()))
}
