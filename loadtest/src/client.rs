//! Watchers that cost next to nothing, so that one machine can hold thousands beside the server.
//!
//! The handshake is written by hand, frames are found by their lengths and never parsed, and all
//! connections of a thread share one read buffer. It knows the framing of the two transports and not what
//! the frames say.
//!
//! Invariant: a connection holds a buffer of its own only while a frame of it is incomplete.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// How long one handshake may take.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(20);
/// Connections are spread over this many loopback addresses, so that neither ports nor the server's
/// limits per address are an obstacle.
const SOURCES: usize = 100;
/// The longest head of an answer.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// How a watcher is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Transport {
    /// WebSocket.
    Ws,
    /// Server-Sent Events.
    Sse,
}

impl Transport {
    /// As it is spelled on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ws => "ws",
            Self::Sse => "sse",
        }
    }

    fn request(self, server: SocketAddr, topic: &str) -> String {
        match self {
            Self::Ws => format!(
                "GET /v1/ws?topic={topic} HTTP/1.1\r\nHost: {server}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            ),
            Self::Sse => format!(
                "GET /v1/sse?topic={topic} HTTP/1.1\r\nHost: {server}\r\nAccept: text/event-stream\r\n\r\n"
            ),
        }
    }
}

/// One open connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    decoder: Decoder,
    /// What came in with the handshake's answer and belongs to the stream behind it.
    early: Vec<u8>,
}

impl Connection {
    /// Connects watcher number `index` and makes the handshake.
    pub(crate) async fn open(
        server: SocketAddr,
        transport: Transport,
        topic: &str,
        index: usize,
    ) -> Result<Self> {
        timeout(
            HANDSHAKE_WITHIN,
            Self::handshake(server, transport, topic, index),
        )
        .await
        .with_context(|| format!("connection {index}: no handshake within {HANDSHAKE_WITHIN:?}"))?
        .with_context(|| format!("connection {index}"))
    }

    async fn handshake(
        server: SocketAddr,
        transport: Transport,
        topic: &str,
        index: usize,
    ) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        if server.ip().is_loopback() {
            let last = u8::try_from(2 + index % SOURCES)?;
            socket.bind((Ipv4Addr::new(127, 0, 0, last), 0).into())?;
        }
        let mut stream = socket.connect(server).await.context("cannot connect")?;
        stream
            .write_all(transport.request(server, topic).as_bytes())
            .await?;
        let mut answer = Vec::with_capacity(1024);
        let head_ends = loop {
            if let Some(at) = find(&answer, b"\r\n\r\n") {
                break at + 4;
            }
            if answer.len() > MAX_HEAD_BYTES || stream.read_buf(&mut answer).await? == 0 {
                bail!(
                    "the handshake broke off: {}",
                    String::from_utf8_lossy(&answer)
                );
            }
        };
        let head = String::from_utf8_lossy(&answer[..head_ends]).to_ascii_lowercase();
        let decoder = match (transport, head.split(' ').nth(1)) {
            (Transport::Ws, Some("101")) => Decoder::web_socket(),
            (Transport::Sse, Some("200")) => {
                Decoder::sse(head.contains("transfer-encoding: chunked"))
            }
            _ => bail!("refused: {}", String::from_utf8_lossy(&answer)),
        };
        let early = answer.split_off(head_ends);
        Ok(Self {
            stream,
            decoder,
            early,
        })
    }

    /// Reads until the server closes, handing each message to `hear` as it completes; pings are answered.
    pub(crate) async fn follow(
        mut self,
        buffer: &std::cell::RefCell<Vec<u8>>,
        mut hear: impl FnMut(Message<'_>),
    ) -> Result<()> {
        let early = std::mem::take(&mut self.early);
        let mut pong = self.decoder.feed(&early, &mut hear)?;
        drop(early);
        loop {
            if let Some(pong) = pong.take() {
                self.stream.write_all(&pong).await?;
            }
            self.stream.readable().await?;
            let mut buffer = buffer.borrow_mut();
            match self.stream.try_read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => pong = self.decoder.feed(&buffer[..n], &mut hear)?,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// What a server said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    /// A frame's text, or an event with its field names.
    Text(&'a [u8]),
    /// A sign of life with nothing in it.
    Heartbeat,
    /// The server says goodbye, with a close code.
    Close(u16),
}

/// Finds the messages in a stream of bytes.
#[derive(Debug)]
struct Decoder {
    kind: Kind,
    /// The beginning of a message whose end is still to come.
    partial: Vec<u8>,
}

#[derive(Debug)]
enum Kind {
    WebSocket,
    Sse(Option<Chunks>),
}

impl Decoder {
    fn web_socket() -> Self {
        Self {
            kind: Kind::WebSocket,
            partial: Vec::new(),
        }
    }

    fn sse(chunked: bool) -> Self {
        Self {
            kind: Kind::Sse(chunked.then(Chunks::default)),
            partial: Vec::new(),
        }
    }

    /// Takes in bytes; returns an answer that the protocol demands, if any.
    fn feed(&mut self, bytes: &[u8], mut hear: impl FnMut(Message<'_>)) -> Result<Option<Vec<u8>>> {
        let joined;
        let mut rest = match &mut self.kind {
            Kind::Sse(Some(chunks)) => {
                chunks.strip(bytes, &mut self.partial)?;
                joined = std::mem::take(&mut self.partial);
                &joined[..]
            }
            _ if self.partial.is_empty() => bytes,
            _ => {
                self.partial.extend_from_slice(bytes);
                joined = std::mem::take(&mut self.partial);
                &joined[..]
            }
        };
        let mut answer = None;
        loop {
            let taken = match self.kind {
                Kind::WebSocket => take_frame(rest, &mut hear, &mut answer)?,
                Kind::Sse(_) => take_event(rest, &mut hear),
            };
            match taken {
                0 => break,
                n => rest = &rest[n..],
            }
        }
        self.partial.extend_from_slice(rest);
        Ok(answer)
    }
}

/// Takes one frame off the front; says how long it was, or 0 if it is not whole yet.
fn take_frame(
    bytes: &[u8],
    hear: &mut impl FnMut(Message<'_>),
    pong: &mut Option<Vec<u8>>,
) -> Result<usize> {
    let &[first, second, ..] = bytes else {
        return Ok(0);
    };
    let (head, length) = match (second, bytes) {
        (0..126, _) => (2, usize::from(second)),
        (126, [_, _, a, b, ..]) => (4, usize::from(u16::from_be_bytes([*a, *b]))),
        (127, [_, _, length @ ..]) if length.len() >= 8 => {
            let length = length.first_chunk().copied().map_or(0, u64::from_be_bytes);
            (10, usize::try_from(length)?)
        }
        (126 | 127, _) => return Ok(0),
        _ => bail!("the server masks its frames"),
    };
    let Some(payload) = bytes.get(head..head + length) else {
        return Ok(0);
    };
    match first {
        0x81 => hear(Message::Text(payload)),
        0x88 => hear(Message::Close(
            payload
                .first_chunk()
                .copied()
                .map_or(1005, u16::from_be_bytes),
        )),
        0x89 if payload.len() < 126 => {
            // Masked with zeros: the mask must be there, not be secret.
            let mut frame = vec![0x8a, 0x80 | second, 0, 0, 0, 0];
            frame.extend_from_slice(payload);
            *pong = Some(frame);
            hear(Message::Heartbeat);
        }
        0x8a => hear(Message::Heartbeat),
        other => bail!("a frame that begins with {other:#04x} was not expected"),
    }
    Ok(head + length)
}

/// Takes one event off the front; says how long it was, or 0 if it is not whole yet.
fn take_event(bytes: &[u8], hear: &mut impl FnMut(Message<'_>)) -> usize {
    let Some(end) = find(bytes, b"\n\n") else {
        return 0;
    };
    let event = &bytes[..end];
    let has_data = event.starts_with(b"data:") || find(event, b"\ndata:").is_some();
    hear(if has_data {
        Message::Text(event)
    } else {
        Message::Heartbeat
    });
    end + 2
}

/// Takes the chunk framing out of an HTTP body.
#[derive(Debug, Default)]
struct Chunks {
    /// How much of the current chunk's data is still to come.
    left: usize,
    /// A size line that has begun.
    line: Vec<u8>,
}

impl Chunks {
    fn strip(&mut self, mut bytes: &[u8], into: &mut Vec<u8>) -> Result<()> {
        while let Some(&first) = bytes.first() {
            if self.left > 0 {
                let n = self.left.min(bytes.len());
                into.extend_from_slice(&bytes[..n]);
                self.left -= n;
                bytes = &bytes[n..];
                continue;
            }
            bytes = &bytes[1..];
            if first != b'\n' {
                self.line.push(first);
                continue;
            }
            // The line break after a chunk's data makes an empty line here.
            let line = std::mem::take(&mut self.line);
            let size = String::from_utf8_lossy(&line);
            let size = size.split(';').next().unwrap_or_default().trim();
            if !size.is_empty() {
                self.left = usize::from_str_radix(size, 16)
                    .with_context(|| format!("chunk size {size:?}"))?;
            }
        }
        Ok(())
    }
}

/// Where `needle` begins in `bytes`.
pub(crate) fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes
        .windows(needle.len())
        .position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `decoder` hears in `stream`, fed in pieces of `step` bytes.
    fn heard(mut decoder: Decoder, stream: &[u8], step: usize) -> (Vec<String>, Vec<Vec<u8>>) {
        let (mut messages, mut answers) = (Vec::new(), Vec::new());
        for piece in stream.chunks(step) {
            let answer = decoder.feed(piece, |message| {
                messages.push(match message {
                    Message::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
                    Message::Heartbeat => "heartbeat".to_owned(),
                    Message::Close(code) => format!("close {code}"),
                });
            });
            answers.extend(answer.unwrap());
        }
        assert!(decoder.partial.is_empty());
        (messages, answers)
    }

    #[test]
    fn frames_are_found_wherever_the_stream_is_cut() {
        let long = "x".repeat(300);
        let mut stream = b"\x81\x02hi\x89\x01!\x81\x7e\x01\x2c".to_vec();
        stream.extend_from_slice(long.as_bytes());
        stream.extend_from_slice(b"\x88\x02\x03\xf4");
        for step in 1..stream.len() {
            let (messages, answers) = heard(Decoder::web_socket(), &stream, step);
            assert_eq!(messages, ["hi", "heartbeat", &long, "close 1012"]);
            assert_eq!(answers, [b"\x8a\x81\0\0\0\0!"]);
        }
    }

    #[test]
    fn events_are_found_wherever_the_stream_is_cut() {
        let plain = b":\n\nevent: state\ndata: {}\nid: c1\n\ndata: 2\n\n";
        let expected = ["heartbeat", "event: state\ndata: {}\nid: c1", "data: 2"];
        let mut chunked = Vec::new();
        for piece in plain.chunks(9) {
            chunked.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            chunked.extend_from_slice(piece);
            chunked.extend_from_slice(b"\r\n");
        }
        for step in 1..plain.len() {
            assert_eq!(heard(Decoder::sse(false), plain, step).0, expected);
            assert_eq!(heard(Decoder::sse(true), &chunked, step).0, expected);
        }
    }
}
