//! Building a remote command: `std::process::Command`'s shape over an SSH session channel.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::channel::{Channel, OnDrop};
use crate::child::{Child, Output};
use crate::client::Client;
use crate::error::{Error, Phase, Result, Stream};
use crate::exit_status::ExitStatus;
use crate::kill;
use crate::quote;
use crate::shell::{Pty, Shell};
use crate::transport::message::{AtLimit, Run, SessionPlan};
use crate::transport::pipe::Limit;

/// A command's text and environment must fit into one SSH packet.
const MAX_TEXT: usize = 32 * 1024;

/// What one of a command's standard streams is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stdio(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Piped,
    Null,
    Inherit,
}

impl Stdio {
    /// A stream of the [`Child`].
    #[must_use]
    pub fn piped() -> Stdio {
        Stdio(Kind::Piped)
    }

    /// Input: at its end from the start. Output: thrown away as it comes.
    #[must_use]
    pub fn null() -> Stdio {
        Stdio(Kind::Null)
    }

    /// This process's own stream, copied by a thread. For input, what this process reads ahead and the command does
    /// not take is lost, and the thread stays until its read returns.
    #[must_use]
    pub fn inherit() -> Stdio {
        Stdio(Kind::Inherit)
    }
}

/// When a command counts as ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ExitPolicy {
    /// When the server has closed the channel. sshd does that when the command has ended *and* everybody who holds
    /// its output has; a daemon left behind with the pipes open delays it for as long as it lives.
    #[default]
    Closed,
    /// When the exit status has come and this much time has passed; output that comes later is lost.
    AfterStatus(Duration),
}

/// A remote command, to be configured and run.
///
/// Made by [`Client::command`] (a program and its arguments, quoted for you) or [`Client::sh`] (text for the remote
/// login shell). It is `std::process::Command` where that makes sense; the differences:
///
/// * The remote side is not a child of this process: with [`spawn`](Command::spawn) the output streams are piped and
///   stdin is empty, unless set otherwise; nothing is inherited by default.
/// * The environment and the working directory are the server's, not this process's.
/// * A program that does not exist is no error of `spawn`: the remote shell says so on stderr and ends with status 127.
/// * Dropping the [`Child`] does something, see [`OnDrop`]; timeouts are part of the command.
/// * The text and its environment must fit into one packet: 32 KiB. Larger scripts go through stdin of `sh -s`.
/// * It is cheap to clone, may be run many times, and from many threads at once.
///
/// # What the login shell has to do with it
///
/// An SSH server gives the command's text to the user's login shell. [`Client::command`] quotes what it is given, so
/// that sh, dash, bash, zsh, ksh, fish, csh and tcsh all hand the same bytes to the program; only NUL cannot be sent.
/// What remains the shell's:
///
/// * Which program a name means. A builtin of the shell (`printf`, `test`, `kill`) is taken for its namesake, and with
///   fish a function or alias of `config.fish`, too; in the other shells aliases and reserved words are not. With
///   [`current_dir`](Command::current_dir), [`env_inline`](Command::env_inline),
///   [`process_group`](Command::process_group), or a newline in an argument, it is always a program, and `cd` or
///   `export` are none.
/// * What it prints by itself, when its startup files do.
/// * fish re-encodes the values of variables that are not ASCII, unless the locale is a UTF-8 one; sshd sets none by
///   default. Values given with `env_inline` to a program arrive, those that a fish script of [`Client::sh`] hands on do
///   not.
///
/// [`Client::sh`] and [`Client::exec_command`] quote nothing: their text is in the login shell's language, and that is
/// not sh's with fish (`$status` for `$?`) or csh and tcsh (`setenv`, no `2>&1`). A script for sh whatever the login
/// shell is: `client.command("sh").arg("-c").arg(script)`.
///
/// # Examples
///
/// ```no_run
/// # fn main() -> threadline::Result<()> {
/// let client = threadline::Client::connect("alice@web1")?;
/// let found = client.command("grep").arg("it's").arg("/var/log/my app.log").output()?;
/// print!("{}", String::from_utf8_lossy(&found.stdout));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a command does nothing until it is spawned"]
pub struct Command {
    client: Client,
    text: Text,
    env: Vec<(Vec<u8>, Vec<u8>)>,
    inline_env: Vec<(Vec<u8>, Vec<u8>)>,
    directory: Option<Vec<u8>>,
    stdin: Option<Stdio>,
    stdout: Option<Stdio>,
    stderr: Option<Stdio>,
    pty: Option<Pty>,
    timeout: Option<Duration>,
    idle_timeout: Option<Duration>,
    start_timeout: Option<Duration>,
    exit_policy: ExitPolicy,
    on_drop: OnDrop,
    agent: bool,
    at_limit: AtLimit,
    process_group: bool,
}

#[derive(Clone)]
enum Text {
    /// For the login shell, as it is.
    Shell(Vec<u8>),
    /// To be quoted.
    Words(Vec<Vec<u8>>),
    /// None: the login shell itself. It takes no arguments; the refusal comes with the others, at the start.
    LoginShell {
        arguments: bool,
    },
    Subsystem(String),
}

impl std::fmt::Debug for Command {
    /// Without the text and the environment's values: both may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Command").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl Command {
    fn new(client: &Client, text: Text) -> Command {
        Command {
            client: client.clone(),
            text,
            env: Vec::new(),
            inline_env: Vec::new(),
            directory: None,
            stdin: None,
            stdout: None,
            stderr: None,
            pty: None,
            timeout: client.command_timeout(),
            idle_timeout: None,
            start_timeout: None,
            exit_policy: ExitPolicy::default(),
            on_drop: OnDrop::default(),
            agent: false,
            at_limit: client.at_limit(),
            process_group: false,
        }
    }

    pub(crate) fn program(client: &Client, program: &[u8]) -> Command {
        Command::new(client, Text::Words(vec![program.to_vec()]))
    }

    pub(crate) fn shell(client: &Client, text: &[u8]) -> Command {
        Command::new(client, Text::Shell(text.to_vec()))
    }

    pub(crate) fn subsystem(client: &Client, name: &str) -> Command {
        Command::new(client, Text::Subsystem(name.to_owned()))
    }

    /// Adds an argument. With [`Client::command`] it is quoted, so that the program gets exactly these bytes; with
    /// [`Client::sh`] it is quoted, too, and appended to the text; there a newline in it ends the command if the login
    /// shell is csh or tcsh, which know no quotes for one.
    pub fn arg(mut self, arg: impl AsRef<[u8]>) -> Command {
        match &mut self.text {
            Text::Words(words) => words.push(arg.as_ref().to_vec()),
            Text::Shell(text) => {
                text.push(b' ');
                quote::word(text, arg.as_ref());
            }
            // A subsystem has no arguments; the refusal comes with the others, at the start.
            Text::Subsystem(name) => name.push('\0'),
            Text::LoginShell { arguments } => *arguments = true,
        }
        self
    }

    /// Adds arguments, each as [`arg`](Command::arg) does.
    pub fn args<A: AsRef<[u8]>>(mut self, args: impl IntoIterator<Item = A>) -> Command {
        for arg in args {
            self = self.arg(arg);
        }
        self
    }

    /// Asks the server to set a variable (RFC 4254 §6.4). sshd allows only what its AcceptEnv lists; a refusal is an
    /// error, and then nothing is run. [`env_inline`](Command::env_inline) works with every server.
    pub fn env(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Command {
        self.env.push((name.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }

    /// Sets a variable inside the command's text, by `env`: that needs no AcceptEnv. Other users of the server may see
    /// the value in its process list for a moment.
    ///
    /// Text of [`Client::sh`] is then run by a second login shell, `"$SHELL" -c`, so that all of it sees the variable.
    pub fn env_inline(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Command {
        self.inline_env.push((name.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }

    /// Runs the command in this remote directory; a relative one is one of the home directory's. Nothing in it is
    /// special, `~` is a name like others. If it cannot be entered the command is not run, stderr says why, and the
    /// exit status is that of the login shell's `cd`, 1 or 2.
    ///
    /// Text of [`Client::sh`] is then run by a second login shell, `"$SHELL" -c`, so that all of it runs there.
    pub fn current_dir(mut self, dir: impl AsRef<Path>) -> Command {
        use std::os::unix::ffi::OsStrExt;
        self.directory = Some(dir.as_ref().as_os_str().as_bytes().to_vec());
        self
    }

    /// Where the command's input comes from. The default is [`Stdio::null`].
    pub fn stdin(mut self, stdin: Stdio) -> Command {
        self.stdin = Some(stdin);
        self
    }

    /// Where the command's output goes. The default is [`Stdio::piped`], for [`status`](Command::status)
    /// [`Stdio::null`].
    pub fn stdout(mut self, stdout: Stdio) -> Command {
        self.stdout = Some(stdout);
        self
    }

    /// Where the command's errors go. The default is [`Stdio::piped`], for [`status`](Command::status)
    /// [`Stdio::null`].
    pub fn stderr(mut self, stderr: Stdio) -> Command {
        self.stderr = Some(stderr);
        self
    }

    /// Runs the command on a pseudo-terminal (RFC 4254 §6.2). It then has no stderr of its own, its lines end with
    /// `\r\n`, what is written to its stdin is echoed, and the end of stdin is no end for it: send `\x04` (Ctrl-D).
    pub fn pty(mut self, pty: Pty) -> Command {
        self.pty = Some(pty);
        self
    }

    /// The command must have ended this long after the call that starts it; opening the channel, and waiting for a
    /// session where the server allows no more, is part of it.
    ///
    /// The error is [`Error::Timeout`]; that of [`output`](Command::output) carries what had been received. It ends the
    /// waiting, not the command: what becomes of that says [`on_drop`](Command::on_drop) once its child is dropped,
    /// which `output` and [`status`](Command::status) do at once. The default is the client's
    /// [`command_timeout`](crate::ClientBuilder::command_timeout).
    pub fn timeout(mut self, timeout: Duration) -> Command {
        self.timeout = Some(timeout);
        self
    }

    /// The command must not be silent for longer than this: counted from its start, from its last output on either
    /// stream, or from when that was read, whichever was last. A command that waits for its reader is not silent.
    pub fn idle_timeout(mut self, timeout: Duration) -> Command {
        self.idle_timeout = Some(timeout);
        self
    }

    /// Limits the start alone: waiting for a free session, opening the channel, and the server's answer.
    pub fn start_timeout(mut self, timeout: Duration) -> Command {
        self.start_timeout = Some(timeout);
        self
    }

    /// When the command counts as ended.
    pub fn exit_policy(mut self, policy: ExitPolicy) -> Command {
        self.exit_policy = policy;
        self
    }

    /// What happens to the remote command when its [`Child`] and all streams of it are dropped while it runs.
    pub fn on_drop(mut self, on_drop: OnDrop) -> Command {
        self.on_drop = on_drop;
        self
    }

    /// What to do when the server has no session left (sshd's MaxSessions).
    pub fn at_limit(mut self, at_limit: AtLimit) -> Command {
        self.at_limit = at_limit;
        self
    }

    /// Makes [`Child::kill`] able to end the command and all its children: it is started by `/bin/sh`, which tells its
    /// process id first; `spawn` waits for that and takes it out of the output.
    ///
    /// Works with servers that start each command in a session of its own, as sshd does. Where the server runs
    /// something else in its place (sshd's ForceCommand), nothing is told and [`Child::process_group_id`] is `None`;
    /// `spawn` then returns when that has printed 64 KiB or ended. A child that makes a session of its own (`setsid`, a
    /// daemon) leaves the group.
    pub fn process_group(mut self, process_group: bool) -> Command {
        self.process_group = process_group;
        self
    }

    /// Whether the command may use the agent whose socket [`ClientBuilder::forward_agent`] names, while it runs. The
    /// default is no. A server that does not let it (sshd's AllowAgentForwarding) refuses the command.
    ///
    /// [`ClientBuilder::forward_agent`]: crate::ClientBuilder::forward_agent
    pub fn forward_agent(mut self, forward: bool) -> Command {
        self.agent = forward;
        self
    }

    /// Starts the command. Blocks until the server has answered: one round trip, or two if no channel was open in
    /// advance.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] for text that cannot be sent, [`Error::OpenRefused`] and [`Error::RequestRefused`] for
    /// the server's refusals (nothing was run), [`Error::Timeout`], [`Error::ConnectionLost`].
    pub fn spawn(&self) -> Result<Child> {
        let piped = |stdio: Option<Stdio>| stdio.unwrap_or(Stdio::piped()).0;
        self.start([self.stdin.map_or(Kind::Null, |s| s.0), piped(self.stdout), piped(self.stderr)])
    }

    /// Starts the command and collects its output until it ends.
    ///
    /// # Errors
    ///
    /// As [`spawn`](Command::spawn). A timeout carries what had been received; the command is then given up as
    /// [`on_drop`](Command::on_drop) says. A command that ends with another status than 0 is no error here.
    pub fn output(&self) -> Result<Output> {
        self.spawn()?.output()
    }

    /// Starts the command and waits for its end. Output goes nowhere, unless set otherwise.
    ///
    /// # Errors
    ///
    /// As [`spawn`](Command::spawn).
    pub fn status(&self) -> Result<ExitStatus> {
        let nowhere = |stdio: Option<Stdio>| stdio.unwrap_or(Stdio::null()).0;
        self.start([self.stdin.map_or(Kind::Null, |s| s.0), nowhere(self.stdout), nowhere(self.stderr)])?.wait()
    }

    /// Starts the command on a terminal (of the default type and size, unless [`pty`](Command::pty) says otherwise) as a
    /// [`Shell`]: a dialogue with `passwd`, `mysql` or an installer. Settings of stdin, stdout and stderr do not count.
    ///
    /// # Errors
    ///
    /// As [`spawn`](Command::spawn).
    pub fn spawn_shell(&self) -> Result<Shell> {
        let mut command = self.clone();
        command.pty.get_or_insert_with(Pty::default);
        command.open().map(Shell::new)
    }

    fn start(&self, stdio: [Kind; 3]) -> Result<Child> {
        Child::new(self.open()?, stdio, self.exit_policy)
    }

    fn open(&self) -> Result<Arc<Channel>> {
        let plan = self.plan()?;
        let mut limit = Limit::after(self.timeout);
        limit.idle = self.idle_timeout;
        let channel =
            Channel::start(self.client.handle(), plan, limit, &Limit::after(self.start_timeout), self.on_drop)?;
        if self.process_group {
            self.learn_process_group(&channel)?;
        }
        Ok(channel)
    }

    /// Takes the line that tells the process id out of the output.
    fn learn_process_group(&self, channel: &Channel) -> Result<()> {
        let limit = match self.start_timeout {
            Some(_) => Limit::after(self.start_timeout),
            None => Limit { total: channel.limit.total, idle: None },
        };
        let found = channel.pipe.cut(Stream::Stdout, kill::MARK_WITHIN, &limit, &kill::announced);
        match found {
            Ok(Some(group)) => {
                let _ = channel.process_group.set(group);
            }
            // The shell did not get so far; the command's own ending tells why.
            Ok(None) => log::debug!("the command did not tell its process group"),
            Err(Error::Timeout { after, .. }) => return Err(Error::timeout(Phase::Exec, after)),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn plan(&self) -> Result<SessionPlan> {
        let run = match &self.text {
            Text::Subsystem(name) if name.contains('\0') => {
                return Err(Error::invalid("a subsystem's name has no NUL, and a subsystem takes no arguments"));
            }
            Text::Subsystem(name) => Run::Subsystem(name.clone()),
            Text::Shell(_) | Text::Words(_) => Run::Exec(self.command_text()?),
            Text::LoginShell { arguments } => {
                self.check_login_shell(*arguments)?;
                Run::Shell
            }
        };
        for (name, value) in self.env.iter().chain(&self.inline_env) {
            check_variable(name, value)?;
        }
        if let Text::Subsystem(name) = &self.text {
            check_size(name.len(), "the subsystem's name")?;
        }
        if self.agent && !self.client.has_agent() {
            return Err(Error::invalid(
                "which agent to forward was not said; ClientBuilder::forward_agent names its socket",
            ));
        }
        let grace = match self.exit_policy {
            ExitPolicy::Closed => None,
            ExitPolicy::AfterStatus(grace) => Some(grace),
        };
        Ok(SessionPlan {
            env: self.env.clone(),
            pty: self.pty.as_ref().map(Pty::request).transpose()?,
            run,
            grace,
            at_limit: self.at_limit,
            urgent: false,
            agent: self.agent,
        })
    }

    /// What the login shell gets to read.
    fn command_text(&self) -> Result<Vec<u8>> {
        let wrapped = !self.inline_env.is_empty() || self.directory.is_some();
        let mut text = match &self.text {
            Text::Shell(text) if !wrapped => return self.text_as_given(text.clone()),
            // One word for another shell, so that `cd dir && a; b` does not run b in the wrong place.
            Text::Shell(text) => {
                let mut inner = b"\"$SHELL\" -c ".to_vec();
                quote::word(&mut inner, text);
                inner
            }
            Text::Words(words) => quote::command_line(&self.shielded(words)),
            Text::Subsystem(_) | Text::LoginShell { .. } => Vec::new(),
        };
        if !self.inline_env.is_empty() {
            text = self.with_inline_env(&text);
        }
        if wrapped || self.process_group || text.contains(&b'\n') {
            text = [b"exec ".as_slice(), &text].concat();
        }
        if let Some(directory) = &self.directory {
            text = in_directory(directory, &text);
        }
        if self.process_group {
            text = kill::announce(kill::Reader::Sh, &text);
        }
        check_text(quote::on_one_line(text))
    }

    /// What needs a text to be put into.
    fn check_login_shell(&self, arguments: bool) -> Result<()> {
        if arguments || self.directory.is_some() || !self.inline_env.is_empty() || self.process_group {
            return Err(Error::invalid(
                "a login shell takes no arguments, directory, env_inline or process_group: type them into it, or run a command",
            ));
        }
        Ok(())
    }

    /// The caller's own text, which only the login shell can read.
    fn text_as_given(&self, text: Vec<u8>) -> Result<Vec<u8>> {
        if self.process_group {
            return check_text(quote::on_one_line(kill::announce(kill::Reader::LoginShell, &text)));
        }
        check_text(text)
    }

    /// `env` takes a program whose name has a `=` in it for one more variable; a shell between them does not.
    fn shielded<'a>(&self, words: &'a [Vec<u8>]) -> std::borrow::Cow<'a, [Vec<u8>]> {
        if self.inline_env.is_empty() || !words.first().is_some_and(|program| program.contains(&b'=')) {
            return words.into();
        }
        let mut shielded = [b"/bin/sh".as_slice(), b"-c", br#"exec "$0" "$@""#].map(<[u8]>::to_vec).to_vec();
        shielded.extend_from_slice(words);
        shielded.into()
    }

    fn with_inline_env(&self, text: &[u8]) -> Vec<u8> {
        let mut out = b"env".to_vec();
        for (name, value) in &self.inline_env {
            out.push(b' ');
            out.extend_from_slice(name);
            out.push(b'=');
            quote::word(&mut out, value);
        }
        out.push(b' ');
        out.extend_from_slice(text);
        out
    }
}

/// `cd` first. A relative directory begins with `./`, so that it is neither an option, nor an entry of a directory
/// stack (`-`, zsh's `+1`), nor looked for in CDPATH.
fn in_directory(directory: &[u8], text: &[u8]) -> Vec<u8> {
    let mut out = b"cd ".to_vec();
    let mut path = Vec::new();
    if directory.first() != Some(&b'/') {
        path.extend_from_slice(b"./");
    }
    path.extend_from_slice(directory);
    quote::word(&mut out, &path);
    out.extend_from_slice(b" && ");
    out.extend_from_slice(text);
    out
}

fn check_text(text: Vec<u8>) -> Result<Vec<u8>> {
    if text.contains(&0) {
        return Err(Error::invalid("a command cannot contain a NUL byte; send such data through stdin"));
    }
    check_size(text.len(), "the command")?;
    Ok(text)
}

fn check_variable(name: &[u8], value: &[u8]) -> Result<()> {
    let letters = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    if name.is_empty() || name[0].is_ascii_digit() || !name.iter().all(letters) {
        let shown = String::from_utf8_lossy(name);
        return Err(Error::invalid(format!(
            "'{}' is no name for an environment variable: letters, digits and _ only, no digit first",
            crate::error::escape(&shown)
        )));
    }
    if value.contains(&0) {
        return Err(Error::invalid("an environment variable's value cannot contain a NUL byte"));
    }
    check_size(name.len() + value.len(), "the environment variable")
}

fn check_size(len: usize, what: &str) -> Result<()> {
    if len > MAX_TEXT {
        return Err(Error::invalid(format!(
            "{what} is {len} bytes long; one SSH packet carries {MAX_TEXT}. Send a long script through stdin of `sh -s`"
        )));
    }
    Ok(())
}

impl Client {
    /// Starts `command`, text for the remote login shell, with all three streams piped: paramiko's `exec_command`.
    ///
    /// # Errors
    ///
    /// As [`Command::spawn`]. NUL bytes are refused.
    pub fn exec_command(&self, command: impl AsRef<[u8]>) -> Result<Child> {
        Command::shell(self, command.as_ref()).stdin(Stdio::piped()).spawn()
    }

    /// A command from a program and its arguments, which arrive byte for byte as given, whatever they are and whatever
    /// the login shell is; see [`Command`] for what remains the shell's.
    pub fn command(&self, program: impl AsRef<[u8]>) -> Command {
        Command::program(self, program.as_ref())
    }

    /// A command from text for the remote login shell: pipes, redirections and variables work. Never put data of others
    /// into the text; pass it with [`arg`](Command::arg) of [`command`](Client::command), or through stdin.
    pub fn sh(&self, text: impl AsRef<[u8]>) -> Command {
        Command::shell(self, text.as_ref())
    }

    /// The user's login shell without a terminal, which reads commands from stdin as from a script: no echo, no prompt,
    /// two output streams. `ssh -T host <script` does this. For a shell on a terminal take
    /// [`invoke_shell`](Client::invoke_shell).
    pub fn login_shell(&self) -> Command {
        Command::new(self, Text::LoginShell { arguments: false })
    }

    /// A subsystem such as "sftp" (RFC 4254 §6.5), to be spoken to through the child's streams.
    pub fn subsystem(&self, name: &str) -> Command {
        Command::subsystem(self, name)
    }
}
