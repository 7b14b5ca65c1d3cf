//! What proxies write about the client that they pass a request on for: `X-Forwarded-For`, and `Forwarded`
//! (RFC 7239).
//!
//! It reads headers. Whom to believe is not known here.
//!
//! Invariant: what cannot be read is a hop like any other, and hides whoever stands before it.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr as _;

use http::header::{self, HeaderMap, HeaderName};

/// `X-Forwarded-For`.
pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// What some proxies write instead, with one address.
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// From whom a proxy received the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hop {
    /// Its address; `None` where the proxy does not say it, or says it in a way that cannot be read.
    pub(crate) address: Option<IpAddr>,
    /// The scheme by which the proxy was asked, in lower case.
    pub(crate) scheme: Option<String>,
}

impl Hop {
    /// A sender that cannot be told from others.
    const HIDDEN: Self = Self {
        address: None,
        scheme: None,
    };
}

/// The hops of `X-Forwarded-For`, the nearest first.
pub(crate) fn x_forwarded_for(headers: &HeaderMap) -> impl Iterator<Item = Hop> {
    listed(headers, X_FORWARDED_FOR)
}

fn listed(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = Hop> {
    let lines = headers.get_all(name).into_iter().rev();
    let elements = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    let elements = elements.map(<[u8]>::trim_ascii);
    elements
        .filter(|element| !element.is_empty())
        .map(|element| Hop {
            address: std::str::from_utf8(element).ok().and_then(address),
            scheme: None,
        })
}

/// The hops of `Forwarded`, the nearest first.
pub(crate) fn forwarded(headers: &HeaderMap) -> impl Iterator<Item = Hop> {
    let lines = headers.get_all(header::FORWARDED).into_iter().rev();
    lines.flat_map(|line| {
        let hops = std::str::from_utf8(line.as_bytes())
            .ok()
            .and_then(hops_of_line);
        hops.unwrap_or_else(|| vec![Hop::HIDDEN]).into_iter().rev()
    })
}

/// Whether a header says that the request was passed on for somebody on another machine.
pub(crate) fn names_another_machine(headers: &HeaderMap) -> bool {
    let is_elsewhere = |hop: Hop| !hop.address.is_some_and(|address| address.is_loopback());
    x_forwarded_for(headers)
        .chain(listed(headers, X_REAL_IP))
        .chain(forwarded(headers))
        .any(is_elsewhere)
}

/// Whether a header says that the request was passed on by a proxy.
pub(crate) fn is_passed_on(headers: &HeaderMap) -> bool {
    [X_FORWARDED_FOR, X_REAL_IP, header::FORWARDED, header::VIA]
        .iter()
        .any(|name| headers.contains_key(name))
}

/// An address as proxies write it: alone, with a port, in brackets. IPv4 within IPv6 is IPv4.
fn address(text: &str) -> Option<IpAddr> {
    let bare = || IpAddr::from_str(text).ok();
    let with_port = || SocketAddr::from_str(text).ok().map(|it| it.ip());
    let bracketed = || {
        let (inside, port) = text.strip_prefix('[')?.split_once(']')?;
        // RFC 7239 allows a port that is hidden too: `_secret`.
        let is_port = port.is_empty() || port.strip_prefix(":_").is_some_and(is_hidden);
        let inside = is_port.then_some(inside)?;
        inside.parse().ok().map(IpAddr::V6)
    };
    let with_hidden_port = || {
        let (before, port) = text.split_once(":_")?;
        is_hidden(port).then(|| before.parse().ok().map(IpAddr::V4))?
    };
    bare()
        .or_else(with_port)
        .or_else(bracketed)
        .or_else(with_hidden_port)
        .map(|address| address.to_canonical())
}

/// The rest of an obfuscated identifier.
fn is_hidden(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !text.is_empty() && text.bytes().all(known)
}

/// The elements of one line, in their order; `None` where it cannot be read to its end, because then nobody can say
/// which part was whose.
fn hops_of_line(line: &str) -> Option<Vec<Hop>> {
    let mut hops = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let mut element = Element::default();
        loop {
            rest = rest.trim_start();
            if !rest.starts_with([',', ';']) && !rest.is_empty() {
                rest = element.pair(rest)?.trim_start();
            }
            let Some(end) = rest.chars().next() else {
                break;
            };
            rest = rest.strip_prefix([',', ';'])?;
            if end == ',' {
                break;
            }
        }
        // An element without anything in it is nobody's (RFC 9110, 5.6.1).
        if element.says_something {
            hops.push(Hop {
                address: element.node.as_deref().and_then(address),
                scheme: element.scheme,
            });
        }
    }
    Some(hops)
}

/// What one proxy has said.
#[derive(Debug, Default)]
struct Element {
    says_something: bool,
    node: Option<String>,
    scheme: Option<String>,
}

impl Element {
    /// Reads `name=value`, and returns what follows. `None` if it is not that, or is said twice.
    fn pair<'a>(&mut self, text: &'a str) -> Option<&'a str> {
        let (name, rest) = text.split_once('=')?;
        let name = name.trim_end();
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() || !name.chars().all(is_token) {
            return None;
        }
        let (value, rest) = value(rest.trim_start())?;
        self.says_something = true;
        let before = match name.to_ascii_lowercase().as_str() {
            "for" => self.node.replace(value),
            "proto" => self.scheme.replace(value.to_ascii_lowercase()),
            _ => None,
        };
        before.is_none().then_some(rest)
    }
}

/// A token or a quoted text, and what follows.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        // Some proxies write addresses with colons and brackets without the quotes that they need.
        let end = text.find([',', ';', ' ', '\t', '"']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return (!value.is_empty()).then(|| (value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn lines(name: &HeaderName, lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            let value = HeaderValue::from_bytes(line.as_bytes()).unwrap();
            headers.append(name, value);
        }
        headers
    }

    /// The addresses, the nearest first; `?` for one that is hidden.
    fn shown(hops: impl Iterator<Item = Hop>) -> String {
        let shown = |hop: Hop| {
            let address = hop.address.map_or("?".to_owned(), |it| it.to_string());
            let scheme = hop.scheme.map(|scheme| format!(" by {scheme}"));
            address + &scheme.unwrap_or_default()
        };
        hops.map(shown).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn x_forwarded_for_is_read_from_its_end_over_all_lines() {
        for (said, read) in [
            (&[][..], ""),
            (&["192.0.2.1"], "192.0.2.1"),
            (&["192.0.2.1, 198.51.100.2"], "198.51.100.2, 192.0.2.1"),
            (&["192.0.2.1", "198.51.100.2"], "198.51.100.2, 192.0.2.1"),
            (&["192.0.2.1:47011"], "192.0.2.1"),
            (&["2001:db8::1"], "2001:db8::1"),
            (&["[2001:db8::1]"], "2001:db8::1"),
            (&["[2001:db8::1]:4711"], "2001:db8::1"),
            (&["::ffff:192.0.2.1"], "192.0.2.1"),
            (&["[::ffff:192.0.2.1]:80"], "192.0.2.1"),
            (&[",, 192.0.2.1 ,"], "192.0.2.1"),
            (&["", "192.0.2.1"], "192.0.2.1"),
            (&["unknown"], "?"),
            (&["192.0.2.1, é"], "?, 192.0.2.1"),
            (&["192.0.2.1 198.51.100.2"], "?"),
            (&["192.0.2"], "?"),
            (&["192.0.2.1:port"], "?"),
            (&["[192.0.2.1]"], "?"),
            (&["\"192.0.2.1\""], "?"),
        ] {
            let headers = lines(&X_FORWARDED_FOR, said);
            assert_eq!(shown(x_forwarded_for(&headers)), read, "{said:?}");
        }
    }

    #[test]
    fn forwarded_is_read_from_its_end_over_all_lines() {
        for (said, read) in [
            (&[][..], ""),
            (&["for=192.0.2.1"], "192.0.2.1"),
            (&["For=192.0.2.1;Proto=HTTPS;by=x"], "192.0.2.1 by https"),
            (&["by=x;proto=http;for=192.0.2.1"], "192.0.2.1 by http"),
            (&["for=\"192.0.2.1:47011\""], "192.0.2.1"),
            (&["for=\"[2001:db8::1]:4711\""], "2001:db8::1"),
            (&["for=\"[2001:db8::1]\""], "2001:db8::1"),
            (&["for=[2001:db8::1]:4711"], "2001:db8::1"),
            (&["for=\"[::ffff:192.0.2.1]\""], "192.0.2.1"),
            (&["for=\"192.0.2.1:_port\""], "192.0.2.1"),
            (&["for=\"[2001:db8::1]:_p\""], "2001:db8::1"),
            (&["for=\"\\1\\92.0.2.1\""], "192.0.2.1"),
            (
                &["for=192.0.2.1, for=198.51.100.2"],
                "198.51.100.2, 192.0.2.1",
            ),
            (
                &["for=192.0.2.1", "for=198.51.100.2"],
                "198.51.100.2, 192.0.2.1",
            ),
            (
                &["for=192.0.2.1,for=198.51.100.2,"],
                "198.51.100.2, 192.0.2.1",
            ),
            (&["for=192.0.2.1;;proto=http"], "192.0.2.1 by http"),
            (&["by=\"a,b;for=10.0.0.1\", for=192.0.2.1"], "192.0.2.1, ?"),
            (&["for=unknown"], "?"),
            (&["for=_hidden, for=192.0.2.1"], "192.0.2.1, ?"),
            (&["by=203.0.113.43"], "?"),
            (&["proto=https"], "? by https"),
            (&["for=\"\""], "?"),
            // What a client wrote cannot take in what its proxy wrote behind it.
            (&["for=\"192.0.2.9, for=192.0.2.1"], "?"),
            (&["for=\"192.0.2.9", "for=192.0.2.1"], "192.0.2.1, ?"),
            (&["for=192.0.2.9;for=192.0.2.1"], "?"),
            (&["rubbish"], "?"),
            (&["for=192.0.2.9 for=192.0.2.1"], "?"),
            (&["é=1"], "?"),
        ] {
            let headers = lines(&header::FORWARDED, said);
            assert_eq!(shown(forwarded(&headers)), read, "{said:?}");
        }
    }

    #[test]
    fn a_request_passed_on_within_this_machine_names_no_other() {
        for (name, value, elsewhere) in [
            (X_FORWARDED_FOR, "127.0.0.1, ::1", false),
            (X_FORWARDED_FOR, "::ffff:127.0.0.1", false),
            (X_FORWARDED_FOR, "192.0.2.1, 127.0.0.1", true),
            (X_FORWARDED_FOR, "localhost", true),
            (X_REAL_IP, "192.0.2.1", true),
            (header::FORWARDED, "for=127.0.0.1", false),
            (header::FORWARDED, "for=unknown", true),
            (header::VIA, "1.1 vegur", false),
        ] {
            let headers = lines(&name, &[value]);
            assert_eq!(names_another_machine(&headers), elsewhere, "{name} {value}");
            assert!(is_passed_on(&headers), "{name}");
        }
        assert!(!names_another_machine(&HeaderMap::new()));
        assert!(!is_passed_on(&HeaderMap::new()));
    }
}
