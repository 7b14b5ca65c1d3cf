//! A client's text message, decoded: one command, its id, or a sentence about what is wrong with it.

use relay_core::job::Again;
use relay_core::watcher::session::Command;
use serde::Deserialize;
use serde_json::Value;

/// A decoded message.
#[derive(Debug)]
pub(crate) struct Request {
    /// What the client wants to see again in the answer: a string or a number.
    pub id: Option<Value>,
    /// What it asks.
    pub command: Command,
}

/// Why a message is not a command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadRequest {
    /// The id, if it could be read.
    pub id: Option<Value>,
    /// For programs.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

#[derive(Deserialize)]
struct Message {
    #[serde(rename = "type")]
    kind: Option<Value>,
    id: Option<Value>,
    topic: Option<Value>,
    cursor: Option<Value>,
    token: Option<Value>,
    ack: Option<bool>,
}

/// The longest id, in bytes: it is sent back as it came.
const MAX_ID_BYTES: usize = 128;

fn is_id(id: &Value) -> bool {
    match id {
        Value::String(text) => text.len() <= MAX_ID_BYTES,
        id => id.is_number(),
    }
}

/// Reads a message.
///
/// # Errors
/// Says what is wrong; the connection goes on.
pub(crate) fn parse(text: &str) -> Result<Request, BadRequest> {
    let refuse = |id: Option<Value>, code, message: &str| BadRequest {
        id,
        code,
        message: message.to_owned(),
    };
    let message: Message = serde_json::from_str(text).map_err(|error| {
        refuse(
            None,
            "bad_json",
            &format!("the message is not a JSON object of this protocol: {error}"),
        )
    })?;
    if let Some(Value::String(long)) = message.id.as_ref().filter(|id| !is_id(id)) {
        let length = long.len();
        let message = format!("the id has {length} bytes; it may have {MAX_ID_BYTES}");
        return Err(refuse(None, "bad_id", &message));
    }
    let id = message.id.filter(is_id);
    let Some(Value::String(kind)) = message.kind else {
        return Err(refuse(id, "bad_json", "the message has no \"type\""));
    };
    let wanted = |name: &str, value: Option<Value>| match value {
        Some(Value::String(text)) => Ok(text),
        _ => Err(BadRequest {
            id: id.clone(),
            code: "bad_json",
            message: format!("{kind} needs \"{name}\", a string"),
        }),
    };
    let command = match kind.as_str() {
        "subscribe" => Command::Subscribe {
            topic: wanted("topic", message.topic)?,
            cursor: match message.cursor {
                None | Some(Value::Null) => None,
                some => Some(wanted("cursor", some)?),
            },
            ack: message.ack.unwrap_or(false),
            again: Again::Nothing,
        },
        "unsubscribe" => Command::Unsubscribe {
            topic: wanted("topic", message.topic)?,
        },
        "ack" => Command::Ack {
            topic: wanted("topic", message.topic)?,
            cursor: wanted("cursor", message.cursor)?,
        },
        "ping" => Command::Ping,
        "auth" => Command::Auth {
            token: wanted("token", message.token)?,
        },
        unknown => {
            let unknown: String = unknown.chars().take(40).collect();
            let message = format!(
                "{unknown:?} is not a message of this protocol; it has subscribe, unsubscribe, ack, ping, auth"
            );
            return Err(refuse(id, "unknown_type", &message));
        }
    };
    Ok(Request { id, command })
}

/// The id of a message that is not going to be read further.
pub(crate) fn id_of(text: &str) -> Option<Value> {
    let message = serde_json::from_str::<Message>(text).ok()?;
    message.id.filter(is_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> &'static str {
        parse(text).unwrap_err().code
    }

    #[test]
    fn what_is_not_a_command_is_named() {
        assert_eq!(refused("hello"), "bad_json");
        assert_eq!(refused("[1]"), "bad_json");
        assert_eq!(refused("{}"), "bad_json");
        assert_eq!(refused(r#"{"type":7}"#), "bad_json");
        assert_eq!(refused(r#"{"type":"subscribe"}"#), "bad_json");
        assert_eq!(refused(r#"{"type":"subscribe","topic":5}"#), "bad_json");
        assert_eq!(refused(r#"{"type":"publish"}"#), "unknown_type");
    }

    #[test]
    fn an_id_is_short_because_it_is_sent_back() {
        let message = |id: &str| format!(r#"{{"type":"ping","id":"{id}"}}"#);
        assert!(parse(&message(&"x".repeat(128))).is_ok());
        let long = message(&"x".repeat(129));
        assert_eq!(refused(&long), "bad_id");
        assert_eq!(id_of(&long), None);
    }

    #[test]
    fn an_error_carries_the_id_of_what_it_answers() {
        let error = parse(r#"{"type":"dance","id":"a7"}"#).unwrap_err();
        assert_eq!(error.id, Some(Value::from("a7")));
        let error = parse(r#"{"type":"dance","id":{"no":1}}"#).unwrap_err();
        assert_eq!(error.id, None);
    }
}
