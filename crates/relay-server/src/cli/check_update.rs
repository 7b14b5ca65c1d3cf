//! `relay check-update`: would the relay accept this update? For a worker's author, before anything is published.
//!
//! It finds the updates in a file and prints what is said of them; judging is the bus's, by the same code as for
//! what workers publish. It connects to nothing.
//!
//! Invariant: exit 0 means that every update would be accepted as it is.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;
use relay_bus::hub::{Trial, Tried};
use relay_core::id::Name;
use relay_core::job::JobBounds;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::config::{Config, Loaded, environment};

const USAGE: u8 = 2;
/// The job of a state that does not say which one it is about.
const SOME_JOB: &str = "job";

/// Check what a worker publishes, without publishing it
///
/// Reads one update, or several with one JSON object a line, and judges them in their order as the relay would:
/// the same rules, the same words. Several updates of one job are also checked against each other (progress that
/// falls, anything after an ending).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  relay check-update state.json                                              a job's complete state
  relay check-update --subject progress.alice.clip-42.state state.json       and the subject it goes to
  relay check-update --subject progress.alice.clip-42.thumbnail_ready data.json     a milestone's data
  make-states | relay check-update                                           one JSON object a line

Exit codes:
  0 every update would be accepted as it is
  1 at least one would be refused, or would lose what is wrong in it (an ending over NATS)
  2 usage, or the file cannot be read")]
pub(super) struct CheckUpdateArgs {
    /// The update, or several, one a line; - reads them from stdin
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    /// The subject they are published on; without it, that of a state of the job_id and owner in the document
    #[arg(long, value_name = "SUBJECT")]
    subject: Option<String>,
    /// Configuration file, for the prefix of subjects and the largest update; without one, the defaults
    #[arg(long, short, value_name = "FILE", env = "RELAY_CONFIG")]
    config: Option<PathBuf>,
}

/// Judges what is in the file, prints what is wrong with it, and says with the exit code whether anything is.
pub(super) fn run(args: &CheckUpdateArgs) -> ExitCode {
    let config = match Loaded::load(args.config.as_deref(), environment()) {
        Ok(loaded) => loaded.config,
        Err(errors) => {
            let problems = errors.problems().iter().map(ToString::to_string);
            return complain(&problems.collect::<Vec<_>>().join("\n"));
        }
    };
    let sent = match read(&args.file) {
        Ok(sent) => sent,
        Err(error) => return complain(&format!("cannot read {}: {error}", args.file.display())),
    };
    let subject = args.subject.as_deref();
    match report(
        &config,
        subject,
        &place(&args.file),
        sent,
        &mut io::stdout().lock(),
    ) {
        Ok(true) => ExitCode::SUCCESS,
        // What could not be written has told nobody that all is well.
        Ok(false) | Err(_) => ExitCode::FAILURE,
    }
}

fn read(file: &Path) -> io::Result<Bytes> {
    if file != Path::new("-") {
        return std::fs::read(file).map(Bytes::from);
    }
    let mut sent = Vec::new();
    io::stdin().lock().read_to_end(&mut sent)?;
    Ok(sent.into())
}

/// How lines of the output name the file.
fn place(file: &Path) -> String {
    match file == Path::new("-") {
        true => "stdin".to_owned(),
        false => file.display().to_string(),
    }
}

/// Writes what is said of each update; returns whether all would be accepted as they are.
fn report(
    config: &Config,
    subject: Option<&str>,
    place: &str,
    sent: Bytes,
    out: &mut impl Write,
) -> io::Result<bool> {
    // Its dialects are looked at by the start, and by `relay check`.
    let dialects = config
        .load_dialects(&|_, _| Box::new(()))
        .unwrap_or_default();
    let bounds = JobBounds {
        history: config.history.per_job,
        update_bytes: config.limits.update_bytes,
        kinds: Arc::new(config.kinds_table(&dialects)),
    };
    // The configuration was checked, its prefix with it.
    let mut trial = Trial::new(&config.nats.prefix, bounds).map_err(io::Error::other)?;
    let updates = updates(&sent);
    let (mut count, mut bad, mut shortened) = (0, 0, 0);
    for Update { line, payload } in updates {
        count += 1;
        let place = match line {
            Some(line) => format!("{place}:{line}"),
            None => place.to_owned(),
        };
        let subject = match subject {
            Some(subject) => subject.to_owned(),
            None => subject_of(&trial, &payload),
        };
        match trial.publish(&subject, payload) {
            Ok(Tried::Accepted(lost)) => {
                shortened += usize::from(!lost.is_empty());
                for each in lost {
                    let (reason, sentence) = (each.reason, each.sentence);
                    writeln!(out, "{place}: accepted without this ({reason}): {sentence}")?;
                }
            }
            Ok(Tried::Repeated) => writeln!(
                out,
                "{place}: note: the same state was published twice in a row; watchers are sent it once"
            )?,
            Err(refused) => {
                bad += 1;
                writeln!(
                    out,
                    "{place}: refused ({}): {}",
                    refused.reason, refused.sentence
                )?;
            }
        }
    }
    let losing = "over NATS, and be refused over HTTP";
    match (bad, shortened, count) {
        (0, 0, 1) => writeln!(out, "ok: the update would be accepted")?,
        (0, 0, _) => writeln!(out, "ok: all {count} updates would be accepted")?,
        (0, _, 1) => writeln!(out, "the update would lose that {losing}")?,
        (0, ..) => writeln!(
            out,
            "{shortened} of {count} updates would lose that {losing}"
        )?,
        (_, _, 1) => writeln!(out, "the update would be refused")?,
        _ => writeln!(out, "{bad} of {count} updates would be refused")?,
    }
    Ok(bad + shortened == 0)
}

/// One update of a file.
struct Update {
    /// From 1, where there are several.
    line: Option<usize>,
    payload: Bytes,
}

/// The file is one document, or each of its lines is one.
fn updates(sent: &Bytes) -> Vec<Update> {
    let lines = sent
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .enumerate()
        .filter(|(_, line)| !line.is_empty());
    let first = lines.clone().next().map_or(&b""[..], |(_, line)| line);
    let several = lines.clone().count() > 1
        && first.starts_with(b"{")
        && first.ends_with(b"}")
        && serde_json::from_slice::<IgnoredAny>(sent).is_err();
    if !several {
        return vec![Update {
            line: None,
            payload: sent.clone(),
        }];
    }
    let line = |(at, line)| Update {
        line: Some(at + 1),
        payload: sent.slice_ref(line),
    };
    lines.map(line).collect()
}

/// The subject of a state that is published for the job and the owner it names itself.
fn subject_of(trial: &Trial, payload: &[u8]) -> String {
    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Names {
        job_id: serde_json::Value,
        owner: serde_json::Value,
    }
    // What is not a name is told when the document is judged.
    let names: Names = serde_json::from_slice(payload).unwrap_or_default();
    let name = |value: &serde_json::Value| value.as_str().and_then(|text| Name::parse(text).ok());
    let job = name(&names.job_id).or_else(|| Name::parse(SOME_JOB).ok());
    let owner = name(&names.owner).unwrap_or_else(Name::nobody);
    job.map(|job| trial.subject(&owner, &job))
        .unwrap_or_default()
}

fn complain(sentence: &str) -> ExitCode {
    // With stderr closed the exit code still tells.
    drop(writeln!(
        io::stderr().lock(),
        "relay check-update: {sentence}"
    ));
    ExitCode::from(USAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(subject: Option<&str>, sent: &str) -> (bool, String) {
        let mut out = Vec::new();
        let sent = Bytes::from(sent.to_owned());
        let good = report(&Config::default(), subject, "f", sent, &mut out).unwrap();
        (good, String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_refused_state_is_told_in_the_words_of_ingest() {
        let (good, text) = said(None, r#"{"status":"runing"}"#);
        assert!(!good);
        let wanted = "f: refused (bad_field): status: \"runing\" is not a known status; use queued, running, \
                      completed, failed or cancelled\nthe update would be refused\n";
        assert_eq!(text, wanted);
    }

    #[test]
    fn a_document_on_several_lines_is_one_update_whatever_is_wrong_with_it() {
        let good = "{\n  \"status\": \"running\",\n  \"meta\": {}\n}\n";
        assert_eq!(
            said(None, good),
            (true, "ok: the update would be accepted\n".to_owned())
        );
        let (_, text) = said(None, "{\n  \"status\": \"running\"\n  \"meta\": {}\n}\n");
        assert!(text.starts_with("f: refused (bad_json): "), "{text}");
        let (_, text) = said(None, "");
        assert!(
            text.starts_with("f: refused (bad_json): the payload is empty"),
            "{text}"
        );
    }

    #[test]
    fn lines_are_judged_in_their_order_and_each_job_for_itself() {
        let lines = r#"{"job_id":"a","status":"running","progress":50}
{"job_id":"b","status":"running","progress":10}

{"job_id":"a","status":"running","progress":40}
{"job_id":"a","status":"completed"}
{"job_id":"a","status":"completed"}
{"job_id":"a","status":"running"}
"#;
        let (good, text) = said(None, lines);
        let begins: Vec<_> = text
            .lines()
            .map(|line| line.split(": ").take(2).collect::<Vec<_>>())
            .collect();
        assert!(!good);
        assert_eq!(begins[0], ["f:4", "refused (progress_fell)"], "{text}");
        assert_eq!(begins[1], ["f:6", "note"]);
        assert_eq!(begins[2], ["f:7", "refused (after_ending)"]);
        assert!(
            text.ends_with("2 of 6 updates would be refused\n"),
            "{text}"
        );
    }

    #[test]
    fn the_subject_says_what_it_is_and_is_judged_too() {
        let milestone = Some("progress.alice.j.clip_completed");
        assert!(said(milestone, "[1, 2]").0);
        for (subject, reason) in [
            ("progress.alice.state", "bad_subject"),
            ("progress.a@b.j.state", "bad_name"),
            ("other.alice.j.state", "bad_subject"),
            ("progress.bob.j.state", "contradiction"),
        ] {
            let (good, text) = said(Some(subject), r#"{"status":"queued","owner":"alice"}"#);
            assert!(!good);
            assert!(
                text.starts_with(&format!("f: refused ({reason}): ")),
                "{text}"
            );
        }
    }

    #[test]
    fn an_ending_that_would_lose_something_is_not_well() {
        let (good, text) = said(None, r#"{"status":"completed","meta":[],"eta_seconds":-1}"#);
        assert!(!good);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(
            text.contains("f: accepted without this (bad_field): meta: "),
            "{text}"
        );
        assert!(
            text.contains("f: accepted without this (bad_field): eta_seconds: "),
            "{text}"
        );
        assert!(lines[2].starts_with("the update would lose that"), "{text}");
    }

    #[test]
    fn what_is_larger_than_the_limit_is_refused() {
        let large = format!(
            r#"{{"status":"queued","message":"{}"}}"#,
            "x".repeat(1 << 16)
        );
        let (_, text) = said(None, &large);
        assert!(text.starts_with("f: refused (too_large): "), "{text}");
    }
}
