//! The client that does nothing wrong, and must not notice those that do.

use std::time::Duration;

use anyhow::Result;
use relay_testkit::client::WebSocketClient;
use relay_testkit::relay::RelayServer;
use serde_json::json;

/// How late an update may be before the neighbour counts as disturbed; a machine under load is no crime.
const PROMPTLY: Duration = Duration::from_secs(3);
const JOB: &str = "neighbours-job";

/// A watcher of one job, over a WebSocket, as most are.
#[derive(Debug)]
pub(crate) struct Neighbour {
    client: WebSocketClient,
    token: Option<String>,
    step: u64,
}

impl Neighbour {
    /// Moves in.
    pub(crate) async fn of(relay: &RelayServer) -> Result<Self> {
        Self::with_token(relay, None).await
    }

    /// Moves in with a token that may watch and publish the job.
    pub(crate) async fn with_token(relay: &RelayServer, token: Option<String>) -> Result<Self> {
        let mut client = WebSocketClient::connect(&relay.address(), token.as_deref()).await?;
        client.subscribe(&format!("job:{JOB}"), None).await?;
        client
            .until(PROMPTLY, "subscribed", |frame| frame.kind() == "subscribed")
            .await?;
        let mut neighbour = Self {
            client,
            token,
            step: 0,
        };
        neighbour.is_undisturbed(relay).await?;
        Ok(neighbour)
    }

    /// Has an update published and wants to see it, promptly, on the connection it has had all along.
    pub(crate) async fn is_undisturbed(&mut self, relay: &RelayServer) -> Result<()> {
        self.step += 1;
        let state = json!({"status": "running", "current": self.step, "total": 1000});
        let request =
            relay_testkit::http::Request::post(format!("/v1/jobs/{JOB}?owner=neighbour"), &state)
                .bearer(self.token.as_deref());
        let answer = relay.send(request).await?;
        anyhow::ensure!(answer.status.as_u16() == 202, "{}", answer.text());
        let step = self.step;
        self.client
            .until(PROMPTLY, "the neighbour's update", |frame| {
                frame.job()["current"] == step
            })
            .await?;
        Ok(())
    }
}
