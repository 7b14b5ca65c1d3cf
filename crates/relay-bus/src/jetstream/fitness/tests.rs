//! Each setting wrong by itself, and what is said of it.

use async_nats::jetstream::stream::{Republish, SubjectTransform};

use super::super::stream;
use super::*;

fn subjects() -> Subjects {
    Subjects::new("progress", "live").unwrap()
}

fn found(change: impl FnOnce(&mut Config)) -> Vec<Difference> {
    let settings = JetStreamSettings::default();
    let mut config = stream::config(&settings, &subjects());
    change(&mut config);
    of_stream(&config, false, &settings, &subjects())
}

#[test]
fn what_the_relay_makes_fits_it() {
    assert_eq!(found(|_| {}), []);
    assert_eq!(of_server(1 << 20, 64 * 1024), None);
}

#[test]
fn what_is_shipped_fits_the_defaults() {
    let shipped = include_str!("../../../../../deploy/nats/stream.json");
    let shipped: Config = serde_json::from_str(shipped).unwrap();
    let settings = JetStreamSettings::default();
    assert_eq!(of_stream(&shipped, false, &settings, &subjects()), []);
}

#[test]
fn the_stream_that_is_shipped_for_workers_that_do_not_trust_each_other_fits_the_defaults() {
    let shipped = include_str!("../../../../../deploy/nats/tenants/stream.json");
    let shipped: Config = serde_json::from_str(shipped).unwrap();
    let settings = JetStreamSettings::default();
    assert_eq!(of_stream(&shipped, false, &settings, &subjects()), []);
}

#[test]
fn a_stream_that_gathers_is_told_where_one_owner_can_reach_into_anothers() {
    let told = |change: fn(&mut Config), setting, cure| {
        is_told(
            |config| {
                config.duplicate_window = Duration::ZERO;
                config.max_message_size += 4096;
                config.sources = Some(vec![of_alice()]);
                change(config);
            },
            Weight::Loses,
            setting,
            cure,
        );
    };
    told(
        |c| c.sources.as_mut().unwrap().push(source("ALL")),
        "sources",
        "[\"ALL\"] without a filter_subject",
    );
    told(
        |c| {
            let all = |source: &mut Source| source.filter_subject = Some("progress.>".into());
            all(&mut c.sources.as_mut().unwrap()[0]);
        },
        "sources",
        "may publish for any owner",
    );
    told(
        |c| c.duplicate_window = DUPLICATE_WINDOW,
        "duplicate_window",
        "is 2m and should be 0",
    );
    told(
        |c| c.max_message_size = 69_632,
        "max_msg_size",
        "--max-msg-size=73728",
    );
    let moved = found(|config| {
        config.duplicate_window = Duration::ZERO;
        config.max_message_size += 4096;
        config.sources = Some(vec![Source {
            subject_transforms: vec![SubjectTransform {
                source: "updates.>".into(),
                destination: "progress.alice.>".into(),
            }],
            ..source("UPDATES")
        }]);
    });
    assert_eq!(moved, []);
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
    });
    assert_eq!(wide, []);
}

/// What is said of one setting that is wrong, and what of it must be in the sentence.
fn is_told(change: impl FnOnce(&mut Config), weight: Weight, setting: &str, cure: &str) {
    let differences = found(change);
    let [one] = &differences[..] else {
        panic!("{setting}: {differences:#?}");
    };
    assert_eq!((one.setting, one.weight), (setting, weight), "{one}");
    assert!(one.to_string().contains(cure), "{one}");
}

fn source(name: &str) -> Source {
    Source {
        name: name.to_owned(),
        ..Source::default()
    }
}

fn of_alice() -> Source {
    Source {
        filter_subject: Some("progress.alice.>".into()),
        ..source("UPDATES_alice")
    }
}

#[test]
fn each_setting_that_prevents_is_named_with_its_cure() {
    let is_told = |setting, cure, change: fn(&mut Config)| {
        is_told(change, Weight::Prevents, setting, cure);
    };
    is_told(
        "subjects",
        "stream edit PROGRESS --subjects='progress.>'",
        |c| {
            c.subjects = vec!["progress.a.>".into()];
        },
    );
    is_told(
        "republish",
        "--republish-source='progress.>' --republish-destination='live.progress.>'",
        |c| {
            c.republish = None;
        },
    );
    is_told(
        "republish",
        "\"progress.>\" to \"live.progress.>\" (headers only)",
        |c| {
            c.republish.as_mut().unwrap().headers_only = true;
        },
    );
    is_told("allow_direct", "--allow-direct", |c| c.allow_direct = false);
    is_told("allow_rollup_hdrs", "--allow-rollup", |c| {
        c.allow_rollup = false
    });
    is_told("deny_purge", "stream rm PROGRESS", |c| {
        c.deny_purge = true;
        c.allow_rollup = false;
    });
    is_told("allow_msg_ttl", "--allow-msg-ttl", |c| {
        c.allow_message_ttl = false
    });
    is_told("no_ack", "--ack", |c| c.no_ack = true);
    is_told("retention", "--retention=limits", |c| {
        c.retention = RetentionPolicy::Interest
    });
    is_told("retention", "stream rm PROGRESS", |c| {
        c.retention = RetentionPolicy::WorkQueue
    });
    is_told("sealed", "stream rm PROGRESS", |c| {
        c.sealed = true;
        c.allow_rollup = false;
        c.discard = DiscardPolicy::New;
    });
    is_told("mirror", "nats.stream = \"MAIN\"", |c| {
        c.mirror = Some(source("MAIN"));
        c.subjects.clear();
    });
    is_told("subject_transform", "--no-transform", |c| {
        c.subject_transform = Some(SubjectTransform {
            source: "progress.>".into(),
            destination: "other.>".into(),
        });
    });
    let settings = JetStreamSettings::default();
    let config = stream::config(&settings, &subjects());
    let counter = of_stream(&config, true, &settings, &subjects());
    assert_eq!(counter[0].setting, "allow_msg_counter");
}

#[test]
fn each_setting_that_loses_something_is_named_with_its_cure() {
    let is_told = |setting, cure, change: fn(&mut Config)| {
        is_told(change, Weight::Loses, setting, cure);
    };
    is_told("max_msg_size", "unlimited and should be 69632", |c| {
        c.max_message_size = -1
    });
    is_told("max_msg_size", "--max-msg-size=69632", |c| {
        c.max_message_size = 65_536
    });
    is_told("max_msg_size", "stored and acknowledged", |c| {
        c.max_message_size = 1 << 20
    });
    is_told("max_age", "--max-age=24h", |c| {
        c.max_age = Duration::from_secs(3600)
    });
    is_told("duplicate_window", "--dupe-window=2m", |c| {
        c.duplicate_window = Duration::from_secs(10);
    });
    is_told(
        "subject_delete_marker_ttl",
        "--subject-del-markers-ttl=1m",
        |c| {
            c.subject_delete_marker_ttl = None;
        },
    );
    is_told(
        "max_msgs_per_subject",
        "at least 64 (history.per_job)",
        |c| {
            c.max_messages_per_subject = 4;
        },
    );
    is_told("max_msgs_per_subject", "unlimited and should be 64", |c| {
        c.max_messages_per_subject = -1;
    });
    is_told("discard", "--discard=old", |c| {
        c.discard = DiscardPolicy::New
    });
    is_told("discard_new_per_subject", "--no-discard-per-subject", |c| {
        c.discard = DiscardPolicy::New;
        c.discard_new_per_subject = true;
    });
    is_told("max_msgs", "--max-msgs=-1", |c| c.max_messages = 1000);
    is_told("max_bytes", "--max-bytes=-1", |c| c.max_bytes = 1 << 30);
    is_told("storage", "nats.stream_storage = \"memory\"", |c| {
        c.storage = StorageType::Memory
    });
    is_told("persist_mode", "stream rm PROGRESS", |c| {
        c.persist_mode = Some(PersistenceMode::Async);
    });
    is_told("sources", "nats.stream = \"OTHER\"", |c| {
        c.sources = Some(vec![source("OTHER")]);
        c.subjects.clear();
        c.duplicate_window = Duration::ZERO;
        c.max_message_size += 4096;
    });
    let settings = JetStreamSettings {
        replicas: 3,
        ..JetStreamSettings::default()
    };
    let config = stream::config(&JetStreamSettings::default(), &subjects());
    let one = of_stream(&config, false, &settings, &subjects());
    assert_eq!(one[0].setting, "num_replicas");
    let small = of_server(16_384, 65_536).unwrap();
    assert!(small.to_string().contains("max_payload: 69632"), "{small}");
}

#[test]
fn a_transform_of_other_subjects_is_none_of_the_relays_business() {
    let other = found(|config| {
        config.subjects.push("orders.>".into());
        config.subject_transform = Some(SubjectTransform {
            source: "orders.>".into(),
            destination: "progress.orders.>".into(),
        });
    });
    assert_eq!(other, []);
}

#[test]
fn times_are_written_as_the_command_reads_them() {
    for (millis, text) in [
        (0, "0ms"),
        (1500, "1500ms"),
        (30_000, "30s"),
        (120_000, "2m"),
        (86_400_000, "24h"),
    ] {
        assert_eq!(Span(Duration::from_millis(millis)).to_string(), text);
    }
}
