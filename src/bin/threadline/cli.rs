//! The command line: clap's view of it, turned into plans at once. Past this file nobody sees a flag.

mod forward;
mod option;
mod time;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell as Completed;

use crate::connect::{self, Password};
use crate::exec::{self, Form, Input, Kind, Label, Terminal};
use crate::logging::Logging;
use crate::report::Failure;
use crate::{doctor, output, shell};

/// What to do and how to log meanwhile.
#[derive(Debug)]
pub(crate) struct CommandLine {
    pub plan: Plan,
    pub logging: Logging,
}

/// What to do.
#[derive(Debug)]
pub(crate) enum Plan {
    Exec(Box<exec::Plan>),
    Shell(Box<shell::Plan>),
    Forward(Box<crate::forward::Plan>),
    Demo,
    Doctor(Box<doctor::Plan>),
    /// A help text, a completion script, a man page.
    Print(Vec<u8>),
}

/// Reads the command line.
///
/// # Errors
///
/// What is wrong with it, in one line.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<CommandLine, Failure> {
    match Cli::try_parse_from(arguments) {
        Ok(cli) => cli.verb.plan(),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            let styled = error.render();
            let text = if output::colour_is_welcome() { styled.ansi().to_string() } else { styled.to_string() };
            Ok(quietly(Plan::Print(text.into_bytes())))
        }
        Err(error) => Err(Failure::usage(in_one_line(&error.render().to_string()))),
    }
}

fn quietly(plan: Plan) -> CommandLine {
    CommandLine { plan, logging: Logging::default() }
}

/// clap explains over several lines, followed by the usage; what is wrong and its tips are what we say.
fn in_one_line(text: &str) -> String {
    let said = text.split("\nUsage:").next().unwrap_or_default();
    let said = said.split("\nFor more information").next().unwrap_or_default();
    let paragraphs = said.split("\n\n").map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "));
    let paragraphs: Vec<_> = paragraphs.filter(|part| !part.is_empty()).collect();
    let what = paragraphs.join("; ");
    format!("{}; see threadline --help", what.strip_prefix("error: ").unwrap_or(&what))
}

/// Blocking SSH with threads: one connection, many channels.
#[derive(Debug, Parser)]
#[command(name = "threadline", version, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Exec(ExecFlags),
    Shell(ShellFlags),
    Forward(forward::ForwardFlags),
    /// Start a throw-away sshd and play the tutorial's programs against it
    Demo(LogFlags),
    Doctor(DoctorFlags),
    /// Print a completion script
    Completions {
        /// The shell it is for
        shell: Completed,
    },
    /// Print a man page
    Man {
        /// The page of this verb; of the whole tool without it
        verb: Option<String>,
    },
}

impl Verb {
    fn plan(self) -> Result<CommandLine, Failure> {
        match self {
            Verb::Exec(flags) => flags.plan(),
            Verb::Shell(flags) => flags.plan(),
            Verb::Forward(flags) => flags.plan(),
            Verb::Demo(log) => Ok(CommandLine { plan: Plan::Demo, logging: log.logging(false) }),
            Verb::Doctor(flags) => flags.plan(),
            Verb::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "threadline", &mut script);
                Ok(quietly(Plan::Print(script)))
            }
            Verb::Man { verb } => man(verb.as_deref()).map(Plan::Print).map(quietly),
        }
    }
}

fn man(verb: Option<&str>) -> Result<Vec<u8>, Failure> {
    let mut tool = Cli::command();
    tool.build();
    let command = match verb {
        None => tool,
        Some(name) => {
            let verbs: Vec<_> = tool.get_subcommands().map(|c| c.get_name().to_owned()).collect();
            let unknown = || Failure::usage(format!("there is no verb '{name}'; there are: {}", verbs.join(", ")));
            tool.find_subcommand(name).ok_or_else(unknown)?.clone()
        }
    };
    let mut page = Vec::new();
    let rendered = clap_mangen::Man::new(command).render(&mut page);
    rendered.map_err(|e| Failure::new(format!("cannot make the man page: {e}"), crate::INTERNAL))?;
    Ok(page)
}

/// Options of every verb.
#[derive(Debug, Args)]
struct LogFlags {
    /// Log what happens: connections; -vv requests, -vvv everything [RUST_LOG works, too]
    #[arg(short, long, action = ArgAction::Count, help_heading = "Logging")]
    verbose: u8,
    /// Log to this file (mode 0600) instead of stderr
    #[arg(long, value_name = "FILE", help_heading = "Logging")]
    log: Option<PathBuf>,
}

impl LogFlags {
    fn logging(self, quiet: bool) -> Logging {
        Logging { verbose: self.verbose, quiet, file: self.log }
    }
}

/// Options of every verb that connects.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connection")]
struct ConnectFlags {
    /// The remote user [default: the one in HOST, else the local user's name]
    #[arg(short = 'l', long = "user", value_name = "USER")]
    user: Option<String>,
    /// The port [default: the one in HOST, else 22]
    #[arg(short = 'p', long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// A private key to try; may be repeated [default: ~/.ssh/id_ed25519, id_ecdsa, id_rsa, and the agent's]
    #[arg(short = 'i', long = "identity", value_name = "KEY")]
    identities: Vec<PathBuf>,
    /// An option in ssh_config's words; may be repeated
    #[arg(short = 'o', long = "option", value_name = "KEY=VALUE")]
    options: Vec<String>,
    /// A known-hosts file to use instead of the usual ones; may be repeated
    #[arg(long, value_name = "FILE")]
    known_hosts: Vec<PathBuf>,
    /// Add the key of a host that is not known yet; one that has changed is refused all the same
    #[arg(long)]
    accept_new: bool,
    /// Ask for the password on the terminal
    #[arg(long, conflicts_with = "password_file")]
    ask_pass: bool,
    /// Read the password from a file's first line; only its owner may be able to read it
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Limit for each step of connecting: the name, TCP, the key exchange
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time::parse)]
    connect_timeout: Duration,
    /// Do not show the server's banner
    #[arg(short, long)]
    quiet: bool,
}

impl ConnectFlags {
    fn plan(self, host: String) -> Result<connect::Plan, Failure> {
        host.parse::<threadline::Target>().map_err(|e| Failure::usage(crate::report::describe(&e)))?;
        let password = match (self.ask_pass, self.password_file) {
            (true, _) => Password::Ask,
            (false, Some(file)) => Password::File(file),
            (false, None) => Password::None,
        };
        let mut plan = connect::Plan {
            host,
            user: None,
            port: None,
            identities: self.identities,
            agent: true,
            known_hosts: self.known_hosts,
            accept_new: self.accept_new,
            password,
            batch: false,
            connect_timeout: self.connect_timeout,
            keepalive: None,
            algorithms: connect::Algorithms::default(),
            quiet: self.quiet,
        };
        for text in &self.options {
            option::apply(text, &mut plan).map_err(Failure::usage)?;
        }
        // As in ssh, a flag outweighs -o.
        plan.user = self.user.or(plan.user);
        plan.port = self.port.or(plan.port);
        Ok(plan)
    }
}

/// Run commands on a host: one as ssh does, several at once over one connection
///
/// One command: its bytes pass through untouched both ways, and the exit code is the remote one's.
///
/// Several (-c): each has its own channel of one connection; lines are printed as they arrive, `1: text` for the first
/// command's stdout and `1! text` for its stderr, which goes to stderr. They get no stdin.
///
/// Ctrl-C ends the remote work as well: TERM, then KILL, to the command's process group. A second Ctrl-C leaves at once.
/// For this, the command is started by way of /bin/sh; --no-kill sends its text unchanged.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES, override_usage = "threadline exec [OPTIONS] HOST [-c CMD]... [--] [CMD]...")]
struct ExecFlags {
    /// host, user@host, user@host:port, [v6]:port or ssh://user@host:port
    host: String,
    /// The command, passed on as ssh does: the words joined by spaces, for the remote shell to read
    #[arg(trailing_var_arg = true, value_name = "CMD")]
    words: Vec<OsString>,
    /// A command; may be repeated: they run at the same time
    #[arg(short = 'c', long = "command", value_name = "CMD", allow_hyphen_values = true)]
    commands: Vec<OsString>,
    /// Give the command a terminal if stdin is one; -tt in any case
    #[arg(short = 't', action = ArgAction::Count, overrides_with = "no_terminal")]
    terminal: u8,
    /// Give the command no terminal (the default)
    #[arg(short = 'T', overrides_with = "terminal")]
    no_terminal: bool,
    /// Do not read stdin
    #[arg(short = 'n', long = "no-stdin")]
    no_stdin: bool,
    /// The command is the name of a subsystem, such as sftp
    #[arg(short = 's', long)]
    subsystem: bool,
    /// The escape character; only "none" is there
    #[arg(short = 'e', long, value_name = "none")]
    escape: Option<String>,
    /// Forward the agent: not supported yet, and refused
    #[arg(short = 'A', hide = true)]
    forward_agent: bool,
    /// Set a variable for the command, by env(1); others on the host may see it. May be repeated
    #[arg(long, value_name = "KEY=VALUE", allow_hyphen_values = true)]
    env: Vec<OsString>,
    /// End a command that runs longer than this
    #[arg(long, value_name = "TIME", value_parser = time::parse, help_heading = "Ending")]
    timeout: Option<Duration>,
    /// End a command that prints nothing for so long
    #[arg(long, value_name = "TIME", value_parser = time::parse, help_heading = "Ending")]
    idle: Option<Duration>,
    /// The time between TERM and KILL
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = time::parse, help_heading = "Ending")]
    kill_grace: Duration,
    /// Leave the remote command running when we end; send its text unchanged
    #[arg(long, help_heading = "Ending")]
    no_kill: bool,
    /// What stands before a line: the command's number, the host, the command's text, nothing
    #[arg(long, value_enum, help_heading = "Output")]
    label: Option<LabelFlag>,
    /// The same as --label none
    #[arg(short = 'N', long = "no-label", conflicts_with = "label", help_heading = "Output")]
    no_label: bool,
    /// Put the seconds since the start before each line
    #[arg(long, help_heading = "Output")]
    ts: bool,
    /// Print one JSON object per line (NDJSON): plan, start, out, end, summary
    #[arg(long, conflicts_with_all = ["label", "no_label", "ts"], help_heading = "Output")]
    json: bool,
    #[command(flatten)]
    connect: ConnectFlags,
    #[command(flatten)]
    log: LogFlags,
}

const EXIT_CODES: &str = "\
Exit codes:
  One command: the remote command's own; 128 + the number of the signal that ended it; 255 for a
  failure of the connection; 3 if --timeout or --idle ended it.
  Several: 0 all ok, 3 a timeout or signal, 4 not connected or the connection lost, 5 an exit code
  other than 0; the lowest that applies.
  Both: 1 a fault of ours, 2 a wrong command line, 130 after Ctrl-C.

Times read 500ms, 10s, 5m, 1h.";

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LabelFlag {
    N,
    Host,
    Cmd,
    None,
}

impl ExecFlags {
    fn plan(self) -> Result<CommandLine, Failure> {
        self.refuse_what_is_not_there()?;
        let form = self.form();
        let mut commands: Vec<_> = self.commands.into_iter().map(OsString::into_vec).collect();
        if !self.words.is_empty() {
            let words: Vec<_> = self.words.iter().map(|word| word.as_bytes()).collect();
            commands.push(words.join(&b' '));
        }
        let terminal = match self.terminal {
            0 => Terminal::No,
            1 => Terminal::IfOurs,
            _ => Terminal::Yes,
        };
        check(&commands, terminal, &form, self.subsystem, &self.env)?;
        let logging = self.log.logging(self.connect.quiet);
        let plan = exec::Plan {
            connect: self.connect.plan(self.host)?,
            commands,
            kind: if self.subsystem { Kind::Subsystem } else { Kind::Text },
            env: self.env.iter().map(variable).collect::<Result<_, _>>()?,
            terminal,
            input: if self.no_stdin { Input::None } else { Input::Ours },
            form,
            timeout: self.timeout,
            idle: self.idle,
            kill_grace: (!self.no_kill).then_some(self.kill_grace),
        };
        Ok(CommandLine { plan: Plan::Exec(Box::new(plan)), logging })
    }

    fn refuse_what_is_not_there(&self) -> Result<(), Failure> {
        if self.forward_agent {
            return Err(Failure::usage("agent forwarding (-A) is not supported yet; use ssh -A where it is needed"));
        }
        match self.escape.as_deref() {
            None | Some("none") => Ok(()),
            Some(_) => Err(Failure::usage("exec has no escape character yet; only -e none is understood")),
        }
    }

    fn form(&self) -> Form {
        let label = match self.label {
            _ if self.no_label => Some(Label::Nothing),
            None => None,
            Some(LabelFlag::N) => Some(Label::Number),
            Some(LabelFlag::Host) => Some(Label::Host),
            Some(LabelFlag::Cmd) => Some(Label::Command),
            Some(LabelFlag::None) => Some(Label::Nothing),
        };
        match (self.json, label) {
            (true, _) => Form::Json,
            (false, None) if self.commands.len() + usize::from(!self.words.is_empty()) == 1 && !self.ts => Form::Bytes,
            (false, label) => Form::Lines { label: label.unwrap_or(Label::Number), times: self.ts },
        }
    }
}

fn check(
    commands: &[Vec<u8>],
    terminal: Terminal,
    form: &Form,
    subsystem: bool,
    env: &[OsString],
) -> Result<(), Failure> {
    let wrong = |text: &str| Err(Failure::usage(text));
    match commands {
        [] => wrong("exec needs a command: threadline exec HOST CMD, or -c CMD once or more"),
        _ if commands.iter().any(Vec::is_empty) => wrong("a command is empty; leave it away or write what to run"),
        [_, _, ..] if subsystem => wrong("-s takes the name of one subsystem; run exec once for each"),
        _ if subsystem && !env.is_empty() => wrong("--env works for commands, not for a subsystem (-s)"),
        _ if terminal != Terminal::No && !matches!(form, Form::Bytes) => {
            wrong("-t gives a terminal to one command whose bytes pass through; it goes with neither several -c nor --json, --ts, --label")
        }
        _ => Ok(()),
    }
}

fn variable(text: &OsString) -> Result<(Vec<u8>, Vec<u8>), Failure> {
    let bytes = text.as_bytes();
    match bytes.iter().position(|&b| b == b'=') {
        Some(at) if at > 0 => Ok((bytes[..at].to_vec(), bytes[at + 1..].to_vec())),
        _ => Err(Failure::usage(format!("--env needs NAME=VALUE, not '{}'", text.to_string_lossy()))),
    }
}

/// Open a shell on a terminal of the host's, or run a command there
///
/// Keys go to the remote terminal one by one, and it follows the size of ours. Where stdin is no terminal the shell gets
/// none either, and reads commands from stdin as from a script. The exit code is the remote one's.
///
/// At the start of a line ~. ends the connection, ~^Z suspends this program, ~# tells what is open, ~? lists these, and
/// ~~ is a single ~.
#[derive(Debug, Args)]
#[command(after_long_help = SHELL_EXIT_CODES, override_usage = "threadline shell [OPTIONS] HOST [CMD]...")]
struct ShellFlags {
    /// host, user@host, user@host:port, [v6]:port or ssh://user@host:port
    host: String,
    /// A command in place of the login shell, passed on as ssh does: the words joined by spaces
    #[arg(trailing_var_arg = true, value_name = "CMD")]
    words: Vec<OsString>,
    /// Ask for a terminal if stdin is one (the default); -tt in any case
    #[arg(short = 't', action = ArgAction::Count, overrides_with = "no_terminal")]
    terminal: u8,
    /// Ask for no terminal
    #[arg(short = 'T', overrides_with = "terminal")]
    no_terminal: bool,
    /// The escape character: a character, ^ and a letter, or "none"
    #[arg(short = 'e', long, value_name = "CHAR", default_value = "~", value_parser = escape_character, allow_hyphen_values = true)]
    escape: Escape,
    #[command(flatten)]
    connect: ConnectFlags,
    #[command(flatten)]
    log: LogFlags,
}

const SHELL_EXIT_CODES: &str = "\
Exit codes:
  The remote shell's or command's own; 128 + the number of the signal that ended it; 255 for a
  failure of the connection and after ~. ; 1 a fault of ours, 2 a wrong command line.";

/// An escape character, or none; a type of its own because an `Option` is something else to clap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Escape(Option<u8>);

fn escape_character(text: &str) -> Result<Escape, String> {
    match text.as_bytes() {
        b"none" => Ok(Escape(None)),
        [character] if character.is_ascii() => Ok(Escape(Some(*character))),
        [b'^', letter @ b'@'..=b'_'] | [b'^', letter @ b'a'..=b'z'] => Ok(Escape(Some(letter & 0x1f))),
        _ => Err("give one character, such as ~, or ^ and a letter, such as ^], or none".into()),
    }
}

impl ShellFlags {
    fn plan(self) -> Result<CommandLine, Failure> {
        let words: Vec<_> = self.words.iter().map(|word| word.as_bytes()).collect();
        let command = words.join(&b' ');
        let terminal = match (self.no_terminal, self.terminal) {
            (true, _) => Terminal::No,
            (false, 0) if !std::io::stdin().is_terminal() => Terminal::No,
            (false, 0 | 1) => Terminal::IfOurs,
            (false, _) => Terminal::Yes,
        };
        let logging = self.log.logging(self.connect.quiet);
        let exec = exec::Plan {
            connect: self.connect.plan(self.host)?,
            kind: if command.is_empty() { Kind::LoginShell } else { Kind::Text },
            commands: vec![command],
            env: Vec::new(),
            terminal,
            input: Input::Ours,
            form: Form::Bytes,
            timeout: None,
            idle: None,
            // A shell that is left is hung up, as by ssh.
            kill_grace: None,
        };
        Ok(CommandLine { plan: Plan::Shell(Box::new(shell::Plan { exec, escape: self.escape.0 })), logging })
    }
}

/// Show versions, limits, agent and known hosts; with HOST, what a connection to it negotiates
#[derive(Debug, Args)]
struct DoctorFlags {
    /// Connect to this host and show what was negotiated
    host: Option<String>,
    #[command(flatten)]
    connect: ConnectFlags,
    #[command(flatten)]
    log: LogFlags,
}

impl DoctorFlags {
    fn plan(self) -> Result<CommandLine, Failure> {
        let logging = self.log.logging(self.connect.quiet);
        let connect = self.host.map(|host| self.connect.plan(host)).transpose()?;
        Ok(CommandLine { plan: Plan::Doctor(Box::new(doctor::Plan { connect })), logging })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(arguments: &[&str]) -> Result<exec::Plan, Failure> {
        let all = ["threadline", "exec"].iter().chain(arguments).map(OsString::from);
        match parse(all)?.plan {
            Plan::Exec(plan) => Ok(*plan),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn clap_finds_no_fault_in_the_definition() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_words_after_the_host_are_the_command_options_and_all() {
        for line in [&["web1", "ls", "-l", "-p", "x y"][..], &["web1", "--", "ls", "-l", "-p", "x y"]] {
            let plan = exec(line).unwrap();
            assert_eq!(plan.commands, [b"ls -l -p x y".to_vec()], "{line:?}");
            assert_eq!((plan.connect.port, plan.form), (None, Form::Bytes));
        }
        let plan = exec(&["-p", "2222", "-l", "alice", "web1", "-n", "true"]).unwrap();
        assert_eq!(
            (plan.connect.port, plan.connect.user.as_deref(), plan.input),
            (Some(2222), Some("alice"), Input::None)
        );
    }

    #[test]
    fn one_command_passes_bytes_and_several_are_lines() {
        assert_eq!(exec(&["web1", "-c", "a"]).unwrap().form, Form::Bytes);
        let lines = |label, times| Form::Lines { label, times };
        assert_eq!(exec(&["web1", "-c", "a", "-c", "b"]).unwrap().form, lines(Label::Number, false));
        assert_eq!(exec(&["web1", "-N", "-c", "a", "--", "b"]).unwrap().form, lines(Label::Nothing, false));
        assert_eq!(exec(&["web1", "--ts", "a"]).unwrap().form, lines(Label::Number, true));
        assert_eq!(exec(&["web1", "--json", "a"]).unwrap().form, Form::Json);
    }

    #[test]
    fn the_last_of_t_and_big_t_counts() {
        for (line, expected) in [
            (&["web1", "a"][..], Terminal::No),
            (&["-t", "web1", "a"], Terminal::IfOurs),
            (&["-tt", "web1", "a"], Terminal::Yes),
            (&["-tt", "-T", "web1", "a"], Terminal::No),
            (&["-T", "-t", "web1", "a"], Terminal::IfOurs),
        ] {
            assert_eq!(exec(line).unwrap().terminal, expected, "{line:?}");
        }
    }

    #[test]
    fn a_shell_has_an_escape_character_unless_told_otherwise() {
        let shell = |arguments: &[&str]| {
            let all = ["threadline", "shell"].iter().chain(arguments).map(OsString::from);
            match parse(all).map(|line| line.plan) {
                Ok(Plan::Shell(plan)) => Ok(*plan),
                Ok(other) => panic!("{other:?}"),
                Err(failure) => Err(failure),
            }
        };
        for (line, escape) in [
            (&["web1"][..], Some(b'~')),
            (&["-e", "%", "web1"], Some(b'%')),
            (&["-e", "^]", "web1"], Some(0x1d)),
            (&["-e", "none", "web1"], None),
        ] {
            assert_eq!(shell(line).unwrap().escape, escape, "{line:?}");
        }
        assert!(shell(&["-e", "abc", "web1"]).unwrap_err().text.contains("give one character"));
        let plan = shell(&["-tt", "web1", "vi", "-R", "a b"]).unwrap().exec;
        assert_eq!((plan.kind, plan.terminal), (Kind::Text, Terminal::Yes));
        assert_eq!(plan.commands, [b"vi -R a b".to_vec()]);
        assert_eq!(shell(&["-T", "web1"]).unwrap().exec.kind, Kind::LoginShell);
    }

    #[test]
    fn a_wrong_command_line_is_explained_in_one_line() {
        let table: [(&[&str], &str); 13] = [
            (&[], "<HOST>"),
            (&["web1"], "needs a command"),
            (&["web1", "-c", ""], "is empty"),
            (&["-A", "web1", "a"], "not supported yet"),
            (&["-e", "~", "web1", "a"], "only -e none"),
            (&["-s", "web1", "-c", "sftp", "-c", "b"], "one subsystem"),
            (&["-t", "web1", "-c", "a", "-c", "b"], "neither several -c"),
            (&["--timeout", "10", "web1", "a"], "500ms"),
            (&["-p", "0", "web1", "a"], "0"),
            (&["--env", "A", "web1", "a"], "NAME=VALUE"),
            (&["-o", "Compression=yes", "web1", "a"], "ServerAliveInterval"),
            (&["we b1", "a"], "spaces"),
            (&["--nonsense", "web1", "a"], "--nonsense"),
        ];
        for (line, expected) in table {
            let failure = exec(line).expect_err(expected);
            assert!(failure.text.contains(expected), "{line:?}: {failure:?}");
            assert!(!failure.text.contains('\n'), "{line:?}: {failure:?}");
            assert_eq!(failure.code, 2);
        }
    }
}
