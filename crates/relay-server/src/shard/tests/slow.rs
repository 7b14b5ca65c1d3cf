//! Clients that do not take what they are sent.

use super::*;

/// A state so large that the deadline of its write is the test's subject.
async fn large(bench: &Bench, job: &str, progress: u32) {
    let message = "x".repeat(10_000);
    let state = format!(r#"{{"status":"running","progress":{progress},"message":"{message}"}}"#);
    bench.publish(job, &state).await;
}

#[tokio::test(start_paused = true)]
async fn a_write_that_takes_too_long_fails_and_the_third_in_a_row_ends_the_connection() {
    with_shard(defaults, |bench| async move {
        let client = bench.watcher("job:j1").await;
        client.pipe.room.set(100);
        large(&bench, "j1", 1).await;
        for _ in 0..2 {
            sleep(Duration::from_secs(10)).await;
            assert!(bench.is_there(&client));
        }
        sleep(Duration::from_secs(10)).await;
        assert!(!bench.is_there(&client));
        assert_eq!(bench.closed("slow"), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_a_little_now_and_then_is_slow_and_not_gone() {
    with_shard(defaults, |bench| async move {
        let client = bench.watcher("job:j1").await;
        client.pipe.room.set(100);
        large(&bench, "j1", 1).await;
        for _ in 0..5 {
            sleep(Duration::from_secs(9)).await;
            bench.gives_room(&client, 100);
            assert!(bench.is_there(&client));
        }
        assert_eq!(bench.closed("slow"), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn while_a_socket_is_full_nothing_is_taken_and_what_comes_then_is_fresh() {
    with_shard(defaults, |bench| async move {
        let client = bench.watcher("job:j1").await;
        client.pipe.room.set(100);
        large(&bench, "j1", 1).await;
        for progress in 2..=50 {
            bench.progress("j1", progress).await;
        }
        bench.gives_room(&client, ROOM);
        sleep(Duration::from_secs(1)).await;
        let progress = |message: &Value| message["job"]["progress"].as_u64();
        let got: Vec<_> = client.messages().iter().filter_map(progress).collect();
        assert_eq!(got, [1, 50], "promise 6");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_holds_up_nobody() {
    with_shard(defaults, |bench| async move {
        let (slow, other) = (bench.watcher("job:j1").await, bench.watcher("job:j1").await);
        slow.pipe.room.set(0);
        for progress in 1..=3 {
            sleep(Duration::from_millis(200)).await;
            bench.progress("j1", progress).await;
            assert_eq!(other.kinds(), ["state"]);
        }
        assert!(bench.is_there(&slow));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_its_replies_is_ended_and_the_goodbye_is_not_waited_for() {
    with_shard(defaults, |bench| async move {
        let client = bench.client().await;
        client.pipe.room.set(0);
        // The first blocks the socket; what waits behind it is bounded.
        for _ in 0..50 {
            bench.says(&client, r#"{"type":"ping"}"#);
        }
        assert!(bench.is_there(&client));
        sleep(Duration::from_secs(1)).await;
        for _ in 0..30 {
            bench.says(&client, r#"{"type":"ping"}"#);
        }
        assert!(!bench.is_there(&client));
        assert_eq!(bench.closed("slow") + bench.closed("too_frequent"), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_left_is_forgotten_at_the_next_write() {
    with_shard(defaults, |bench| async move {
        let client = bench.watcher("job:j1").await;
        client.pipe.gone.set(true);
        bench.progress("j1", 1).await;
        assert!(!bench.is_there(&client));
        assert_eq!(bench.closed("client"), 1);
        assert_eq!(bench.node.admissions.total(), 0);
    })
    .await;
}
