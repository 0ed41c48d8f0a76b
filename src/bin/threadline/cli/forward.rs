//! The flags of `threadline forward`.

use std::ffi::OsString;
use std::time::Duration;

use clap::Args;

use super::{time, CommandLine, ConnectFlags, LogFlags, Plan};
use crate::forward::{self, Backoff, Letter, Spec, Tunnels, What};
use crate::report::Failure;

/// Keep tunnels up: ports and sockets, either way, that come back by themselves
///
/// -L listens here, -R at the server, -D is a SOCKS proxy here (SOCKS 5, 4 and 4a), -R with a port alone one at the
/// server; each may be repeated. Without BIND only this machine, or the server, can connect; * or an empty BIND is
/// everybody. Port 0 is any that is free: it is shown, and asked for again after the connection was lost.
///
/// A forward that fails does not end the others: it is tried again. When the connection is lost it is made again, and
/// the forwards with it; a login or a host key that is refused ends the tool. The first connection must come about, with
/// one forward at least. A line on stderr tells of each change; SIGUSR1 asks for one of each forward, with what it has
/// carried.
///
/// -W connects stdin and stdout to a place that the server reaches, for ssh's ProxyCommand.
#[derive(Debug, Args)]
#[command(
    after_long_help = NOTES,
    override_usage = "threadline forward [OPTIONS] HOST {-L SPEC | -R SPEC | -D SPEC}...\n       threadline forward [OPTIONS] HOST -W HOST:PORT"
)]
pub(super) struct ForwardFlags {
    /// host, user@host, user@host:port, [v6]:port or ssh://user@host:port
    host: String,
    /// Listen here, connect from the server: [BIND:]PORT:HOST:HOSTPORT, either end may be a /PATH
    #[arg(short = 'L', value_name = "SPEC", help_heading = "Forwards")]
    local: Vec<OsString>,
    /// Listen at the server, connect from here: as -L; [BIND:]PORT alone is a SOCKS proxy
    #[arg(short = 'R', value_name = "SPEC", help_heading = "Forwards")]
    remote: Vec<OsString>,
    /// A SOCKS proxy here: [BIND:]PORT or /PATH
    #[arg(short = 'D', value_name = "SPEC", help_heading = "Forwards")]
    dynamic: Vec<OsString>,
    /// Connect stdin and stdout to HOST:PORT or /PATH at the server, and end with it
    #[arg(short = 'W', value_name = "TARGET", help_heading = "Forwards", conflicts_with_all = [
        "local", "remote", "dynamic", "exit_on_failure", "no_reconnect", "backoff", "ready_fd", "ready_command", "json",
    ])]
    stdio: Option<OsString>,
    /// End when a forward cannot be set up, or fails later on
    #[arg(long, help_heading = "Staying up")]
    exit_on_failure: bool,
    /// End when the connection is lost
    #[arg(long, help_heading = "Staying up")]
    no_reconnect: bool,
    /// The shortest and the longest wait before another attempt; each is drawn at random, longer ones with each failure
    #[arg(long, value_name = "TIME..TIME", default_value = "500ms..30s", value_parser = backoff, help_heading = "Staying up")]
    backoff: Backoff,
    /// When all forwards stand for the first time, write a line to this descriptor (a pipe or a file)
    #[arg(long, value_name = "N", help_heading = "Scripts")]
    ready_fd: Option<u32>,
    /// When all forwards stand for the first time, run this with sh
    #[arg(long, value_name = "CMD", help_heading = "Scripts", allow_hyphen_values = true)]
    ready_command: Option<OsString>,
    /// Print one JSON object per line (NDJSON) instead of the lines on stderr
    #[arg(long, help_heading = "Scripts")]
    json: bool,
    /// ssh's "no command": there never is one
    #[arg(short = 'N', hide = true)]
    no_command: bool,
    /// ssh's "no terminal": there never is one
    #[arg(short = 'T', hide = true)]
    no_terminal: bool,
    /// ssh's gateway ports: refused, with what to write instead
    #[arg(short = 'g', hide = true)]
    gateway: bool,
    #[command(flatten)]
    connect: ConnectFlags,
    #[command(flatten)]
    log: LogFlags,
}

const NOTES: &str = "\
Specifications are OpenSSH's: [::1] or \\: for a colon inside a field, and what has a / in it is the
path of a Unix socket. The file of one at which nobody listens any more is replaced, on either side.
Forwards are numbered -L first, then -R, then -D, each in the order given.

Ready, to --ready-fd: one line, the word \"ready\" and where each forward listens, separated by
tabs. The ready command finds the same in THREADLINE_FORWARD_1 and so on, the host in
THREADLINE_HOST.

With -q only what fails is said.

Events of --json, each with v, t (ns since 1970), seq and ev:
  plan         host, forwards: [forward, spec, kind]
  connected    host, user, address, reconnects
  up           forward, spec, listen
  down         forward, spec, error, retry_ms: it stood and has ended
  failed       forward, spec, error, retry_ms: it could not be set up
  lost         host, error, retry_ms: the connection has ended
  unreachable  host, error, retry_ms: an attempt to connect again has failed
  ready        forwards: [listen], once, when all stand
  opened       forward, spec, connection, peer, target
  refused      forward, spec, connection, peer, target, error
  closed       forward, spec, connection, peer, target, sent, received, error
  missed       forward, spec, count: of these three, when they come faster than they are read
  status       host, connected, reconnects, forwards: [forward, spec, up, listen, error,
               connections, open, refused, failed, sent, received]; at SIGUSR1 and at the end
  end          code, signal, error

Exit codes:
  0 after SIGTERM, SIGINT or SIGHUP, if every forward has stood at some time; 5 if some never did;
  255 if none could be set up, the login was refused, the connection was lost with --no-reconnect,
  or a forward failed with --exit-on-failure.
  -W: 0 when both directions have ended, 255 for a failure.
  Both: 128 + its number for a signal before a connection stood, 1 a fault of ours, 2 a wrong
  command line.

Times read 500ms, 10s, 5m, 1h.";

impl ForwardFlags {
    pub fn plan(self) -> Result<CommandLine, Failure> {
        if self.gateway {
            return Err(Failure::usage(
                "-g is not understood; write the address to listen on: -L '*:PORT:HOST:HOSTPORT'",
            ));
        }
        let what = match &self.stdio {
            Some(target) => What::Stdio(Spec::parse_target(target).map_err(Failure::usage)?),
            None => What::Tunnels(Tunnels {
                specs: specs(&self.local, &self.remote, &self.dynamic)?,
                exit_on_failure: self.exit_on_failure,
                reconnect: !self.no_reconnect,
                backoff: self.backoff,
                ready_fd: self.ready_fd,
                ready_command: self.ready_command,
                json: self.json,
            }),
        };
        let logging = self.log.logging(self.connect.quiet);
        let plan = forward::Plan { connect: self.connect.plan(self.host)?, what };
        Ok(CommandLine { plan: Plan::Forward(Box::new(plan)), logging })
    }
}

fn specs(local: &[OsString], remote: &[OsString], dynamic: &[OsString]) -> Result<Vec<Spec>, Failure> {
    let all = [(Letter::L, local), (Letter::R, remote), (Letter::D, dynamic)];
    let each = all.into_iter().flat_map(|(letter, texts)| texts.iter().map(move |text| Spec::parse(letter, text)));
    let specs = each.collect::<Result<Vec<_>, _>>().map_err(Failure::usage)?;
    if specs.is_empty() {
        return Err(Failure::usage("forward needs something to forward: -L, -R or -D once or more, or -W"));
    }
    Ok(specs)
}

/// Reads `500ms..30s`.
fn backoff(text: &str) -> Result<Backoff, String> {
    let explain = || format!("'{text}' is no range of times; write 500ms..30s, the shortest wait and the longest");
    let (shortest, longest) = text.split_once("..").ok_or_else(explain)?;
    let (shortest, longest): (Duration, Duration) = (time::parse(shortest)?, time::parse(longest)?);
    if shortest > longest {
        return Err(explain());
    }
    Ok(Backoff { shortest, longest })
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    fn plan(arguments: &[&str]) -> Result<forward::Plan, Failure> {
        let all = ["threadline", "forward"].iter().chain(arguments).map(OsString::from);
        match parse(all)?.plan {
            Plan::Forward(plan) => Ok(*plan),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn forwards_are_numbered_by_their_letters_and_their_order() {
        let line = ["-D", "1080", "-L", "1:a:1", "web1", "-R", "2:b:2", "-L", "3:c:3", "-NT", "--backoff", "1s..1s"];
        let What::Tunnels(tunnels) = plan(&line).unwrap().what else { panic!() };
        let texts: Vec<_> = tunnels.specs.iter().map(|spec| spec.text.as_str()).collect();
        assert_eq!(texts, ["-L 1:a:1", "-L 3:c:3", "-R 2:b:2", "-D 1080"]);
        assert!(tunnels.reconnect && !tunnels.exit_on_failure);
        assert_eq!(tunnels.backoff, Backoff { shortest: Duration::from_secs(1), longest: Duration::from_secs(1) });
    }

    #[test]
    fn a_wrong_command_line_is_explained_in_one_line() {
        let table: [(&[&str], &str); 8] = [
            (&["web1"], "-L, -R or -D"),
            (&["web1", "-L", "80"], "-L 80: 1 field"),
            (&["web1", "-g", "-L", "80:a:80"], "*:PORT"),
            (&["web1", "-W", "a:1", "-L", "80:a:80"], "cannot be used with"),
            (&["web1", "-W", "a:1", "--json"], "cannot be used with"),
            (&["web1", "-W", "a"], "-W a: write -W HOST:PORT"),
            (&["web1", "-D", "80", "--backoff", "5s"], "500ms..30s"),
            (&["web1", "-D", "80", "--backoff", "5s..1s"], "500ms..30s"),
        ];
        for (line, expected) in table {
            let failure = plan(line).expect_err(expected);
            assert!(failure.text.contains(expected), "{line:?}: {failure:?}");
            assert!(!failure.text.contains('\n') && failure.code == 2, "{line:?}: {failure:?}");
        }
        assert!(matches!(plan(&["web1", "-W", "a:1"]).unwrap().what, What::Stdio(_)));
    }
}
