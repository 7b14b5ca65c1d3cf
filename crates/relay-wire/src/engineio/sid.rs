//! Session ids: where a session lives, and a secret that nobody guesses.
//!
//! An Engine.IO client proves by the id alone that a session is its own, so most of it is random. The rest
//! lets a request find its session without a table, whichever shard it comes in on, and tells a session of
//! another process (a neighbour behind the same balancer, or this one before a restart) from nonsense.

use std::fmt;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Bytes of the secret.
const SECRET_BYTES: usize = 15;
const BYTES: usize = 4 + 1 + 4 + SECRET_BYTES;

/// This process, among those that may have made an id.
static PROCESS: LazyLock<[u8; 4]> = LazyLock::new(|| {
    let mut process = [0; 4];
    fill(&mut process);
    process
});

/// The secret of a session.
#[derive(Clone, Copy)]
pub struct Secret([u8; SECRET_BYTES]);

impl Secret {
    /// A new one.
    pub(crate) fn new() -> Self {
        let mut secret = [0; SECRET_BYTES];
        fill(&mut secret);
        Self(secret)
    }
}

impl Default for Secret {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEq for Secret {
    /// Takes as long whatever differs, so that how long it takes tells nothing.
    fn eq(&self, other: &Self) -> bool {
        let pairs = self.0.iter().zip(other.0);
        pairs.fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// A session id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sid {
    /// The shard the session lives on.
    pub shard: u8,
    /// Its slot there.
    pub slot: u32,
    /// What only its client knows.
    pub secret: Secret,
}

/// What an id in a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whereabouts {
    /// This process made it; the session may have ended.
    Here(Sid),
    /// It is formed as the relay forms them, and another process made it.
    Elsewhere,
    /// No relay made it.
    Nonsense,
}

impl Sid {
    /// Reads what a client sent.
    pub fn parse(text: &str) -> Whereabouts {
        let mut bytes = [0; BYTES];
        match URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) {
            Ok(BYTES) => {}
            Ok(_) | Err(_) => return Whereabouts::Nonsense,
        }
        let (process, rest) = bytes.split_at(4);
        let ([shard], rest) = rest.split_at(1) else {
            return Whereabouts::Nonsense;
        };
        let (slot, secret) = rest.split_at(4);
        let (Ok(slot), Ok(secret)) = (slot.try_into(), secret.try_into()) else {
            return Whereabouts::Nonsense;
        };
        if process != PROCESS.as_slice() {
            return Whereabouts::Elsewhere;
        }
        Whereabouts::Here(Self {
            shard: *shard,
            slot: u32::from_be_bytes(slot),
            secret: Secret(secret),
        })
    }
}

impl fmt::Display for Sid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.extend_from_slice(PROCESS.as_slice());
        bytes.push(self.shard);
        bytes.extend_from_slice(&self.slot.to_be_bytes());
        bytes.extend_from_slice(&self.secret.0);
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

/// The id of one namespace's socket: a name for logs and for the client, not a secret.
pub fn socket_id() -> String {
    let mut bytes = [0; 15];
    fill(&mut bytes);
    URL_SAFE_NO_PAD.encode(bytes)
}

fn fill(bytes: &mut [u8]) {
    // The kernel's generator answers on every system the relay runs on; without it no secret can be made,
    // and a session that can be guessed is worse than none.
    #[allow(clippy::expect_used, reason = "there is nothing to fall back to")]
    getrandom::fill(bytes).expect("the system's random generator answers");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_id_leads_back_to_its_session(shard: u8, slot: u32) {
            let sid = Sid { shard, slot, secret: Secret::new() };
            prop_assert_eq!(Sid::parse(&sid.to_string()), Whereabouts::Here(sid));
        }

        #[test]
        fn any_text_is_an_id_or_none(text in ".*") {
            prop_assert!(!matches!(Sid::parse(&text), Whereabouts::Here(_)));
        }
    }

    #[test]
    fn an_id_of_another_process_is_told_from_nonsense() {
        let sid = Sid {
            shard: 0,
            slot: 7,
            secret: Secret::new(),
        };
        let mut bytes = URL_SAFE_NO_PAD.decode(sid.to_string()).unwrap();
        bytes[0] ^= 1;
        assert_eq!(
            Sid::parse(&URL_SAFE_NO_PAD.encode(bytes)),
            Whereabouts::Elsewhere
        );
        assert_eq!(Sid::parse("abcdefghijklmnopqrst"), Whereabouts::Nonsense);
        assert_eq!(Sid::parse(""), Whereabouts::Nonsense);
    }

    #[test]
    fn secrets_differ_and_are_not_printed() {
        let (a, b) = (Secret::new(), Secret::new());
        assert_ne!(a, b);
        assert_eq!(format!("{a:?}"), "Secret");
    }
}
