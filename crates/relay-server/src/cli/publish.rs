//! `relay publish`: one update from a shell, over HTTP.
//!
//! It puts words into a job document and reports what the relay said; what the fields mean, and whether
//! they are right, the relay knows.
//!
//! Invariant: exit 0 means the update was accepted, and its cursor is on stdout.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use relay_core::id::Name;
use serde_json::{Map, Number, Value};

use super::http_client::{Answer, Call, ServerArgs, call};

const REFUSED: u8 = 1;
const NOT_ALLOWED: u8 = 2;
const UNREACHABLE: u8 = 4;

/// Publish one update of a job
///
/// With --status (or --file) this is the job's complete new state. Without --status, the fields given are
/// merged onto its last state. With --milestone it is a named event that nothing later supersedes.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  relay publish clip-42 --status running --progress 0 --stage download
  relay publish clip-42 --progress 40 --message 'frame 400 of 1000'      the rest stays as it was
  relay publish clip-42 --milestone thumbnail_ready --data '{\"url\":\"/t/42.png\"}'
  relay publish clip-42 --status completed --progress 100
  relay publish clip-42 --status failed --error 'disk full'
  relay publish clip-42 --owner alice --file state.json                   a complete document
  make-state | relay publish clip-42 --file -

Prints the update's cursor. Exit codes:
  0 accepted   1 rejected: the document is wrong, or the job has moved on
  2 usage, or not allowed   4 the server cannot be reached")]
pub(super) struct PublishArgs {
    /// The job's id
    #[arg(value_parser = Name::parse)]
    job: Name,
    /// queued, running, completed, failed or cancelled
    #[arg(long, value_name = "WORD")]
    status: Option<String>,
    /// 0 to 100
    #[arg(long, value_name = "PERCENT")]
    progress: Option<f64>,
    /// What it is doing, in a word
    #[arg(long, value_name = "TEXT")]
    stage: Option<String>,
    /// What it is doing, in a sentence
    #[arg(long, value_name = "TEXT")]
    message: Option<String>,
    /// Seconds left, if you know better than the relay's estimate
    #[arg(long, value_name = "SECONDS")]
    eta: Option<f64>,
    /// Where the result is
    #[arg(long, value_name = "URL")]
    result_url: Option<String>,
    /// Why it failed
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
    /// Which attempt this is; a higher one reopens a job that has ended
    #[arg(long, value_name = "N")]
    attempt: Option<u32>,
    /// The job whose group this one belongs to
    #[arg(long, value_name = "JOB", value_parser = Name::parse)]
    parent: Option<Name>,
    /// The user the job belongs to
    #[arg(long, value_name = "USER", value_parser = Name::parse)]
    owner: Option<Name>,
    /// Publish a milestone of this name instead of a state
    #[arg(long, value_name = "NAME", value_parser = Name::parse,
          conflicts_with_all = ["status", "progress", "stage", "message", "eta", "result_url", "error", "attempt", "parent", "file"])]
    milestone: Option<Name>,
    /// The milestone's data
    #[arg(long, value_name = "JSON", requires = "milestone", value_parser = json)]
    data: Option<Value>,
    /// A complete job document; - reads it from stdin
    #[arg(long, value_name = "FILE",
          conflicts_with_all = ["status", "progress", "stage", "message", "eta", "result_url", "error", "attempt", "parent"])]
    file: Option<PathBuf>,
    #[command(flatten)]
    server: ServerArgs,
    /// How long to wait for the answer
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// Publishes, prints the cursor or the reason, and says with the exit code which of them it was.
pub(super) async fn run(args: PublishArgs) -> ExitCode {
    let mut request = match request(&args) {
        Ok(request) => request,
        Err(sentence) => return complain(NOT_ALLOWED, &sentence),
    };
    request.token = match args.server.token() {
        Ok(token) => token,
        Err(error) => return complain(NOT_ALLOWED, &error.to_string()),
    };
    match call(&args.server.server(), request, args.timeout).await {
        Ok(answer) => report(&answer),
        Err(error) => complain(UNREACHABLE, &error.to_string()),
    }
}

/// The call that the arguments ask for.
fn request(args: &PublishArgs) -> Result<Call, String> {
    let owner = args
        .owner
        .as_ref()
        .map(|owner| format!("?owner={owner}"))
        .unwrap_or_default();
    let job = &args.job;
    let (method, path, body) = if let Some(name) = &args.milestone {
        let data = args
            .data
            .clone()
            .unwrap_or_else(|| Value::Object(Map::new()));
        (
            Method::POST,
            format!("/v1/jobs/{job}/milestones/{name}"),
            data.to_string().into(),
        )
    } else if let Some(path) = &args.file {
        (Method::POST, format!("/v1/jobs/{job}"), read(path)?)
    } else {
        let fields = fields(args)?;
        if fields.is_empty() {
            return Err(
                "nothing to publish; give --status, --progress, --milestone or --file (see --help)"
                    .to_owned(),
            );
        }
        // Without a status it is not a complete state, so the server merges it onto the last one.
        let method = if args.status.is_some() {
            Method::POST
        } else {
            Method::PATCH
        };
        (
            method,
            format!("/v1/jobs/{job}"),
            Value::Object(fields).to_string().into(),
        )
    };
    Ok(Call {
        method,
        path: path + &owner,
        token: None,
        body,
    })
}

/// The document's fields that were given.
fn fields(args: &PublishArgs) -> Result<Map<String, Value>, String> {
    let number = |flag: &str, value: f64| {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| format!("{flag} must be a number"))
    };
    let text = |value: &Option<String>| value.clone().map(Value::String);
    let progress = args
        .progress
        .map(|value| number("--progress", value))
        .transpose()?;
    let eta = args.eta.map(|value| number("--eta", value)).transpose()?;
    let given = [
        ("status", text(&args.status)),
        ("progress", progress),
        ("stage", text(&args.stage)),
        ("message", text(&args.message)),
        ("eta_seconds", eta),
        ("result_url", text(&args.result_url)),
        (
            "error",
            args.error
                .as_ref()
                .map(|message| serde_json::json!({ "message": message })),
        ),
        ("attempt", args.attempt.map(Value::from)),
        (
            "parent_id",
            args.parent
                .as_ref()
                .map(|parent| Value::from(parent.as_str())),
        ),
    ];
    Ok(given
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect())
}

fn read(path: &Path) -> Result<Bytes, String> {
    let read = if path == Path::new("-") {
        let mut document = Vec::new();
        io::stdin()
            .lock()
            .read_to_end(&mut document)
            .map(|_| document)
    } else {
        std::fs::read(path)
    };
    let document = read.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    if document.is_empty() {
        return Err(format!(
            "{} is empty; it should hold a job document",
            path.display()
        ));
    }
    Ok(document.into())
}

fn report(answer: &Answer) -> ExitCode {
    if answer.status.is_success() {
        let accepted: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let cursor = accepted
            .get("cursor")
            .and_then(Value::as_str)
            .unwrap_or_default();
        return match writeln!(io::stdout().lock(), "{cursor}") {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => complain(
                REFUSED,
                &format!("accepted, but the cursor cannot be printed: {error}"),
            ),
        };
    }
    let code = match answer.status {
        StatusCode::UNPROCESSABLE_ENTITY | StatusCode::CONFLICT | StatusCode::PAYLOAD_TOO_LARGE => {
            REFUSED
        }
        status if status.is_server_error() => UNREACHABLE,
        _ => NOT_ALLOWED,
    };
    complain(code, &answer.sentence())
}

fn complain(code: u8, sentence: &str) -> ExitCode {
    // With stderr closed the exit code still tells.
    drop(writeln!(io::stderr().lock(), "relay publish: {sentence}"));
    ExitCode::from(code)
}

fn json(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: PublishArgs,
    }

    fn request_of(line: &str) -> Result<(String, String, String), String> {
        let words = ["publish"].into_iter().chain(line.split(' '));
        let args = Line::try_parse_from(words)
            .map_err(|error| error.to_string())?
            .args;
        let call = request(&args)?;
        let body = String::from_utf8(call.body.to_vec()).unwrap();
        Ok((call.method.to_string(), call.path, body))
    }

    #[test]
    fn a_status_makes_it_a_complete_state() {
        let (method, path, body) =
            request_of("j1 --status running --progress 40 --owner alice").unwrap();
        assert_eq!(
            (method.as_str(), path.as_str()),
            ("POST", "/v1/jobs/j1?owner=alice")
        );
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            body,
            serde_json::json!({"status": "running", "progress": 40.0})
        );
    }

    #[test]
    fn fields_without_a_status_are_merged_onto_the_last_state() {
        let (method, path, body) = request_of("j1 --message hello").unwrap();
        assert_eq!((method.as_str(), path.as_str()), ("PATCH", "/v1/jobs/j1"));
        assert_eq!(body, r#"{"message":"hello"}"#);
    }

    #[test]
    fn a_milestone_carries_its_data() {
        let (method, path, body) =
            request_of(r#"j1 --milestone clip_completed --data {"clip":3}"#).unwrap();
        assert_eq!(
            (method.as_str(), path.as_str()),
            ("POST", "/v1/jobs/j1/milestones/clip_completed")
        );
        assert_eq!(body, r#"{"clip":3}"#);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_before_anything_is_sent() {
        for line in [
            "j1",
            "a.b --status running",
            "j1 --milestone m --status running",
            "j1 --data {}",
            "j1 --milestone m --data {",
            "j1 --progress NaN",
            "j1 --file /nonexistent/state.json",
        ] {
            assert!(request_of(line).is_err(), "{line}");
        }
    }
}
