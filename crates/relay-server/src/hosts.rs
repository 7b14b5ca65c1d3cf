//! Under which names the relay may be asked.
//!
//! A page can be reached under a name whose address is changed to this machine's while it is open (DNS rebinding);
//! a browser then takes the relay for the page's own host. The name is the one thing about such a request that its
//! page cannot choose. Which page it is, and who sends it, is not known here.
//!
//! Invariant: where nobody is asked who they are, only this machine is answered.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use http::header::{self, HeaderMap};
use http::{StatusCode, Uri};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

use crate::forwarded::names_another_machine;
use crate::refused::Refused;

/// A name or an address under which a server is asked, in lower case, without a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostName(String);

/// Why a text is not a [`HostName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HostNameError {
    /// A port behind it.
    #[error("{0:?} has a port; write the name alone, it is the same on every port")]
    Port(String),
    /// Anything else.
    #[error("{0:?} is not the name of a host; write it as in a URL, such as \"relay.example.com\"")]
    Malformed(String),
}

impl FromStr for HostName {
    type Err = HostNameError;

    fn from_str(text: &str) -> Result<Self, HostNameError> {
        let text = text.trim();
        // An address of IPv6 is often written without its brackets.
        let bracketed = match text.parse() {
            Ok(IpAddr::V6(_)) => format!("[{text}]"),
            _ => text.to_owned(),
        };
        match split_port(&bracketed) {
            Some((name, None)) => Ok(Self(same(name))),
            Some((_, Some(_))) => Err(HostNameError::Port(text.to_owned())),
            None => Err(HostNameError::Malformed(text.to_owned())),
        }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for HostName {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HostName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for HostName {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Host".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "host" })
    }
}

/// The one spelling of a name.
fn same(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Parts `host:port`; `None` if it is not that.
pub(crate) fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let host_end = match authority.rfind(']') {
        Some(bracket) => bracket + 1,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, port) = authority.split_at(host_end);
    let port = match port.strip_prefix(':') {
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => Some(digits.parse().ok()?),
        Some(_) => return None,
        None if port.is_empty() => None,
        None => return None,
    };
    let bracketed = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .is_some_and(|h| h.parse::<std::net::Ipv6Addr>().is_ok());
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let plain = !host.is_empty() && host.chars().all(name);
    (bracketed || plain).then_some((host, port))
}

/// Whether a name, without its port, is one of this machine alone, wherever it is looked up.
pub(crate) fn is_loopback(name: &str) -> bool {
    let name = same(name);
    let address = name.trim_start_matches('[').trim_end_matches(']');
    let parsed = address.parse::<IpAddr>();
    name == "localhost"
        || name.ends_with(".localhost")
        || parsed.is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// The name, with its port, that a request goes to. Where its target is a whole URL, that counts (RFC 9112, 3.2.2).
pub(crate) fn asked<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    let authority = uri.authority().map(http::uri::Authority::as_str);
    authority.or_else(|| headers.get(header::HOST)?.to_str().ok())
}

/// Whether a request was made on this machine, as far as it shows: it goes to a name of this machine, and no proxy
/// says that it came from another one.
pub(crate) fn is_local(uri: &Uri, headers: &HeaderMap) -> bool {
    asked(uri, headers).is_none_or(is_loopback_with_port) && !names_another_machine(headers)
}

fn is_loopback_with_port(asked: &str) -> bool {
    split_port(asked).is_some_and(|(name, _)| is_loopback(name))
}

/// The names under which a listener may be asked.
#[derive(Debug, Clone)]
pub(crate) enum Hosts {
    /// Any.
    Any,
    /// These.
    Listed(Vec<HostName>),
    /// Names of this machine, from this machine: nobody is asked who they are.
    Loopback,
    /// Names of this machine: the listener is for its operators.
    Operators,
}

impl Hosts {
    /// Whether a request may be answered.
    ///
    /// # Errors
    /// 421 `foreign_host`, with what to set.
    pub(crate) fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Refused> {
        // Without a name it does not come from a page: browsers always send one.
        let asked = asked(uri, headers);
        let may = match self {
            Self::Any => true,
            Self::Loopback => is_local(uri, headers),
            Self::Operators => asked.is_none_or(is_loopback_with_port),
            Self::Listed(names) => asked.and_then(split_port).is_some_and(|(name, _)| {
                let name = same(name);
                names.iter().any(|HostName(each)| *each == name)
            }),
        };
        if may {
            return Ok(());
        }
        let shown: String = asked.unwrap_or_default().chars().take(100).collect();
        let message = match self {
            Self::Loopback if asked.is_none_or(is_loopback_with_port) => {
                "This request was passed on by a proxy for somebody on another machine, and auth.mode is not set, so that this relay answers its own machine alone. Set auth.mode: \"jwt\", or \"anonymous\" if everybody may see and publish everything.".to_owned()
            }
            Self::Loopback => format!(
                "{shown:?} is not a name of this machine, and auth.mode is not set, so that this relay answers only under names such as localhost or 127.0.0.1. Set auth.mode: \"jwt\", or \"anonymous\" if everybody who reaches the relay may see and publish everything."
            ),
            Self::Operators => format!(
                "{shown:?} is not a name of this machine. On a loopback address the operators' listener answers only under names such as localhost or 127.0.0.1; use one of these, or set admin.listen to an address of a network that is not the internet."
            ),
            Self::Listed(_) | Self::Any => {
                format!("This relay is not served under the name {shown:?}; add it to http.hosts if it should be.")
            }
        };
        Err(Refused {
            status: StatusCode::MISDIRECTED_REQUEST,
            code: "foreign_host",
            message,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(hosts: &Hosts, host: &str, more: &[(&'static str, &str)]) -> Result<(), String> {
        let mut headers = HeaderMap::new();
        for (name, value) in more.iter().chain(&[("host", host)]) {
            headers.append(*name, value.parse().unwrap());
        }
        let checked = hosts.check(&Uri::from_static("/"), &headers);
        checked.map_err(|refused| {
            assert_eq!(refused.status.as_u16(), 421);
            refused.message
        })
    }

    /// Names of this machine, and names that only look like them.
    const OURS: [&str; 9] = [
        "localhost",
        "LocalHost:8080",
        "localhost.:8080",
        "app.localhost:3000",
        "127.0.0.1:8080",
        "127.8.9.1",
        "[::1]:8080",
        "[::ffff:127.0.0.1]",
        "127.0.0.1.",
    ];
    const THEIRS: [&str; 12] = [
        "evil.com",
        "evil.com:8080",
        "localhost.evil.com",
        "evillocalhost",
        "127.0.0.1.evil.com",
        "127.1",
        "2130706433",
        "0.0.0.0:8080",
        "[::]",
        "192.168.1.5:8080",
        "localhost:x",
        "",
    ];

    #[test]
    fn where_nobody_is_asked_who_they_are_this_machine_alone_is_answered() {
        for host in OURS {
            assert_eq!(check(&Hosts::Loopback, host, &[]), Ok(()), "{host}");
            assert_eq!(check(&Hosts::Operators, host, &[]), Ok(()), "{host}");
        }
        for host in THEIRS {
            let refused = check(&Hosts::Loopback, host, &[]).unwrap_err();
            assert!(refused.contains("Set auth.mode"), "{refused}");
            let refused = check(&Hosts::Operators, host, &[]).unwrap_err();
            assert!(refused.contains("admin.listen"), "{refused}");
            assert_eq!(check(&Hosts::Any, host, &[]), Ok(()), "{host}");
        }
    }

    #[test]
    fn a_proxy_that_asks_for_another_machine_is_not_this_machine() {
        for (more, may) in [
            (("x-forwarded-for", "203.0.113.7"), false),
            (("x-real-ip", "203.0.113.7"), false),
            (("forwarded", "for=203.0.113.7"), false),
            // A development server of this machine.
            (("x-forwarded-for", "::1"), true),
            (("via", "1.1 dev"), true),
        ] {
            let checked = check(&Hosts::Loopback, "127.0.0.1:8080", &[more]);
            assert_eq!(checked.is_ok(), may, "{more:?}");
            if let Err(refused) = checked {
                assert!(refused.contains("passed on by a proxy"), "{refused}");
            }
        }
    }

    #[test]
    fn where_names_are_listed_no_other_is_answered() {
        let names = ["Relay.Example", "192.0.2.1", "2001:db8::1"];
        let names = names.map(|name| name.parse().unwrap());
        let listed = Hosts::Listed(names.into());
        for host in [
            "relay.example",
            "RELAY.example:8443",
            "relay.example.",
            "192.0.2.1:80",
            "[2001:db8::1]",
        ] {
            assert_eq!(check(&listed, host, &[]), Ok(()), "{host}");
        }
        for host in [
            "evil.com",
            "a.relay.example",
            "localhost",
            "relay.example:x",
            "",
        ] {
            let refused = check(&listed, host, &[]).unwrap_err();
            assert!(refused.contains("http.hosts"), "{refused}");
        }
    }

    #[test]
    fn a_target_that_is_a_whole_url_counts_more_than_its_host() {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, "localhost".parse().unwrap());
        for (uri, may) in [
            ("http://evil.com/v1/jobs/a", false),
            ("http://localhost/", true),
        ] {
            let checked = Hosts::Loopback.check(&Uri::from_static(uri), &headers);
            assert_eq!(checked.is_ok(), may, "{uri}");
        }
        // HTTP/1.0 need not say it; a browser does.
        let nameless = Hosts::Loopback.check(&Uri::from_static("/"), &HeaderMap::new());
        assert!(nameless.is_ok());
    }

    #[test]
    fn a_host_in_the_configuration_is_a_name_and_nothing_else() {
        for (text, says) in [
            ("relay.example:443", "has a port"),
            ("https://relay.example", "is not the name"),
            ("*.example", "is not the name"),
            ("", "is not the name"),
        ] {
            let error = text.parse::<HostName>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
