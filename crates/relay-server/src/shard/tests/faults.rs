//! A panic in the work for one connection, injected, and who notices.

use super::super::connection::Connection;
use super::*;

/// What a client sends where the code is to panic.
const FAULT: &str = "injected-fault";

thread_local! {
    /// The connection whose turn in a fan-out panics.
    static UNLUCKY: Cell<Option<ConnectionId>> = const { Cell::new(None) };
}

/// Panics where a client's bytes ask for it.
pub(in crate::shard) fn fault_in_message(bytes: &[u8]) {
    let asks = bytes
        .windows(FAULT.len())
        .any(|part| part == FAULT.as_bytes());
    assert!(!asks, "an injected fault");
}

/// Panics at one connection's turn.
pub(in crate::shard) fn fault_in_fan_out(connection: &Connection) {
    let unlucky = UNLUCKY.get() == Some(connection.id);
    assert!(!unlucky, "an injected fault");
}

#[tokio::test(start_paused = true)]
async fn a_panic_over_what_a_client_sends_ends_that_connection_and_nothing_else() {
    with_shard(defaults, |bench| async move {
        let (client, other) = (bench.watcher("job:j1").await, bench.watcher("job:j1").await);
        bench.says(&client, FAULT);
        assert!(!bench.is_there(&client));
        assert_eq!(client.closed(), Some(1011));
        assert_eq!(bench.closed("internal_error"), 1);
        bench.says(&other, r#"{"type":"ping"}"#);
        bench.progress("j1", 1).await;
        assert_eq!(other.kinds(), ["pong", "state"]);
        let newcomer = bench.client().await;
        bench.says(&newcomer, r#"{"type":"ping"}"#);
        assert_eq!(newcomer.kinds(), ["pong"]);
        assert_eq!(bench.node.admissions.total(), 2, "its place is free again");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_fan_out_costs_one_watcher_and_the_others_get_the_publication() {
    with_shard(defaults, |bench| async move {
        let mut clients = Vec::new();
        for _ in 0..5 {
            clients.push(bench.watcher("job:j1").await);
        }
        let unlucky = clients.remove(2);
        UNLUCKY.set(Some(unlucky.id));
        bench.progress("j1", 1).await;
        UNLUCKY.set(None);
        assert!(!bench.is_there(&unlucky));
        assert_eq!(unlucky.closed(), Some(1011));
        for client in &clients {
            assert_eq!(client.kinds(), ["state"]);
        }
        sleep(Duration::from_secs(1)).await;
        bench.progress("j1", 2).await;
        for client in &clients {
            assert_eq!(client.kinds(), ["state"]);
        }
        assert_eq!(bench.closed("internal_error"), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn after_a_panic_the_topics_of_the_connection_are_left() {
    with_shard(defaults, |bench| async move {
        let client = bench.watcher("job:j1").await;
        bench.says(&client, FAULT);
        bench.pause().await;
        let state = bench.shard.state.borrow();
        assert!(state.connections.is_empty());
        assert!(!state.registry.is_wanted(&Topic::parse("job:j1").unwrap()));
    })
    .await;
}
