//! WebSocket frames: what is decoded does not depend on how the bytes were cut, and stays within its bound.

#![no_main]

use libfuzzer_sys::fuzz_target;
use relay_wire::websocket::{DecodeError, Decoder, Inbound};

const LIMIT: usize = 4096;

fn decoded<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Inbound>, Result<(), DecodeError>) {
    let mut decoder = Decoder::default();
    let mut messages = Vec::new();
    for piece in pieces {
        let fed = decoder.feed(piece, LIMIT, |each| messages.push(each));
        if fed.is_err() {
            return (messages, fed);
        }
    }
    (messages, Ok(()))
}

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = input;
    let whole = decoded([bytes]);
    assert_eq!(whole, decoded(bytes.chunks(usize::from(step).max(1))));
    assert_eq!(whole, decoded(bytes.chunks(1)));
    for message in &whole.0 {
        if let Inbound::Text(text) = message {
            assert!(text.len() <= LIMIT);
        }
    }
});
