//! `relay check`: says whether a configuration is good, and everything that is not.
//!
//! Reads, looks at the NATS that is named, and prints; starts nothing and changes nothing.
//!
//! Invariant: what it prints never holds a secret.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use relay_bus::inspect::InspectError;
use relay_bus::jetstream::Weight;

use crate::config::{AuthMode, BusMode, Config, Loaded, Place, environment, known_keys};
use crate::serve::bus;

/// Arguments of `relay check`.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct CheckArgs {
    /// Configuration file; without one, the defaults and the environment are checked
    #[arg(long, short, value_name = "FILE", env = "RELAY_CONFIG")]
    pub config: Option<PathBuf>,

    /// Print the effective configuration as TOML, secrets hidden, with where each value comes from
    #[arg(long)]
    pub print: bool,

    /// Check the configuration alone; do not compare it with the NATS server and the stream
    #[arg(long)]
    pub no_connect: bool,
}

/// Checks the configuration as `relay serve` would read it, and the NATS it names. Exit code 0 if a relay would work,
/// 1 if not.
pub(super) fn run(args: CheckArgs) -> ExitCode {
    let good = report(
        &args,
        environment(),
        &mut io::stdout().lock(),
        &mut io::stderr().lock(),
    );
    match good {
        Ok(true) => ExitCode::SUCCESS,
        // What could not be written has told nobody that all is well.
        Ok(false) | Err(_) => ExitCode::FAILURE,
    }
}

/// Writes findings to `err` and what was asked for to `out`; returns whether the configuration is good.
fn report(
    args: &CheckArgs,
    env: impl Iterator<Item = (String, String)>,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<bool> {
    let file = args.config.as_deref();
    let loaded = match Loaded::load(file, env) {
        Ok(loaded) => loaded,
        Err(errors) => {
            for problem in errors.problems() {
                writeln!(err, "{problem}")?;
            }
            let n = errors.problems().len();
            let s = if n == 1 { "" } else { "s" };
            writeln!(err, "{n} problem{s}; nothing was started")?;
            return Ok(false);
        }
    };
    for warning in &loaded.warnings {
        writeln!(err, "warning: {warning}")?;
    }
    let fits = args.no_connect || report_bus(&loaded.config, err)?;
    match (fits, args.print) {
        (true, false) => writeln!(out, "{}", summary(&loaded, file))?,
        (false, false) => {}
        (_, true) => {
            writeln!(out, "# {}", summary(&loaded, file))?;
            print(&loaded, out)?;
        }
    }
    Ok(fits)
}

/// Looks at NATS, and writes what of it does not fit; returns whether a relay would work with it. One that cannot
/// be reached is said so, and says nothing of the configuration.
fn report_bus(config: &Config, err: &mut impl Write) -> io::Result<bool> {
    let differences = match bus::inspect(config) {
        Ok(differences) => differences,
        Err(InspectError::Unreachable { reason }) => {
            writeln!(err, "not checked: limits and stream, because {reason}")?;
            return Ok(true);
        }
        Err(error) => {
            writeln!(err, "{error}")?;
            return Ok(false);
        }
    };
    let mut fits = true;
    for each in differences {
        match each.weight {
            Weight::Loses => writeln!(err, "warning: {each}")?,
            Weight::Prevents => {
                writeln!(err, "{each}")?;
                fits = false;
            }
        }
    }
    Ok(fits)
}

/// What a relay with this configuration would be, in one line.
fn summary(loaded: &Loaded, file: Option<&Path>) -> String {
    let config = &loaded.config;
    let source = file.map_or("defaults".to_owned(), |file| file.display().to_string());
    let from_env = loaded
        .places
        .values()
        .filter(|place| matches!(place, Place::Env(_)))
        .count();
    let env = match from_env {
        0 => String::new(),
        n => format!(" and {n} from the environment"),
    };
    format!(
        "ok: {source}{env}: {}; clients on {}, operators on {}; {}",
        bus_in_use(config),
        config.http.listen,
        config.admin.listen,
        auth(config)
    )
}

fn bus_in_use(config: &Config) -> String {
    let mode = match config.bus.mode {
        BusMode::Embedded => return "embedded bus".to_owned(),
        BusMode::Nats => "core NATS",
        BusMode::Jetstream => "JetStream",
    };
    let servers: Vec<String> = config.nats.url.iter().map(ToString::to_string).collect();
    format!("{mode} at {}", servers.join(", "))
}

fn auth(config: &Config) -> String {
    match config.auth_mode() {
        AuthMode::Anonymous => "anonymous: everybody sees and publishes everything".to_owned(),
        AuthMode::Url => {
            let at = config.auth.url.as_deref().unwrap_or_default();
            format!("the application at {at} says who clients are")
        }
        AuthMode::Jwt => {
            let names: Vec<String> = config
                .auth
                .algorithms
                .iter()
                .map(ToString::to_string)
                .collect();
            let names = match names.is_empty() {
                true => "their issuer's keys".to_owned(),
                false => names.join(", "),
            };
            format!("tokens signed with {names}")
        }
    }
}

/// Writes the configuration as a file that `--config` reads, but for the secrets.
fn print(loaded: &Loaded, out: &mut impl Write) -> io::Result<()> {
    let values = toml::Table::try_from(&loaded.config).map_err(io::Error::other)?;
    let mut open_section = String::new();
    for key in known_keys() {
        let Some((section, name)) = key.split_once('.') else {
            continue;
        };
        if section != open_section {
            writeln!(out, "\n[{section}]")?;
            section.clone_into(&mut open_section);
        }
        let from = match loaded.places.get(&key) {
            None | Some(Place::Unset) => String::new(),
            Some(place) => format!("  # {place}"),
        };
        // A key without a value has no line in TOML; a comment says that it exists.
        match values.get(section).and_then(|s| s.get(name)) {
            Some(value) => writeln!(out, "{name} = {value}{from}")?,
            None => writeln!(out, "# {name} is not set")?,
        }
    }
    if let Some(toml::Value::Table(kinds)) = values.get("kinds") {
        for (name, kind) in kinds {
            let name = toml::Value::String(name.clone());
            let keys = toml::to_string(kind).map_err(io::Error::other)?;
            writeln!(out, "\n[kinds.{name}]\n{}", keys.trim_end())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(file: &str, print: bool, env: &[(&str, &str)]) -> (bool, String, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("relay.toml");
        std::fs::write(&path, file).unwrap();
        let args = CheckArgs {
            config: Some(path.clone()),
            print,
            no_connect: true,
        };
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let good = report(&args, env, &mut out, &mut err).unwrap();
        let show = |bytes: Vec<u8>| {
            String::from_utf8(bytes)
                .unwrap()
                .replace(path.to_str().unwrap(), "relay.toml")
        };
        (good, show(out), show(err))
    }

    #[test]
    fn a_good_configuration_is_ok_and_summed_up() {
        let (good, out, err) = check("", false, &[]);
        assert!(good);
        assert_eq!(
            out,
            "ok: relay.toml: embedded bus; clients on 127.0.0.1:8080, operators on 127.0.0.1:9090; anonymous: everybody sees and publishes everything\n"
        );
        assert_eq!(err, "");
    }

    #[test]
    fn every_problem_is_printed_with_its_place() {
        let file = "[nats]\nurll = \"x\"\n\n[drain]\n  spread = \"20s\"\n";
        let (good, out, err) = check(file, false, &[("RELAY__LIMITS__CONECTIONS", "5")]);
        assert!(!good);
        assert_eq!(out, "");
        assert_eq!(
            err.lines().collect::<Vec<_>>(),
            [
                "relay.toml:2:1: nats.urll: unknown key; did you mean nats.url?",
                "relay.toml:5:3: drain.spread: drain.spread 20s does not end before drain.deadline 15s, so the last clients would be cut off; lower the one or raise the other",
                "env RELAY__LIMITS__CONECTIONS: limits.conections: unknown key; did you mean RELAY__LIMITS__CONNECTIONS?",
                "3 problems; nothing was started",
            ]
        );
    }

    #[test]
    fn printing_shows_values_and_places_but_no_secret() {
        let file = "[bus]\nmode = \"nats\"\n[nats]\nurl = \"nats://bob:s3cret@127.0.0.1:1\"\n\
                    [auth]\nmode = \"jwt\"\nkey = \"s3cret-s3cret-s3cret-s3cret-s3cret\"\n";
        let (good, out, err) = check(file, true, &[("RELAY__DRAIN__SPREAD", "5s")]);
        assert!(good, "{err}");
        assert!(
            !out.contains("s3cret") && !err.contains("s3cret"),
            "{out}{err}"
        );
        for line in [
            "mode = \"nats\"  # relay.toml:2:1",
            "url = [\"nats://[redacted]@127.0.0.1:1\"]  # relay.toml:4:1",
            "key = \"[redacted]\"  # relay.toml:7:1",
            "spread = \"5s\"  # env RELAY__DRAIN__SPREAD",
            "deadline = \"15s\"",
            "# user is not set",
        ] {
            assert!(out.lines().any(|l| l == line), "{line}\n{out}");
        }
    }

    #[test]
    fn what_is_printed_reads_back_as_the_same_configuration() {
        let file = "[limits]\nupdate_bytes = \"32KiB\"\n[http]\nallowed_origins = [\"https://a.example\"]\n";
        let (_, out, _) = check(file, true, &[]);
        let again: Config = toml::from_str(&out).unwrap();
        assert_eq!(again, toml::from_str(file).unwrap());
    }
}
