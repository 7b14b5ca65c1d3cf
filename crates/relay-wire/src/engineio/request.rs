//! What the query of an Engine.IO request says, checked in the order the official server checks it.

use super::Refusal;

const GET: &str = "GET";
const POST: &str = "POST";

/// What a request wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A new session over polling.
    OpenPolling,
    /// A new session over WebSocket.
    OpenWebSocket,
    /// The next payload for a session.
    Poll(String),
    /// A payload from a session's client.
    Post(String),
    /// A WebSocket that is to take over from polling.
    Upgrade(String),
}

/// A refusal with its sentence for people.
pub type Refused = (Refusal, &'static str);

/// Whether a request speaks Engine.IO at all, on a path that other protocols share.
pub fn is_engine_io(query: &str) -> bool {
    pairs(query).any(|(key, _)| key == "EIO")
}

/// Reads a request.
///
/// # Errors
/// Says what is wrong in the words Engine.IO clients know.
pub fn parse(method: &str, query: &str, is_upgrade: bool) -> Result<Wanted, Refused> {
    let value = |wanted: &str| pairs(query).find(|(key, _)| key == wanted);
    let is_websocket = match value("transport").as_ref().map(|(_, name)| name.as_str()) {
        Some("polling") => false,
        Some("websocket") => true,
        Some(_) | None => {
            return Err((
                Refusal::TransportUnknown,
                "transport= must be polling or websocket",
            ));
        }
    };
    if value("j").is_some() {
        return Err((Refusal::BadRequest, "JSONP polling is not supported"));
    }
    let sid = value("sid").map(|(_, sid)| sid);
    if sid.is_none() && method != GET {
        return Err((
            Refusal::BadHandshakeMethod,
            "a session is opened with GET; a POST needs the sid= of one",
        ));
    }
    if value("EIO").as_ref().map(|(_, version)| version.as_str()) != Some("4") {
        return Err((
            Refusal::UnsupportedVersion,
            "this server speaks EIO=4, which is socket.io-client 3 and 4; upgrade clients of version 2",
        ));
    }
    match (is_websocket, sid) {
        (true, _) if !is_upgrade => Err((
            Refusal::BadRequest,
            "transport=websocket without a WebSocket handshake; does a proxy on the way drop the Upgrade header?",
        )),
        (false, _) if is_upgrade => Err((
            Refusal::BadRequest,
            "a WebSocket handshake with transport=polling",
        )),
        (true, None) => Ok(Wanted::OpenWebSocket),
        (true, Some(sid)) => Ok(Wanted::Upgrade(sid)),
        (false, None) => Ok(Wanted::OpenPolling),
        (false, Some(sid)) if method == GET => Ok(Wanted::Poll(sid)),
        (false, Some(sid)) if method == POST => Ok(Wanted::Post(sid)),
        (false, Some(_)) => Err((Refusal::BadRequest, "a session takes GET and POST")),
    }
}

fn pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    // A query that cannot be read has no pairs, and is refused for what is missing.
    serde_urlencoded::from_str::<Vec<(String, String)>>(query)
        .unwrap_or_default()
        .into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(method: &str, query: &str, is_upgrade: bool) -> u8 {
        parse(method, query, is_upgrade).unwrap_err().0.code()
    }

    #[test]
    fn a_request_says_what_it_wants() {
        let sid = || "abc".to_owned();
        for (method, query, is_upgrade, wanted) in [
            (GET, "EIO=4&transport=polling", false, Wanted::OpenPolling),
            (
                GET,
                "EIO=4&transport=websocket",
                true,
                Wanted::OpenWebSocket,
            ),
            (
                GET,
                "EIO=4&transport=polling&t=x&sid=abc",
                false,
                Wanted::Poll(sid()),
            ),
            (
                POST,
                "EIO=4&transport=polling&sid=abc",
                false,
                Wanted::Post(sid()),
            ),
            (
                GET,
                "EIO=4&transport=websocket&sid=abc",
                true,
                Wanted::Upgrade(sid()),
            ),
        ] {
            assert_eq!(parse(method, query, is_upgrade), Ok(wanted), "{query}");
        }
    }

    #[test]
    fn what_is_wrong_has_the_official_number() {
        let get = GET;
        assert_eq!(code(get, "EIO=4", false), 0);
        assert_eq!(code(get, "EIO=4&transport=tobi", false), 0);
        assert_eq!(code(get, "EIO=4&transport=constructor", false), 0);
        assert_eq!(code(POST, "EIO=4&transport=polling", false), 2);
        assert_eq!(code("PUT", "EIO=4&transport=polling", false), 2);
        assert_eq!(code(get, "EIO=4&transport=websocket", false), 3);
        assert_eq!(code("PUT", "EIO=4&transport=polling&sid=a", false), 3);
        assert_eq!(code(get, "EIO=4&transport=polling&j=0", false), 3);
        for version in ["", "EIO=3&", "EIO=abc&", "EIO=5&", "EIO=%ff&"] {
            let query = format!("{version}transport=polling");
            assert_eq!(code(get, &query, false), 5, "{query}");
        }
    }

    #[test]
    fn a_request_of_another_protocol_is_not_taken_for_one() {
        assert!(is_engine_io("EIO=4&transport=websocket"));
        assert!(is_engine_io("EIO=3"));
        assert!(!is_engine_io("token=x"));
        assert!(!is_engine_io(""));
    }
}
