//! `relay name`: the name by which the relay knows a user, for subjects, owners and grants.
//!
//! Standard output gets the name and nothing else, so that `$(relay name …)` works in a shell.

use std::io::{self, Write};
use std::process::ExitCode;

use relay_core::id::Name;
use relay_core::id::user::{user_name, user_of};

/// Print the name of a user whose id may have any characters
///
/// The owner in a NATS subject, in ?owner= and in grants is a name of A-Z a-z 0-9 _ -. A user id with other
/// characters, such as an e-mail address, is escaped; PROTOCOL.md has the rule.
#[derive(Debug, clap::Args)]
pub(super) struct NameArgs {
    /// User id, as tokens have it (auth.user_claim); with --reverse a name
    #[arg(value_name = "ID", allow_hyphen_values = true)]
    pub id: String,

    /// Print the id that a name stands for
    #[arg(long)]
    pub reverse: bool,
}

/// Prints the name, or the id. Exit code 1, with the reason on standard error, if there is none.
pub(super) fn run(args: &NameArgs) -> ExitCode {
    match answer(args) {
        Ok(text) => match writeln!(io::stdout().lock(), "{text}") {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(why) => {
            // Nobody is left to tell when standard error is closed too; the exit code still says it.
            writeln!(io::stderr().lock(), "relay name: {why}").ok();
            ExitCode::FAILURE
        }
    }
}

fn answer(args: &NameArgs) -> Result<String, String> {
    let id = &args.id;
    if !args.reverse {
        let name = user_name(id).map_err(|error| format!("the user id {id:?} {error}"))?;
        return Ok(name.to_string());
    }
    let name = Name::parse(id).map_err(|error| format!("the name {id:?} {error}"))?;
    user_of(&name).ok_or_else(|| format!("{id:?} is not the name of any user id"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(id: &str, reverse: bool) -> Result<String, String> {
        let id = id.to_owned();
        answer(&NameArgs { id, reverse })
    }

    #[test]
    fn a_name_is_printed_and_what_it_stands_for() {
        assert_eq!(asked("auth0|64f", false).unwrap(), "u--auth0_7C64f");
        assert_eq!(asked("u--auth0_7C64f", true).unwrap(), "auth0|64f");
        assert_eq!(asked("alice", false).unwrap(), "alice");
        assert!(asked("", false).unwrap_err().contains("is empty"));
        assert!(
            asked("u--alice", true)
                .unwrap_err()
                .contains("not the name of any")
        );
        assert!(asked("a b", true).unwrap_err().contains("contains ' '"));
    }
}
