//! How long a client is waited for while hyper has its socket: for a whole head, and for the next request.
//!
//! Two times, because a head that comes in slowly is an attack or a broken network, and a connection between two
//! requests is a proxy's pool at rest. hyper has one time for both. What the requests are for is not known here.
//!
//! Invariant: at any time a request is being answered, or there is a moment at which the socket is given up.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// What a client is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaited {
    /// The rest of a head that began then.
    Head(Instant),
    /// The first byte of another request, since then.
    Request(Instant),
    /// Nothing: its request is being answered.
    Nothing,
}

/// What one client is waited for, and how long.
#[derive(Debug)]
pub(super) struct Patience {
    awaited: Cell<Awaited>,
    /// Since when the client has not read as much as it must, and how much it has.
    unread: Cell<Option<(Instant, usize)>>,
    header_timeout: Duration,
    keep_alive: Duration,
    /// How long it may leave an answer unread.
    read_within: Duration,
}

/// A client that reads this much of an answer in its time has as much again for the next.
const READ_BYTES: usize = 4096;

impl Patience {
    /// A client that has just connected, and owes its first head.
    pub(super) fn new(
        header_timeout: Duration,
        keep_alive: Duration,
        read_within: Duration,
    ) -> Rc<Self> {
        Rc::new(Self {
            awaited: Cell::new(Awaited::Head(Instant::now())),
            unread: Cell::new(None),
            header_timeout,
            keep_alive,
            read_within,
        })
    }

    /// Its request is being answered.
    pub(super) fn answering(&self) {
        self.awaited.set(Awaited::Nothing);
    }

    /// Its request is answered; it may send another.
    pub(super) fn answered(&self) {
        self.awaited.set(Awaited::Request(Instant::now()));
    }

    /// Bytes came.
    fn heard(&self) {
        if let Awaited::Request(_) = self.awaited.get() {
            self.awaited.set(Awaited::Head(Instant::now()));
        }
    }

    /// The kernel took so much of what was to be written; `all` if that was everything.
    fn wrote(&self, bytes: usize, all: bool) {
        if all {
            self.unread.set(None);
        } else if let Some((since, before)) = self.unread.get() {
            let read = before + bytes;
            self.unread.set(Some(match read < READ_BYTES {
                true => (since, read),
                false => (Instant::now(), 0),
            }));
        }
    }

    /// The kernel has no room for more of an answer.
    fn blocked(&self) {
        if self.unread.get().is_none() {
            self.unread.set(Some((Instant::now(), 0)));
        }
    }

    /// Whether it was an answer for which the client was waited too long.
    pub(super) fn gave_up_writing(&self) -> bool {
        let unread = self.unread.get();
        unread.is_some_and(|(since, _)| since.elapsed() >= self.read_within)
    }

    fn end(&self) -> Option<Instant> {
        if let Some((since, _)) = self.unread.get() {
            // Until it has read its answer it is not waited for a request.
            return Some(since + self.read_within);
        }
        match self.awaited.get() {
            Awaited::Head(since) => Some(since + self.header_timeout),
            Awaited::Request(since) => Some(since + self.keep_alive),
            Awaited::Nothing => None,
        }
    }

    /// Ready when the client has been waited for long enough. To be asked after whatever may change what it is
    /// waited for.
    pub(super) fn poll_end(
        &self,
        timer: &mut Option<Pin<Box<Sleep>>>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let Some(end) = self.end() else {
            return Poll::Pending;
        };
        let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
        if timer.deadline() != end {
            timer.as_mut().reset(end);
        }
        timer.as_mut().poll(cx)
    }
}

/// A socket that says when bytes come in.
#[derive(Debug)]
pub(super) struct Watched<S> {
    pub(super) socket: S,
    patience: Rc<Patience>,
}

impl<S> Watched<S> {
    pub(super) fn new(socket: S, patience: Rc<Patience>) -> Self {
        Self { socket, patience }
    }

    fn note(&self, written: &Poll<io::Result<usize>>, offered: usize) {
        match written {
            Poll::Pending => self.patience.blocked(),
            Poll::Ready(Ok(bytes)) => self.patience.wrote(*bytes, *bytes >= offered),
            Poll::Ready(Err(_)) => {}
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(cx, into))?;
        if into.filled().len() > before {
            self.patience.heard();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.note(&written, bytes.len());
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, bytes);
        self.note(&written, bytes.iter().map(|part| part.len()).sum());
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::{advance, timeout};

    use super::*;

    const HEADER: Duration = Duration::from_secs(10);
    const IDLE: Duration = Duration::from_secs(75);
    const READ: Duration = Duration::from_secs(30);

    /// How long the client is waited for from now on, if not for ever.
    async fn left(patience: &Patience) -> Option<Duration> {
        let (begun, mut timer) = (Instant::now(), None);
        let end = poll_fn(|cx| patience.poll_end(&mut timer, cx));
        let ended = timeout(Duration::from_secs(1000), end).await;
        ended.is_ok().then(|| begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_head_has_its_time_from_the_beginning() {
        let patience = Patience::new(HEADER, IDLE, READ);
        advance(Duration::from_secs(4)).await;
        patience.heard();
        assert_eq!(left(&patience).await, Some(Duration::from_secs(6)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_kept_connection_may_rest_and_its_next_head_may_not() {
        let patience = Patience::new(HEADER, IDLE, READ);
        patience.answering();
        assert_eq!(left(&patience).await, None, "a poll may hang");
        patience.answered();
        advance(Duration::from_secs(5)).await;
        assert_eq!(left(&patience).await, Some(Duration::from_secs(70)));

        patience.answered();
        advance(Duration::from_secs(74)).await;
        patience.heard();
        advance(Duration::from_secs(3)).await;
        patience.heard();
        assert_eq!(left(&patience).await, Some(Duration::from_secs(7)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_has_to_be_read_at_some_pace() {
        let patience = Patience::new(HEADER, IDLE, READ);
        patience.answering();
        patience.blocked();
        patience.answered();
        advance(Duration::from_secs(20)).await;
        // A byte now and then is not reading.
        patience.wrote(1, false);
        assert_eq!(left(&patience).await, Some(Duration::from_secs(10)));
        assert!(patience.gave_up_writing());
        patience.wrote(READ_BYTES, false);
        assert_eq!(left(&patience).await, Some(READ));
        patience.wrote(10, true);
        assert!(!patience.gave_up_writing());
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_while_it_is_waited_for_counts() {
        let patience = Patience::new(HEADER, IDLE, READ);
        let mut timer = None;
        let ended = |timer: &mut _| {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            patience.poll_end(timer, &mut cx).is_ready()
        };
        assert!(!ended(&mut timer));
        patience.answering();
        advance(HEADER * 2).await;
        assert!(!ended(&mut timer));
        patience.answered();
        assert!(!ended(&mut timer));
        advance(IDLE).await;
        assert!(ended(&mut timer));
    }
}
