//! The stream itself: found, made, held against what the relay depends on.
//!
//! A stream that somebody else made is never changed; what does not fit is named, setting by setting. None is made
//! where another one captures the same subjects, in whatever JetStream domain: every update would be told twice.

use std::time::Duration;

use async_nats::jetstream::stream::{
    Config, DiscardPolicy, Republish, RetentionPolicy, StorageType,
};
use relay_core::position::Seq;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::ask::{AskError, Asker};
use super::fitness::{self, Difference, Weight};
use super::{JetStreamSettings, Storage};
use crate::subject::Subjects;

/// How long the sign stays that a subject's last message expired.
const MARKER_TTL: Duration = Duration::from_secs(60);
/// A stream that has no leader for the moment does not answer.
const INFO_LIMIT: Duration = Duration::from_secs(1);
/// How long streams elsewhere may take to say that they capture the subjects, before one is made here.
const ELSEWHERE_LIMIT: Duration = Duration::from_secs(1);
const NOT_FOUND: u64 = 10059;
const NAME_IN_USE: u64 = 10058;

/// Why the stream cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// Per-message lifetimes and batched gets came with 2.11.
    #[error("the NATS server is version {version}; JetStream mode needs 2.11 or later")]
    OldServer {
        /// What it says of itself.
        version: String,
    },
    /// It is not there, and the relay is told not to make it.
    #[error(
        "there is no stream {stream}: create it from deploy/nats/stream.json, or set nats.stream_create = true"
    )]
    Missing {
        /// Its name.
        stream: String,
    },
    /// It is not there, and another one captures what workers publish.
    #[error(
        "there is no stream {stream} here, but stream {} captures {subjects} already; a second one would send every update twice, so none is made. Set nats.stream to its name and, if it is in another JetStream domain, nats.domain to that (`nats --js-domain NAME stream ls`)",
        .captured.join(" and stream ")
    )]
    Elsewhere {
        /// Its name.
        stream: String,
        /// What workers publish under.
        subjects: String,
        /// The streams that capture it.
        captured: Vec<String>,
    },
    /// There are several of that name.
    #[error(
        "{times} streams called {stream} capture {subjects}, in different JetStream domains, so every update would be sent {times} times; keep one, remove the others (`nats --js-domain NAME stream rm {stream}`), and set nats.domain to that one's domain"
    )]
    Twice {
        /// Their name.
        stream: String,
        /// What workers publish under.
        subjects: String,
        /// How many there are.
        times: usize,
    },
    /// It is there, but not as the relay needs it.
    #[error(
        "stream {stream} does not match: {}",
        .differences.iter().map(ToString::to_string).collect::<Vec<_>>().join(". Also, ")
    )]
    Differs {
        /// Its name.
        stream: String,
        /// Each setting that prevents the relay from working.
        differences: Vec<Difference>,
    },
    /// The question was not answered.
    #[error("stream {stream}: {source}")]
    Unanswered {
        /// Its name.
        stream: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Which life of the stream this is, and how far it has come, in the leader's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    /// When it was created, in nanoseconds since 1970: made anew, its numbers begin again.
    pub(super) created: u64,
    pub(super) last_seq: Seq,
    /// How many messages it keeps of a subject; 0 where that has no bound.
    pub(super) per_subject: u64,
}

/// What is known of the stream, and what of it is not as it should be.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) facts: Facts,
    pub(super) differences: Vec<Difference>,
}

impl Found {
    /// Whether the relay can work with it.
    pub(super) fn fits(&self) -> bool {
        let prevents = |each: &Difference| each.weight == Weight::Prevents;
        !self.differences.iter().any(prevents)
    }
}

#[derive(Debug, Deserialize)]
struct Info {
    #[serde(deserialize_with = "nanoseconds")]
    created: u64,
    state: State,
    config: Config,
    #[serde(skip)]
    counts: bool,
}

#[derive(Debug, Deserialize)]
struct State {
    last_seq: Seq,
}

/// A time since 1970. One that cannot be read is no other: every stream would be the same one.
fn nanoseconds<'de, D: Deserializer<'de>>(time: D) -> Result<u64, D::Error> {
    let text = String::deserialize(time)?;
    let at = OffsetDateTime::parse(&text, &Rfc3339).map_err(D::Error::custom)?;
    let out_of_range = |_| D::Error::custom(format!("{text} is before 1970 or too late"));
    u64::try_from(at.unix_timestamp_nanos()).map_err(out_of_range)
}

impl Info {
    fn facts(&self) -> Facts {
        Facts {
            created: self.created,
            last_seq: self.state.last_seq,
            per_subject: u64::try_from(self.config.max_messages_per_subject).unwrap_or_default(),
        }
    }
}

/// Where the relay's stream is, and what it is to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) asker: &'a Asker,
    pub(super) settings: &'a JetStreamSettings,
    pub(super) subjects: &'a Subjects,
}

/// Whether there is no such stream.
pub(super) fn is_missing(error: &AskError) -> bool {
    matches!(
        error,
        AskError::Refused {
            code: NOT_FOUND,
            ..
        }
    )
}

impl Place<'_> {
    /// Asks the leader how the stream is.
    pub(super) async fn look(self) -> Result<Found, AskError> {
        let info = self.info().await?;
        Ok(self.found(&info))
    }

    async fn info(self) -> Result<Info, AskError> {
        let what = "STREAM.INFO";
        let nothing = json!({});
        let asked = self.asker.api_within(INFO_LIMIT, what, &nothing);
        let answer: serde_json::Value = asked.await?;
        // Of later servers, and not known to the client's own type.
        let counts = answer["config"]["allow_msg_counter"] == true;
        let info = serde_json::from_value(answer);
        let info: Info = info.map_err(|source| AskError::Unreadable { what, source })?;
        Ok(Info { counts, ..info })
    }

    fn found(self, info: &Info) -> Found {
        let (settings, subjects) = (self.settings, self.subjects);
        let mut differences = fitness::of_stream(&info.config, info.counts, settings, subjects);
        let max_payload = self.asker.link().client().max_payload();
        differences.extend(fitness::of_server(max_payload, settings.update_bytes));
        Found {
            facts: info.facts(),
            differences,
        }
    }

    /// Finds the stream, or makes it, and holds it against what the relay needs. `captured` are the streams that
    /// have said that they capture what workers publish.
    pub(super) async fn fit(self, captured: &[String]) -> Result<Found, StreamError> {
        let found = self.find(captured, self.settings.create).await?;
        if found.fits() {
            return Ok(found);
        }
        let mut differences = found.differences;
        differences.retain(|each| each.weight == Weight::Prevents);
        Err(StreamError::Differs {
            stream: self.settings.stream.clone(),
            differences,
        })
    }

    /// Finds the stream, or makes it if it may.
    pub(super) async fn find(
        self,
        captured: &[String],
        may_make: bool,
    ) -> Result<Found, StreamError> {
        let stream = || self.settings.stream.clone();
        let unanswered = |source: AskError| StreamError::Unanswered {
            stream: stream(),
            source: source.into(),
        };
        let client = self.asker.link().client();
        if !client.is_server_compatible(2, 11, 0) {
            return Err(StreamError::OldServer {
                version: client.server_info().version,
            });
        }
        match self.info().await {
            Ok(info) => {
                let mut found = self.found(&info);
                self.beside(captured, &info.config, &mut found)?;
                Ok(found)
            }
            // Where JetStream does not answer, it may be elsewhere too.
            Err(error @ AskError::NoResponders { .. }) => {
                self.nowhere_else(captured)?;
                Err(unanswered(error))
            }
            Err(error) if is_missing(&error) => {
                self.nowhere_else(captured)?;
                if !may_make {
                    return Err(StreamError::Missing { stream: stream() });
                }
                let probe = self.subjects.probe();
                let captured = self.asker.capturing(probe, ELSEWHERE_LIMIT).await;
                self.nowhere_else(&captured)?;
                let info = self.create().await.map_err(unanswered)?;
                Ok(self.found(&info))
            }
            Err(error) => Err(unanswered(error)),
        }
    }

    fn nowhere_else(self, captured: &[String]) -> Result<(), StreamError> {
        if captured.is_empty() {
            return Ok(());
        }
        Err(StreamError::Elsewhere {
            stream: self.settings.stream.clone(),
            subjects: self.subjects.all(),
            captured: captured.to_vec(),
        })
    }

    /// What other streams mean to one that is there.
    fn beside(
        self,
        captured: &[String],
        config: &Config,
        found: &mut Found,
    ) -> Result<(), StreamError> {
        let stream = &self.settings.stream;
        let times = captured.iter().filter(|each| *each == stream).count();
        if times > 1 {
            return Err(StreamError::Twice {
                stream: stream.clone(),
                subjects: self.subjects.all(),
                times,
            });
        }
        // A stream with sources is there because workers publish to others.
        let copies = config
            .sources
            .as_ref()
            .is_some_and(|sources| !sources.is_empty());
        let others: Vec<&String> = captured.iter().filter(|each| *each != stream).collect();
        if !others.is_empty() && !copies {
            let all = self.subjects.all();
            found.differences.push(Difference {
                setting: "subjects",
                found: format!("{all:?}, and stream {others:?} captures them too"),
                needed: format!("of {stream} alone"),
                effect: "a worker may get the other stream's acknowledgement first, whether or not this one stores its update",
                cure: "give the other stream other subjects, or let this one have it as a source".to_owned(),
                weight: Weight::Loses,
            });
        }
        Ok(())
    }

    async fn create(self) -> Result<Info, AskError> {
        let config = config(self.settings, self.subjects);
        let created = self.asker.api("STREAM.CREATE", &config).await;
        match created {
            Err(AskError::Refused {
                code: NAME_IN_USE, ..
            }) => self.info().await,
            other => {
                if other.is_ok() {
                    tracing::info!(stream = self.settings.stream, "created the stream");
                }
                other
            }
        }
    }
}

/// A stream as the relay makes it.
pub(super) fn config(settings: &JetStreamSettings, subjects: &Subjects) -> Config {
    let largest = fitness::message_bytes(settings.update_bytes);
    Config {
        name: settings.stream.clone(),
        description: Some("progress of jobs, read by the relay".to_owned()),
        subjects: vec![subjects.all()],
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        max_messages_per_subject: i64::try_from(settings.per_job).unwrap_or(i64::MAX),
        max_messages: -1,
        max_bytes: -1,
        max_consumers: -1,
        max_message_size: i32::try_from(largest).unwrap_or(i32::MAX),
        max_age: settings.max_age,
        duplicate_window: fitness::duplicate_window(settings.max_age),
        storage: match settings.storage {
            Storage::File => StorageType::File,
            Storage::Memory => StorageType::Memory,
        },
        num_replicas: settings.replicas,
        allow_direct: true,
        allow_rollup: true,
        allow_message_ttl: true,
        subject_delete_marker_ttl: Some(MARKER_TTL),
        republish: Some(Republish {
            source: subjects.all(),
            destination: subjects.all_live(),
            headers_only: false,
        }),
        ..Config::default()
    }
}
