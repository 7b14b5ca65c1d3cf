//! A publisher's bytes that are no text cost its own message, and not the connection that carries everybody's: when
//! they come, and at every look at what is stored.

use relay_bus::seam::Store;
use relay_core::position::Seq;
use relay_testkit::nats::{NatsServer, Options};

use crate::support::{Mode, NO_TEXT, Worker, job, publish_bytes};

#[tokio::test]
async fn regression_bytes_that_are_no_text_do_not_take_the_bus_away() {
    let server = NatsServer::start(Options::jetstream()).await.unwrap();
    let mode = Mode::at(&server.url());
    mode.heard.live(1).await;
    publish_bytes(&server.url(), &NO_TEXT).await;
    let worker = Worker::at(&server.url()).await;
    let last = worker.publish("progress.v.good.state", "{}").await;
    let updates = mode.heard.updates_until(4).await;
    let payloads: Vec<_> = updates.iter().map(|it| it.payload.as_ref()).collect();
    assert_eq!(payloads, [&b"1"[..], b"2", b"3", b"{}"]);
    assert_eq!(mode.heard.refused().len(), 3);
    let job = mode.store.load_job(job("j"), last).await.unwrap();
    let stored: Vec<_> = job.updates.iter().map(|it| it.payload.as_ref()).collect();
    assert_eq!(stored, [&b"1"[..], b"2", b"3"]);
    let states = mode.store.load_last_states(None, last, 100).await.unwrap();
    assert_eq!(states.last().map(|it| it.seq), Some(Seq::new(7)));
    assert!(mode.heard.losses().is_empty(), "{:?}", mode.heard.losses());
}
