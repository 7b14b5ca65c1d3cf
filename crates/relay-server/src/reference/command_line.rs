//! Writes `docs/reference/command-line.md` from what `relay --help` prints.

use std::fmt::Write;

use clap::CommandFactory as _;

use super::assert_written;
use crate::cli::Cli;

const PAGE: &str = "docs/reference/command-line.md";

const HEAD: &str = "\
# Command line

What `relay` and its commands print with `--help`, and how they exit. \
Configuration has [a page of its own](config.md).

This page is written from the code; `RELAY_BLESS=1 cargo test -p relay-server --lib reference` writes it anew.

## Exit codes

| Command | 0 | 1 | 2 | Others |
|---|---|---|---|---|
| `serve`, `demo` | it was asked to stop, and has drained | it could not start, or it failed; the reason is in the log or on stderr | usage, or the configuration is wrong | |
| `check` | the configuration is good | it is not | usage | |
| `check-update` | every update would be accepted as it is | at least one would be refused or lose something; stdout says which and why | usage, or the file cannot be read | |
| `token` | the token is on stdout | none was made; the reason is on stderr | usage | |
| `name` | the name, or the id, is on stdout | there is none; the reason is on stderr | usage | |
| `publish` | accepted; the cursor is on stdout | rejected: the document is wrong, or the job has moved on | usage, or not allowed | 4: the server cannot be reached |
| `watch` | all jobs completed | at least one failed, or left history before it ended | usage, or the server rejected the request | 3: at least one was cancelled, and none failed; 4: the server could not be reached for `--timeout`; 130: Ctrl-C; 141: nobody reads its output any more |
| `healthcheck` | yes | no, or no answer | usage | |
";

fn command_line_md() -> String {
    let mut out = HEAD.to_owned();
    let mut relay = Cli::command();
    relay.build();
    section(&mut out, &mut relay, "relay");
    let commands: Vec<_> = relay
        .get_subcommands()
        .filter(|each| each.get_name() != "help")
        .cloned()
        .collect();
    for mut command in commands {
        let name = format!("relay {}", command.get_name());
        section(&mut out, &mut command, &name);
    }
    out
}

fn section(out: &mut String, command: &mut clap::Command, name: &str) {
    // Whoever writes the page may have these variables set.
    let mut command = command.clone().mut_args(|each| each.hide_env_values(true));
    let help = command.render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    write!(
        out,
        "\n## {name}\n\n```text\n{}\n```\n",
        lines.join("\n").trim_end()
    )
    .unwrap();
}

#[test]
fn the_page_of_the_command_line_is_what_the_code_says() {
    assert_written(PAGE, &command_line_md());
}

#[test]
fn every_command_says_how_it_exits() {
    let table = HEAD.split("## Exit codes").nth(1).unwrap();
    for command in Cli::command().get_subcommands() {
        let name = format!("`{}`", command.get_name());
        assert!(table.contains(&name), "{name}");
    }
}
