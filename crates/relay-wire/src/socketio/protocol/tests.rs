use super::*;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn start() -> Moment {
    Moment::from_micros(0)
}

fn in_jobs() -> Protocol {
    let mut session = Protocol::websocket();
    session.join("/jobs");
    session
}

#[test]
fn one_poll_at_a_time_and_two_end_the_session() {
    let mut session = Protocol::polling();
    assert_eq!(session.poll(), Ok(()));
    assert_eq!(session.poll(), Err(Fault::Overlap));
    session.answered();
    assert_eq!(session.poll(), Ok(()));
}

#[test]
fn one_post_at_a_time_and_two_end_the_session() {
    let mut session = Protocol::polling();
    assert_eq!(session.post(), Ok(()));
    assert_eq!(session.post(), Err(Fault::Overlap));
    session.posted();
    assert_eq!(session.post(), Ok(()));
    assert_eq!(session.poll(), Ok(()), "a poll and a post go together");
}

#[test]
fn a_websocket_takes_no_polls_posts_or_second_websocket() {
    let mut session = Protocol::polling();
    assert_eq!(session.probe(start()), Ok(()));
    assert_eq!(
        session.probe(start()),
        Err(Fault::Mismatch),
        "one is about to"
    );
    assert!(session.upgrade(start() + SECOND));
    for fault in [session.poll(), session.post(), session.probe(start())] {
        assert_eq!(fault, Err(Fault::Mismatch));
    }
    assert!(!session.upgrade(start() + SECOND), "nothing is probed now");
}

#[test]
fn a_poll_is_let_go_while_a_websocket_is_about_to_take_over() {
    let mut session = Protocol::polling();
    session.poll().unwrap();
    assert!(!session.owes_noop(start()));
    session.probe(start()).unwrap();
    assert!(session.owes_noop(start()));
    session.answered();
    assert!(!session.owes_noop(start()));
}

#[test]
fn polling_goes_on_when_a_websocket_does_not_take_over() {
    let mut session = Protocol::polling();
    session.poll().unwrap();
    session.probe(start()).unwrap();
    session.unprobe();
    assert!(!session.owes_noop(start()));
    assert!(!session.upgrade(start()));
    session.probe(start()).unwrap();
    let late = start() + UPGRADE_TIMEOUT;
    assert!(!session.owes_noop(late));
    assert!(!session.upgrade(late), "it took too long");
    assert_eq!(session.probe(late), Ok(()), "another may try");
}

#[test]
fn packets_mean_what_the_protocol_says() {
    let mut session = in_jobs();
    assert_eq!(session.text("1"), Step::Leave);
    assert_eq!(session.text("3"), Step::Pong);
    assert_eq!(session.text("6"), Step::Nothing);
    assert_eq!(session.text("2"), Step::Broken(BrokenRule::Heartbeat));
    assert_eq!(session.text("abc"), Step::Broken(BrokenRule::NoPacket));
    assert_eq!(session.text("40"), Step::Connect("/", None));
    assert_eq!(session.text("41/jobs,"), Step::Disconnect("/jobs"));
    assert_eq!(session.text("43/jobs,0[]"), Step::Nothing);
    assert_eq!(
        session.text(r#"42/jobs,0["a",1]"#),
        Step::Event {
            namespace: "/jobs",
            ack: Some(0),
            name: "a".to_owned(),
            json: r#"["a",1]"#,
        }
    );
}

#[test]
fn a_packet_for_a_namespace_that_was_not_joined_ends_the_session() {
    let mut session = in_jobs();
    for text in ["41", r#"42["a"]"#, "43[]", "41/other,"] {
        assert_eq!(
            session.text(text),
            Step::Broken(BrokenRule::NotJoined),
            "{text}"
        );
    }
    session.leave("/jobs");
    assert_eq!(
        session.text(r#"42/jobs,["a"]"#),
        Step::Broken(BrokenRule::NotJoined)
    );
}

#[test]
fn text_that_is_no_packet_of_the_upper_layer_ends_the_session() {
    let mut session = in_jobs();
    for text in ["4", "4abc", "42{}", "42/jobs,abc[\"x\"]", "44"] {
        assert!(
            matches!(session.text(text), Step::Broken(BrokenRule::BadPacket(_))),
            "{text}"
        );
    }
}

#[test]
fn an_event_with_attachments_is_told_and_its_frames_are_dropped() {
    let mut session = in_jobs();
    assert_eq!(
        session.text(r#"452-/jobs,7["x",{"_placeholder":true,"num":0}]"#),
        Step::Binary {
            namespace: "/jobs",
            ack: Some(7)
        }
    );
    assert_eq!(session.binary(), Step::Nothing);
    assert_eq!(session.text("bAQIDBA=="), Step::Nothing);
    assert_eq!(session.binary(), Step::Broken(BrokenRule::StrayBinary));
}

#[derive(Debug, Clone)]
enum Event {
    Poll,
    Answered,
    Post,
    Posted,
    Probe,
    Unprobe,
    Upgrade,
    Text(String),
    Binary,
}

fn events() -> impl Strategy<Value = Vec<(Event, u8)>> {
    let event = prop_oneof![
        Just(Event::Poll),
        Just(Event::Answered),
        Just(Event::Post),
        Just(Event::Posted),
        Just(Event::Probe),
        Just(Event::Unprobe),
        Just(Event::Upgrade),
        "[0-6]?[0-6]?(/jobs,)?.{0,12}".prop_map(Event::Text),
        Just(Event::Binary),
    ];
    proptest::collection::vec((event, 0..20_u8), 0..60)
}

proptest! {
    #[test]
    fn whatever_comes_at_most_one_poll_and_post_are_under_way(events in events()) {
        let mut session = Protocol::polling();
        let (mut polls, mut posts, mut upgraded) = (0, 0, false);
        let mut now = start();
        for (event, seconds) in events {
            now = now + SECOND * u32::from(seconds);
            match event {
                Event::Poll => polls += u32::from(session.poll().is_ok()),
                Event::Answered => {
                    session.answered();
                    polls = 0;
                }
                Event::Post => posts += u32::from(session.post().is_ok()),
                Event::Posted => {
                    session.posted();
                    posts = 0;
                }
                Event::Probe => {
                    let probed = session.probe(now);
                    prop_assert!(!(upgraded && probed.is_ok()));
                }
                Event::Unprobe => session.unprobe(),
                Event::Upgrade => {
                    if session.upgrade(now) {
                        prop_assert!(!upgraded, "twice");
                        upgraded = true;
                        (polls, posts) = (0, 0);
                    }
                }
                Event::Text(text) => drop(session.text(&text)),
                Event::Binary => drop(session.binary()),
            }
            prop_assert!(polls <= 1 && posts <= 1);
            prop_assert!(!(upgraded && (polls > 0 || posts > 0)));
            prop_assert_eq!(session.is_polling(), !upgraded);
        }
    }
}
