//! How a server is watched: where to connect, what to say there, and how to know that one is in.
//!
//! It knows the words and not who speaks them: the relay's own protocol, a dialect of it and every peer are
//! described in the same few fields. `{job}` in a path or in what is said stands for the name of the job.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::client::{Transport, masked};

/// Stands for the name of the job.
const JOB: &str = "{job}";
/// Where a document says which update it is, unless a dialect does not pass that on.
pub(crate) const MESSAGE: &str = "message";

/// A server's door.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    pub(crate) transport: Transport,
    /// The path of a job's stream.
    pub(crate) path: Cow<'static, str>,
    /// What to say after the handshake to watch a job, in order.
    pub(crate) say: Vec<Cow<'static, str>>,
    /// What the server says when the watcher is in; empty: nothing, the handshake is enough.
    pub(crate) ready: Cow<'static, str>,
    /// What the server asks to see whether somebody is there (how it begins), and the answer.
    pub(crate) answers: Vec<(Cow<'static, str>, Cow<'static, str>)>,
}

/// Another wire shape of the relay's, as a scenario describes it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Dialect {
    /// What its rows of the table are called.
    pub(crate) name: String,
    /// The path of a job's WebSocket.
    pub(crate) path: String,
    /// Text frames sent after the handshake, in order.
    #[serde(default)]
    pub(crate) say: Vec<String>,
    /// Part of the frame that says that the watcher is in; empty: the handshake is enough.
    #[serde(default)]
    pub(crate) ready: String,
    /// Answers to frames, by how these begin.
    #[serde(default)]
    pub(crate) answer: BTreeMap<String, String>,
    /// The field of the job document that its frames carry through to the watcher.
    #[serde(default = "message")]
    pub(crate) carries: String,
}

fn message() -> String {
    MESSAGE.to_owned()
}

impl Door {
    /// A door that asks nothing but the handshake.
    pub(crate) fn plain(address: SocketAddr, transport: Transport, path: &'static str) -> Self {
        Self {
            address,
            transport,
            path: path.into(),
            say: Vec::new(),
            ready: "".into(),
            answers: Vec::new(),
        }
    }

    /// The relay's own.
    pub(crate) fn native(address: SocketAddr, transport: Transport) -> Self {
        let path = match transport {
            Transport::Ws => "/v1/ws?topic=job:{job}",
            Transport::Sse => "/v1/sse?topic=job:{job}",
        };
        Self {
            ready: "subscribed".into(),
            ..Self::plain(address, transport, path)
        }
    }

    /// One of the relay's dialects.
    pub(crate) fn dialect(address: SocketAddr, dialect: &Dialect) -> Self {
        let owned = |text: &String| Cow::Owned(text.clone());
        let answers = dialect.answer.iter();
        Self {
            address,
            transport: Transport::Ws,
            path: owned(&dialect.path),
            say: dialect.say.iter().map(owned).collect(),
            ready: owned(&dialect.ready),
            answers: answers
                .map(|(asked, answer)| (owned(asked), owned(answer)))
                .collect(),
        }
    }

    /// The request that opens a stream of `job`.
    pub(crate) fn request(&self, job: &str) -> Vec<u8> {
        let path = self.path.replace(JOB, job);
        self.transport.request(self.address, &path)
    }

    /// What to say to watch `job`, framed.
    pub(crate) fn says(&self, job: &str) -> Vec<u8> {
        let lines = self.say.iter();
        lines
            .flat_map(|line| masked(1, line.replace(JOB, job).as_bytes()))
            .collect()
    }

    /// The answer to `text`, framed, if it asks for one.
    pub(crate) fn answer(&self, text: &[u8]) -> Option<Vec<u8>> {
        let asked = |(asked, _): &&(Cow<'_, str>, _)| text.starts_with(asked.as_bytes());
        let (_, answer) = self.answers.iter().find(asked)?;
        Some(masked(1, answer.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_jobs_name_is_put_into_path_and_words_and_nothing_else_is_touched() {
        let text = r#"
            name = "d"
            path = "/socket.io/?EIO=4&job={job}"
            say = ["40/jobs,", '42["subscribe",{"jobId":"{job}"}]']
            answer = { "2" = "3" }
        "#;
        let dialect: Dialect = toml::from_str(text).unwrap();
        let door = Door::dialect(([127, 0, 0, 1], 80).into(), &dialect);
        let request = String::from_utf8(door.request("j-1")).unwrap();
        assert!(request.starts_with("GET /socket.io/?EIO=4&job=j-1 HTTP/1.1\r\n"));
        let said = [
            masked(1, b"40/jobs,"),
            masked(1, br#"42["subscribe",{"jobId":"j-1"}]"#),
        ];
        assert_eq!(door.says("j-1"), said.concat());
        assert_eq!(door.answer(b"2"), Some(masked(1, b"3")));
        assert_eq!(door.answer(b"42[\"hi\"]"), None);
    }
}
