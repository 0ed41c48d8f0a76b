//! `with-sshd [--cipher NAME] PROGRAM ARGUMENT…`: runs the program beside a throw-away sshd, which it finds by
//! environment variables, and ends as it does. With `--cipher` the server allows that one only.

#[path = "../../../../src/bin/threadline/sshd.rs"]
mod sshd;

use std::error::Error;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use sshd::Sshd;

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("with-sshd: {error}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).peekable();
    let mut server = Sshd::builder();
    let mut cipher = None;
    if arguments.next_if(|argument| argument == "--cipher").is_some() {
        let name = arguments.next().and_then(|name| name.into_string().ok()).ok_or("--cipher wants a name")?;
        server = server.ciphers(&name);
        cipher = Some(name);
    }
    let program = PathBuf::from(arguments.next().ok_or("usage: with-sshd [--cipher NAME] PROGRAM ARGUMENT…")?);

    let server = server.start()?;
    let mut command = Command::new(&program);
    command.args(arguments);
    command.env("SSHD_HOST", server.host()).env("SSHD_PORT", server.port().to_string()).env("SSHD_USER", server.user());
    command.env("SSHD_IDENTITY", server.identity()).env("SSHD_KNOWN_HOSTS", server.known_hosts());
    command.env("SSHD_DIR", server.dir()).env_remove("SSHD_CIPHER").envs(cipher.map(|name| ("SSHD_CIPHER", name)));
    let status = command.status().map_err(|error| format!("{}: {error}", program.display()))?;
    if status.success() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("{}: {status}; the server's log:\n{}", program.display(), server.log());
    Ok(ExitCode::FAILURE)
}
