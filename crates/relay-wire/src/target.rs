//! What the path and the query of a request say, percent-encoded or not (RFC 3986).
//!
//! The one place where they are decoded, for every route of every front end. It does not know what a path leads to,
//! nor what a parameter means.
//!
//! Invariant: any text can be read; what does not decode stays as it is, or becomes U+FFFD, and is judged by whoever
//! wanted it. A parameter that nobody reads costs nobody the request.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// The parameters of a query, in order.
pub fn pairs(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    form_urlencoded::parse(query.as_bytes())
}

/// The path with those characters as they are that need no encoding: it leads where its other spellings lead
/// (RFC 3986, 6.2.2.2). One that is not well formed stays as it is.
pub fn normal_path(path: &str) -> Cow<'_, str> {
    let mut parts = path.split('%');
    let mut normal = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let Some((byte, rest)) = encoded(part) else {
            return Cow::Borrowed(path);
        };
        match is_unreserved(byte) {
            true => normal.push(char::from(byte)),
            false => normal.extend(['%'].into_iter().chain(part[..2].chars())),
        }
        normal.push_str(rest);
    }
    Cow::Owned(normal)
}

/// The byte that two digits stand for, and what follows them.
fn encoded(text: &str) -> Option<(u8, &str)> {
    let (digits, rest) = text.split_at_checked(2)?;
    // The parser of numbers would take a sign too.
    let hex = digits.bytes().all(|each| each.is_ascii_hexdigit());
    let byte = u8::from_str_radix(digits, 16).ok().filter(|_| hex)?;
    Some((byte, rest))
}

/// A segment of a path, decoded whole.
pub(crate) fn segment(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_path_has_one_spelling_of_what_needs_no_encoding() {
        for (path, normal) in [
            ("/v1/jobs/a", "/v1/jobs/a"),
            ("/%761/%6aobs/%61%2Db%2e%5F%7e", "/v1/jobs/a-b._~"),
            ("/a%2Fb%3a%20%E4", "/a%2Fb%3a%20%E4"),
            ("/%", "/%"),
            ("/%4", "/%4"),
            ("/%+4/%zz/%é", "/%+4/%zz/%é"),
            ("/%%341", "/%%341"),
            ("/%2561", "/%2561"),
        ] {
            assert_eq!(normal_path(path), normal, "{path}");
        }
    }

    #[test]
    fn a_query_is_decoded_and_what_is_not_text_is_replaced() {
        let read: Vec<_> = pairs("%74oken=a%2Eb+c&x&y=%ff&=1").collect();
        let expected = [("token", "a.b c"), ("x", ""), ("y", "\u{fffd}"), ("", "1")];
        assert_eq!(
            read,
            expected.map(|(key, value)| (key.into(), value.into()))
        );
    }

    proptest! {
        #[test]
        fn an_encoded_segment_reads_as_what_it_was(text in ".*") {
            let encoded: String = text.bytes().map(|each| format!("%{each:02X}")).collect();
            prop_assert_eq!(segment(&encoded), text.clone());
            let normal = normal_path(&encoded).into_owned();
            prop_assert_eq!(segment(&normal), text);
            prop_assert_eq!(normal_path(&normal), normal.as_str());
        }

        #[test]
        fn any_path_is_read(path in ".*") {
            let normal = normal_path(&path);
            prop_assert_eq!(segment(&normal), segment(&path));
        }
    }
}
