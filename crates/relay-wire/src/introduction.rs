//! The header of the PROXY protocol, versions 1 and 2: who a proxy opens a connection for.
//!
//! It reads bytes that somebody else takes from a socket, and says how many to take next. Whom to believe is not
//! known here.
//!
//! Invariant: it never asks for a byte behind the header, and never for more than [`MAX_BYTES`] in all.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest header that is read: what proxies add to the addresses (names, TLS) has room, and no more.
pub const MAX_BYTES: usize = 4096;

/// What version 2 begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, and the length of the rest.
const FIXED: usize = 16;
/// What version 1 begins with.
const WORD: &[u8] = b"PROXY ";
/// The longest line of version 1, with its end.
const MAX_LINE: usize = 107;

/// For whom the connection was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Introduced {
    /// For a client at this address.
    Client(IpAddr),
    /// For a client that the proxy does not name (`UNKNOWN`, or another kind of socket).
    Unknown,
    /// For the proxy itself, which looks whether somebody answers (`LOCAL`).
    Itself,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// So many bytes more are part of the header.
    More(usize),
    /// The bytes are a whole header.
    Done(Introduced),
}

/// Why bytes are not a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotIntroduced {
    /// Neither version begins like that.
    #[error("the connection does not begin with a header of the PROXY protocol")]
    Missing,
    /// It begins like one.
    #[error("the header of the PROXY protocol is malformed")]
    Malformed,
    /// It is longer than any that is needed.
    #[error("the header of the PROXY protocol has more than {MAX_BYTES} bytes")]
    TooLong,
}

/// Reads what has come of a header.
///
/// # Errors
/// When it is none, whatever may follow.
pub fn step(bytes: &[u8]) -> Result<Step, NotIntroduced> {
    let begun = &bytes[..bytes.len().min(SIGNATURE.len())];
    if WORD.starts_with(begun) || begun.starts_with(WORD) {
        return match bytes.len() {
            short if short < SIGNATURE.len() => Ok(Step::More(SIGNATURE.len() - short)),
            _ => version_1(bytes),
        };
    }
    if !SIGNATURE.starts_with(begun) {
        return Err(NotIntroduced::Missing);
    }
    version_2(bytes)
}

fn version_1(bytes: &[u8]) -> Result<Step, NotIntroduced> {
    let Some(line) = bytes.strip_suffix(b"\n") else {
        return match bytes.len() < MAX_LINE {
            true => Ok(Step::More(1)),
            false => Err(NotIntroduced::TooLong),
        };
    };
    let line = line
        .strip_suffix(b"\r")
        .and_then(|line| line.get(WORD.len()..));
    let line = line.and_then(|line| std::str::from_utf8(line).ok());
    let introduced = line.and_then(introduced_by_line);
    introduced.map(Step::Done).ok_or(NotIntroduced::Malformed)
}

fn introduced_by_line(line: &str) -> Option<Introduced> {
    let mut words = line.split(' ');
    let family = words.next()?;
    if family == "UNKNOWN" {
        // Whatever else there is has no meaning.
        return Some(Introduced::Unknown);
    }
    let [source, destination, from, to] =
        [words.next()?, words.next()?, words.next()?, words.next()?];
    let is_port = |port: &str| port.parse::<u16>().is_ok() && !port.starts_with('+');
    if words.next().is_some() || !is_port(from) || !is_port(to) {
        return None;
    }
    let client: IpAddr = match family {
        "TCP4" => {
            destination.parse::<Ipv4Addr>().ok()?;
            source.parse::<Ipv4Addr>().ok()?.into()
        }
        "TCP6" => {
            destination.parse::<Ipv6Addr>().ok()?;
            source.parse::<Ipv6Addr>().ok()?.into()
        }
        _ => return None,
    };
    Some(Introduced::Client(client.to_canonical()))
}

fn version_2(bytes: &[u8]) -> Result<Step, NotIntroduced> {
    let Some(fixed) = bytes.get(..FIXED) else {
        return Ok(Step::More(FIXED - bytes.len()));
    };
    let [.., version, family, high, low] = *fixed else {
        return Err(NotIntroduced::Malformed);
    };
    let rest = usize::from(u16::from_be_bytes([high, low]));
    if FIXED + rest > MAX_BYTES {
        return Err(NotIntroduced::TooLong);
    }
    let is_local = match version {
        0x20 => true,
        0x21 => false,
        _ => return Err(NotIntroduced::Malformed),
    };
    let missing = (FIXED + rest).saturating_sub(bytes.len());
    if missing > 0 {
        return Ok(Step::More(missing));
    }
    let addresses = bytes.get(FIXED..).unwrap_or_default();
    let introduced = match family {
        _ if is_local => Introduced::Itself,
        0x11 => client::<4>(addresses, 12)?,
        0x21 => client::<16>(addresses, 36)?,
        // Not TCP over IP: nothing by which clients are counted.
        _ => Introduced::Unknown,
    };
    Ok(Step::Done(introduced))
}

/// The first address of a block of so many bytes: the client's.
fn client<const LENGTH: usize>(block: &[u8], whole: usize) -> Result<Introduced, NotIntroduced>
where
    IpAddr: From<[u8; LENGTH]>,
{
    let source = block
        .get(..whole)
        .and_then(|block| block.first_chunk::<LENGTH>());
    let source = source.ok_or(NotIntroduced::Malformed)?;
    Ok(Introduced::Client(IpAddr::from(*source).to_canonical()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads as from a socket: what is asked for, and no more. Also what is left of the bytes.
    fn read(mut from: &[u8]) -> Result<(Introduced, usize), NotIntroduced> {
        let mut bytes = Vec::new();
        loop {
            match step(&bytes)? {
                Step::Done(introduced) => return Ok((introduced, from.len())),
                Step::More(more) => {
                    assert!(more > 0 && bytes.len() + more <= MAX_BYTES);
                    let Some((next, rest)) = from.split_at_checked(more) else {
                        return Err(NotIntroduced::Missing);
                    };
                    bytes.extend_from_slice(next);
                    from = rest;
                }
            }
        }
    }

    fn version_2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family][..], &length, block].concat()
    }

    fn at(address: &str) -> Introduced {
        Introduced::Client(address.parse().unwrap())
    }

    const IPV4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0x9c, 0x40, 1, 0xbb];

    #[test]
    fn a_header_of_either_version_names_the_client_and_leaves_what_follows() {
        let mut ipv6 = [0; 36];
        ipv6[..16].copy_from_slice(&"2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        let mut mapped = [0; 36];
        mapped[..16].copy_from_slice(&"::ffff:192.0.2.1".parse::<Ipv6Addr>().unwrap().octets());
        let more = [&IPV4[..], &[0x20, 0, 3, 1, 2, 3]].concat();
        for (header, introduced) in [
            (
                b"PROXY TCP4 192.0.2.1 198.51.100.2 40000 443\r\n".to_vec(),
                at("192.0.2.1"),
            ),
            (
                b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n".to_vec(),
                at("2001:db8::1"),
            ),
            (
                b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n".to_vec(),
                at("192.0.2.1"),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), Introduced::Unknown),
            (
                b"PROXY UNKNOWN ffff::1 x y z\r\n".to_vec(),
                Introduced::Unknown,
            ),
            (version_2(0x21, 0x11, &IPV4), at("192.0.2.1")),
            (version_2(0x21, 0x11, &more), at("192.0.2.1")),
            (version_2(0x21, 0x21, &ipv6), at("2001:db8::1")),
            (version_2(0x21, 0x21, &mapped), at("192.0.2.1")),
            (version_2(0x20, 0x00, &[]), Introduced::Itself),
            (version_2(0x20, 0x11, &IPV4), Introduced::Itself),
            (version_2(0x21, 0x00, &[]), Introduced::Unknown),
            (version_2(0x21, 0x31, &[0; 216]), Introduced::Unknown),
            (version_2(0x21, 0x12, &IPV4), Introduced::Unknown),
        ] {
            let follows = b"GET / HTTP/1.1\r\n";
            let all = [&header[..], follows].concat();
            let expected = Ok((introduced, follows.len()));
            assert_eq!(read(&all), expected, "{}", header.escape_ascii());
        }
    }

    #[test]
    fn what_is_not_a_header_is_rejected_at_its_first_wrong_byte() {
        for (bytes, why) in [
            (b"GET / HTTP/1.1\r\n\r\n".to_vec(), NotIntroduced::Missing),
            (
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00".to_vec(),
                NotIntroduced::Missing,
            ),
            (
                b"PROXY  TCP4 192.0.2.1 198.51.100.2 1 2\r\n".to_vec(),
                NotIntroduced::Malformed,
            ),
            (
                b"PROXY TCP4 192.0.2.1 198.51.100.2 1\r\n".to_vec(),
                NotIntroduced::Malformed,
            ),
            (
                b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2 3\r\n".to_vec(),
                NotIntroduced::Malformed,
            ),
            (
                b"PROXY TCP4 192.0.2.1 198.51.100.2 1 +2\r\n".to_vec(),
                NotIntroduced::Malformed,
            ),
            (
                b"PROXY TCP4 192.0.2.1 198.51.100.2 1 65536\r\n".to_vec(),
                NotIntroduced::Malformed,
            ),
            (
                b"PROXY TCP4 2001:db8::1 198.51.100.2 1 2\r\n".to_vec(),
                NotIntroduced::Malformed,
            ),
            (
                b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2\n".to_vec(),
                NotIntroduced::Malformed,
            ),
            (
                b"PROXY UDP4 192.0.2.1 198.51.100.2 1 2\r\n".to_vec(),
                NotIntroduced::Malformed,
            ),
            (
                b"PROXY \xff\xff\xff\xff\xff\xff\r\n".to_vec(),
                NotIntroduced::Malformed,
            ),
            (
                [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 200]].concat(),
                NotIntroduced::TooLong,
            ),
            (version_2(0x11, 0x11, &IPV4), NotIntroduced::Malformed),
            (version_2(0x22, 0x11, &IPV4), NotIntroduced::Malformed),
            (version_2(0x21, 0x11, &IPV4[..11]), NotIntroduced::Malformed),
            (version_2(0x21, 0x21, &IPV4), NotIntroduced::Malformed),
            (
                version_2(0x21, 0x11, &[0; MAX_BYTES]),
                NotIntroduced::TooLong,
            ),
        ] {
            assert_eq!(read(&bytes), Err(why), "{}", bytes.escape_ascii());
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_within_the_bound(
            begun in 0..3usize,
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
        ) {
            let begin: &[u8] = [&b""[..], b"PROXY ", SIGNATURE][begun];
            let _read = read(&[begin, &bytes].concat());
        }
    }
}
