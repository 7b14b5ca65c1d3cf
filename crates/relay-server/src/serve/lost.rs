//! Parts of the node that end although nobody told them to: the first ends the process.
//!
//! Every thread, and every task of the bus's thread, is watched for as long as it runs. Knows nothing of what
//! they do.
//!
//! Invariant: from the first loss on the node is not ready, before anybody acts on it.

use std::fmt;
use std::sync::Arc;

use relay_bus::connection::ConnectionError;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::ServeError;

/// Tasks that never end by themselves, or with what no retry can fix.
pub(super) type Tasks = JoinSet<Option<ConnectionError>>;

/// Where a loss is reported.
#[derive(Clone)]
pub(super) struct Reports {
    /// Room for the first loss, which says what came before the others. The main thread holds the other end.
    first: mpsc::Sender<ServeError>,
    /// Takes the node out of rotation.
    unready: Arc<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reports")
    }
}

impl Reports {
    pub(super) fn new(
        unready: impl Fn() + Send + Sync + 'static,
    ) -> (Self, mpsc::Receiver<ServeError>) {
        let (first, losses) = mpsc::channel(1);
        let unready = Arc::new(unready);
        (Self { first, unready }, losses)
    }

    fn report(&self, loss: ServeError) {
        (self.unready)();
        // Behind the first one nobody asks for another.
        self.first.try_send(loss).unwrap_or_default();
    }

    /// Watches a thread: it holds what is returned while it runs, and is lost if that is dropped, by a panic or
    /// otherwise, before it was told to stop by `asked`.
    pub(super) fn watch(
        &self,
        asked: watch::Receiver<bool>,
        loss: fn() -> ServeError,
    ) -> LostUnlessAsked {
        LostUnlessAsked {
            asked,
            loss,
            reports: self.clone(),
        }
    }

    /// Runs the bus's tasks until `asked`, and reports each that ends before.
    pub(super) async fn run(&self, tasks: &mut Tasks, asked: impl Future<Output = ()>) {
        let mut asked = std::pin::pin!(asked);
        loop {
            tokio::select! {
                () = &mut asked => return,
                Some(ended) = tasks.join_next() => self.report(match ended {
                    // It stops by a panic of its own alone, on this thread.
                    Ok(Some(ConnectionError::Stopped(_)) | None) | Err(_) => ServeError::BusLost,
                    Ok(Some(error)) => ServeError::Nats(error),
                }),
            }
        }
    }
}

/// Held by a thread while it runs.
pub(super) struct LostUnlessAsked {
    asked: watch::Receiver<bool>,
    loss: fn() -> ServeError,
    reports: Reports,
}

impl Drop for LostUnlessAsked {
    fn drop(&mut self) {
        if !*self.asked.borrow() {
            self.reports.report((self.loss)());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use tokio::time::sleep;

    use super::*;

    /// Reports, what they come to, and whether the node is ready.
    fn reports() -> (Reports, mpsc::Receiver<ServeError>, Arc<AtomicBool>) {
        let is_ready = Arc::new(AtomicBool::new(true));
        let readiness = is_ready.clone();
        let (reports, losses) = Reports::new(move || readiness.store(false, Ordering::Relaxed));
        (reports, losses, is_ready)
    }

    fn panics() -> Option<ConnectionError> {
        let nothing: Option<()> = None;
        assert!(nothing.is_some(), "a fault injected by a test");
        None
    }

    /// What is reported when a task beside one that goes on ends as given.
    async fn lost_with(
        ends: impl Future<Output = Option<ConnectionError>> + Send + 'static,
    ) -> String {
        let (reports, mut losses, is_ready) = reports();
        let mut tasks = Tasks::new();
        tasks.spawn(pending());
        tasks.spawn(ends);
        reports.run(&mut tasks, sleep(Duration::from_secs(1))).await;
        assert!(!is_ready.load(Ordering::Relaxed));
        assert_eq!(
            tasks.len(),
            1,
            "what still runs goes on until it is stopped"
        );
        losses.try_recv().unwrap().to_string()
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_of_the_bus_that_panics_or_ends_is_the_loss_of_the_bus() {
        let crashed = "the bus thread crashed; see the panic above";
        assert_eq!(lost_with(async { panics() }).await, crashed);
        assert_eq!(lost_with(ready(None)).await, crashed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_gives_up_says_why() {
        assert_eq!(
            lost_with(ready(Some(ConnectionError::NoUrl))).await,
            "cannot read from NATS, and retrying will not help; fix the configuration: no NATS server is given: set nats.url"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_that_are_told_to_stop_are_not_lost() {
        let (reports, mut losses, is_ready) = reports();
        let mut tasks = Tasks::new();
        tasks.spawn(pending());
        reports.run(&mut tasks, sleep(Duration::from_secs(1))).await;
        tasks.shutdown().await;
        assert!(losses.try_recv().is_err());
        assert!(is_ready.load(Ordering::Relaxed));
    }

    #[test]
    fn a_thread_that_panics_is_lost_and_the_first_loss_counts() {
        let (reports, mut losses, is_ready) = reports();
        let (_ask, asked) = watch::channel(false);
        for loss in [|| ServeError::ShardLost, || ServeError::BusLost] {
            let watch = reports.watch(asked.clone(), loss);
            let thread = std::thread::spawn(move || {
                let _watch = watch;
                panics()
            });
            assert!(thread.join().is_err());
            assert!(!is_ready.load(Ordering::Relaxed));
        }
        let first = losses.try_recv().unwrap();
        assert_eq!(
            first.to_string(),
            "a worker thread crashed; see the panic above"
        );
        assert!(losses.try_recv().is_err());
    }

    #[test]
    fn a_thread_that_was_told_to_stop_is_not_lost() {
        let (reports, mut losses, is_ready) = reports();
        let (_ask, asked) = watch::channel(true);
        drop(reports.watch(asked, || ServeError::ShardLost));
        assert!(losses.try_recv().is_err());
        assert!(is_ready.load(Ordering::Relaxed));
    }
}
