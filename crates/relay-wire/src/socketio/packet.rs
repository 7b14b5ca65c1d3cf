//! Socket.IO packets: what travels inside Engine.IO messages.
//!
//! Decoding is strict, as in the official parser: what does not fit its kind is an error, after which a
//! connection ends. Encoders give whole Engine.IO packets (the leading `4` included).

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// The longest namespace a client may name.
const MAX_NAMESPACE: usize = 256;
/// Binary attachments one packet may announce.
const MAX_ATTACHMENTS: u32 = 10;
/// Events only the client's own library raises.
const RESERVED: [&str; 6] = [
    "connect",
    "connect_error",
    "disconnect",
    "disconnecting",
    "newListener",
    "removeListener",
];

/// A packet as a client sends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packet<'a> {
    /// The namespace, `/` unless it says otherwise.
    pub(crate) namespace: &'a str,
    /// The number an answer is to carry.
    pub(crate) ack: Option<u64>,
    /// What it says.
    pub(crate) body: Body<'a>,
}

/// What a packet says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body<'a> {
    /// Join the namespace, with an object of credentials perhaps.
    Connect(Option<Value>),
    /// Leave the namespace.
    Disconnect,
    /// An event: its name, and the whole JSON array `[name, argument…]`.
    Event(String, &'a str),
    /// The answer to an event of ours that asked for one.
    Ack,
    /// An event or answer with so many binary attachments, which follow as binary frames.
    Binary(u32),
}

/// Why a text is not a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPacket {
    /// Empty, or a kind that clients do not send.
    #[error("unknown packet type")]
    Kind,
    /// The number of attachments cannot be read, or is too high.
    #[error("illegal attachments")]
    Attachments,
    /// The namespace is too long.
    #[error("illegal namespace")]
    Namespace,
    /// The number of the acknowledgement cannot be read.
    #[error("illegal id")]
    Ack,
    /// Not JSON, or not what this kind carries.
    #[error("invalid payload")]
    Payload,
}

impl<'a> Packet<'a> {
    /// Reads the text of an Engine.IO message.
    ///
    /// # Errors
    /// When it is not a packet a client may send.
    pub(crate) fn parse(text: &'a str) -> Result<Self, BadPacket> {
        let (kind, mut rest) = text.split_at_checked(1).ok_or(BadPacket::Kind)?;
        let mut attachments = 0;
        if matches!(kind, "5" | "6") {
            let (count, after) = rest.split_once('-').ok_or(BadPacket::Attachments)?;
            attachments = count.parse().map_err(|_| BadPacket::Attachments)?;
            if attachments > MAX_ATTACHMENTS {
                return Err(BadPacket::Attachments);
            }
            rest = after;
        }
        let mut namespace = "/";
        if rest.starts_with('/') {
            (namespace, rest) = rest.split_once(',').unwrap_or((rest, ""));
            if namespace.len() > MAX_NAMESPACE {
                return Err(BadPacket::Namespace);
            }
        }
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (ack, payload) = rest.split_at(digits);
        let ack = match ack {
            "" => None,
            digits => Some(digits.parse().map_err(|_| BadPacket::Ack)?),
        };
        let body = match (kind, payload) {
            ("0", "") => Body::Connect(None),
            ("0", auth) => Body::Connect(Some(object(auth)?)),
            ("1", "") => Body::Disconnect,
            ("2", event) => Body::Event(event_name(event)?, event),
            ("3", answer) => array(answer).map(|_| Body::Ack)?,
            ("5", event) => event_name(event).map(|_| Body::Binary(attachments))?,
            ("6", answer) => array(answer).map(|_| Body::Binary(attachments))?,
            ("1", _) => return Err(BadPacket::Payload),
            _ => return Err(BadPacket::Kind),
        };
        Ok(Self {
            namespace,
            ack,
            body,
        })
    }
}

fn object(text: &str) -> Result<Value, BadPacket> {
    let value: Value = serde_json::from_str(text).map_err(|_| BadPacket::Payload)?;
    value.is_object().then_some(value).ok_or(BadPacket::Payload)
}

fn array(text: &str) -> Result<Vec<&RawValue>, BadPacket> {
    serde_json::from_str(text).map_err(|_| BadPacket::Payload)
}

fn event_name(text: &str) -> Result<String, BadPacket> {
    let values = array(text)?;
    let name = values.first().ok_or(BadPacket::Payload)?.get();
    // A number is a name too, if only by the protocol's leave.
    let name = match serde_json::from_str(name) {
        Ok(Value::String(name)) => name,
        Ok(Value::Number(number)) => number.to_string(),
        _ => return Err(BadPacket::Payload),
    };
    if RESERVED.contains(&name.as_str()) {
        return Err(BadPacket::Payload);
    }
    Ok(name)
}

fn head(kind: char, namespace: &str) -> String {
    match namespace {
        "/" => format!("4{kind}"),
        other => format!("4{kind}{other},"),
    }
}

/// An event, in parts to be put together where it goes. `event` is the whole JSON array
/// `[name, argument…]`; `offset`, of an alphabet that needs no escaping, becomes a further argument.
pub(crate) fn event<'a>(
    namespace: &'a str,
    event: &'a [u8],
    offset: Option<&'a str>,
) -> [&'a [u8]; 7] {
    let (namespace, comma) = match namespace {
        "/" => ("", ""),
        other => (other, ","),
    };
    let (event, quote, offset, end) = match offset {
        Some(offset) => (
            &event[..event.len().saturating_sub(1)],
            ",\"",
            offset,
            "\"]",
        ),
        None => (event, "", "", ""),
    };
    [
        b"42",
        namespace.as_bytes(),
        comma.as_bytes(),
        event,
        quote.as_bytes(),
        offset.as_bytes(),
        end.as_bytes(),
    ]
}

/// The answer to an event that asked for one; `answer` is the whole JSON array.
pub(crate) fn ack(namespace: &str, id: u64, answer: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(namespace.len() + 23 + answer.len());
    packet.extend_from_slice(head('3', namespace).as_bytes());
    packet.extend_from_slice(id.to_string().as_bytes());
    packet.extend_from_slice(answer);
    packet
}

/// The namespace is joined. With a `pid` the client's library says how far it came when it connects again.
pub(crate) fn connected(namespace: &str, sid: &str, pid: Option<&str>) -> Vec<u8> {
    let head = head('0', namespace);
    // Ids are of an alphabet that needs no escaping.
    let packet = match pid {
        Some(pid) => format!(r#"{head}{{"sid":"{sid}","pid":"{pid}"}}"#),
        None => format!(r#"{head}{{"sid":"{sid}"}}"#),
    };
    packet.into_bytes()
}

/// The namespace is not joined; the client's library raises `connect_error` and does not try again.
pub(crate) fn connect_error(namespace: &str, message: &str, data: Option<&Value>) -> Vec<u8> {
    #[derive(Serialize)]
    struct ConnectError<'a> {
        message: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        data: Option<&'a Value>,
    }
    let mut packet = head('4', namespace).into_bytes();
    // A struct of strings and JSON cannot fail to serialize.
    packet.extend(serde_json::to_vec(&ConnectError { message, data }).unwrap_or_default());
    packet
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn parsed(text: &str) -> Packet<'_> {
        Packet::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn connects_carry_a_namespace_and_credentials() {
        assert_eq!(parsed("0").body, Body::Connect(None));
        assert_eq!(parsed("0").namespace, "/");
        assert_eq!(parsed("0/jobs,").namespace, "/jobs");
        assert_eq!(parsed("0/jobs").namespace, "/jobs");
        let packet = parsed(r#"0/jobs,{"token":"abc"}"#);
        assert_eq!(packet.namespace, "/jobs");
        assert_eq!(packet.body, Body::Connect(Some(json!({"token": "abc"}))));
    }

    #[test]
    fn events_carry_a_name_arguments_and_perhaps_a_number() {
        let packet = parsed(r#"2/jobs,12["subscribe:jobs",{"jobId":"j1"}]"#);
        assert_eq!(packet.ack, Some(12));
        let event = r#"["subscribe:jobs",{"jobId":"j1"}]"#;
        assert_eq!(packet.body, Body::Event("subscribe:jobs".to_owned(), event));
        assert_eq!(parsed(r#"2["a"]"#).ack, None);
        assert_eq!(parsed("2[1]").body, Body::Event("1".to_owned(), "[1]"));
    }

    #[test]
    fn disconnects_and_answers_are_read() {
        assert_eq!(parsed("1").body, Body::Disconnect);
        assert_eq!(parsed("1/jobs,").namespace, "/jobs");
        assert_eq!(parsed("1/jobs").body, Body::Disconnect);
        assert_eq!(parsed("3/jobs,7[1]").body, Body::Ack);
    }

    #[test]
    fn attachments_are_counted() {
        let packet = parsed(
            r#"52-/jobs,3["x",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]"#,
        );
        assert_eq!(packet.namespace, "/jobs");
        assert_eq!(packet.ack, Some(3));
        assert_eq!(packet.body, Body::Binary(2));
    }

    #[test]
    fn what_does_not_fit_its_kind_is_an_error() {
        for (text, error) in [
            ("", BadPacket::Kind),
            ("abc", BadPacket::Kind),
            ("9", BadPacket::Kind),
            ("é", BadPacket::Kind),
            ("4{}", BadPacket::Kind),
            ("0[]", BadPacket::Payload),
            ("0x", BadPacket::Payload),
            ("1{}", BadPacket::Payload),
            ("2", BadPacket::Payload),
            ("2{}", BadPacket::Payload),
            ("2[]", BadPacket::Payload),
            ("2[{}]", BadPacket::Payload),
            ("2[\"connect\"]", BadPacket::Payload),
            ("2[\"disconnect\"]", BadPacket::Payload),
            ("2abc[\"x\"]", BadPacket::Payload),
            ("299999999999999999999[\"x\"]", BadPacket::Ack),
            ("3{}", BadPacket::Payload),
            ("5[\"x\"]", BadPacket::Attachments),
            ("511-[\"x\"]", BadPacket::Attachments),
            ("5-1-[\"x\"]", BadPacket::Attachments),
        ] {
            assert_eq!(Packet::parse(text), Err(error), "{text}");
        }
        let long = format!("0/{}", "x".repeat(MAX_NAMESPACE));
        assert_eq!(Packet::parse(&long), Err(BadPacket::Namespace));
        let deep = format!("2[\"x\",{}]", "[".repeat(100_000));
        assert_eq!(Packet::parse(&deep), Err(BadPacket::Payload));
    }

    #[test]
    fn what_is_sent_is_what_clients_expect() {
        let text = |packet| String::from_utf8(packet).unwrap();
        assert_eq!(text(connected("/", "s1", None)), r#"40{"sid":"s1"}"#);
        assert_eq!(
            text(connected("/jobs", "s1", Some("p1"))),
            r#"40/jobs,{"sid":"s1","pid":"p1"}"#
        );
        let told = |namespace, array: &str, offset| {
            text(event(namespace, array.as_bytes(), offset).concat())
        };
        assert_eq!(told("/", r#"["a",1]"#, None), r#"42["a",1]"#);
        assert_eq!(told("/jobs", r#"["a"]"#, None), r#"42/jobs,["a"]"#);
        assert_eq!(told("/", r#"["a",1]"#, Some("x")), r#"42["a",1,"x"]"#);
        assert_eq!(told("/jobs", r#"["a"]"#, Some("x")), r#"42/jobs,["a","x"]"#);
        assert_eq!(text(ack("/jobs", 0, b"[1]")), "43/jobs,0[1]");
        assert_eq!(
            text(connect_error("/random", "Invalid namespace", None)),
            r#"44/random,{"message":"Invalid namespace"}"#
        );
        assert_eq!(
            text(connect_error("/", "no", Some(&json!({"code": "x"})))),
            r#"44{"message":"no","data":{"code":"x"}}"#
        );
    }

    proptest! {
        #[test]
        fn any_text_is_a_packet_or_refused(text in "[0-6]?.*") {
            drop(Packet::parse(&text));
        }

        #[test]
        fn an_event_comes_back_as_it_was_sent(
            namespace in "/[a-z/_0-9]{0,40}",
            ack: Option<u64>,
            name in "[a-z:]{1,20}",
            argument in ".*",
        ) {
            prop_assume!(!RESERVED.contains(&name.as_str()));
            let array = json!([name, argument]).to_string();
            let sent = String::from_utf8(event(&namespace, array.as_bytes(), None).concat()).unwrap();
            // What a client sends differs from what a server sends by the number alone.
            let at = sent.find('[').unwrap();
            let number = ack.map_or(String::new(), |ack| ack.to_string());
            let sent = format!("{}{number}{}", &sent[1..at], &sent[at..]);
            let packet = parsed(&sent);
            prop_assert_eq!(packet.namespace, namespace);
            prop_assert_eq!(packet.ack, ack);
            prop_assert_eq!(packet.body, Body::Event(name, &array));
        }
    }
}
