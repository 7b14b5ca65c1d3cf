//! Instructions per delivery: what the relay's own code does, counted by callgrind.
//!
//! A machine's noise does not change how many instructions a delivery takes, so a number that is kept beside
//! the code can be held to a tenth. The kernel's part is not counted; `run` measures that.
//!
//! Invariant: the figure is the difference of two runs that differ only in their number of updates, so that
//! starting, connecting and ending cancel out.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use relay_testkit::relay::{RelayServer, Settings};
use serde::Deserialize;

use crate::door::MESSAGE;
use crate::figure::ratio;
use crate::measure::{self, Stage};
use crate::play::Player;
use crate::scenario::Scenario;
use crate::target::Target;

/// What may be more than recorded before it fails.
const TOLERANCE: f64 = 1.1;
const END_WITHIN: Duration = Duration::from_secs(60);

/// What to profile.
#[derive(Debug, clap::Args)]
pub(crate) struct ProfileArgs {
    /// The relay's binary
    #[arg(long, value_name = "BINARY")]
    start: PathBuf,
    /// Which build the binary is
    #[arg(long, value_enum, default_value_t = Build::Release)]
    build: Build,
    /// The scenario with its recorded figures
    #[arg(long, default_value = "loadtest/profile.toml")]
    scenario: PathBuf,
    /// Fail with exit code 2 when the count is more than a tenth above the recorded one
    #[arg(long)]
    check: bool,
    /// Keep callgrind's output here
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// How a binary was built; the two are recorded apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Build {
    Release,
    Debug,
}

/// The profile's file: a scenario and what it came to when it was last recorded.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recorded {
    instructions_per_delivery: Builds,
    scenario: Scenario,
}

/// A figure for each kind of build.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Builds {
    release: f64,
    debug: f64,
}

/// Counts; says whether the count is within its bound, if that was asked.
pub(crate) fn run(args: &ProfileArgs) -> Result<bool> {
    ensure!(
        Command::new("valgrind").arg("--version").output().is_ok(),
        "valgrind is missing: scripts/setup installs it"
    );
    let text = fs::read_to_string(&args.scenario).context(args.scenario.display().to_string())?;
    let recorded: Recorded = toml::from_str(&text).context(args.scenario.display().to_string())?;
    let binary = fs::canonicalize(&args.start)?;
    let mut player = Player::new(false)?;
    let mut count = |factor| -> Result<(u64, u64)> {
        let mut scenario = recorded.scenario.clone();
        scenario.publish.updates *= factor;
        counted(&mut player, &binary, &scenario, args.out.as_deref())
    };
    let (few, few_deliveries) = count(1)?;
    let (many, many_deliveries) = count(3)?;
    let each = ratio(many - few, many_deliveries - few_deliveries);
    let before = match args.build {
        Build::Release => recorded.instructions_per_delivery.release,
        Build::Debug => recorded.instructions_per_delivery.debug,
    };
    let bound = before * TOLERANCE;
    let within = each <= bound;
    use std::io::Write as _;
    writeln!(
        std::io::stdout().lock(),
        "{each:.0} instructions per delivery, recorded {before:.0}, at most {bound:.0}: {}",
        if !within {
            "ABOVE"
        } else if each * TOLERANCE < before {
            "within, and so far below that it should be recorded: what grows up to there would not be seen"
        } else {
            "within"
        }
    )?;
    Ok(within || !args.check)
}

/// Instructions of a relay's life in which a scenario was played, and deliveries.
fn counted(
    player: &mut Player,
    binary: &Path,
    scenario: &Scenario,
    out: Option<&Path>,
) -> Result<(u64, u64)> {
    let directory = tempfile::tempdir()?;
    let profile = match out {
        Some(out) => std::path::absolute(out)?,
        None => directory.path().join("callgrind.out"),
    };
    let wrapper = directory.path().join("relay");
    fs::write(
        &wrapper,
        format!(
            "#!/bin/sh\nexec valgrind --tool=callgrind --callgrind-out-file='{}' '{}' \"$@\"\n",
            profile.display(),
            binary.display()
        ),
    )?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    // Compiling the mappings would take most of the time until the relay is there, fifty times slowed down.
    let mut settings = Settings::new(&wrapper).set("dialects.enabled", "");
    for (key, value) in scenario.settings() {
        settings = settings.set(key, value);
    }
    let mut relay = player.runtime.block_on(RelayServer::start(settings))?;
    let mut target = Target::serving(&relay, scenario.watch.transport)?;
    let mut stage = Stage {
        runtime: &player.runtime,
        progress: &mut player.progress,
        prefix: "profile",
        payload: scenario.publish.payload,
        carries: MESSAGE,
    };
    let run = measure::run(scenario, &mut target, &mut stage)?;
    player.runtime.block_on(relay.terminate(END_WITHIN))?;
    player.progress.clear();
    let text = fs::read_to_string(&profile).context("callgrind wrote nothing")?;
    let total = text.lines().find_map(|line| {
        line.strip_prefix("totals:")
            .or(line.strip_prefix("summary:"))
    });
    let Some(total) = total.and_then(|total| total.trim().parse().ok()) else {
        bail!("no total in {}", profile.display());
    };
    Ok((total, run.deliveries))
}
