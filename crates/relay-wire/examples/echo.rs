//! Sends back every text on the relay's own WebSocket layer, for the conformance suite (`scripts/autobahn`).
//!
//! It prints its address and serves until it is ended. Frames are read and answered by what the relay itself uses;
//! only the sockets and the handshake's request are this file's. Binary messages have no bytes there, so they are not
//! sent back.
//!
//! Invariant: a thread serves one connection at a time.

#![allow(clippy::print_stdout, reason = "it says where it listens")]

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

use relay_core::moment::{Moment, WallTime};
use relay_core::watcher::session::CloseReason;
use relay_wire::exchange::{About, Heard};
use relay_wire::speaker::Speaker;
use relay_wire::websocket::{self, DecodeError, Inbound};

/// The suite's largest message has 16 MiB.
const LIMIT: usize = 32 << 20;
const LARGEST_HEAD: usize = 16 << 10;

fn main() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    for socket in listener.incoming() {
        // One that is cut off is the suite's doing.
        drop(serve(socket?));
    }
    Ok(())
}

fn serve(mut socket: TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut early = handshake(&mut socket)?;
    let mut speaker = Speaker::websocket();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let (messages, error) = speaker.decode(&early, LIMIT);
        for message in messages {
            match answer(&mut speaker, message) {
                Heard::Answer(bytes) => socket.write_all(&bytes)?,
                Heard::Leave(bytes) => return socket.write_all(&bytes),
                _ => {}
            }
        }
        if let Some(error) = error {
            return socket.write_all(&speaker.goodbye(reason(error), Some(error)));
        }
        let read = socket.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        early = buffer[..read].to_vec();
    }
}

fn answer(speaker: &mut Speaker, message: Inbound) -> Heard {
    let about = About {
        user: None,
        now: WallTime::from_unix_micros(0),
    };
    match message {
        Inbound::Text(text) => Heard::Answer(websocket::text(text.as_bytes())),
        other => speaker.hear(other, &about, Moment::from_micros(0)),
    }
}

fn reason(error: DecodeError) -> CloseReason {
    match error {
        DecodeError::TooLarge(_) => CloseReason::TooLarge,
        DecodeError::Protocol(_) | DecodeError::NotUtf8 => CloseReason::Protocol,
    }
}

/// Answers the handshake; what the client has sent behind it.
fn handshake(socket: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    let end = loop {
        let read = socket.read(&mut buffer)?;
        head.extend_from_slice(&buffer[..read]);
        if let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if read == 0 || head.len() > LARGEST_HEAD {
            return Err(io::ErrorKind::InvalidData.into());
        }
    };
    let text = String::from_utf8_lossy(&head[..end]).into_owned();
    let key = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-key")
            .then(|| value.trim())
    });
    let accept = websocket::accept_key(key.unwrap_or_default().as_bytes());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    socket.write_all(answer.as_bytes())?;
    Ok(head.split_off(end))
}
