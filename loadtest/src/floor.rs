//! The floor: the least a machine can do.
//!
//! One thread, blocking sockets. Watchers connect with the same requests as to a relay; then a publisher
//! connects, and the body of each of its POSTs is framed once and written to every watcher, one write
//! each, before the POST is answered. No jobs, no limits, no timers, no heartbeat.
//!
//! Invariant: it ends when its publisher leaves, and when nothing happens for [`PATIENCE`].

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use relay_testkit::ports::Port;
use relay_testkit::process::Process;
use socket2::SockRef;
use tokio::time::{Instant, sleep};

use crate::client::Transport;
use crate::server::Meter;

/// How long the floor waits for anything at all.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a floor says when it can be connected to.
const LISTENING: &str = "listening";
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
            process: Meter { pid: child.id() },
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
    let mut watchers = Vec::new();
    loop {
        let (stream, _) = listener.accept().context("nobody came")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut requests = BufReader::new(stream);
        let Some(request) = Request::read(&mut requests)? else {
            continue;
        };
        match request.transport {
            Some(transport) => {
                let mut stream = requests.into_inner();
                stream.write_all(transport.welcome())?;
                watchers.push((transport, stream));
            }
            None => return publish(request, requests, &mut watchers),
        }
    }
}

/// Writes each body to every watcher until the publisher leaves.
fn publish(
    first: Request,
    mut requests: BufReader<TcpStream>,
    watchers: &mut [(Transport, TcpStream)],
) -> Result<()> {
    let mut next = Some(first);
    while let Some(request) = next {
        let (ws, sse) = (
            Transport::Ws.frame(&request.body),
            Transport::Sse.frame(&request.body),
        );
        for (transport, stream) in watchers.iter_mut() {
            let bytes = match transport {
                Transport::Ws => &ws,
                Transport::Sse => &sse,
            };
            stream.write_all(bytes)?;
        }
        requests
            .get_mut()
            .write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")?;
        next = Request::read(&mut requests)?;
    }
    Ok(())
}

/// As much of a request as the floor looks at.
struct Request {
    /// What a watcher asks for; `None`: it publishes.
    transport: Option<Transport>,
    body: Vec<u8>,
}

impl Request {
    /// The next request, or `None` when the other side has left.
    fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let (mut line, mut length) = (String::new(), 0);
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let transport = if line.starts_with("GET /v1/ws") {
            Some(Transport::Ws)
        } else if line.starts_with("GET") {
            Some(Transport::Sse)
        } else {
            None
        };
        while line.trim_end() != "" {
            line.clear();
            from.read_line(&mut line)?;
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
        }
        let mut body = vec![0; length];
        from.read_exact(&mut body)?;
        Ok(Some(Self { transport, body }))
    }
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
    fn a_request_is_read_with_its_body_and_no_further() {
        let mut stream =
            &b"POST /v1/jobs/a HTTP/1.1\r\nContent-Length: 2\r\n\r\nhiGET /v1/ws HTTP/1.1\r\n\r\n"
                [..];
        let first = Request::read(&mut stream).unwrap().unwrap();
        assert_eq!((first.transport, &first.body[..]), (None, &b"hi"[..]));
        let second = Request::read(&mut stream).unwrap().unwrap();
        assert_eq!(second.transport, Some(Transport::Ws));
        assert!(Request::read(&mut stream).unwrap().is_none());
    }

    #[test]
    fn a_frame_has_the_length_field_its_size_needs() {
        for (length, overhead) in [(1, 2), (125, 2), (126, 4), (70_000, 10)] {
            assert_eq!(Transport::Ws.overhead(length), overhead, "{length}");
        }
        assert_eq!(Transport::Sse.frame(b"{}"), b"data: {}\n\n");
    }
}
