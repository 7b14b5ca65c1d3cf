//! The floor: the least a machine can do.
//!
//! One thread. Watchers connect with the same requests as to a relay; then a publisher connects, and the body
//! of each update it sends is framed once and written to every watcher of its job, one write each. No
//! answers, no limits, no queues, no timers, no heartbeat.
//!
//! Invariant: it ends when its publisher leaves, and when nothing happens for [`PATIENCE`].

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use memchr::memmem;
use relay_testkit::ports::Port;
use relay_testkit::process::Process;
use socket2::SockRef;
use tokio::time::{Instant, sleep};

use crate::client::Transport;
use crate::process::Meter;

/// How long the floor waits for anything at all.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a floor says when it can be connected to.
const LISTENING: &str = "listening";
const MAX_HEAD_BYTES: usize = 16 * 1024;
const READ_BYTES: usize = 256 * 1024;
const START_WITHIN: Duration = Duration::from_secs(10);

/// The floor's own command line.
#[derive(Debug, clap::Args)]
pub(crate) struct FloorArgs {
    /// Where to listen
    #[arg(long)]
    listen: SocketAddr,
}

/// A floor in a process of its own.
#[derive(Debug)]
pub(crate) struct Floor {
    pub(crate) address: SocketAddr,
    pub(crate) process: Meter,
    /// Dropping it ends the process.
    _child: Process,
    /// Held so that nobody else takes the port.
    _port: Port,
}

impl Floor {
    /// Starts one for one run.
    pub(crate) async fn start() -> Result<Self> {
        let port = Port::reserve()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["floor-server", "--listen", &port.address()]);
        let log = std::env::temp_dir().join(format!("relay-loadtest-floor-{}.log", port.number()));
        let mut child = Process::spawn(&mut command, &log)?;
        let address: SocketAddr = port.address().parse()?;
        let deadline = Instant::now() + START_WITHIN;
        while !child.logs().contains(LISTENING) {
            if child.exited().is_some() || Instant::now() > deadline {
                bail!("the floor did not start: {}", child.logs());
            }
            sleep(Duration::from_millis(5)).await;
        }
        // A log left behind would only be untidy.
        drop(std::fs::remove_file(&log));
        Ok(Self {
            address,
            process: Meter::of(child.id()),
            _child: child,
            _port: port,
        })
    }
}

/// Serves one run: watchers first, then one publisher until it leaves.
pub(crate) fn serve(args: &FloorArgs) -> Result<()> {
    let listener =
        TcpListener::bind(args.listen).with_context(|| format!("--listen {}", args.listen))?;
    // An accept that waits for ever would outlive a client that was killed.
    SockRef::from(&listener).set_read_timeout(Some(PATIENCE))?;
    SockRef::from(&listener).listen(4096)?;
    writeln!(io::stdout().lock(), "{LISTENING}")?;
    let mut rooms = Rooms::new();
    loop {
        let (mut stream, _) = listener.accept().context("nobody came")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let Some(request) = read_head(&mut stream)? else {
            continue;
        };
        if !request.starts_with("GET ") {
            stream.write_all(b"+OK\r\n")?;
            return fan_out(stream, &mut rooms);
        }
        let transport = if request.starts_with("GET /v1/ws") {
            Transport::Ws
        } else {
            Transport::Sse
        };
        let job = request
            .split_once("topic=job:")
            .and_then(|(_, rest)| rest.split(' ').next())
            .context("no topic")?;
        stream.write_all(transport.welcome())?;
        // A watcher that does not read must not hold up the others; that is all the floor does about it.
        stream.set_nonblocking(true)?;
        rooms
            .entry(job.to_owned())
            .or_default()
            .push((transport, stream));
    }
}

/// Watchers by job.
type Rooms = HashMap<String, Vec<(Transport, TcpStream)>>;

/// The first lines a client sends, up to the empty one; the publisher's first is all it has.
fn read_head(stream: &mut TcpStream) -> io::Result<Option<String>> {
    let (mut head, mut bytes) = (Vec::new(), [0; 2048]);
    loop {
        let read = stream.read(&mut bytes)?;
        head.extend_from_slice(&bytes[..read]);
        if head.ends_with(b"\r\n\r\n") || head.starts_with(b"CONNECT\r\n") {
            return Ok(Some(String::from_utf8_lossy(&head).into_owned()));
        }
        if read == 0 || head.len() > MAX_HEAD_BYTES {
            return Ok(None);
        }
    }
}

/// Reads `PUB <subject> <length>` and a body, again and again, and writes each body to its job's watchers.
fn fan_out(mut publisher: TcpStream, rooms: &mut Rooms) -> Result<()> {
    let (mut waiting, mut bytes) = (Vec::new(), vec![0; READ_BYTES]);
    loop {
        let read = publisher.read(&mut bytes)?;
        if read == 0 {
            return Ok(());
        }
        waiting.extend_from_slice(&bytes[..read]);
        let mut used = 0;
        while let Some((job, body, length)) = update(&waiting[used..])? {
            if let Some(watchers) = rooms.get_mut(job) {
                write_to_all(watchers, body);
            }
            used += length;
        }
        waiting.drain(..used);
    }
}

/// The first update in `bytes`: its job, its body, and how long all of it is.
fn update(bytes: &[u8]) -> Result<Option<(&str, &[u8], usize)>> {
    let Some(line) = memmem::find(bytes, b"\r\n") else {
        return Ok(None);
    };
    let words = std::str::from_utf8(&bytes[..line])?;
    let mut words = words.split(' ').skip(1);
    let (subject, length) = (words.next(), words.next());
    let length: Option<usize> = length.and_then(|length| length.parse().ok());
    let job = subject.and_then(|subject| subject.split('.').nth(2));
    let (Some(job), Some(length)) = (job, length) else {
        bail!("not a PUB: {}", String::from_utf8_lossy(&bytes[..line]));
    };
    let body = line + 2;
    let Some(text) = bytes.get(body..body + length) else {
        return Ok(None);
    };
    let whole = body + length + 2;
    Ok((bytes.len() >= whole).then_some((job, text, whole)))
}

fn write_to_all(watchers: &mut Vec<(Transport, TcpStream)>, body: &[u8]) {
    let (ws, sse) = (Transport::Ws.frame(body), Transport::Sse.frame(body));
    watchers.retain_mut(|(transport, stream)| {
        let bytes = match transport {
            Transport::Ws => &ws,
            Transport::Sse => &sse,
        };
        match stream.write(bytes) {
            Ok(sent) => sent == bytes.len(),
            // No room: it does without.
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    });
}

impl Transport {
    /// The end of the handshake.
    fn welcome(self) -> &'static [u8] {
        match self {
            Self::Ws => {
                b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
                  sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
            }
            Self::Sse => b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n",
        }
    }

    /// `body` as one message. What an event has around its data is part of the body, for both servers
    /// to write the same number of bytes.
    pub(crate) fn frame(self, body: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(body.len() + 10);
        match self {
            Self::Ws => {
                frame.push(0x81);
                match (u8::try_from(body.len()), u16::try_from(body.len())) {
                    (Ok(length @ 0..126), _) => frame.push(length),
                    (_, Ok(length)) => {
                        frame.push(126);
                        frame.extend_from_slice(&length.to_be_bytes());
                    }
                    (_, Err(_)) => {
                        frame.push(127);
                        frame.extend_from_slice(&(body.len() as u64).to_be_bytes());
                    }
                }
                frame.extend_from_slice(body);
            }
            Self::Sse => {
                frame.extend_from_slice(b"data: ");
                frame.extend_from_slice(body);
                frame.extend_from_slice(b"\n\n");
            }
        }
        frame
    }

    /// How many bytes [`Self::frame`] adds to a body of about `length` bytes.
    pub(crate) fn overhead(self, length: usize) -> usize {
        self.frame(&vec![0; length]).len() - length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_is_read_with_its_body_and_no_further() {
        let bytes = b"PUB progress.-.j-1.state 2\r\nhi\r\nPUB progress";
        assert_eq!(update(bytes).unwrap(), Some(("j-1", &b"hi"[..], 32)));
        for cut in 0..32 {
            assert_eq!(update(&bytes[..cut]).unwrap(), None, "{cut}");
        }
        assert!(update(b"nonsense\r\n").is_err());
    }

    #[test]
    fn a_frame_has_the_length_field_its_size_needs() {
        for (length, overhead) in [(1, 2), (125, 2), (126, 4), (70_000, 10)] {
            assert_eq!(Transport::Ws.overhead(length), overhead, "{length}");
        }
        assert_eq!(Transport::Sse.frame(b"{}"), b"data: {}\n\n");
    }
}
