//! Puts a relay together from its configuration, runs it until it is asked to stop, and drains it.
//!
//! One thread a shard, one for the bus, and the main thread for operators and signals. Only this module
//! knows all the parts.

pub(crate) mod bus;
mod files;
mod lost;
pub(crate) mod reload;
pub(crate) mod settings;

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;

use axum::Router;
use relay_bus::clock::Clock;
use relay_bus::connection::ConnectionError;
use relay_bus::history_file::{HistoryFile, HistoryFileError};
use relay_bus::hub::Hub;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, timeout};

use lost::{Reports, Tasks};
use reload::{Reloader, Reread};
use settings::Room;

use crate::admin::{self, Admin};
use crate::answer;
use crate::api::{self, Api};
use crate::config::Config;
use crate::door::{self, Door};
use crate::identity::KeyError;
use crate::logging::Relevel;
use crate::node::Node;
use crate::shard::{self, Shard};
use crate::sockets::TooFew;
use crate::telemetry::Telemetry;
use crate::tls::TlsError;

/// Why the relay does not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ServeError {
    /// A listener's port is taken, or may not be opened.
    #[error("{key} = {address} cannot be listened on: {source}{}", hint(source))]
    Listen {
        /// The configuration's key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the kernel says.
        source: io::Error,
    },
    /// The key tokens are verified with cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] TlsError),
    /// The bus is set up wrongly.
    #[error("the bus cannot be set up: {0}")]
    Bus(#[from] bus::BusError),
    /// The file of `history.file` cannot be used.
    #[error(transparent)]
    History(#[from] HistoryFileError),
    /// The system gives no threads, timers or signals.
    #[error("cannot get threads, timers or signals from the system: {0}")]
    System(#[from] io::Error),
    /// A dialect's file changed since it was checked.
    #[error(transparent)]
    Dialects(#[from] crate::config::ConfigErrors),
    /// There are too few file descriptors to run at all.
    #[error(transparent)]
    Descriptors(#[from] TooFew),
    /// Two metrics contradict each other.
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
    /// A shard's thread ended that never should.
    #[error("a worker thread crashed; see the panic above")]
    ShardLost,
    /// The bus's thread ended, or a task on it, that never should.
    #[error("the bus thread crashed; see the panic above")]
    BusLost,
    /// The reader of NATS gave up.
    #[error("cannot read from NATS, and retrying will not help; fix the configuration: {0}")]
    Nats(#[source] ConnectionError),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another process has the port: stop it, or choose another port"
        }
        io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege",
        io::ErrorKind::AddrNotAvailable => "; no interface of this machine has that address",
        _ => "",
    }
}

/// What runs beside the relay on its bus thread, such as the demo's workers.
pub(crate) type Companion = Box<dyn FnOnce(Arc<Hub>, &mut JoinSet<()>) + Send>;

/// Where a started relay can be reached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addresses {
    /// Clients.
    pub http: SocketAddr,
    /// Operators.
    pub admin: SocketAddr,
}

/// Extras a start may have.
#[derive(Default)]
pub(crate) struct Extras {
    /// Routes besides the API's.
    pub routes: Option<Router>,
    /// Run on the bus's thread.
    pub companion: Option<Companion>,
    /// Called once when everything listens.
    pub ready: Option<Box<dyn FnOnce(Addresses)>>,
    /// Reads the configuration again.
    pub reread: Option<Reread>,
    /// Takes another level of the log.
    pub relevel: Option<Relevel>,
}

impl std::fmt::Debug for Extras {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Extras")
    }
}

/// Runs a relay until a signal ends it.
///
/// # Errors
/// When it cannot start, or a thread of it is lost.
pub(crate) fn run(config: &Config, extras: Extras) -> Result<(), ServeError> {
    let main = Builder::new_current_thread().enable_all().build()?;
    let result = main.block_on(serve(config, extras));
    // Threads that have not ended by now are not waited for.
    main.shutdown_background();
    result
}

async fn serve(config: &Config, extras: Extras) -> Result<(), ServeError> {
    let mut signals = Signals::new()?;
    let shards = shard_count(config);
    let budget = files::share_out(config.limits.connections, shards)?;
    let clock = Clock::start();
    let epoch = bus::epoch(clock);
    let bus = bus::Bus::new(config, epoch)?;
    let telemetry = Telemetry::new()?;
    let dialects = config.load_dialects(&|dialect, mapping| telemetry.mapping(dialect, mapping))?;
    let of_hub = settings::hub(config, &dialects, shards);
    let hub = Hub::new(of_hub, bus.backing(), clock, epoch);
    let history = config.history.file.clone().map(HistoryFile::new);
    let history = history.map(Arc::new);
    if let Some(file) = &history {
        file.open(&hub, epoch)?;
    }
    let (mailboxes, mail) = shard::Mailboxes::new(shards);
    let node = Arc::new(settings::node(
        config,
        Room { budget, shards },
        hub.clone(),
        (config.identity()?, config.auth.tickets()?),
        telemetry,
        dialects,
    ));
    node.certificate.change(config.http.certificate()?);
    let listeners = listen(config.http.listen, shards)?;
    let http = listeners[0].local_addr()?;
    let admin_listener = listen_admin(config.admin.listen).await?;
    let addresses = Addresses {
        http,
        admin: admin_listener.local_addr()?,
    };

    let (drain, drained) = watch::channel(false);
    let mut router = api::router(Api { node: node.clone() });
    if let Some(routes) = extras.routes {
        router = answer::under(config.hosts(), routes).fallback_service(router);
    }
    let fit = node.clone();
    let (reports, mut lost) = Reports::new(move || fit.readiness.drain());
    let mut threads = Vec::new();
    for (number, (listener, mailbox)) in listeners.into_iter().zip(mail).enumerate() {
        let part = ShardThread {
            number,
            listener,
            mailboxes: mailboxes.clone(),
            mailbox,
            router: router.clone(),
            drain: drained.clone(),
        };
        threads.push(part.spawn(node.clone(), &reports)?);
    }
    let bus_thread = BusThread::spawn(
        bus,
        hub.clone(),
        history,
        extras.companion,
        drained.clone(),
        reports.clone(),
    )?;

    let admin = Admin {
        node: node.clone(),
        bus: config.bus.mode.as_str(),
        started: Instant::now(),
        job_limit: config.history.jobs,
    };
    let routes = answer::under(config.operators_hosts(), admin::router(admin));
    let mut tasks = JoinSet::new();
    let keeping = node.clone();
    tasks.spawn(async move { keeping.identity.keep().await });
    tasks.spawn(async move {
        let listener = admin::Listener::new(admin_listener, budget.operators);
        listener.serve(routes).await;
    });
    tracing::info!(%http, admin = %addresses.admin, bus = config.bus.mode.as_str(), auth = config.auth_mode().as_str(), tls = config.http.tls_cert_file.is_some(), shards, "relay is up");
    if let Some(ready) = extras.ready {
        ready(addresses);
    }

    let reread = extras.reread.zip(extras.relevel);
    let mut reloader = reread.map(|both| Reloader::new(config, budget, both));
    let (asked_by, result) = loop {
        tokio::select! {
            signal = signals.next() => match (signal, &mut reloader) {
                (Asked::Stop(signal), _) => break (signal, Ok(())),
                (Asked::Reload, Some(reloader)) => reloader.reload(&node),
                // Nothing could be read again; its terminal has gone.
                (Asked::Reload, None) => break ("SIGHUP", Ok(())),
            },
            Some(loss) = lost.recv() => break ("a lost thread", Err(loss)),
        }
    };
    node.readiness.drain();
    let open = node.admissions.total();
    tracing::info!(asked_by, connections = open, "draining");
    drain.send_replace(true);
    let ended = timeout(config.drain.deadline, join_all(threads));
    tokio::select! {
        ended = ended => match ended {
            Ok(()) => tracing::info!("drained"),
            Err(_) => tracing::warn!(left = node.admissions.total(), "the drain's deadline passed; the rest is cut off"),
        },
        signal = signals.stop() => tracing::warn!(signal, left = node.admissions.total(), "a second signal: stopping at once"),
    }
    tokio::select! {
        () = bus_thread.stop() => {}
        signal = signals.stop() => tracing::warn!(signal, "the bus and its history are not waited for"),
    }
    // A part may also be lost while the node drains.
    result.and_then(|()| lost.try_recv().map_or(Ok(()), Err))
}

fn shard_count(config: &Config) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    match config.http.shards {
        0 => cores(),
        some => some,
    }
    .clamp(1, 64)
}

/// One listening socket a shard, all on one port.
fn listen(address: SocketAddr, shards: usize) -> Result<Vec<StdListener>, ServeError> {
    let failed = |source| ServeError::Listen {
        key: "http.listen",
        address,
        source,
    };
    // Shared ports are shared with any process of the same user; a second relay would take half of the
    // first one's clients. A socket that does not share finds that out.
    if address.port() != 0 {
        drop(StdListener::bind(address).map_err(failed)?);
    }
    let first = door::listen(address).map_err(failed)?;
    let address = first.local_addr()?;
    let others = (1..shards).map(|_| door::listen(address).map_err(failed));
    std::iter::once(Ok(first)).chain(others).collect()
}

async fn listen_admin(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| ServeError::Listen {
        key: "admin.listen",
        address,
        source,
    })
}

/// The signals that ask the relay to go, and the one that asks it to read its configuration again.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// What a signal asks for.
enum Asked {
    /// To go; the signal's name.
    Stop(&'static str),
    /// To read the configuration again.
    Reload,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next one.
    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Asked::Stop("SIGINT"),
            _ = self.hangup.recv() => Asked::Reload,
        }
    }

    /// The name of the next one that asks the relay to go.
    async fn stop(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// What one shard's thread is given.
struct ShardThread {
    number: usize,
    listener: StdListener,
    /// To every shard, this one among them.
    mailboxes: shard::Mailboxes,
    mailbox: shard::Mailbox,
    router: Router,
    drain: watch::Receiver<bool>,
}

impl ShardThread {
    /// Starts the thread, which is lost if it ends unasked.
    fn spawn(self, node: Arc<Node>, reports: &Reports) -> io::Result<JoinHandle<()>> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let name = format!("shard-{}", self.number);
        let watch = reports.watch(self.drain.clone(), || ServeError::ShardLost);
        std::thread::Builder::new().name(name).spawn(move || {
            self.run(&runtime, node);
            drop(watch);
        })
    }

    fn run(self, runtime: &Runtime, node: Arc<Node>) {
        let local = LocalSet::new();
        local.block_on(runtime, async move {
            let shard = Shard::new(self.number, node, self.mailboxes);
            let listener = match TcpListener::from_std(self.listener) {
                Ok(listener) => listener,
                Err(error) => {
                    tracing::error!(%error, "a listener cannot be used");
                    return;
                }
            };
            let door = Door::new(Rc::clone(&shard), self.router);
            let serving = door.clone().serve(listener, self.drain.clone());
            let mail = door.clone().read_mail(self.mailbox);
            // Tasks of their own: what waits here is looked at whenever any connection's task is woken.
            let mut tasks = JoinSet::new();
            tasks.spawn_local(shard.run(self.drain));
            tasks.spawn_local(serving);
            tasks.spawn_local(mail);
            // All end when the drain is over: nobody is connected and nobody is being read.
            tasks.join_all().await;
        });
    }
}

/// The thread the bus is read on.
struct BusThread {
    thread: JoinHandle<()>,
    stop: watch::Sender<bool>,
}

impl BusThread {
    fn spawn(
        bus: bus::Bus,
        hub: Arc<Hub>,
        history: Option<Arc<HistoryFile>>,
        companion: Option<Companion>,
        mut drain: watch::Receiver<bool>,
        reports: Reports,
    ) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (stop, mut stopped) = watch::channel(false);
        let watch = reports.watch(stopped.clone(), || ServeError::BusLost);
        let thread = std::thread::Builder::new()
            .name("bus".to_owned())
            .spawn(move || {
                runtime.block_on(async move {
                    let mut tasks = Tasks::new();
                    tasks.spawn(endless(hub.clone().run()));
                    bus.spawn(&hub, &mut tasks);
                    if let Some(file) = &history {
                        tasks.spawn(endless(file.clone().keep(hub.clone())));
                    }
                    let mut companions = JoinSet::new();
                    if let Some(companion) = companion {
                        companion(hub.clone(), &mut companions);
                    }
                    let asked = async {
                        // Companions publish no more once clients are leaving; the bus is read to the end.
                        drop(drain.changed().await);
                        companions.shutdown().await;
                        drop(stopped.changed().await);
                    };
                    reports.run(&mut tasks, asked).await;
                    tasks.shutdown().await;
                    let closed = history.map(|file| file.close(&hub));
                    if let Some(Err(error)) = closed {
                        tracing::error!(%error, "the history could not be written; its file keeps what was written before");
                    }
                });
                drop(watch);
            })?;
        Ok(Self { thread, stop })
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        join_all(vec![self.thread]).await;
    }
}

/// A task that does not end by itself.
async fn endless(work: impl Future<Output = ()>) -> Option<ConnectionError> {
    work.await;
    None
}

/// Waits for threads without blocking the one that waits.
async fn join_all(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        let joined = tokio::task::spawn_blocking(move || thread.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!("a thread panicked");
        }
    }
}
