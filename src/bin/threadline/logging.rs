//! `-v`, `--log` and RUST_LOG.

use std::fs::{OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use env_logger::{Builder, Target};

use crate::report::Failure;

/// How much is logged, and where.
#[derive(Debug, Default, Clone)]
pub(crate) struct Logging {
    /// How often `-v` was given.
    pub verbose: u8,
    /// `-q`.
    pub quiet: bool,
    /// `--log`; stderr otherwise.
    pub file: Option<PathBuf>,
}

/// Starts logging. RUST_LOG counts where there is no `-v`.
pub(crate) fn start(logging: &Logging) -> Result<(), Failure> {
    let mut builder = Builder::new();
    builder.parse_filters(&filters(logging));
    if let Some(path) = &logging.file {
        let file = open(path).map_err(|e| {
            Failure::usage(format!("cannot write the log {}: {e}; name another file with --log", path.display()))
        })?;
        builder.target(Target::Pipe(Box::new(file)));
    }
    // Fails only if there is a logger already, and there is none.
    let _ = builder.try_init();
    Ok(())
}

fn filters(logging: &Logging) -> String {
    let from_environment = std::env::var("RUST_LOG").ok().filter(|filters| !filters.is_empty());
    match (logging.verbose, from_environment) {
        (0, Some(filters)) => filters,
        (0, None) if logging.file.is_some() => "debug".into(),
        (0, None) if logging.quiet => "error".into(),
        (0, None) => "warn".into(),
        (1, _) => "info".into(),
        (2, _) => "debug".into(),
        (_, _) => "trace".into(),
    }
}

/// For the owner's eyes only: the log names hosts and users.
fn open(path: &Path) -> io::Result<std::fs::File> {
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    if file.metadata()?.is_file() {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}
