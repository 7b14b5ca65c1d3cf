//! The commands of `relay`.

mod check;
mod check_update;
mod demo;
mod healthcheck;
mod http_client;
mod name;
mod publish;
mod serve;
mod token;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Show people, live, how far along their work is.
///
/// Workers publish the progress of jobs to NATS (or over HTTP); the relay hands each update to every
/// browser, phone or terminal that watches, over WebSocket, server-sent events or polling.
///
/// Try it:   relay demo
#[derive(Debug, Parser)]
#[command(
    name = "relay",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a relay
    Serve(serve::ServeArgs),
    /// Run a relay with simulated workers and a page to watch them
    Demo(demo::DemoArgs),
    /// Check a configuration without starting anything
    Check(check::CheckArgs),
    CheckUpdate(check_update::CheckUpdateArgs),
    /// Sign a token for development
    Token(token::TokenArgs),
    Name(name::NameArgs),
    Publish(publish::PublishArgs),
    Watch(watch::WatchArgs),
    Healthcheck(healthcheck::HealthcheckArgs),
}

/// Does what the command line asks.
pub fn run(cli: Cli) -> ExitCode {
    match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Check(args) => check::run(args),
        Command::CheckUpdate(args) => check_update::run(&args),
        Command::Token(args) => token::run(args),
        Command::Name(args) => name::run(&args),
        Command::Publish(args) => block_on(publish::run(args)),
        Command::Watch(args) => block_on(watch::run(args)),
        Command::Healthcheck(args) => block_on(healthcheck::run(args)),
    }
}

/// Prints what is wrong with a command line, or the help that was asked for; says if a variable is to blame, which
/// clap does not.
pub fn explain(error: &clap::Error) -> ExitCode {
    // A closed standard error leaves nobody to tell.
    drop(error.print());
    let is_empty = |name: &&&str| std::env::var_os(name).is_some_and(|value| value.is_empty());
    if error.use_stderr() {
        for name in ["RELAY_CONFIG", "RELAY_URL"].iter().filter(is_empty) {
            say(&format!(
                "the variable {name} is set to nothing; give it a value, or unset it"
            ));
        }
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

fn block_on(command: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => {
            say(&format!("cannot start the async runtime: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Says one thing to the person at the terminal.
fn say(text: &str) {
    use std::io::Write as _;
    // A closed standard error leaves nobody to tell.
    drop(writeln!(std::io::stderr().lock(), "relay: {text}"));
}
