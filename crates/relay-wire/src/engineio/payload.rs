//! Several packets in one HTTP body, which is how polling carries them.
//!
//! Packets are separated by the record separator, which never stands inside one: JSON escapes it.

/// Between two packets.
pub(crate) const SEPARATOR: char = '\x1e';
/// Packets one body may carry; a client of this protocol has little to say.
const MAX_PACKETS: usize = 256;

/// Why a body is not a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPayload {
    /// Not UTF-8.
    #[error("the payload is not UTF-8")]
    NotUtf8,
    /// More packets than are taken at a time.
    #[error("the payload has more than {MAX_PACKETS} packets")]
    TooMany,
}

/// The packets of a body, in order.
///
/// # Errors
/// When it is not text, or carries more packets than are taken.
pub fn split(body: &[u8]) -> Result<impl Iterator<Item = &str>, BadPayload> {
    let text = std::str::from_utf8(body).map_err(|_| BadPayload::NotUtf8)?;
    if text.matches(SEPARATOR).count() >= MAX_PACKETS {
        return Err(BadPayload::TooMany);
    }
    Ok(text.split(SEPARATOR))
}

/// Puts packets together into a body.
pub(crate) fn join<P: AsRef<[u8]>>(packets: &[P]) -> Vec<u8> {
    let bytes = packets.iter().map(|packet| packet.as_ref().len() + 1).sum();
    let mut body = Vec::with_capacity(bytes);
    for packet in packets {
        if !body.is_empty() {
            body.push(SEPARATOR as u8);
        }
        body.extend_from_slice(packet.as_ref());
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packets(body: &[u8]) -> Vec<&str> {
        split(body).unwrap().collect()
    }

    #[test]
    fn a_body_carries_one_packet_or_several() {
        assert_eq!(packets(b"4hello"), ["4hello"]);
        assert_eq!(packets(b"4a\x1e2\x1e3"), ["4a", "2", "3"]);
        assert_eq!(packets(b"4hello\x1ebAQIDBA=="), ["4hello", "bAQIDBA=="]);
    }

    #[test]
    fn a_body_that_is_no_text_or_too_full_is_refused() {
        assert!(matches!(split(&[0xff]), Err(BadPayload::NotUtf8)));
        let full = "3\x1e".repeat(MAX_PACKETS);
        assert!(matches!(split(full.as_bytes()), Err(BadPayload::TooMany)));
    }

    proptest! {
        #[test]
        fn what_is_put_together_comes_apart_the_same(
            wanted in proptest::collection::vec("[^\x1e]+", 1..20),
        ) {
            let body = join(&wanted);
            prop_assert_eq!(packets(&body), wanted);
        }
    }
}
