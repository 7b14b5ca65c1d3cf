//! A dialect's texts as events of an event stream (WHATWG HTML, server-sent events).
//!
//! A text that is `["name", data]` is an event of that name, as it would be over Socket.IO; any other is a message
//! without one. It does not know what the texts say.
//!
//! Invariant: a text stands on one line, so each event is as many as its texts were.

use bytes::Bytes;
use serde_json::value::RawValue;

/// Between two events.
const END: &[u8] = b"\n\n";

/// Texts as events.
pub(crate) fn events(texts: Vec<Vec<u8>>) -> Bytes {
    let mut events = Vec::new();
    for text in texts {
        match serde_json::from_slice::<(String, &RawValue)>(&text) {
            Ok((name, data)) if !name.contains(['\r', '\n']) => {
                events.extend_from_slice(b"event: ");
                events.extend_from_slice(name.as_bytes());
                put_data(&mut events, data.get().as_bytes());
            }
            _ => put_data(&mut events, &text),
        }
    }
    events.into()
}

fn put_data(events: &mut Vec<u8>, data: &[u8]) {
    if !(events.is_empty() || events.ends_with(END)) {
        events.push(b'\n');
    }
    events.extend_from_slice(b"data: ");
    events.extend_from_slice(data);
    events.extend_from_slice(END);
}

/// The same for a client that stands at `cursor` once it has the last of them.
pub(crate) fn at(events: &[u8], cursor: &str) -> Bytes {
    let Some(rest) = events.strip_suffix(END) else {
        return Bytes::copy_from_slice(events);
    };
    let mut ends = rest.windows(END.len());
    let last = ends
        .rposition(|each| each == END)
        .map_or(0, |at| at + END.len());
    let (before, last) = events.split_at(last);
    let id = [b"id: ", cursor.as_bytes(), b"\n"].concat();
    Bytes::from([before, &id, last].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(texts: &[&str]) -> String {
        let texts = texts.iter().map(|text| text.as_bytes().to_vec());
        String::from_utf8(events(texts.collect()).to_vec()).unwrap()
    }

    #[test]
    fn a_text_is_an_event_and_a_pair_with_a_name_a_named_one() {
        assert_eq!(shown(&[r#"{"a":1}"#]), "data: {\"a\":1}\n\n");
        assert_eq!(
            shown(&[r#"["tick",{"a":1}]"#, "7"]),
            "event: tick\ndata: {\"a\":1}\n\ndata: 7\n\n"
        );
        // Neither is a name and its data.
        assert_eq!(shown(&[r#"["a"]"#]), "data: [\"a\"]\n\n");
        assert_eq!(shown(&[r#"["a\nb",1]"#]), "data: [\"a\\nb\",1]\n\n");
        assert_eq!(shown(&[]), "");
    }

    #[test]
    fn the_last_event_says_where_its_client_stands_then() {
        let two = events(vec![b"1".to_vec(), br#"["n",2]"#.to_vec()]);
        assert_eq!(
            &at(&two, "c")[..],
            b"data: 1\n\nid: c\nevent: n\ndata: 2\n\n"
        );
        assert_eq!(&at(b"", "c")[..], b"");
    }
}
