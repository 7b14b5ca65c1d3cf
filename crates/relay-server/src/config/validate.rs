//! What values must be, alone and beside each other.
//!
//! Reads files that keys name, to say now what would otherwise be found at the first client; writes nothing.
//!
//! Invariant: every check runs, whatever the others found; each mistake is told once.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

use relay_wire::duration;

use super::problem::{Place, Problem};
use super::value::format_size;
use super::{BusMode, Config, Nats};
use crate::identity::key::unreadable_hint;

mod auth;
mod nats;

/// Something wrong with one key, or between several.
#[derive(Debug)]
pub(super) struct Finding {
    /// The keys at fault, the likeliest first.
    pub(super) keys: Vec<&'static str>,
    message: String,
}

impl Finding {
    /// Puts the finding where somebody set one of its keys.
    pub(super) fn placed(self, places: &BTreeMap<String, Place>) -> Problem {
        let set = self
            .keys
            .iter()
            .find_map(|key| places.get(*key).map(|place| (*key, place)));
        let first = self.keys.first().copied().unwrap_or_default();
        let (key, place) = set.map_or((first, Place::Unset), |(key, place)| (key, place.clone()));
        Problem {
            place,
            key: key.to_owned(),
            message: self.message,
        }
    }
}

/// All findings about a configuration.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// What makes it unusable.
    pub(super) errors: Vec<Finding>,
    /// What is allowed but probably not meant.
    pub(super) warnings: Vec<Finding>,
}

impl Findings {
    fn error(&mut self, keys: &[&'static str], message: impl Into<String>) {
        self.errors.push(Finding {
            keys: keys.to_vec(),
            message: message.into(),
        });
    }

    fn warning(&mut self, keys: &[&'static str], message: impl Into<String>) {
        self.warnings.push(Finding {
            keys: keys.to_vec(),
            message: message.into(),
        });
    }

    fn range<T: PartialOrd>(
        &mut self,
        key: &'static str,
        value: T,
        [min, max]: [T; 2],
        show: impl Fn(T) -> String,
    ) {
        if value < min {
            let message = format!("{} is too little; at least {}", show(value), show(min));
            self.error(&[key], message);
        } else if value > max {
            let message = format!("{} is too much; at most {}", show(value), show(max));
            self.error(&[key], message);
        }
    }

    fn count<T: PartialOrd + fmt::Display>(&mut self, key: &'static str, value: T, range: [T; 2]) {
        self.range(key, value, range, |n| n.to_string());
    }

    fn size(&mut self, key: &'static str, value: usize, range: [usize; 2]) {
        self.range(key, value, range, format_size);
    }

    fn duration(&mut self, key: &'static str, value: Duration, range: [Duration; 2]) {
        self.range(key, value, range, duration::format);
    }

    /// Opens a file that a key names; says what the system says if it cannot, and whether it can.
    fn readable(&mut self, key: &'static str, file: &Path) -> bool {
        let opened = File::open(file).and_then(|opened| opened.metadata());
        let message = match opened {
            Ok(about) if about.is_dir() => format!("{} is a folder; name a file", file.display()),
            Ok(_) => return true,
            Err(error) => {
                let hint = unreadable_hint(&error);
                format!("cannot read {}: {error}{hint}", file.display())
            }
        };
        self.error(&[key], message);
        false
    }
}

/// Everything there is to say about `config`.
pub(super) fn findings(config: &Config) -> Findings {
    let mut found = Findings::default();
    listeners(config, &mut found);
    bus(config, &mut found);
    auth::check(config, &mut found);
    limits(config, &mut found);
    delivery(config, &mut found);
    history(config, &mut found);
    for (key, message) in super::kinds::problems(&config.kinds) {
        // Where it stands is the place of its table.
        found.error(&["kinds"], format!("{key}: {message}"));
    }
    log(config, &mut found);
    // A value that is wrong by itself need not be held against its neighbours too.
    let alone: Vec<&'static str> = found
        .errors
        .iter()
        .filter(|finding| finding.keys.len() == 1)
        .flat_map(|finding| finding.keys.clone())
        .collect();
    found.errors.retain(|finding| {
        finding.keys.len() == 1 || !finding.keys.iter().any(|key| alone.contains(key))
    });
    found
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;

const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

const fn minutes(n: u64) -> Duration {
    Duration::from_secs(n * 60)
}

const fn days(n: u64) -> Duration {
    Duration::from_secs(n * 86_400)
}

fn listeners(config: &Config, found: &mut Findings) {
    let (http, admin) = (&config.http, &config.admin);
    found.duration(
        "http.header_timeout",
        http.header_timeout,
        [millis(100), minutes(5)],
    );
    found.duration(
        "http.keep_alive",
        http.keep_alive,
        [millis(1000), minutes(60)],
    );
    found.count("http.shards", http.shards, [0, 1024]);
    if config.auth.mode.is_none() && !http.hosts.is_empty() {
        found.error(
            &["http.hosts", "auth.mode"],
            "http.hosts needs auth.mode: without it the relay answers only under names of this machine, such as localhost; set it to \"jwt\", or to \"anonymous\" if everybody may see and publish everything",
        );
    }
    tls(config, found);
    proxies(config, found);
    let same_ip = http.listen.ip() == admin.listen.ip()
        || http.listen.ip().is_unspecified()
        || admin.listen.ip().is_unspecified();
    if http.listen.port() != 0 && http.listen.port() == admin.listen.port() && same_ip {
        found.error(
            &["admin.listen", "http.listen"],
            format!(
                "{} and http.listen {} cannot both be listened on; give one another port",
                admin.listen, http.listen
            ),
        );
    }
}

fn tls(config: &Config, found: &mut Findings) {
    const CERTIFICATE: &str = "http.tls_cert_file";
    const KEY: &str = "http.tls_key_file";
    let http = &config.http;
    match (&http.tls_cert_file, &http.tls_key_file) {
        (Some(_), None) => found.error(
            &[CERTIFICATE, KEY],
            "has no private key; set http.tls_key_file too",
        ),
        (None, Some(_)) => found.error(
            &[KEY, CERTIFICATE],
            "has no certificate; set http.tls_cert_file too",
        ),
        (Some(_), Some(_)) => {
            if let Err(error) = http.certificate() {
                let key = if error.is_of_key() { KEY } else { CERTIFICATE };
                found.error(&[key], error.to_string());
            }
        }
        (None, None) => {}
    }
}

fn proxies(config: &Config, found: &mut Findings) {
    let http = &config.http;
    match (http.forwarded, http.trusted_proxies.is_empty()) {
        (None, false) => found.error(
            &["http.forwarded", "http.trusted_proxies"],
            "is not set although http.trusted_proxies names proxies; say how they name their clients: \"x-forwarded-for\", \"forwarded\" or \"proxy\"",
        ),
        (Some(_), true) => found.error(
            &["http.trusted_proxies", "http.forwarded"],
            "is empty although http.forwarded is set; name the proxies that may say who their clients are, such as [\"127.0.0.1\", \"10.0.0.0/8\"]",
        ),
        (Some(_), false) | (None, true) => {}
    }
    let everybody = http.trusted_proxies.iter().find(|each| each.is_everybody());
    if let Some(network) = everybody {
        found.warning(
            &["http.trusted_proxies"],
            format!("{network} is everybody: any client may say that it is another one; name the proxies alone"),
        );
    }
}

fn bus(config: &Config, found: &mut Findings) {
    let nats = &config.nats;
    found.count("nats.stream_replicas", nats.stream_replicas, [1, 5]);
    found.duration(
        "nats.stream_max_age",
        nats.stream_max_age,
        [minutes(1), days(3650)],
    );
    found.duration(
        "nats.resync_interval",
        nats.resync_interval,
        [millis(100), days(1)],
    );
    if nats.url.is_empty() {
        found.error(
            &["nats.url"],
            "is empty; name at least one server, such as \"nats://127.0.0.1:4222\"",
        );
    }
    if config.bus.mode == BusMode::Jetstream
        && nats.stream_create
        && nats.stream_max_age < config.history.terminal_ttl
    {
        found.error(
            &["nats.stream_max_age", "history.terminal_ttl"],
            format!(
                "nats.stream_max_age {} would drop endings that history.terminal_ttl {} promises to keep; make it at least that long",
                duration::format(nats.stream_max_age),
                duration::format(config.history.terminal_ttl)
            ),
        );
    }
    if config.bus.mode == BusMode::Embedded && *nats != Nats::default() {
        found.warning(
            &["bus.mode"],
            "is \"embedded\", so NATS is not used and the keys under [nats] do nothing; write \"nats\" or \"jetstream\" if it should be",
        );
    }
    nats::check(nats, found);
}

fn limits(config: &Config, found: &mut Findings) {
    let limits = &config.limits;
    found.count("limits.connections", limits.connections, [1, 10_000_000]);
    for (key, value) in [
        ("limits.connections_per_user", limits.connections_per_user),
        (
            "limits.connections_per_address",
            limits.connections_per_address,
        ),
        ("limits.connections_per_share", limits.connections_per_share),
    ] {
        found.count(key, value, [1, 10_000_000]);
    }
    found.count(
        "limits.subscriptions_per_connection",
        limits.subscriptions_per_connection,
        // One cursor has to speak for all of them.
        [1, relay_core::cursor::MAX_TOPICS],
    );
    found.size(
        "limits.message_bytes",
        limits.message_bytes,
        [KIB, 16 * MIB],
    );
    found.size("limits.update_bytes", limits.update_bytes, [KIB, 8 * MIB]);
    found.count(
        "limits.messages_per_second",
        limits.messages_per_second,
        [1, 100_000],
    );
    found.count(
        "limits.messages_burst",
        limits.messages_burst,
        [1, 1_000_000],
    );
}

fn delivery(config: &Config, found: &mut Findings) {
    let d = &config.delivery;
    found.count(
        "delivery.updates_per_second",
        d.updates_per_second,
        [1, 10_000],
    );
    found.count("delivery.milestones", d.milestones, [1, 1_000_000]);
    found.size("delivery.outbox_bytes", d.outbox_bytes, [4 * KIB, GIB]);
    found.duration(
        "delivery.write_timeout",
        d.write_timeout,
        [millis(10), minutes(10)],
    );
    found.count("delivery.max_failures", d.max_failures, [1, 1_000]);
    found.duration(
        "delivery.ping_interval",
        d.ping_interval,
        [millis(10), minutes(60)],
    );
    found.duration(
        "delivery.dead_after",
        d.dead_after,
        [millis(15), minutes(240)],
    );
    found.duration("delivery.poll_wait", d.poll_wait, [millis(0), minutes(10)]);
    found.duration(
        "delivery.poll_wait_max",
        d.poll_wait_max,
        [millis(1), minutes(10)],
    );
    found.duration(
        "delivery.ack_timeout",
        d.ack_timeout,
        [millis(10), minutes(10)],
    );
    let alive_for = d.ping_interval.saturating_mul(3) / 2;
    if d.dead_after < alive_for {
        found.error(
            &["delivery.dead_after", "delivery.ping_interval"],
            format!(
                "delivery.dead_after {} is too close to delivery.ping_interval {}: a live client would be given up before its answer is here; make it {} or more",
                duration::format(d.dead_after),
                duration::format(d.ping_interval),
                duration::format(whole_seconds(alive_for))
            ),
        );
    }
    if d.poll_wait > d.poll_wait_max {
        found.error(
            &["delivery.poll_wait", "delivery.poll_wait_max"],
            format!(
                "delivery.poll_wait {} is longer than delivery.poll_wait_max {}; lower the one or raise the other",
                duration::format(d.poll_wait),
                duration::format(d.poll_wait_max)
            ),
        );
    }
    if d.outbox_bytes < config.limits.update_bytes {
        found.error(
            &["delivery.outbox_bytes", "limits.update_bytes"],
            format!(
                "delivery.outbox_bytes {} could not hold one update of limits.update_bytes {}; make it at least that large",
                format_size(d.outbox_bytes),
                format_size(config.limits.update_bytes)
            ),
        );
    }
    drain(config, found);
}

/// Rounds up, where a person would; below a second nothing is rounded.
fn whole_seconds(duration: Duration) -> Duration {
    match (duration.as_secs(), duration.subsec_nanos()) {
        (0, _) | (_, 0) => duration,
        (seconds, _) => Duration::from_secs(seconds + 1),
    }
}

fn drain(config: &Config, found: &mut Findings) {
    let drain = &config.drain;
    found.duration("drain.spread", drain.spread, [millis(0), minutes(60)]);
    found.duration("drain.deadline", drain.deadline, [millis(1), minutes(120)]);
    if drain.spread >= drain.deadline {
        found.error(
            &["drain.spread", "drain.deadline"],
            format!(
                "drain.spread {} does not end before drain.deadline {}, so the last clients would be cut off; lower the one or raise the other",
                duration::format(drain.spread),
                duration::format(drain.deadline)
            ),
        );
    }
}

fn history(config: &Config, found: &mut Findings) {
    let history = &config.history;
    found.count("history.per_job", history.per_job, [1, 100_000]);
    found.count("history.jobs", history.jobs, [1, 100_000_000]);
    found.size("history.bytes", history.bytes, [MIB, 1024 * GIB]);
    found.duration(
        "history.terminal_ttl",
        history.terminal_ttl,
        [millis(1), days(3650)],
    );
    found.duration(
        "history.idle_ttl",
        history.idle_ttl,
        [millis(1), days(3650)],
    );
    if history.bytes < config.limits.update_bytes {
        found.error(
            &["history.bytes", "limits.update_bytes"],
            format!(
                "history.bytes {} could not hold one update of limits.update_bytes {}; make it many times that",
                format_size(history.bytes),
                format_size(config.limits.update_bytes)
            ),
        );
    }
    let Some(file) = history.file.as_deref() else {
        return;
    };
    if config.bus.mode != BusMode::Embedded {
        found.error(
            &["history.file", "bus.mode"],
            "history.file is only for bus.mode \"embedded\"; with NATS the history is NATS's, so leave it out",
        );
    }
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if file.is_dir() {
        let message = format!("{} is a folder; name a file in it", file.display());
        found.error(&["history.file"], message);
    } else if let Err(error) = std::fs::read_dir(folder) {
        let message = format!(
            "cannot write {}: its folder cannot be opened: {error}",
            file.display()
        );
        found.error(&["history.file"], message);
    }
}

fn log(config: &Config, found: &mut Findings) {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    for part in config.log.level.split(',') {
        let part = part.trim();
        let level = part.rsplit('=').next().unwrap_or(part);
        let known = LEVELS.iter().any(|l| l.eq_ignore_ascii_case(level));
        let parses = tracing_subscriber::EnvFilter::builder().parse(part).is_ok();
        // A bare misspelled level would be taken for the name of a part of the program and show everything.
        if !known || !parses {
            let meant = LEVELS
                .iter()
                .find(|l| super::problem::distance(l, &level.to_ascii_lowercase()) <= 2);
            let hint = meant.map_or(String::new(), |l| format!("; did you mean {l:?}?"));
            found.error(
                &["log.level"],
                format!("{part:?} is not a log level{hint}; use error, warn, info, debug or trace, or part=level"),
            );
        }
    }
}

#[cfg(test)]
mod tests;
