//! One watcher that comes and goes at random, changes its transport each time, and keeps its cursor.

use std::time::Duration;

use relay_testkit::client::{Heard, Transport, Watch, Watcher};
use relay_testkit::journey::{Ledger, Published};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// How long the last leg may take to bring what is still owed.
const CATCH_UP: Duration = Duration::from_secs(8);
/// How long a watcher that has everything listens for what should not come.
const LISTEN_ON: Duration = Duration::from_millis(250);

/// What a walker watches.
#[derive(Debug, Clone)]
pub(crate) enum Interest {
    /// Some jobs by id.
    Jobs(Vec<String>),
    /// All jobs of one owner.
    Owner(String),
}

impl Interest {
    fn topics(&self) -> Vec<String> {
        match self {
            Self::Jobs(jobs) => jobs.iter().map(|job| format!("job:{job}")).collect(),
            Self::Owner(owner) => vec![format!("user:{owner}")],
        }
    }

    /// Whether a job of the fleet is watched; a job's id begins with its owner.
    pub(crate) fn covers(&self, job: &str) -> bool {
        match self {
            Self::Jobs(jobs) => jobs.iter().any(|watched| watched == job),
            Self::Owner(owner) => job
                .strip_prefix(owner.as_str())
                .is_some_and(|rest| rest.starts_with("-j")),
        }
    }

    fn transports(&self) -> &'static [Transport] {
        match self {
            Self::Jobs(_) => &Transport::ALL,
            // a document is asked for by its job
            Self::Owner(_) => &Transport::ALL[..3],
        }
    }
}

/// A watcher on its way.
#[derive(Debug)]
pub(crate) struct Walker {
    name: String,
    interest: Interest,
    random: fastrand::Rng,
    cursor: Option<String>,
    ledger: Ledger,
    /// Whether a connection that ends by the relay's doing is part of the plan.
    relay_may_go: bool,
    streams_only: bool,
    lost: Vec<String>,
}

impl Walker {
    pub(crate) fn new(name: String, interest: Interest, seed: u64) -> Self {
        Self {
            ledger: Ledger::new(&name),
            name,
            interest,
            random: fastrand::Rng::with_seed(seed),
            cursor: None,
            relay_may_go: false,
            streams_only: false,
            lost: Vec::new(),
        }
    }

    /// Looks at no documents: they are of the node that is asked, which may be behind another.
    pub(crate) fn streams_only(mut self) -> Self {
        self.streams_only = true;
        self
    }

    pub(crate) fn relay_may_go(mut self) -> Self {
        self.relay_may_go = true;
        self
    }

    /// Comes and goes until the workers are done, then stays until it has what it is owed.
    pub(crate) async fn walk(
        mut self,
        addresses: Vec<String>,
        mut done: watch::Receiver<Option<Published>>,
    ) -> Walked {
        // not all at the same moment
        let start = Duration::from_millis(self.random.u64(0..1500));
        sleep(start).await;
        while done.borrow_and_update().is_none() {
            let transports = match self.streams_only {
                true => &Transport::ALL[..3],
                false => self.interest.transports(),
            };
            let transport = *self.random.choice(transports).unwrap_or(&Transport::Sse);
            let stay = Duration::from_millis(self.random.u64(50..900));
            let address = self.any(&addresses);
            self.leg(&address, transport, stay).await;
            sleep(Duration::from_millis(self.random.u64(0..200))).await;
        }
        let published = done.borrow().clone().unwrap_or_default();
        self.catch_up(&addresses, &published).await;
        self.walked(&published)
    }

    /// Comes once, stays a while and goes, keeping its cursor.
    pub(crate) async fn visit(
        mut self,
        address: String,
        transport: Transport,
        stay: Duration,
    ) -> Self {
        self.leg(&address, transport, stay).await;
        self
    }

    /// Stays on one connection until the workers are done and it has what it is owed.
    pub(crate) async fn stay(
        mut self,
        address: String,
        transport: Transport,
        mut done: watch::Receiver<Option<Published>>,
    ) -> Walked {
        let Some(mut watcher) = self.join(&address, transport).await else {
            return self.walked(&Published::default());
        };
        let mut deadline = None;
        loop {
            // Cheap enough, and so no end of the workers can be missed between two frames.
            let published = done.borrow_and_update().clone();
            let complete = published.as_ref().is_some_and(|published| {
                self.ledger
                    .is_complete(published, |job| self.interest.covers(job))
            });
            if published.is_some() && deadline.is_none() {
                deadline = Some(Instant::now() + CATCH_UP);
            }
            let late = deadline.is_some_and(|deadline| Instant::now() > deadline);
            match watcher.next(LISTEN_ON).await {
                Heard::Frame(frame) => self.ledger.saw(&frame),
                Heard::Quiet if complete || late => break,
                Heard::Quiet => {}
                Heard::Closed { code, reason } => {
                    self.lose(format!("{transport} closed: {code:?} {reason}"));
                    break;
                }
            }
        }
        let published = done.borrow().clone().unwrap_or_default();
        self.walked(&published)
    }

    async fn leg(&mut self, address: &str, transport: Transport, stay: Duration) {
        let Some(mut watcher) = self.join(address, transport).await else {
            return;
        };
        let until = Instant::now() + stay;
        loop {
            match watcher
                .next(until.saturating_duration_since(Instant::now()))
                .await
            {
                Heard::Frame(frame) if transport == Transport::State => self.ledger.polled(&frame),
                Heard::Frame(frame) => self.ledger.saw(&frame),
                Heard::Quiet => break,
                Heard::Closed { code, reason } => {
                    self.lose(format!("{transport} closed: {code:?} {reason}"));
                    break;
                }
            }
        }
        self.leave(watcher, transport).await;
    }

    async fn join(&mut self, address: &str, transport: Transport) -> Option<Watcher> {
        let cursor = self.cursor.clone();
        self.ledger.joined(transport, cursor.as_deref());
        let watch = Watch::topics(self.interest.topics()).from(cursor);
        match Watcher::connect(transport, address, watch).await {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                self.lose(format!("{transport} refused: {error:#}"));
                // a relay on its way back is not asked a thousand times a second
                sleep(Duration::from_millis(50)).await;
                None
            }
        }
    }

    async fn leave(&mut self, mut watcher: Watcher, transport: Transport) {
        if transport == Transport::State {
            // the document's tag is a cursor for its own job only; a client of several keeps the old one
            if let Interest::Jobs(jobs) = &self.interest
                && let [job] = jobs.as_slice()
                && self.random.bool()
                && self.ledger.resumes_from_document(job)
            {
                self.cursor = watcher.cursor();
            }
            return;
        }
        while !watcher.is_settled()
            && let Heard::Frame(frame) = watcher.next(Duration::ZERO).await
        {
            self.ledger.saw(&frame);
        }
        self.cursor = watcher.cursor();
        if self.random.bool() {
            watcher.close().await;
        } else {
            watcher.vanish();
        }
    }

    fn any(&mut self, addresses: &[String]) -> String {
        self.random.choice(addresses).cloned().unwrap_or_default()
    }

    async fn catch_up(&mut self, addresses: &[String], published: &Published) {
        let deadline = Instant::now() + CATCH_UP;
        let interest = self.interest.clone();
        while Instant::now() < deadline {
            let transport = *self
                .random
                .choice(&Transport::ALL[..3])
                .unwrap_or(&Transport::Sse);
            let address = self.any(addresses);
            let Some(mut watcher) = self.join(&address, transport).await else {
                continue;
            };
            loop {
                let complete = self
                    .ledger
                    .is_complete(published, |job| interest.covers(job));
                let left = deadline.saturating_duration_since(Instant::now());
                match watcher.next(if complete { LISTEN_ON } else { left }).await {
                    Heard::Frame(frame) => self.ledger.saw(&frame),
                    Heard::Quiet => return,
                    Heard::Closed { code, reason } => {
                        self.lose(format!("{transport} closed: {code:?} {reason}"));
                        break;
                    }
                }
            }
            self.leave(watcher, transport).await;
        }
    }

    fn lose(&mut self, how: String) {
        if !self.relay_may_go {
            self.lost.push(format!("{}: {how}", self.name));
        }
    }

    fn walked(self, published: &Published) -> Walked {
        let interest = self.interest;
        let mut breaches = self.ledger.verdict(published, |job| interest.covers(job));
        breaches.extend(self.lost);
        Walked {
            breaches,
            legs: self.ledger.legs(),
            milestones: self.ledger.milestones(),
            gaps: self.ledger.gaps(),
            unrecovered: self.ledger.unrecovered(),
        }
    }
}

/// What came of one walk.
#[derive(Debug)]
pub(crate) struct Walked {
    pub(crate) breaches: Vec<String>,
    pub(crate) legs: usize,
    pub(crate) milestones: usize,
    pub(crate) gaps: usize,
    pub(crate) unrecovered: usize,
}
