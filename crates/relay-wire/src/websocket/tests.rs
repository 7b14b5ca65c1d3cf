//! The decoder against frames as clients make them, good and bad.

use proptest::prelude::*;

use super::*;

fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..126 => bytes.push(0x80 | u8::try_from(length).unwrap()),
        length => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        }
    }
    bytes.extend_from_slice(&mask);
    bytes.extend(
        payload
            .iter()
            .enumerate()
            .map(|(at, byte)| byte ^ mask[at % 4]),
    );
    bytes
}

fn decode(bytes: &[u8], limit: usize) -> Result<Vec<Inbound>, DecodeError> {
    let mut all = Vec::new();
    Decoder::default().feed(bytes, limit, |inbound| all.push(inbound))?;
    Ok(all)
}

#[test]
fn a_fragmented_message_arrives_whole_around_a_ping() {
    let mut bytes = client_frame(0x01, b"hel");
    bytes.extend(client_frame(0x89, b"p"));
    bytes.extend(client_frame(0x80, b"lo"));
    let expected = vec![Inbound::Ping(b"p".to_vec()), Inbound::Text("hello".into())];
    assert_eq!(decode(&bytes, 100), Ok(expected));
}

#[test]
fn a_message_above_the_limit_is_refused_before_it_is_read() {
    let header_only = &client_frame(0x81, &[b'x'; 300])[..8];
    assert_eq!(decode(header_only, 200), Err(DecodeError::TooLarge(200)));
    let mut pieces = client_frame(0x01, &[b'x'; 60]);
    pieces.extend(client_frame(0x80, &[b'x'; 60]));
    assert_eq!(decode(&pieces, 100), Err(DecodeError::TooLarge(100)));
}

#[test]
fn broken_framing_is_named() {
    let unmasked = [0x81, 0x01, b'x'];
    for bytes in [
        unmasked.to_vec(),
        client_frame(0xC1, b"rsv"),
        client_frame(0x80, b"lonely"),
        client_frame(0x09, b"ping in pieces"),
        client_frame(0x89, &[0; 126]),
        client_frame(0x88, &[3]),
        client_frame(0x88, &1005_u16.to_be_bytes()),
        client_frame(0x83, b"reserved"),
    ] {
        assert!(
            matches!(decode(&bytes, 1000), Err(DecodeError::Protocol(_))),
            "{bytes:?}"
        );
    }
    assert_eq!(
        decode(&client_frame(0x81, &[0xFF]), 100),
        Err(DecodeError::NotUtf8)
    );
}

#[test]
fn an_idle_decoder_owns_no_memory() {
    let mut decoder = Decoder::default();
    decoder
        .feed(&client_frame(0x81, b"{}"), 100, |_| {})
        .unwrap();
    assert_eq!(decoder.partial.capacity(), 0);
    assert!(decoder.fragments.is_none());
}

proptest! {
    #[test]
    fn however_the_bytes_are_cut_the_messages_are_the_same(
        messages in prop::collection::vec("[a-zü]{0,200}", 1..6),
        cuts in prop::collection::vec(1..50_usize, 0..40),
    ) {
        let bytes: Vec<u8> =
            messages.iter().flat_map(|text| client_frame(0x81, text.as_bytes())).collect();
        let mut decoder = Decoder::default();
        let mut got = Vec::new();
        let mut rest = bytes.as_slice();
        for cut in cuts.into_iter().chain([usize::MAX]) {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            decoder.feed(now, 1000, |inbound| got.push(inbound)).unwrap();
            rest = later;
        }
        prop_assert_eq!(got, messages.into_iter().map(Inbound::Text).collect::<Vec<_>>());
    }

    #[test]
    fn any_bytes_are_messages_or_an_error_but_never_a_panic(bytes: Vec<u8>) {
        drop(decode(&bytes, 64));
    }
}
