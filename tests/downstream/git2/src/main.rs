//! threadline beside git2, another user of the same libssh2, in one process: `beside-git2 git2-first|threadline-first`.
//!
//! threadline stores methods of its own in libssh2's tables, which belong to the whole process. So git2 is used before
//! that, after it, and on another thread at the same time; each has to get what it asked for.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use git2::build::RepoBuilder;
use git2::{CertificateCheckStatus, Cred, FetchOptions, RemoteCallbacks, Repository, Signature};
use plain::{Failure, Server};

/// The size of the one file in the repository, and of what threadline sends each time: ten full packets and more.
const BYTES: usize = 384 << 10;
/// Clones made while threadline works.
const CLONES: usize = 2;
const FILE: &str = "noise";

fn main() -> ExitCode {
    match run() {
        Ok(done) => {
            println!("{done}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<String, Failure> {
    let server = Server::from_env()?;
    let cipher = server.cipher.clone().ok_or("run this below with-sshd --cipher NAME")?;
    let origin = server.dir.join("origin");
    make_repository(&origin)?;
    let clone = |name: &str| clone(&server, &origin, name).map_err(|error| format!("git2, {name}: {error}"));
    let transfer = || transfer(&server, &cipher).map_err(|error| format!("threadline: {error}"));

    match std::env::args().nth(1).as_deref() {
        Some("git2-first") => {
            clone("first")?;
            transfer()?;
        }
        Some("threadline-first") => {
            transfer()?;
            clone("second")?;
        }
        _ => return Err("usage: beside-git2 git2-first|threadline-first".into()),
    }

    // Until git2 is done, connections of threadline come and go.
    let cloned = AtomicBool::new(false);
    let transfers = thread::scope(|scope| -> Result<usize, Failure> {
        let cloner = scope.spawn(|| {
            let outcome = (0..CLONES).try_for_each(|n| clone(&format!("beside-{n}")));
            cloned.store(true, Ordering::Release);
            outcome
        });
        let mut transfers = 0;
        while transfers == 0 || !cloned.load(Ordering::Acquire) {
            transfer()?;
            transfers += 1;
        }
        cloner.join().map_err(|_| "the thread with git2 panicked")??;
        Ok(transfers)
    })?;
    clone("last")?;
    transfer()?;
    Ok(format!("{} clones and {} connections, {CLONES} and {transfers} of them at once", CLONES + 2, transfers + 2))
}

/// A connection of threadline's with this cipher, from its beginning to its end.
fn transfer(server: &Server, cipher: &str) -> Result<(), Failure> {
    let client = server.connect(cipher)?;
    plain::echo(&client, BYTES)
}

/// A repository with one commit of one file.
fn make_repository(path: &Path) -> Result<(), Failure> {
    let repository = Repository::init(path)?;
    fs::write(path.join(FILE), plain::noise(BYTES))?;
    let mut index = repository.index()?;
    index.add_path(Path::new(FILE))?;
    let tree = repository.find_tree(index.write_tree()?)?;
    let author = Signature::now("threadline", "threadline@localhost")?;
    repository.commit(Some("HEAD"), &author, &author, "Add noise", &tree, &[])?;
    Ok(())
}

/// Clones it over ssh with git2 and compares the file.
fn clone(server: &Server, origin: &Path, name: &str) -> Result<(), Failure> {
    let mut callbacks = RemoteCallbacks::new();
    callbacks.credentials(|_, _, _| Cred::ssh_key(&server.user, None, &server.identity, None));
    // libgit2 reads no known_hosts file but the user's own, which knows nothing of a throw-away server.
    callbacks.certificate_check(|_, _| Ok(CertificateCheckStatus::CertificateOk));
    let mut options = FetchOptions::new();
    options.remote_callbacks(callbacks);
    let url = format!("ssh://{}@{}:{}{}", server.user, server.host, server.port, origin.display());
    let into = server.dir.join(name);
    RepoBuilder::new().fetch_options(options).clone(&url, &into)?;
    if fs::read(into.join(FILE))? != plain::noise(BYTES) {
        return Err("the cloned file differs from the original".into());
    }
    Ok(())
}
