use super::*;
use crate::job::Again;
use crate::position::Epoch;
use proptest::prelude::*;

const BOUNDS: SessionBounds = SessionBounds {
    subscriptions: 2,
    auth_timeout: Duration::from_secs(10),
    ping_interval: Duration::from_secs(25),
    dead_after: Duration::from_secs(60),
};

fn after(seconds: u64) -> Moment {
    Moment::default() + Duration::from_secs(seconds)
}

fn at(seq: u64) -> Position {
    Position::new(Epoch::new(1), Seq::new(seq))
}

fn open() -> Session {
    Session::open(None, Moment::default(), &BOUNDS)
}

fn subscribe(topic: &str) -> Event {
    let (topic, cursor) = (topic.to_owned(), None);
    Event::Command(Command::Subscribe {
        topic,
        cursor,
        ack: false,
        again: Again::Nothing,
    })
}

fn unsubscribe(topic: &str) -> Event {
    let topic = topic.to_owned();
    Event::Command(Command::Unsubscribe { topic })
}

fn refusal(actions: &Actions) -> &'static str {
    match &actions[..] {
        [Action::Refuse(error)] => error.code(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_topic_is_subscribed_once_and_left_once() {
    let mut session = open();
    let now = Moment::default();
    let joined = session.handle(subscribe("job:a"), now, &BOUNDS);
    assert!(matches!(&joined[..], [Action::Join(_)]));
    let again = session.handle(subscribe("job:a"), now, &BOUNDS);
    assert_eq!(refusal(&again), "already_subscribed");
    let left = session.handle(unsubscribe("job:a"), now, &BOUNDS);
    assert!(matches!(&left[..], [Action::Leave { .. }]));
    let again = session.handle(unsubscribe("job:a"), now, &BOUNDS);
    assert_eq!(refusal(&again), "not_subscribed");
}

#[test]
fn subscriptions_are_bounded_and_an_ended_one_makes_room() {
    let mut session = open();
    let now = Moment::default();
    for topic in ["job:a", "user:b"] {
        session.handle(subscribe(topic), now, &BOUNDS);
    }
    let third = session.handle(subscribe("group:c"), now, &BOUNDS);
    assert_eq!(refusal(&third), "too_many_subscriptions");
    session.handle(unsubscribe("job:a"), now, &BOUNDS);
    let third = session.handle(subscribe("group:c"), now, &BOUNDS);
    assert!(matches!(&third[..], [Action::Join(_)]));
}

#[test]
fn before_authentication_nothing_but_that_is_heard_and_not_for_ever() {
    let mut session = Session::unauthenticated(Moment::default(), &BOUNDS);
    let refused = session.handle(subscribe("job:a"), after(1), &BOUNDS);
    assert_eq!(refusal(&refused), "unauthenticated");
    assert_eq!(session.next_tick(&BOUNDS), after(10));
    assert!(session.handle(Event::Tick, after(9), &BOUNDS).is_empty());
    let closed = session.handle(Event::Tick, after(10), &BOUNDS);
    assert_eq!(closed[..], [Action::Close(CloseReason::Unauthenticated)]);
}

#[test]
fn a_session_ends_with_its_token_unless_a_new_one_comes() {
    let until = |at| Event::Authenticated {
        expires_at: Some(after(at)),
    };
    let mut session = Session::open(Some(after(20)), Moment::default(), &BOUNDS);
    session.handle(until(40), after(19), &BOUNDS);
    assert!(session.handle(Event::Tick, after(20), &BOUNDS).is_empty());
    session.handle(Event::SignOfLife, after(39), &BOUNDS);
    session.handle(Event::Tick, after(39), &BOUNDS);
    let closed = session.handle(Event::Tick, after(40), &BOUNDS);
    assert_eq!(closed[..], [Action::Close(CloseReason::Expired)]);
}

#[test]
fn a_client_is_told_once_that_its_token_ends_soon_and_again_of_a_new_one() {
    let mut session = Session::open(Some(after(20)), Moment::default(), &BOUNDS);
    assert_eq!(session.next_tick(&BOUNDS), after(10));
    let warned = session.handle(Event::Tick, after(10), &BOUNDS);
    assert_eq!(warned[..], [Action::ExpiresSoon]);
    assert_eq!(session.next_tick(&BOUNDS), after(20));
    assert!(session.handle(Event::Tick, after(11), &BOUNDS).is_empty());
    let expires_at = Some(after(1_000));
    session.handle(Event::Authenticated { expires_at }, after(12), &BOUNDS);
    session.handle(Event::SignOfLife, after(939), &BOUNDS);
    let pinged = session.handle(Event::Tick, after(939), &BOUNDS);
    assert_eq!(pinged[..], [Action::Ping]);
    assert_eq!(session.next_tick(&BOUNDS), after(940));
    let warned = session.handle(Event::Tick, after(940), &BOUNDS);
    assert_eq!(warned[..], [Action::ExpiresSoon]);
    let mut endless = open();
    let pinged = endless.handle(Event::Tick, after(30), &BOUNDS);
    assert_eq!(pinged[..], [Action::Ping]);
}

#[test]
fn a_silent_client_is_pinged_and_then_given_up() {
    let mut session = open();
    assert_eq!(session.next_tick(&BOUNDS), after(25));
    for at in [25, 50] {
        let pinged = session.handle(Event::Tick, after(at), &BOUNDS);
        assert_eq!(pinged[..], [Action::Ping]);
    }
    assert_eq!(session.next_tick(&BOUNDS), after(60));
    let closed = session.handle(Event::Tick, after(60), &BOUNDS);
    assert_eq!(closed[..], [Action::Close(CloseReason::Dead)]);
}

#[test]
fn a_sign_of_life_puts_the_end_off() {
    let mut session = open();
    session.handle(Event::Tick, after(50), &BOUNDS);
    session.handle(Event::SignOfLife, after(59), &BOUNDS);
    let pinged = session.handle(Event::Tick, after(118), &BOUNDS);
    assert_eq!(pinged[..], [Action::Ping]);
    let closed = session.handle(Event::Tick, after(119), &BOUNDS);
    assert_eq!(closed[..], [Action::Close(CloseReason::Dead)]);
}

#[test]
fn a_cursor_says_from_where_a_topic_is_whole_only_if_another_is_further_behind() {
    let mut session = open();
    let topic = |text| Topic::parse(text).unwrap();
    let a = session.subscribe(topic("user:a"), &BOUNDS).unwrap();
    let b = session.subscribe(topic("job:b"), &BOUNDS).unwrap();
    assert!(session.joined(a, Seq::ZERO, Seq::ZERO) && session.joined(b, Seq::ZERO, Seq::new(90)));
    let from = |behind: Option<u64>| {
        let behind = |id| behind.filter(|_| id == a).map(Seq::new);
        let cursor = session.cursor(at(100), behind, &[]);
        let print = Print::of(&topic("job:b"));
        let told = cursor.told().iter().find(|told| told.print == print);
        told.unwrap().from.get()
    };
    assert_eq!(from(None), 0);
    assert_eq!(from(Some(95)), 0);
    assert_eq!(from(Some(80)), 90);
}

fn joined(session: &mut Session, id: SubscriptionId, seq: u64) -> bool {
    session.joined(id, Seq::new(seq), Seq::new(seq))
}

/// A node that repairs one topic is behind another that told the client of the rest.
#[test]
fn regression_a_topic_that_is_told_further_than_the_others_neither_falls_nor_takes_them_along() {
    let mut session = open();
    let topic = |text| Topic::parse(text).unwrap();
    let [behind, ahead, pending] = ["job:behind", "job:ahead", "job:pending"].map(topic);
    let held = session.subscribe(behind.clone(), &BOUNDS).unwrap();
    let whole = session.subscribe(ahead.clone(), &BOUNDS).unwrap();
    assert!(joined(&mut session, held, 40) && joined(&mut session, whole, 78));
    let carried = Cursor::at(at(90), [&pending]);
    let cursor = session.cursor(at(40), |_| None, carried.told());
    let told = |cursor: &Cursor| {
        [&behind, &ahead, &pending].map(|topic| cursor.since(topic).map(Seq::get))
    };
    assert_eq!(told(&cursor), [Some(40), Some(78), Some(90)], "promise 7");
    let text = cursor.to_string();
    assert_eq!(Cursor::parse(&text).unwrap(), cursor);
    let cursor = session.cursor(at(80), |_| None, carried.told());
    assert_eq!(told(&cursor), [Some(80), Some(80), Some(90)]);
}

fn event() -> impl Strategy<Value = Event> {
    let topic = proptest::sample::select(vec!["job:a", "user:b", "group:c", "nonsense", ""]);
    let command = (0..5, topic).prop_map(|(which, topic)| {
        let topic = topic.to_owned();
        let cursor = (topic.len() % 2 == 0).then(|| "garbage".to_owned());
        match which {
            0 => Command::Subscribe {
                topic,
                cursor,
                ack: false,
                again: Again::Nothing,
            },
            1 => Command::Unsubscribe { topic },
            2 => Command::Ack {
                topic,
                cursor: Cursor::at(at(5), []).to_string(),
            },
            3 => Command::Ping,
            _ => Command::Auth { token: topic },
        }
    });
    prop_oneof![
        6 => command.prop_map(Event::Command),
        1 => proptest::option::of(0u64..500).prop_map(|at| Event::Authenticated {
            expires_at: at.map(after)
        }),
        1 => Just(Event::SignOfLife),
        3 => Just(Event::Tick),
    ]
}

proptest! {
    #[test]
    fn any_event_is_fine_at_any_time_and_after_the_close_there_is_silence(
        authenticated: bool,
        events in proptest::collection::vec((event(), 0u64..30), 0..60),
    ) {
        let (start, bounds) = (Moment::default(), &BOUNDS);
        let mut session = match authenticated {
            true => Session::open(None, start, bounds),
            false => Session::unauthenticated(start, bounds),
        };
        let (mut now, mut closed, mut heard) = (0, false, authenticated);
        for (event, seconds) in events {
            now += seconds;
            heard |= matches!(event, Event::Authenticated { .. });
            let actions = session.handle(event, after(now), bounds);
            prop_assert!(!closed || actions.is_empty(), "{actions:?} after the close");
            prop_assert!(session.subscriptions().len() <= bounds.subscriptions);
            let joins = actions.iter().any(|each| matches!(each, Action::Join(_)));
            prop_assert!(heard || !joins, "joined before it was known who asks");
            closed |= actions.iter().any(|each| matches!(each, Action::Close(_)));
        }
        let late = session.handle(Event::Tick, after(now + 600), bounds);
        prop_assert!(closed != matches!(&late[..], [Action::Close(_)]), "somebody silent stays");
    }
}
