//! RFC 6455 on the server's side: the key that answers a handshake, frames out, frames in.
//!
//! Frames go out as ready-made bytes that all watchers share, so there is no writer here, only functions
//! that wrap. Frames come in through a [`Decoder`] that owns memory only while a message is incomplete;
//! an idle connection costs it nothing. Header bits are read and written by `tungstenite`; what this
//! keeps is assembly and its bounds. It knows no sockets.

use std::io::Cursor;

use bytes::Bytes;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// Close codes (RFC 6455 section 7.4, and this protocol's own from 4000 on).
pub mod close {
    /// The client asked for it.
    pub(crate) const NORMAL: u16 = 1000;
    /// This side goes away.
    pub(crate) const GOING_AWAY: u16 = 1001;
    /// Broken framing.
    pub const PROTOCOL: u16 = 1002;
    /// Text that is not UTF-8.
    pub(super) const INVALID_PAYLOAD: u16 = 1007;
    /// A message above the limit.
    pub(crate) const TOO_LARGE: u16 = 1009;
    /// A bug of the relay.
    pub(crate) const INTERNAL_ERROR: u16 = 1011;
    /// The relay restarts; come back.
    pub(crate) const RESTART: u16 = 1012;
    /// Too much was waiting; come back with the last cursor.
    pub(crate) const TRY_AGAIN: u16 = 1013;
    /// The token has expired, or none came.
    pub(crate) const UNAUTHENTICATED: u16 = 4401;
    /// No sign of life.
    pub(crate) const DEAD: u16 = 4408;
    /// Too many messages.
    pub(crate) const TOO_FREQUENT: u16 = 4429;
}

/// The value of `Sec-WebSocket-Accept` for a `Sec-WebSocket-Key`.
pub fn accept_key(key: &[u8]) -> String {
    derive_accept_key(key)
}

/// A text frame.
pub fn text(payload: &[u8]) -> Bytes {
    text_of(&[payload])
}

/// A text frame of what the parts are together.
pub(crate) fn text_of(parts: &[&[u8]]) -> Bytes {
    frame(OpCode::Data(Data::Text), parts)
}

/// Each text in a frame of its own, one behind the other.
pub(crate) fn texts(texts: Vec<Vec<u8>>) -> Bytes {
    match texts.as_slice() {
        [] => Bytes::new(),
        [one] => text(one),
        several => {
            let frames: Vec<Bytes> = several.iter().map(|each| text(each)).collect();
            Bytes::from(frames.concat())
        }
    }
}

/// A ping.
pub(crate) fn ping() -> Bytes {
    frame(OpCode::Control(Control::Ping), &[])
}

/// The pong to a ping.
pub fn pong(payload: &[u8]) -> Bytes {
    frame(OpCode::Control(Control::Pong), &[payload])
}

/// A close frame; `reason` is cut to what fits.
pub fn close_frame(code: u16, reason: &str) -> Bytes {
    let mut payload = code.to_be_bytes().to_vec();
    let end = (0..=reason.len().min(123))
        .rev()
        .find(|at| reason.is_char_boundary(*at));
    payload.extend_from_slice(&reason.as_bytes()[..end.unwrap_or(0)]);
    frame(OpCode::Control(Control::Close), &[&payload])
}

fn frame(opcode: OpCode, parts: &[&[u8]]) -> Bytes {
    let header = FrameHeader {
        opcode,
        ..FrameHeader::default()
    };
    let payload: usize = parts.iter().map(|part| part.len()).sum();
    let length = payload as u64;
    let mut bytes = Vec::with_capacity(header.len(length) + payload);
    // Writing into memory cannot fail.
    drop(header.format(length, &mut bytes));
    for part in parts {
        bytes.extend_from_slice(part);
    }
    bytes.into()
}

/// What came in.
#[derive(Debug, PartialEq, Eq)]
pub enum Inbound {
    /// A whole text message.
    Text(String),
    /// A whole binary message, which this protocol has no use for.
    Binary,
    /// A ping with its payload.
    Ping(Vec<u8>),
    /// A pong.
    Pong,
    /// The client's close frame, with its code if it gave one.
    Close(Option<u16>),
}

/// Why the connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The framing is broken.
    #[error("broken WebSocket framing: {0}")]
    Protocol(&'static str),
    /// A message is too large.
    #[error("a message is larger than {0} bytes (limits.message_bytes)")]
    TooLarge(usize),
    /// Text is not UTF-8.
    #[error("a text message is not UTF-8")]
    NotUtf8,
}

impl DecodeError {
    /// The close code that says so.
    pub(crate) fn close_code(self) -> u16 {
        match self {
            Self::Protocol(_) => close::PROTOCOL,
            Self::TooLarge(_) => close::TOO_LARGE,
            Self::NotUtf8 => close::INVALID_PAYLOAD,
        }
    }
}

/// Puts a client's bytes back together into messages.
///
/// Invariant: it holds at most one incomplete frame and one incomplete message, neither above the limit.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Frames of any kind since they were last asked for.
    frames: u32,
    /// Bytes of a frame that has not wholly arrived.
    partial: Vec<u8>,
    /// Fragments of a message whose last frame has not arrived.
    fragments: Option<Box<(Data, Vec<u8>)>>,
}

impl Decoder {
    /// Takes what was read; gives each whole message to `each`.
    ///
    /// # Errors
    /// When the connection cannot go on; nothing more should be fed then.
    pub fn feed(
        &mut self,
        bytes: &[u8],
        limit: usize,
        mut each: impl FnMut(Inbound),
    ) -> Result<(), DecodeError> {
        if self.partial.is_empty() {
            let used = self.decode(bytes, limit, &mut each)?;
            self.partial.extend_from_slice(&bytes[used..]);
            return Ok(());
        }
        let mut pending = std::mem::take(&mut self.partial);
        pending.extend_from_slice(bytes);
        let used = self.decode(&pending, limit, &mut each)?;
        if used < pending.len() {
            pending.drain(..used);
            self.partial = pending;
        }
        Ok(())
    }

    /// How many frames of any kind came since this was last asked: also those that are no messages.
    pub fn take_frames(&mut self) -> u32 {
        std::mem::take(&mut self.frames)
    }

    fn decode(
        &mut self,
        bytes: &[u8],
        limit: usize,
        each: &mut impl FnMut(Inbound),
    ) -> Result<usize, DecodeError> {
        let mut used = 0;
        while let Some((header, payload, end)) = split(&bytes[used..], limit)? {
            let mut payload = bytes[used..][payload..end].to_vec();
            used += end;
            self.frames = self.frames.saturating_add(1);
            let mask = header
                .mask
                .ok_or(DecodeError::Protocol("a client's frame is not masked"))?;
            for (at, byte) in payload.iter_mut().enumerate() {
                *byte ^= mask[at % 4];
            }
            if let Some(inbound) = self.assemble(&header, payload, limit)? {
                each(inbound);
            }
        }
        Ok(used)
    }

    fn assemble(
        &mut self,
        header: &FrameHeader,
        payload: Vec<u8>,
        limit: usize,
    ) -> Result<Option<Inbound>, DecodeError> {
        match header.opcode {
            OpCode::Control(control) => control_frame(control, header.is_final, payload).map(Some),
            OpCode::Data(Data::Continue) => {
                let Some(mut fragments) = self.fragments.take() else {
                    return Err(DecodeError::Protocol("a continuation without a beginning"));
                };
                if fragments.1.len() + payload.len() > limit {
                    return Err(DecodeError::TooLarge(limit));
                }
                fragments.1.extend_from_slice(&payload);
                if header.is_final {
                    return whole(fragments.0, fragments.1).map(Some);
                }
                self.fragments = Some(fragments);
                Ok(None)
            }
            OpCode::Data(_) if self.fragments.is_some() => Err(DecodeError::Protocol(
                "a new message inside a fragmented one",
            )),
            OpCode::Data(data @ (Data::Text | Data::Binary)) => {
                if header.is_final {
                    return whole(data, payload).map(Some);
                }
                self.fragments = Some(Box::new((data, payload)));
                Ok(None)
            }
            OpCode::Data(Data::Reserved(_)) => Err(DecodeError::Protocol("a reserved opcode")),
        }
    }
}

/// The first frame in `bytes`: its header, where its payload starts, where it ends.
fn split(bytes: &[u8], limit: usize) -> Result<Option<(FrameHeader, usize, usize)>, DecodeError> {
    let mut cursor = Cursor::new(bytes);
    let parsed = FrameHeader::parse(&mut cursor)
        .map_err(|_| DecodeError::Protocol("a header that cannot be read"))?;
    let Some((header, length)) = parsed else {
        return Ok(None);
    };
    if header.rsv1 || header.rsv2 || header.rsv3 {
        return Err(DecodeError::Protocol(
            "an extension bit without an extension",
        ));
    }
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > limit {
        return Err(DecodeError::TooLarge(limit));
    }
    let start = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
    if start > header.len(length as u64) {
        // RFC 6455, 5.2.
        return Err(DecodeError::Protocol(
            "a length in more bytes than it needs",
        ));
    }
    let end = start + length;
    Ok((bytes.len() >= end).then_some((header, start, end)))
}

fn control_frame(
    control: Control,
    is_final: bool,
    payload: Vec<u8>,
) -> Result<Inbound, DecodeError> {
    if !is_final || payload.len() > 125 {
        return Err(DecodeError::Protocol(
            "a control frame in pieces or above 125 bytes",
        ));
    }
    match control {
        Control::Ping => Ok(Inbound::Ping(payload)),
        Control::Pong => Ok(Inbound::Pong),
        Control::Close => close_payload(&payload).map(Inbound::Close),
        Control::Reserved(_) => Err(DecodeError::Protocol("a reserved opcode")),
    }
}

fn close_payload(payload: &[u8]) -> Result<Option<u16>, DecodeError> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return match payload {
            [] => Ok(None),
            _ => Err(DecodeError::Protocol("a close frame with half a code")),
        };
    };
    let code = u16::from_be_bytes(*code);
    // 1004 to 1006 and 1015 are never sent; below 1000 and 1016 to 2999 are reserved.
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(DecodeError::Protocol("a close code that may not be sent"));
    }
    std::str::from_utf8(reason).map_err(|_| DecodeError::NotUtf8)?;
    Ok(Some(code))
}

fn whole(data: Data, payload: Vec<u8>) -> Result<Inbound, DecodeError> {
    if data == Data::Text {
        String::from_utf8(payload)
            .map(Inbound::Text)
            .map_err(|_| DecodeError::NotUtf8)
    } else {
        Ok(Inbound::Binary)
    }
}

#[cfg(test)]
mod tests;
