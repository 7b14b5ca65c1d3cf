//! Writes `docs/reference/metrics.md` from the metrics the relay defines.
//!
//! A family without a value is not gathered, so each is given one first; what is not on the page then stands in
//! `telemetry.rs` and was forgotten here, and the test says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use relay_bus::hub::HubStats;
use relay_core::quality::Grade;
use relay_core::watcher::outbox::GapReason;
use relay_core::watcher::session::CloseReason;

use super::{assert_written, page};
use crate::telemetry::Telemetry;
use relay_wire::dialect::Failure;

const PAGE: &str = "docs/reference/metrics.md";

const HEAD: &str = "\
# Metrics

`GET /metrics` on the operators' listener (`admin.listen`, `127.0.0.1:9090` by default) answers in the text format of Prometheus. \
Every metric of the relay begins with `relay_`; counters end with `_total`; times are seconds, sizes are bytes. \
No job, user, address or token is ever a label. On Linux the usual `process_…` metrics (CPU, memory, file descriptors) are there as well.

Which of them to look at first: [Run in production](../how-to/run-in-production.md#4-watch-it). \
Alerts: [deploy/prometheus/relay.rules.yml](../../deploy/prometheus/relay.rules.yml).

This page is written from the code; `RELAY_BLESS=1 cargo test -p relay-server --lib reference` writes it anew.

## All metrics

| Metric | Type | Labels | Counts or measures |
|---|---|---|---|
";

/// What a label's values are, in words; `*` where a label means the same in every metric.
const VALUES: &[(&str, &str, &str)] = &[
    ("*", "class", "`state`, `milestone`, `ending`"),
    ("*", "dialect", "a dialect's name, as in `dialects.enabled`"),
    (
        "*",
        "mapping",
        "the mapping's key in the dialect's file, such as `frames.state`",
    ),
    ("*", "shard", "the number of a shard, from 0"),
    (
        "*",
        "transport",
        "`websocket`, `sse`, `poll`, `socketio_websocket`, `socketio_polling`",
    ),
    ("*", "verdict", VERDICTS),
    ("*", "version", "the relay's version"),
    (
        "*",
        "limit",
        "`connections` (`limits.connections`), `sockets` (as many as the process has descriptors for), `answer_bytes` \
         (`limits.answer_bytes`), `body_bytes` (`limits.body_bytes`), `jobs` (`history.jobs`); where something was rejected, also the keys of \
         `[limits]` that end with `_per_second`",
    ),
    ("*", "scope", "`user`, `address`, `node`"),
    (
        "relay_client_errors_total",
        "code",
        "an error code of a frame ([Errors](errors.md#in-frames)); besides, `protocol` (broken framing or packets) and \
         `unanswered` (a worker did not answer a dialect's request)",
    ),
    (
        "relay_connection_checks_total",
        "result",
        "`answered`, `missed`",
    ),
    ("relay_connections_closed_total", "reason", REASONS),
    (
        "relay_connections_refused_total",
        "reason",
        "an error code of an HTTP answer ([Errors](errors.md#over-http)); `accept` (a socket could not be accepted); `introduction` (a connection without the header of the PROXY protocol that \
         `http.forwarded` demands); `tls_handshake` (a client that did not come to speak TLS); \
         `engineio_…` (what was wrong with an Engine.IO request)",
    ),
    (
        "relay_dialect_failures_total",
        "reason",
        "`unreadable` and `too_deep` (what the mapping is given cannot be read), `error` (the mapping's own), `client` (a \
         client's message that the mapping cannot read; the client is answered), `halt`, \
         `too_much` (more values or bytes than a run may give), `not_json`, `not_an_instruction` (what it gave is neither)",
    ),
    ("relay_gaps_total", "reason", GAPS),
    (
        "relay_http_requests_total",
        "code",
        "the status of the answer",
    ),
    (
        "relay_http_requests_total",
        "route",
        "the route's pattern, such as `/v1/jobs/{id}`; `other`",
    ),
    (
        "relay_endings_stored_again_total",
        "result",
        "`stored`; `outrun` (something new came each time, and it is tried again); `failed` (the stream did not take \
         it; the log says why)",
    ),
    (
        "relay_jwks_refresh_total",
        "result",
        "`ok`, `failed` (the log says why; the keys of the last fetch that succeeded stay)",
    ),
    (
        "relay_repairs_total",
        "result",
        "`found` (the job is told as the stream has it), `nothing` (the stream has nothing of it that can be told), \
         `again` (more came meanwhile than could wait, so the rest is fetched next), `failed` (the stream did not \
         answer; it is asked again)",
    ),
    (
        "relay_resumes_total",
        "result",
        "`recovered` (what was missed was sent), `snapshot` (the cursor was too old or from another epoch)",
    ),
    (
        "relay_updates_total",
        "result",
        "`accepted`; `shortened` (an ending, accepted without what was wrong in it); `duplicate` and `repeated` (the same once more); `deferred` (told with what a repair fetched); `unwatched` (not \
         read further, because nobody watches the job and something before it is missing); `resynced` (found in the \
         stream by a repair or a comparison, and had not come by); `expired`; `slow_consumer` (dropped before it was read); or the reason for which it \
         is refused: `bad_subject` (too few or too many tokens), `bad_name` (a token is not a valid owner, job id or \
         milestone's name), `not_from_stream` (published under the live prefix), or the code that the same update gets \
         over HTTP ([Errors](errors.md#publishing))",
    ),
];

const VERDICTS: &str = "VERDICTS";
const REASONS: &str = "REASONS";
const GAPS: &str = "GAPS";

fn in_words(values: &str) -> String {
    let list = |words: Vec<&str>| {
        let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
        words.join(", ")
    };
    match values {
        VERDICTS => list(Grade::ALL.map(Grade::as_str).to_vec()),
        REASONS => format!(
            "{}; see [Errors](errors.md#websocket-close-codes)",
            list(CloseReason::ALL.map(CloseReason::as_str).to_vec())
        ),
        GAPS => list(vec![
            GapReason::Outbox.as_str(),
            GapReason::History.as_str(),
        ]),
        text => text.to_owned(),
    }
}

/// One metric.
struct Family {
    kind: &'static str,
    labels: Vec<String>,
    help: String,
}

fn families() -> BTreeMap<String, Family> {
    let telemetry = Telemetry::new().unwrap();
    // Each gets one value.
    telemetry.transport("websocket").opened.inc();
    let _ = telemetry.class("state");
    telemetry.closed("websocket", "client");
    telemetry.refused("draining");
    telemetry.request("other", 404);
    telemetry.gap("outbox");
    telemetry.resume(true);
    telemetry.client_error("bad_json");
    telemetry.mapping("a", "b").failed(&Failure::Halt);
    let _ = telemetry.dialect_connections("a");
    telemetry.quality_change(Grade::Good);
    telemetry.check("answered");
    telemetry.endings(0, 0, Duration::ZERO);
    telemetry.bound("jobs", 0, 1);
    telemetry.keys_fetched((1, 1, 0));
    telemetry.limit_rejected("connections", "user");
    let hub = HubStats {
        counts: vec![("accepted", 1)],
        repaired: vec![("found", 1)],
        endings: vec![("stored", 1)],
        inboxes: vec![relay_bus::inbox::InboxStats::default()],
        ..HubStats::default()
    };
    let text = String::from_utf8(telemetry.scrape(&hub).unwrap()).unwrap();
    let mut families = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, help)) = line
            .strip_prefix("# HELP ")
            .and_then(|rest| rest.split_once(' '))
        {
            families.insert(
                name.to_owned(),
                Family {
                    kind: "",
                    labels: Vec::new(),
                    help: help.to_owned(),
                },
            );
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.split_once(' '))
        {
            families.get_mut(name).unwrap().kind = match kind {
                "counter" => "counter",
                "gauge" => "gauge",
                "histogram" => "histogram",
                other => panic!("{name} is a {other}"),
            };
        } else if let Some((series, rest)) = line.split_once('{') {
            let name = series
                .strip_suffix("_bucket")
                .filter(|name| families.contains_key(*name))
                .unwrap_or(series);
            let Some(family) = families.get_mut(name) else {
                continue;
            };
            let labels = rest.split('}').next().unwrap_or_default();
            family.labels = labels
                .split(',')
                .filter_map(|label| Some(label.split_once('=')?.0.to_owned()))
                .filter(|label| label != "le")
                .collect();
        }
    }
    families.retain(|name, _| name.starts_with("relay_"));
    families
}

fn metrics_md() -> String {
    let families = families();
    let mut out = HEAD.to_owned();
    for (name, family) in &families {
        let labels: Vec<String> = family
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        let labels = if labels.is_empty() {
            "–".to_owned()
        } else {
            labels.join(", ")
        };
        let Family { kind, help, .. } = family;
        writeln!(out, "| `{name}` | {kind} | {labels} | {help} |").unwrap();
    }
    out.push_str("\n## Labels\n\n| Label | In | Values |\n|---|---|---|\n");
    for (metric, label, values) in VALUES {
        let place = match *metric {
            "*" => "all metrics that have it".to_owned(),
            name => format!("`{name}`"),
        };
        writeln!(out, "| `{label}` | {place} | {} |", in_words(values)).unwrap();
    }
    out.push_str(
        "\n## Sums that hold\n\n\
         - `relay_connections_opened_total` − `relay_connections_closed_total` = `relay_connections`, for each transport.\n\
         - Every update that came in is in exactly one `result` of `relay_updates_total`.\n",
    );
    out
}

#[test]
fn the_page_of_metrics_is_what_the_code_says() {
    assert_written(PAGE, &metrics_md());
}

#[test]
fn no_metric_is_left_out() {
    let defined = include_str!("../telemetry.rs").split('"').skip(1);
    let defined: BTreeSet<&str> = defined
        .step_by(2)
        .filter(|text| text.starts_with("relay_"))
        .collect();
    let found = families();
    let found: BTreeSet<&str> = found.keys().map(String::as_str).collect();
    assert_eq!(found, defined);
}

#[test]
fn every_label_is_explained() {
    for (name, family) in families() {
        for label in &family.labels {
            let explained = VALUES
                .iter()
                .any(|(metric, known, _)| known == label && (*metric == "*" || *metric == name));
            assert!(explained, "{name}: {label}");
        }
    }
}

#[test]
fn the_alerts_are_about_metrics_that_there_are() {
    let rules = page("deploy/prometheus/relay.rules.yml");
    let alerts = rules.matches("- alert: ").count();
    let expressions: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("expr: "))
        .collect();
    assert_eq!(
        expressions.len(),
        alerts,
        "every alert has an expression on one line"
    );
    assert_eq!(rules.matches("          summary: ").count(), alerts);
    let families = families();
    for expression in expressions {
        let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let metrics: Vec<_> = words.filter(|word| word.starts_with("relay_")).collect();
        assert!(!metrics.is_empty(), "{expression}");
        for metric in metrics {
            assert!(families.contains_key(metric), "{expression}: {metric}");
        }
    }
}
