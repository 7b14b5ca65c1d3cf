//! Where a client left off, by what its request says.
//!
//! A `cursor` is our own word, and has to be one of ours. A last event id is what the client had from whichever
//! server answered it last under this address; one that is not ours says that it knows nothing of us.
//!
//! Invariant: a last event id never costs a client its stream, because a browser would not ask again.

use http::header::HeaderMap;
use relay_core::cursor::{Cursor, CursorError};

/// What a request says of where its client left off.
#[derive(Debug, Default)]
pub(super) struct Resume {
    /// Of `Last-Event-ID`: where a browser is that reconnects, newer than anything in its URL.
    header: Option<Cursor>,
    /// The same in the URL, from clients that cannot set headers.
    parameter: Option<Cursor>,
    /// Of `cursor`.
    cursor: Option<Cursor>,
}

impl Resume {
    /// Reads the headers; the query's parameters are to be offered one by one.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let last = headers.get("last-event-id");
        let text = last.and_then(|id| id.to_str().ok());
        Self {
            header: text.and_then(|text| Cursor::parse(text).ok()),
            ..Self::default()
        }
    }

    /// Reads a parameter, if it is about this.
    ///
    /// # Errors
    /// When it is `cursor`, and not one.
    pub(super) fn read(&mut self, key: &str, value: &str) -> Result<(), CursorError> {
        if key == "cursor" && !value.is_empty() {
            self.cursor = Some(Cursor::parse(value)?);
        } else if is_last_event_id(key) {
            // Of several the last counts, as with every parameter.
            self.parameter = Cursor::parse(value).ok();
        }
        Ok(())
    }

    /// Where the client left off, as far as it knows us.
    pub(super) fn place(self) -> Option<Cursor> {
        self.header.or(self.parameter).or(self.cursor)
    }
}

/// `lastEventId`, `Last-Event-ID`, `last_event_id`: each library spells it its own way.
fn is_last_event_id(key: &str) -> bool {
    let letters = key.bytes().filter(|each| !matches!(each, b'-' | b'_'));
    letters
        .map(|each| each.to_ascii_lowercase())
        .eq(b"lasteventid".iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use relay_core::position::{Epoch, Position, Seq};

    fn cursor(seq: u64) -> String {
        Cursor::at(Position::new(Epoch::new(1), Seq::new(seq)), []).to_string()
    }

    fn place(header: &[u8], parameters: &[(&str, &str)]) -> Result<Option<u64>, CursorError> {
        let mut headers = HeaderMap::new();
        headers.insert("last-event-id", HeaderValue::from_bytes(header).unwrap());
        let mut resume = Resume::of(&headers);
        for (key, value) in parameters {
            resume.read(key, value)?;
        }
        Ok(resume.place().map(|cursor| cursor.position.seq.get()))
    }

    #[test]
    fn the_newest_place_that_is_ours_counts() {
        let [one, two, three] = [1, 2, 3].map(cursor);
        let (one, two, three) = (&*one, &*two, &*three);
        for (header, parameters, expected) in [
            ("", vec![], None),
            (three, vec![("lastEventId", two), ("cursor", one)], Some(3)),
            ("", vec![("lastEventId", two), ("cursor", one)], Some(2)),
            ("", vec![("cursor", one)], Some(1)),
            ("", vec![("cursor", "")], None),
            ("", vec![("Last-Event-ID", two)], Some(2)),
            ("", vec![("last_event_id", two)], Some(2)),
            ("", vec![("lastEventIds", two)], None),
            // Another server's.
            ("42", vec![], None),
            ("42", vec![("cursor", one)], Some(1)),
            ("42", vec![("lastEventId", "42"), ("cursor", one)], Some(1)),
            ("", vec![("lastEventId", "")], None),
            ("\u{e9}\u{2603}", vec![("lastEventId", two)], Some(2)),
        ] {
            let read = place(header.as_bytes(), &parameters);
            assert_eq!(read, Ok(expected), "{header:?} {parameters:?}");
        }
        assert_eq!(place(b"\xff\x80", &[]), Ok(None));
    }

    #[test]
    fn a_cursor_has_to_be_ours() {
        for header in ["", "42", &cursor(1)] {
            let read = place(header.as_bytes(), &[("cursor", "42")]);
            assert_eq!(read, Err(CursorError), "{header:?}");
        }
    }
}
