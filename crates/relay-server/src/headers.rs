//! Headers that hold a list: several lines, several elements on a line (RFC 9110, 5.6.1).
//!
//! It does not know what the elements are for.
//!
//! Invariant: an element is read whatever stands beside it; one that is not text is nobody's, and costs no other.

use http::header::{self, HeaderMap, HeaderName};

/// The elements of a header, over all its lines.
pub(crate) fn elements(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(name).iter();
    let elements = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let texts = elements.filter_map(|element| std::str::from_utf8(element).ok());
    texts.map(str::trim).filter(|element| !element.is_empty())
}

/// Whether one of a header's elements is this word, in whichever case.
pub(crate) fn lists(headers: &HeaderMap, name: HeaderName, word: &str) -> bool {
    elements(headers, name).any(|element| element.eq_ignore_ascii_case(word))
}

/// The first way in which a body is encoded that has to be undone before it is read, by its name.
pub(crate) fn content_encoding(headers: &HeaderMap) -> Option<String> {
    let lines = headers.get_all(header::CONTENT_ENCODING).iter();
    let mut encodings = lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|each| !each.is_empty() && !each.eq_ignore_ascii_case(b"identity"));
    let first = encodings.next()?;
    Some(String::from_utf8_lossy(first).into_owned())
}

/// Whether a request asks for a WebSocket; what else it may upgrade to is nobody's affair here.
pub(crate) fn asks_for_websocket(headers: &HeaderMap) -> bool {
    lists(headers, header::UPGRADE, "websocket")
}

/// What a client says it has already.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum IfNoneMatch {
    /// Whatever there is (`*`).
    Anything,
    /// What these tags stand for; bare, and none where the header is missing.
    Tags(Vec<String>),
}

impl IfNoneMatch {
    /// Reads the header (RFC 9110, 13.1.2). Tags are compared weakly, so what they stand for is in their quotes;
    /// quotes that are missing are forgiven.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut tags = Vec::new();
        for line in headers.get_all(header::IF_NONE_MATCH) {
            let line = String::from_utf8_lossy(line.as_bytes());
            let mut rest = &*line;
            loop {
                rest = rest.trim_start_matches([',', ' ', '\t']);
                if rest.is_empty() {
                    break;
                }
                let opaque = rest.strip_prefix("W/").unwrap_or(rest);
                let quoted = opaque.strip_prefix('"').and_then(|it| it.split_once('"'));
                if let Some((tag, after)) = quoted {
                    tags.push(tag.to_owned());
                    rest = after;
                    continue;
                }
                let (bare, after) = opaque.split_once(',').unwrap_or((opaque, ""));
                match bare.trim() {
                    "*" => return Self::Anything,
                    bare => tags.push(bare.to_owned()),
                }
                rest = after;
            }
        }
        Self::Tags(tags)
    }

    /// Whether it speaks of something whose tag `is_current`, given the bare tag.
    pub(crate) fn has(&self, is_current: impl Fn(&str) -> bool) -> bool {
        match self {
            Self::Anything => true,
            Self::Tags(tags) => tags.iter().any(|tag| is_current(tag)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn request(name: HeaderName, lines: &[&[u8]]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(name.clone(), HeaderValue::from_bytes(line).unwrap());
        }
        headers
    }

    #[test]
    fn an_element_is_found_on_any_line_beside_anything() {
        for lines in [
            &[b"websocket".as_slice()][..],
            &[b"h2c, WebSocket"],
            &[b"h2c", b"websocket"],
            &["é, websocket".as_bytes()],
            &[b"\xff", b",,\twebsocket ,"],
            &[b"\xff,websocket"],
        ] {
            assert!(
                asks_for_websocket(&request(header::UPGRADE, lines)),
                "{lines:?}"
            );
        }
        for line in [b"h2c".as_slice(), b"websockets", b"web socket", b""] {
            assert!(!asks_for_websocket(&request(header::UPGRADE, &[line])));
        }
        assert!(!asks_for_websocket(&HeaderMap::new()));
    }

    #[test]
    fn a_body_as_it_is_has_no_encoding() {
        for lines in [
            &[][..],
            &[b"".as_slice()],
            &[b"identity"],
            &[b"Identity, ,identity"],
        ] {
            let headers = request(header::CONTENT_ENCODING, lines);
            assert_eq!(content_encoding(&headers), None, "{lines:?}");
        }
        for (lines, named) in [
            (&[b"gzip".as_slice()][..], "gzip"),
            (&[b"identity, br, gzip"], "br"),
            (&[b"identity", b" x-gzip "], "x-gzip"),
            (&[b"\xff"], "\u{fffd}"),
        ] {
            let headers = request(header::CONTENT_ENCODING, lines);
            assert_eq!(content_encoding(&headers).as_deref(), Some(named));
        }
    }

    #[test]
    fn tags_are_read_from_lists_lines_and_quotes() {
        for (lines, tags) in [
            (&[b"\"a\"".as_slice()][..], &["a"][..]),
            (&[b"W/\"a\", \"b\""], &["a", "b"]),
            (&[b"\"a\"", b"W/\"b\""], &["a", "b"]),
            (&[b"\"a,b\",\"c\""], &["a,b", "c"]),
            (&[b"\"a\"\"b\" \"c\""], &["a", "b", "c"]),
            (&[b", ,\"\" ,,W/\"\""], &["", ""]),
            (&[b"a, W/b ,c"], &["a", "b", "c"]),
            (&[b"\"*\""], &["*"]),
            (&[b"\"W/\""], &["W/"]),
            (&[b"\"\xff\", \"a\""], &["\u{fffd}", "a"]),
            (&["\"é\", \"a\"".as_bytes()], &["é", "a"]),
            (&[], &[]),
            (&[b""], &[]),
        ] {
            let headers = request(header::IF_NONE_MATCH, lines);
            let read = IfNoneMatch::of(&headers);
            let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
            assert_eq!(read, IfNoneMatch::Tags(tags), "{lines:?}");
        }
        for lines in [&[b"*".as_slice()][..], &[b" * "], &[b"\"a\"", b"*"]] {
            let headers = request(header::IF_NONE_MATCH, lines);
            assert_eq!(IfNoneMatch::of(&headers), IfNoneMatch::Anything);
        }
    }
}
