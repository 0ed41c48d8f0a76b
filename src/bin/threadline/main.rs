//! The `threadline` tool: parse, run, exit code.

mod cli;
mod connect;
mod demo;
mod doctor;
mod exec;
mod forward;
mod interrupt;
mod logging;
mod output;
mod report;
mod shell;
mod sshd;
mod terminal;

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::process::ExitCode;

use cli::Plan;
use report::Failure;

/// The exit code of a fault of our own.
const INTERNAL: u8 = 1;

fn main() -> ExitCode {
    report::panics_in_one_line();
    let code = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(code)) => code,
        Ok(Err(failure)) => {
            report::line(&failure.text);
            failure.code
        }
        Err(_reported) => INTERNAL,
    };
    ExitCode::from(code)
}

fn run() -> Result<u8, Failure> {
    let command_line = cli::parse(std::env::args_os())?;
    logging::start(&command_line.logging)?;
    match command_line.plan {
        Plan::Exec(plan) => exec::run(*plan),
        Plan::Shell(plan) => shell::run(&plan),
        Plan::Forward(plan) => forward::run(*plan),
        Plan::Demo => demo::run(),
        Plan::Doctor(plan) => doctor::run(*plan),
        Plan::Print(text) => output::print(&text),
    }
}
