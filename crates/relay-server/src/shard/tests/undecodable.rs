//! Bytes that are no WebSocket, and what is said to whoever sent them.

use super::*;

/// A second close frame would be read as an error of the relay's.
#[tokio::test(start_paused = true)]
async fn bytes_that_cannot_be_decoded_are_answered_with_one_close_frame() {
    with_shard(defaults, |bench| async move {
        let long = vec![b'x'; 65_535];
        let (fin, cont) = (0x80, 0x00);
        for (bytes, code, notices) in [
            (frame(0xc1, b"a reserved bit"), 1002, 0),
            (frame(0x83, b"a reserved opcode"), 1002, 0),
            (frame(fin | cont, b"a lonely continuation"), 1002, 0),
            (frame(0x09, b"a ping in pieces"), 1002, 0),
            (frame(0x88, b"x"), 1002, 0),
            (frame(0x88, &1005_u16.to_be_bytes()), 1002, 0),
            (vec![0x81, 0x01, b'x'], 1002, 0),
            (frame(0x81, &[0xff]), 1007, 0),
            (
                [frame(0x01, &[0xce]), frame(0x80, &[0xff])].concat(),
                1007,
                0,
            ),
            (frame(0x88, &[0x03, 0xe8, 0xff]), 1007, 0),
            ([frame(0x01, &long), frame(0x80, &long)].concat(), 1009, 1),
        ] {
            let client = bench.client().await;
            let good = masked(r#"{"type":"ping"}"#);
            bench.sends(&client, &[good, bytes.clone()].concat());
            bench.pause().await;
            let frames = client.frames();
            let kinds: Vec<u8> = frames.iter().map(|(kind, _)| *kind).collect();
            let expected = [vec![TEXT; 1 + notices], vec![CLOSE]].concat();
            assert_eq!(kinds, expected, "{:?}", &bytes[..4]);
            let close = &frames[frames.len() - 1].1;
            assert_eq!(close[..2], u16::to_be_bytes(code), "{:?}", &bytes[..4]);
            assert!(std::str::from_utf8(&close[2..]).unwrap().len() > 10);
            assert!(!bench.is_there(&client));
        }
        assert_eq!(bench.closed("protocol"), 10);
        assert_eq!(bench.closed("too_large"), 1);
    })
    .await;
}
