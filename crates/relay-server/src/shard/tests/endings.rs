//! Endings that want an acknowledgement, and the two ways in which they once ended a shard.

use super::*;

const WANTS_ACKS: &str = r#"{"type":"subscribe","topic":"user:alice","ack":true}"#;

#[tokio::test(start_paused = true)]
async fn an_ending_is_sent_again_until_it_is_acknowledged() {
    with_shard(defaults, |bench| async move {
        let client = bench.client().await;
        bench.says(&client, WANTS_ACKS);
        bench.pause().await;
        client.bytes();
        bench.end("j1").await;
        assert_eq!(client.kinds(), ["state"]);
        sleep(Duration::from_secs(5)).await;
        let again = client.messages();
        assert_eq!(again[0]["job"]["status"], "completed", "promise 4");
        let cursor = again[0]["cursor"].as_str().unwrap();
        let ack = format!(r#"{{"type":"ack","topic":"user:alice","cursor":"{cursor}"}}"#);
        bench.says(&client, &ack);
        sleep(Duration::from_secs(20)).await;
        assert!(!client.kinds().contains(&"state".to_owned()));
    })
    .await;
}

/// More endings are due again at once than replies may wait behind a full socket.
#[tokio::test(start_paused = true)]
async fn regression_endings_sent_again_to_a_client_that_does_not_read_end_its_connection_alone() {
    with_shard(defaults, |bench| async move {
        for job in 0..95 {
            bench.end(&format!("j{job}")).await;
        }
        let (other, client) = (bench.watcher("job:k").await, bench.client().await);
        bench.says(&client, WANTS_ACKS);
        bench.pause().await;
        assert_eq!(
            client
                .kinds()
                .iter()
                .filter(|kind| *kind == "state")
                .count(),
            95
        );
        client.pipe.room.set(10);
        bench.says(&client, r#"{"type":"ping"}"#);
        sleep(Duration::from_secs(5)).await;
        assert!(!bench.is_there(&client));
        assert_eq!(bench.closed("slow"), 1);
        assert_eq!(bench.closed("internal_error"), 0);
        bench.progress("k", 1).await;
        assert_eq!(other.kinds(), ["state"]);
    })
    .await;
}

/// More topics of its URL are refused than replies may wait, to a client that has gone.
#[tokio::test(start_paused = true)]
async fn regression_topics_refused_to_a_client_that_has_gone_end_its_connection_alone() {
    with_shard(defaults, |bench| async move {
        let other = bench.watcher("job:k").await;
        let foreign = |n| Topic::parse(&format!("user:x{n}")).unwrap();
        let mut opening = bench
            .anybody(Speaker::websocket())
            .unauthenticated()
            .watching((0..100).map(foreign).collect(), None);
        opening.identity = Arc::new(Identity::nobody());
        let client = bench.connect(opening);
        client.pipe.gone.set(true);
        bench
            .shard
            .visit(client.id, |connection, desk| connection.start(desk));
        assert!(!bench.is_there(&client));
        assert_eq!(bench.closed("client"), 1);
        assert_eq!(bench.closed("internal_error"), 0);
        bench.says(&other, r#"{"type":"ping"}"#);
        assert_eq!(other.kinds(), ["pong"], "others are still read");
    })
    .await;
}
