//! Telling a script that all forwards stand.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::thread;

use crate::report::{self, Failure};

use super::Tunnels;

/// Whom to tell, once.
#[derive(Debug)]
pub(super) struct Ready {
    descriptor: Option<File>,
    command: Option<OsString>,
    host: String,
    /// Our stdout carries NDJSON: the command's goes to stderr.
    json: bool,
}

impl Ready {
    /// Opens the descriptor now, so that a wrong one is found before anything is done.
    pub fn prepare(host: &str, plan: &Tunnels) -> Result<Ready, Failure> {
        let descriptor = plan.ready_fd.map(|number| {
            let opened = OpenOptions::new().write(true).open(format!("/dev/fd/{number}"));
            opened.map_err(|e| {
                Failure::usage(format!(
                    "--ready-fd {number} cannot be written to ({e}); it has to be an open pipe or file"
                ))
            })
        });
        let command = plan.ready_command.clone();
        Ok(Ready { descriptor: descriptor.transpose()?, command, host: host.to_owned(), json: plan.json })
    }

    /// Writes the line and starts the command; does not wait for it.
    pub fn tell(self, places: &[String]) {
        if let Some(mut descriptor) = self.descriptor {
            let line = format!("ready\t{}\n", places.join("\t"));
            if let Err(e) = descriptor.write_all(line.as_bytes()) {
                report::line(&format!("cannot write to the ready descriptor: {e}"));
            }
        }
        let Some(text) = self.command else { return };
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(text).stdin(Stdio::null()).env("THREADLINE_HOST", &self.host);
        for (index, place) in places.iter().enumerate() {
            command.env(format!("THREADLINE_FORWARD_{}", index + 1), place);
        }
        if self.json {
            command.stdout(io::stderr());
        }
        let waiting = thread::Builder::new().name("tl:ready".into()).spawn(move || match command.status() {
            Ok(status) if status.success() => {}
            Ok(status) => report::line(&format!("the ready command failed: {status}")),
            Err(e) => report::line(&format!("cannot run the ready command: {e}")),
        });
        if let Err(e) = waiting {
            report::line(&format!("cannot start a thread for the ready command: {e}"));
        }
    }
}
