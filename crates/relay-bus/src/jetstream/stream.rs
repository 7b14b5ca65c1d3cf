//! The stream itself: found, made, held against what the relay depends on.
//!
//! A stream that somebody else made is never changed; what does not fit is named, setting by setting.

use std::time::Duration;

use async_nats::jetstream::stream::{
    Config, DiscardPolicy, Republish, RetentionPolicy, StorageType,
};
use relay_core::position::Seq;
use serde::Deserialize;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::ask::{AskError, Asker};
use super::{JetStreamSettings, Storage};
use crate::subject::{Subjects, covers};

/// How long the sign stays that a subject's last message expired.
const MARKER_TTL: Duration = Duration::from_secs(60);
/// How long a repeated `Nats-Msg-Id` is recognised: longer than workers retry.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// A stream that has no leader for the moment does not answer.
const INFO_LIMIT: Duration = Duration::from_secs(1);
const MANY_MESSAGES: i64 = 4096;
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
    /// It is there, but not as the relay needs it.
    #[error(
        "stream {stream} does not match: {}; fix it with `nats stream edit {stream} --config FILE`, see deploy/nats/stream.json",
        .differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    Differs {
        /// Its name.
        stream: String,
        /// Each setting that is wrong.
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

/// One setting of a stream that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting} is {found} and must be {needed}")]
pub struct Difference {
    /// As in the stream's configuration.
    pub setting: &'static str,
    /// What it is.
    pub found: String,
    /// What it must be.
    pub needed: String,
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

#[derive(Debug, Deserialize)]
struct Info {
    created: String,
    state: State,
    config: Config,
}

#[derive(Debug, Deserialize)]
struct State {
    last_seq: Seq,
}

impl Info {
    fn facts(&self) -> Facts {
        let created = OffsetDateTime::parse(&self.created, &Rfc3339)
            .ok()
            .and_then(|at| u64::try_from(at.unix_timestamp_nanos()).ok());
        Facts {
            created: created.unwrap_or_default(),
            last_seq: self.state.last_seq,
            per_subject: u64::try_from(self.config.max_messages_per_subject).unwrap_or_default(),
        }
    }
}

/// Asks the leader how the stream is; what was fit once is not looked at again.
pub(super) async fn facts(asker: &Asker) -> Result<Facts, AskError> {
    info(asker).await.map(|info| info.facts())
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

async fn info(asker: &Asker) -> Result<Info, AskError> {
    asker
        .api_within(INFO_LIMIT, "STREAM.INFO", &json!({}))
        .await
}

/// Finds the stream, or makes it, and holds it against what the relay needs.
pub(super) async fn fit(
    asker: &Asker,
    settings: &JetStreamSettings,
    subjects: &Subjects,
) -> Result<Facts, StreamError> {
    let stream = || settings.stream.clone();
    let unanswered = |source: AskError| StreamError::Unanswered {
        stream: stream(),
        source: source.into(),
    };
    let client = asker.link().client();
    if !client.is_server_compatible(2, 11, 0) {
        return Err(StreamError::OldServer {
            version: client.server_info().version,
        });
    }
    let info = match info(asker).await {
        Ok(info) => info,
        Err(error) if is_missing(&error) && settings.create => create(asker, settings, subjects)
            .await
            .map_err(unanswered)?,
        Err(error) if is_missing(&error) => {
            return Err(StreamError::Missing { stream: stream() });
        }
        Err(error) => return Err(unanswered(error)),
    };
    let differences = differences(&info.config, subjects);
    if differences.is_empty() {
        advise(&info.config);
        return Ok(info.facts());
    }
    Err(StreamError::Differs {
        stream: stream(),
        differences,
    })
}

async fn create(
    asker: &Asker,
    settings: &JetStreamSettings,
    subjects: &Subjects,
) -> Result<Info, AskError> {
    let created = asker
        .api("STREAM.CREATE", &config(settings, subjects))
        .await;
    match created {
        Err(AskError::Refused {
            code: NAME_IN_USE, ..
        }) => info(asker).await,
        other => {
            if other.is_ok() {
                tracing::info!(stream = settings.stream, "created the stream");
            }
            other
        }
    }
}

fn config(settings: &JetStreamSettings, subjects: &Subjects) -> Config {
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
        max_age: settings.max_age,
        // The server refuses a window longer than the age.
        duplicate_window: match settings.max_age {
            Duration::ZERO => DUPLICATE_WINDOW,
            age => age.min(DUPLICATE_WINDOW),
        },
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

/// What of a stream's configuration the relay cannot work with.
fn differences(config: &Config, subjects: &Subjects) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut must = |fits: bool, setting, found: String, needed: String| {
        if !fits {
            differences.push(Difference {
                setting,
                found,
                needed,
            });
        }
    };
    let any_job = subjects.any_job();
    let captures = config.subjects.iter().any(|each| covers(each, &any_job));
    must(
        captures,
        "subjects",
        format!("{:?}", config.subjects),
        format!("{:?}", [subjects.all()]),
    );
    let republish = format!("{:?} to {:?}", subjects.all(), subjects.all_live());
    let (republishes, found) = match &config.republish {
        Some(found) => (
            !found.headers_only && republishes(found, subjects),
            format!(
                "{:?} to {:?}{}",
                found.source,
                found.destination,
                if found.headers_only {
                    " (headers only)"
                } else {
                    ""
                }
            ),
        ),
        None => (false, "unset".to_owned()),
    };
    must(republishes, "republish", found, republish);
    for (setting, found) in [
        ("allow_direct", config.allow_direct),
        ("allow_rollup_hdrs", config.allow_rollup),
        ("allow_msg_ttl", config.allow_message_ttl),
    ] {
        must(found, setting, found.to_string(), true.to_string());
    }
    let keeps = config.retention == RetentionPolicy::Limits;
    must(
        keeps,
        "retention",
        format!("{:?}", config.retention).to_lowercase(),
        "limits".to_owned(),
    );
    differences
}

/// Says what the relay can live with, and its operator might not.
fn advise(config: &Config) {
    let stream = &config.name;
    if !(1..=MANY_MESSAGES).contains(&config.max_messages_per_subject) {
        let found = config.max_messages_per_subject;
        tracing::warn!(%stream, max_msgs_per_subject = found, "the stream keeps long histories; each is read whole when a job is watched, 64 is usual");
    }
    if config.subject_delete_marker_ttl.is_none() {
        tracing::warn!(%stream, "subject_delete_marker_ttl is unset: the stream will not say when a job expires");
    }
}

/// Whether live messages come out under the live prefix, whatever else is republished.
fn republishes(republish: &Republish, subjects: &Subjects) -> bool {
    let live = subjects.all_live();
    let live = live.strip_suffix(&subjects.all()).unwrap_or_default();
    covers(&republish.source, &subjects.any_job())
        && republish.source.ends_with('>')
        && republish.destination == format!("{live}{}", republish.source)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subjects() -> Subjects {
        Subjects::new("progress", "live").unwrap()
    }

    fn found(change: impl FnOnce(&mut Config)) -> Vec<String> {
        let mut config = config(&JetStreamSettings::default(), &subjects());
        change(&mut config);
        let differences = differences(&config, &subjects());
        differences.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_the_relay_makes_fits_it() {
        assert_eq!(found(|_| {}), [""; 0]);
    }

    #[test]
    fn a_wider_stream_fits() {
        let wide = found(|config| {
            config.subjects = vec!["other".into(), ">".into()];
            config.republish = Some(Republish {
                source: ">".into(),
                destination: "live.>".into(),
                headers_only: false,
            });
            config.max_messages_per_subject = -1;
        });
        assert_eq!(wide, [""; 0]);
    }

    #[test]
    fn each_setting_that_does_not_fit_is_named() {
        assert_eq!(
            found(|config| config.allow_direct = false),
            ["allow_direct is false and must be true"]
        );
        assert_eq!(
            found(|config| config.republish = None),
            ["republish is unset and must be \"progress.>\" to \"live.progress.>\""]
        );
        let all = found(|config| {
            *config = Config {
                subjects: vec!["progress.a.>".into()],
                retention: RetentionPolicy::WorkQueue,
                republish: Some(Republish {
                    source: "progress.>".into(),
                    destination: "progress2.>".into(),
                    headers_only: true,
                }),
                ..Config::default()
            }
        });
        assert_eq!(all.len(), 6, "{all:?}");
        assert!(
            all[1].contains("\"progress.>\" to \"progress2.>\" (headers only)"),
            "{all:?}"
        );
    }
}
