//! What a watcher says and understands: the handshake written by hand, frames found by their lengths.
//!
//! A server's cost must not drown in its client's, so nothing here parses JSON, keeps a buffer for an idle
//! connection or knows a socket. It knows the framing of the two transports and not what the frames say.
//!
//! Invariant: a decoder holds memory only while a message is incomplete.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use memchr::memmem;
use serde::{Deserialize, Serialize};

/// The longest head of an answer.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// The key every handshake carries, and what a server has to make of it (RFC 6455 section 1.3).
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub(crate) const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// How a watcher is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Transport {
    /// WebSocket.
    #[default]
    Ws,
    /// Server-Sent Events.
    Sse,
}

impl Transport {
    /// The request that opens a stream at `path`.
    pub(crate) fn request(self, server: SocketAddr, path: &str) -> Vec<u8> {
        match self {
            Self::Ws => format!(
                "GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
            ),
            Self::Sse => format!(
                "GET {path} HTTP/1.1\r\nHost: {server}\r\nAccept: text/event-stream\r\n\r\n"
            ),
        }
        .into_bytes()
    }

    /// Reads the answer to [`Self::request`]: the decoder of what follows and how long the head was, or
    /// `None` while it is not whole.
    pub(crate) fn accept(self, answer: &[u8]) -> Result<Option<(Decoder, usize)>> {
        let Some(ends) = memmem::find(answer, b"\r\n\r\n") else {
            if answer.len() > MAX_HEAD_BYTES {
                bail!("the answer's head does not end");
            }
            return Ok(None);
        };
        let head = String::from_utf8_lossy(&answer[..ends]);
        let lower = head.to_ascii_lowercase();
        let decoder = match (self, head.split(' ').nth(1)) {
            (Self::Ws, Some("101")) if head.contains(ACCEPT) => Decoder::web_socket(),
            (Self::Sse, Some("200")) => Decoder::sse(lower.contains("transfer-encoding: chunked")),
            _ => bail!("refused: {}", String::from_utf8_lossy(answer)),
        };
        Ok(Some((decoder, ends + 4)))
    }
}

/// A client's text frame. Masked with zeros: the mask must be there, not be secret.
pub(crate) fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match u8::try_from(payload.len()) {
        Ok(length @ 0..126) => frame.push(0x80 | length),
        _ => {
            frame.push(0x80 | 126);
            let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
            frame.extend_from_slice(&length.to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
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
pub(crate) struct Decoder {
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
    pub(crate) fn feed(
        &mut self,
        bytes: &[u8],
        mut hear: impl FnMut(Message<'_>),
    ) -> Result<Option<Vec<u8>>> {
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
        0x81 | 0x82 => hear(Message::Text(payload)),
        0x88 => hear(Message::Close(
            payload
                .first_chunk()
                .copied()
                .map_or(1005, u16::from_be_bytes),
        )),
        0x89 if payload.len() < 126 => {
            *pong = Some(masked(0xa, payload));
            hear(Message::Heartbeat);
        }
        0x8a => hear(Message::Heartbeat),
        other => bail!("a frame that begins with {other:#04x} was not expected"),
    }
    Ok(head + length)
}

/// Takes one event off the front; says how long it was, or 0 if it is not whole yet.
fn take_event(bytes: &[u8], hear: &mut impl FnMut(Message<'_>)) -> usize {
    let Some(end) = memmem::find(bytes, b"\n\n") else {
        return 0;
    };
    let event = &bytes[..end];
    let has_data = event.starts_with(b"data:") || memmem::find(event, b"\ndata:").is_some();
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
