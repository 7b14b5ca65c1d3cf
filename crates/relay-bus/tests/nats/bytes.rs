//! A publisher's bytes that are no text cost its own message, and not the connection that carries everybody's.

use relay_testkit::nats::{NatsServer, Options};

use crate::core::Core;
use crate::support::{NO_TEXT, Worker, publish_bytes};

#[tokio::test]
async fn regression_bytes_that_are_no_text_do_not_take_the_bus_away() {
    let server = NatsServer::start(Options::core()).await.unwrap();
    let core = Core::at(&server.url());
    core.heard.live(1).await;
    publish_bytes(&server.url(), &NO_TEXT).await;
    let worker = Worker::at(&server.url()).await.client;
    worker
        .publish("progress.v.good.state", "{}".into())
        .await
        .unwrap();
    let updates = core.heard.updates_until(4).await;
    let payloads: Vec<_> = updates.iter().map(|it| it.payload.as_ref()).collect();
    assert_eq!(payloads, [&b"1"[..], b"2", b"3", b"{}"]);
    assert!(core.heard.losses().is_empty(), "{:?}", core.heard.losses());
    let refused = core.heard.refused();
    let fields: Vec<_> = refused.iter().map(|it| it.field.as_deref()).collect();
    assert_eq!(fields, [Some("owner"), Some("job_id"), Some("job_id")]);
}
