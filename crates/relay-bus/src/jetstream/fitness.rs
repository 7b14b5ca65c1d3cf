//! How a stream and its server are set up, held against what the relay does with them.
//!
//! Every setting that matters is looked at by name. Some the relay cannot work with: then it waits until they are
//! changed. Others lose something, sooner or later: they are told, and the relay works. A difference comes with its
//! cure, a command to run or a line to change.
//!
//! It knows the meaning of settings, and asks nobody.
//!
//! Invariant: a stream that the relay makes, and the one that is shipped, have no difference at all.

mod difference;

use std::fmt;
use std::time::Duration;

use async_nats::jetstream::stream::{
    Config, DiscardPolicy, PersistenceMode, RetentionPolicy, Source, StorageType,
};

pub use difference::{Difference, Weight};

use super::{JetStreamSettings, Storage};
use crate::subject::{Subjects, covers};

/// What headers may take of a message beside its payload: ids, lifetimes, traces. A stream counts both.
const HEADERS: usize = 4096;
/// Past this a job's history is long to read.
const MANY_MESSAGES: i64 = 4096;
/// How long a repeated `Nats-Msg-Id` is recognised: longer than workers retry, and as long as keys are remembered.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// The largest message, headers included, that is as large as the largest update.
pub(crate) fn message_bytes(update_bytes: usize) -> usize {
    update_bytes.saturating_add(HEADERS)
}

/// How long a stream that the relay makes recognises a message id. The server refuses a window longer than the age.
pub(super) fn duplicate_window(max_age: Duration) -> Duration {
    match max_age {
        Duration::ZERO => DUPLICATE_WINDOW,
        age => age.min(DUPLICATE_WINDOW),
    }
}

/// What of a server's configuration loses something.
pub(crate) fn of_server(max_payload: usize, update_bytes: usize) -> Option<Difference> {
    let needed = message_bytes(update_bytes);
    (max_payload < needed).then(|| Difference {
        setting: "the server's max_payload",
        found: max_payload.to_string(),
        needed: format!("at least {needed}"),
        effect: "updates that limits.update_bytes allows are rejected for their size",
        cure: format!(
            "set `max_payload: {needed}` in the configuration of every NATS server and run `nats-server --signal reload`, or lower limits.update_bytes"
        ),
        weight: Weight::Loses,
    })
}

/// What of a stream's configuration is not as the relay needs it.
pub(super) fn of_stream(
    config: &Config,
    counts: bool,
    settings: &JetStreamSettings,
    subjects: &Subjects,
) -> Vec<Difference> {
    let mut look = Look {
        config,
        settings,
        differences: Vec::new(),
    };
    if config.sealed {
        // Sealing changes half of the other settings, and none of them can be changed back.
        look.prevents(
            "sealed",
            true,
            "false",
            "nothing can be published any more",
            look.anew(),
        );
        return look.differences;
    }
    look.origin(subjects);
    look.feed(subjects);
    look.answers();
    if counts {
        look.prevents(
            "allow_msg_counter",
            true,
            "false",
            "a stream of counters takes no documents",
            look.anew(),
        );
    }
    look.size();
    look.age();
    look.room();
    look.store();
    look.differences
}

/// A stream that is being looked at.
struct Look<'a> {
    config: &'a Config,
    settings: &'a JetStreamSettings,
    differences: Vec<Difference>,
}

impl Look<'_> {
    fn prevents(
        &mut self,
        setting: &'static str,
        found: impl fmt::Display,
        needed: impl fmt::Display,
        effect: &'static str,
        cure: String,
    ) {
        self.differences.push(Difference {
            setting,
            found: found.to_string(),
            needed: needed.to_string(),
            effect,
            cure,
            weight: Weight::Prevents,
        });
    }

    fn loses(
        &mut self,
        setting: &'static str,
        found: impl fmt::Display,
        needed: impl fmt::Display,
        effect: &'static str,
        cure: String,
    ) {
        self.differences.push(Difference {
            setting,
            found: found.to_string(),
            needed: needed.to_string(),
            effect,
            cure,
            weight: Weight::Loses,
        });
    }

    fn edit(&self, flags: impl fmt::Display) -> String {
        format!("run `nats stream edit {} {flags}`", self.config.name)
    }

    /// What cannot be changed in a stream.
    fn anew(&self) -> String {
        let name = &self.config.name;
        format!(
            "it cannot be changed: run `nats stream rm {name}` and `nats stream add {name} --config deploy/nats/stream.json`; jobs begin anew"
        )
    }

    /// Where messages come from.
    fn origin(&mut self, subjects: &Subjects) {
        let any_job = subjects.any_job();
        let all = subjects.all();
        if let Some(mirror) = &self.config.mirror {
            let cure = self.elsewhere(mirror);
            self.prevents(
                "mirror",
                mirror.name.as_str(),
                "unset",
                "workers cannot publish to a mirror",
                cure,
            );
            return;
        }
        let sources: Vec<&str> = self.sources().map(|source| source.name.as_str()).collect();
        let captures = self
            .config
            .subjects
            .iter()
            .any(|each| covers(each, &any_job));
        match (captures, sources.is_empty()) {
            (true, true) => {}
            (false, true) => {
                let cure = self.edit(format_args!("--subjects='{all}'"));
                let found = format!("{:?}", self.config.subjects);
                self.prevents(
                    "subjects",
                    found,
                    format!("{:?}", [&all]),
                    "what workers publish is not stored",
                    cure,
                );
            }
            (true, false) => self.sources_of_owners(subjects),
            (false, false) => {
                let found = format!("{sources:?}");
                let cure = match self.sources().next() {
                    Some(first) => self.elsewhere(first),
                    None => self.edit(format_args!("--subjects='{all}'")),
                };
                self.loses(
                    "sources",
                    found,
                    "unset",
                    "updates come from the sources alone; publishing over HTTP is rejected",
                    cure,
                );
            }
        }
        if let Some(transform) = &self.config.subject_transform {
            let source = match transform.source.as_str() {
                "" => ">",
                source => source,
            };
            let is_ours = covers(source, &any_job) || covers(&any_job, source);
            if is_ours && transform.source != transform.destination {
                let found = format!("{source:?} to {:?}", transform.destination);
                let cure = self.edit("--no-transform");
                self.prevents(
                    "subject_transform",
                    found,
                    "unset",
                    "updates are stored under subjects that the relay does not read",
                    cure,
                );
            }
        }
    }

    /// A stream that gathers what owners' own streams hold: nobody may reach into another's by it.
    fn sources_of_owners(&mut self, subjects: &Subjects) {
        let any_job = subjects.any_job();
        let wide: Vec<&str> = self
            .sources()
            .filter(|source| !is_narrow(source, &any_job))
            .map(|source| source.name.as_str())
            .collect();
        if !wide.is_empty() {
            let found = format!("{wide:?} without a filter_subject");
            self.loses(
                "sources",
                found,
                "each with the filter_subject of its owner, as in deploy/nats/tenants/stream.json",
                "whoever publishes to such a source may publish for any owner",
                self.edit("--config deploy/nats/tenants/stream.json, with your owners in it"),
            );
        }
    }

    /// Whether other streams' messages come to this one by the server's hand.
    fn gathers(&self) -> bool {
        self.sources().next().is_some()
    }

    fn sources(&self) -> impl Iterator<Item = &Source> {
        self.config.sources.iter().flatten()
    }

    /// How the relay comes to read the stream that another one copies.
    fn elsewhere(&self, source: &Source) -> String {
        let external = source.external.as_ref().map(|external| {
            let api = external.api_prefix.as_str();
            let domain = api
                .strip_prefix("$JS.")
                .and_then(|api| api.strip_suffix(".API"));
            domain.unwrap_or(api)
        });
        let domain = match source.domain.as_deref().or(external) {
            Some(domain) => format!(" and nats.domain = {domain:?}"),
            None => String::new(),
        };
        format!(
            "set nats.stream = {:?}{domain} in the relay's configuration",
            source.name
        )
    }

    /// What comes out live.
    fn feed(&mut self, subjects: &Subjects) {
        let (all, live) = (subjects.all(), subjects.all_live());
        let found = match &self.config.republish {
            Some(found) if found.headers_only => format!(
                "{:?} to {:?} (headers only)",
                found.source, found.destination
            ),
            Some(found) if republishes(found, subjects) => return,
            Some(found) => format!("{:?} to {:?}", found.source, found.destination),
            None => "unset".to_owned(),
        };
        let cure = self.edit(format_args!(
            "--republish-source='{all}' --republish-destination='{live}'"
        ));
        let needed = format!("{all:?} to {live:?}");
        self.prevents("republish", found, needed, "nothing is sent live", cure);
    }

    /// What is asked of it, and what it answers.
    fn answers(&mut self) {
        let config = self.config;
        if !config.allow_direct {
            let cure = self.edit("--allow-direct");
            self.prevents(
                "allow_direct",
                false,
                true,
                "states and histories cannot be read",
                cure,
            );
        }
        if config.deny_purge {
            self.prevents(
                "deny_purge",
                true,
                false,
                "an ending cannot replace the states before it",
                self.anew(),
            );
        } else if !config.allow_rollup {
            let cure = self.edit("--allow-rollup");
            self.prevents(
                "allow_rollup_hdrs",
                false,
                true,
                "an ending cannot replace the states before it",
                cure,
            );
        }
        if !config.allow_message_ttl {
            let cure = self.edit("--allow-msg-ttl");
            self.prevents(
                "allow_msg_ttl",
                false,
                true,
                "an ending cannot expire by itself",
                cure,
            );
        }
        if config.no_ack {
            let cure = self.edit("--ack");
            self.prevents(
                "no_ack",
                true,
                false,
                "nobody who publishes learns whether an update is stored",
                cure,
            );
        }
        let retention = format!("{:?}", config.retention).to_lowercase();
        let effect = "what was read is deleted";
        match config.retention {
            RetentionPolicy::Limits => {}
            RetentionPolicy::Interest => {
                let cure = self.edit("--retention=limits");
                self.prevents("retention", retention, "limits", effect, cure);
            }
            RetentionPolicy::WorkQueue => {
                self.prevents("retention", retention, "limits", effect, self.anew());
            }
        }
    }

    /// The largest message.
    fn size(&mut self) {
        let smallest = message_bytes(self.settings.update_bytes);
        let (needed, for_headers) = match self.gathers() {
            true => (smallest.saturating_add(HEADERS), 2 * HEADERS),
            false => (smallest, HEADERS),
        };
        let found = self.config.max_message_size;
        let effect = match usize::try_from(found) {
            Ok(found) if (needed..=self.settings.update_bytes + 4 * HEADERS).contains(&found) => {
                return;
            }
            Ok(found) if (smallest..needed).contains(&found) => {
                "the server adds a header to what it gathers: the largest update stops its source for good"
            }
            Ok(found) if 0 < found && found < needed => {
                "updates that limits.update_bytes allows are rejected for their size"
            }
            _ => {
                "an update above limits.update_bytes is stored and acknowledged, and then the relay cannot use it whole"
            }
        };
        let cure = self.edit(format_args!("--max-msg-size={needed}"));
        let needed = format!("{needed} (limits.update_bytes and {for_headers} for headers)");
        self.loses("max_msg_size", Bound(found.into()), needed, effect, cure);
    }

    fn age(&mut self) {
        let (age, ttl) = (self.config.max_age, self.settings.terminal_ttl);
        if !age.is_zero() && age < ttl {
            let ttl = Span(ttl);
            let cure = self.edit(format_args!("--max-age={ttl}"));
            let needed = format!("at least {ttl} (history.terminal_ttl)");
            self.loses(
                "max_age",
                Span(age),
                needed,
                "endings are dropped before their time",
                cure,
            );
        }
        let (window, needed) = (self.config.duplicate_window, duplicate_window(age));
        if self.gathers() {
            // The sources recognise what is sent again, each for its own owner.
            if !window.is_zero() {
                self.loses(
                    "duplicate_window",
                    Span(window),
                    "0",
                    "an update with a message id that another source's worker has used is left out, though its worker was told that it is stored",
                    self.edit("--config deploy/nats/tenants/stream.json, with your owners in it"),
                );
            }
        } else if window < needed {
            let needed = Span(needed);
            let cure = self.edit(format_args!("--dupe-window={needed}"));
            self.loses(
                "duplicate_window",
                Span(window),
                format!("at least {needed}"),
                "an update that is sent again later than that is told twice",
                cure,
            );
        }
        if self
            .config
            .subject_delete_marker_ttl
            .is_none_or(|ttl| ttl.is_zero())
        {
            let cure = self.edit("--subject-del-markers-ttl=1m");
            self.loses(
                "subject_delete_marker_ttl",
                "unset",
                "1m",
                "the stream does not say when a job expires, so its watchers do not learn it",
                cure,
            );
        }
    }

    /// How much it keeps, and what it does when that is reached.
    fn room(&mut self) {
        let per_job = i64::try_from(self.settings.per_job).unwrap_or(i64::MAX);
        let kept = self.config.max_messages_per_subject;
        if !(1..=MANY_MESSAGES.max(per_job)).contains(&kept) {
            let cure = self.edit(format_args!("--max-msgs-per-subject={per_job}"));
            self.loses(
                "max_msgs_per_subject",
                Bound(kept),
                per_job,
                "histories grow long, and each is read whole when a job is watched",
                cure,
            );
        } else if kept < per_job {
            let cure = self.edit(format_args!("--max-msgs-per-subject={per_job}"));
            let needed = format!("at least {per_job} (history.per_job)");
            self.loses(
                "max_msgs_per_subject",
                kept,
                needed,
                "milestones are dropped before a client that was away has come back for them",
                cure,
            );
        }
        if self.config.discard_new_per_subject {
            let cure = self.edit("--no-discard-per-subject --discard=old");
            self.loses(
                "discard_new_per_subject",
                true,
                false,
                "a job with many updates takes no more, and its ending is rejected",
                cure,
            );
        } else if self.config.discard == DiscardPolicy::New {
            let cure = self.edit("--discard=old");
            self.loses(
                "discard",
                "new",
                "old",
                "a full stream rejects updates, endings among them",
                cure,
            );
        }
        if self.config.discard == DiscardPolicy::New {
            return;
        }
        let effect = "when it is reached, the oldest updates of any job are dropped, endings before their time among them";
        if self.config.max_messages > 0 {
            let cure = self.edit("--max-msgs=-1");
            self.loses("max_msgs", self.config.max_messages, -1, effect, cure);
        }
        if self.config.max_bytes > 0 {
            let cure = self.edit("--max-bytes=-1");
            self.loses("max_bytes", self.config.max_bytes, -1, effect, cure);
        }
    }

    /// What becomes of it when a server is gone.
    fn store(&mut self) {
        if self.config.storage == StorageType::Memory && self.settings.storage == Storage::File {
            let cure = format!(
                "{}; or set nats.stream_storage = \"memory\", if that is meant",
                self.anew()
            );
            self.loses(
                "storage",
                "memory",
                "file",
                "a restarted server has lost all jobs, and finding one walks over the whole stream",
                cure,
            );
        }
        if self.config.num_replicas < self.settings.replicas {
            let wanted = self.settings.replicas;
            let cure = self.edit(format_args!("--replicas={wanted}"));
            let needed = format!("{wanted} (nats.stream_replicas)");
            self.loses(
                "num_replicas",
                self.config.num_replicas,
                needed,
                "the loss of a server stops or loses the stream",
                cure,
            );
        }
        if self.config.persist_mode == Some(PersistenceMode::Async) {
            self.loses(
                "persist_mode",
                "async",
                "default",
                "acknowledged updates are lost when the server crashes",
                self.anew(),
            );
        }
    }
}

/// Whether what comes from a source is some owners' alone.
fn is_narrow(source: &Source, any_job: &str) -> bool {
    let filter = source.filter_subject.as_deref();
    let transforms = source.subject_transforms.iter();
    let mut taken = filter
        .into_iter()
        .chain(transforms.map(|transform| transform.destination.as_str()))
        .filter(|subject| !subject.is_empty())
        .peekable();
    taken.peek().is_some() && taken.all(|subject| !covers(subject, any_job))
}

/// Whether live messages come out under the live prefix, whatever else is republished.
fn republishes(republish: &async_nats::jetstream::stream::Republish, subjects: &Subjects) -> bool {
    let live = subjects.all_live();
    let live = live.strip_suffix(&subjects.all()).unwrap_or_default();
    covers(&republish.source, &subjects.any_job())
        && republish.source.ends_with('>')
        && republish.destination == format!("{live}{}", republish.source)
}

/// A limit where 0 and less mean none.
struct Bound(i64);

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            some @ 1.. => some.fmt(f),
            _ => f.write_str("unlimited"),
        }
    }
}

/// A duration as the `nats` command reads it.
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let units = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
        let fits = |(_, unit): &&(&str, u128)| millis >= *unit && millis.is_multiple_of(*unit);
        let (name, unit) = units.iter().find(fits).copied().unwrap_or(("ms", 1));
        write!(f, "{}{name}", millis / unit)
    }
}

#[cfg(test)]
mod tests;
