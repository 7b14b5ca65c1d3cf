//! Which proxies are believed, and what: whose address counts for a socket and for a request.
//!
//! One of three ways counts (`http.forwarded`); what comes by another is passed over, because a proxy that writes
//! one of them passes on what its client wrote of the others. How that is spelled is `forwarded`'s and
//! `relay_wire::introduction`'s to know; what is bounded by address is not known here.
//!
//! Invariant: an address that a trusted proxy did not write is believed by nobody.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use http::header::{self, HeaderMap, HeaderName};
use ipnet::{IpNet, Ipv4Net};
use relay_wire::introduction::Introduced;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use crate::forwarded::{self, Hop};
use crate::headers::elements;

const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// By which way proxies say whom a request is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Forwarding {
    /// The headers `X-Forwarded-For` and `X-Forwarded-Proto`.
    XForwardedFor,
    /// The header `Forwarded` (RFC 7239).
    Forwarded,
    /// The PROXY protocol, before the first request of a connection.
    Proxy,
}

/// The addresses of a network, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network(IpNet);

/// A text is not a [`Network`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a network; write an address, or one with its prefix, such as \"10.0.0.0/8\"")]
pub(crate) struct NotANetwork(String);

impl Network {
    /// Whether everybody is in it.
    pub(crate) fn is_everybody(self) -> bool {
        self.0.prefix_len() == 0
    }
}

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let text = text.trim();
        let alone = || text.parse::<IpAddr>().map(IpNet::from);
        let network = text.parse().or_else(|_| alone());
        let network: IpNet = network.map_err(|_| NotANetwork(text.to_owned()))?;
        // IPv4 within IPv6 is IPv4.
        let mapped = match network {
            IpNet::V6(v6) if v6.prefix_len() >= 96 => v6.addr().to_ipv4_mapped(),
            _ => None,
        };
        let mapped = mapped.and_then(|v4| Ipv4Net::new(v4, network.prefix_len() - 96).ok());
        Ok(Self(mapped.map_or(network, IpNet::V4).trunc()))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.prefix_len() == self.0.max_prefix_len() {
            true => self.0.addr().fmt(f),
            false => self.0.fmt(f),
        }
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Network {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Network".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "network" })
    }
}

/// Whom a socket or a request is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Client {
    /// Where it is, as far as that is known: the client, or the proxy that does not say for whom it asks.
    pub(crate) address: IpAddr,
    /// Whether a trusted proxy named it.
    pub(crate) is_named: bool,
    /// Whether the bounds of an address hold for it. They do not for a trusted proxy, which asks for many.
    is_bounded: bool,
    /// Whether it is known to have been asked over TLS, and whether it was.
    pub(crate) is_secure: Option<bool>,
}

impl Client {
    /// Of a request that came over no socket, as in tests.
    pub(crate) const NOBODY: Self = Self {
        address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        is_named: false,
        is_bounded: true,
        is_secure: None,
    };

    /// The same, over TLS that ends here.
    pub(crate) fn over_tls(self) -> Self {
        Self {
            is_secure: Some(true),
            ..self
        }
    }

    /// The address against which it counts; `None` where the bounds of an address do not hold.
    pub(crate) fn counted(self) -> Option<IpAddr> {
        self.is_bounded.then_some(self.address)
    }
}

/// Which proxies are believed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Proxies {
    trusted: Vec<Network>,
    /// `None` where no proxy is believed.
    by: Option<Forwarding>,
}

impl Proxies {
    /// Those in these networks, in what they say this way.
    pub(crate) fn new(trusted: &[Network], by: Option<Forwarding>) -> Self {
        Self {
            trusted: trusted.to_vec(),
            by,
        }
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.trusted
            .iter()
            .any(|network| network.0.contains(&address))
    }

    /// Whom a socket is from that has said nothing yet.
    pub(crate) fn peer(&self, address: IpAddr) -> Client {
        let address = address.to_canonical();
        Client {
            address,
            is_named: false,
            is_bounded: !self.trusts(address),
            is_secure: None,
        }
    }

    fn named(&self, address: IpAddr) -> Client {
        Client {
            is_named: true,
            ..self.peer(address)
        }
    }

    /// Whether a connection has to begin with a header of the PROXY protocol.
    pub(crate) fn introduce(&self) -> bool {
        self.by == Some(Forwarding::Proxy)
    }

    /// Whom a socket is from, once its proxy, which is trusted, has said it.
    pub(crate) fn introduced(&self, proxy: Client, by: Introduced) -> Client {
        match by {
            Introduced::Client(address) => self.named(address),
            Introduced::Unknown => hidden_behind(proxy),
            Introduced::Itself => proxy,
        }
    }

    /// Whom a request is from that came in over this socket.
    pub(crate) fn client(&self, socket: Client, headers: &HeaderMap) -> Client {
        if !self.trusts(socket.address) {
            return socket;
        }
        match self.by {
            Some(Forwarding::XForwardedFor) => Client {
                is_secure: secure_by_all(headers).or(socket.is_secure),
                ..self.walk(socket, forwarded::x_forwarded_for(headers))
            },
            Some(Forwarding::Forwarded) => self.walk(socket, forwarded::forwarded(headers)),
            Some(Forwarding::Proxy) | None => socket,
        }
    }

    /// Goes from proxy to proxy, as long as they are trusted. Where the last one does not say for whom it asks, that
    /// is somebody behind it, who is not exempt.
    fn walk(&self, socket: Client, hops: impl Iterator<Item = Hop>) -> Client {
        let mut last = socket;
        for hop in hops {
            let secure = hop.scheme.map(|scheme| scheme == "https");
            last.is_secure = secure.or(socket.is_secure);
            let Some(address) = hop.address else {
                return hidden_behind(last);
            };
            last = Client {
                is_secure: last.is_secure,
                ..self.named(address)
            };
            if last.is_bounded {
                break;
            }
        }
        last
    }

    /// Whether a proxy that is trusted passes a request on and says for whom, but not in the way that counts.
    pub(crate) fn says_it_otherwise(&self, socket: Client, headers: &HeaderMap) -> bool {
        let counts = match self.by {
            Some(Forwarding::XForwardedFor) => headers.contains_key(forwarded::X_FORWARDED_FOR),
            Some(Forwarding::Forwarded) => headers.contains_key(header::FORWARDED),
            Some(Forwarding::Proxy) | None => true,
        };
        !counts && self.trusts(socket.address) && forwarded::is_passed_on(headers)
    }
}

/// Somebody whom a trusted proxy does not name: all of these count as one, at the proxy's address.
fn hidden_behind(proxy: Client) -> Client {
    Client {
        is_bounded: true,
        ..proxy
    }
}

/// What all of the proxies say; `None` where they say nothing, or differ.
fn secure_by_all(headers: &HeaderMap) -> Option<bool> {
    let mut said = elements(headers, X_FORWARDED_PROTO).map(|scheme| {
        let is = |word: &str| scheme.eq_ignore_ascii_case(word);
        (is("https") || is("wss"), is("http") || is("ws"))
    });
    let (secure, plain) = said.next()?;
    let agree = (secure || plain) && said.all(|each| each == (secure, plain));
    agree.then_some(secure)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(by: Forwarding) -> Proxies {
        let trusted = ["10.0.0.0/8", "2001:db8:ffff::/48", "192.0.2.9"];
        Proxies::new(&trusted.map(|each| each.parse().unwrap()), Some(by))
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    /// The address, with a star where the bounds of an address do not hold.
    fn shown(client: Client) -> String {
        let star = client.counted().map_or("*", |_| "");
        format!("{}{star}", client.address)
    }

    fn client(by: Forwarding, peer: &str, lines: &[(&'static str, &str)]) -> String {
        let proxies = proxies(by);
        let socket = proxies.peer(peer.parse().unwrap());
        shown(proxies.client(socket, &headers(lines)))
    }

    #[test]
    fn the_rightmost_address_that_is_not_a_trusted_proxys_counts() {
        let name = "x-forwarded-for";
        for (peer, said, counts) in [
            // Whoever is not trusted is not believed.
            ("203.0.113.5", &["198.51.100.1"][..], "203.0.113.5"),
            ("2001:db8:fffe::1", &["198.51.100.1"], "2001:db8:fffe::1"),
            ("10.1.2.3", &["198.51.100.1"], "198.51.100.1"),
            ("::ffff:10.1.2.3", &["198.51.100.1"], "198.51.100.1"),
            ("2001:db8:ffff::7", &["198.51.100.1"], "198.51.100.1"),
            ("10.1.2.3", &["198.51.100.66, 198.51.100.1"], "198.51.100.1"),
            (
                "10.1.2.3",
                &["198.51.100.66", "198.51.100.1"],
                "198.51.100.1",
            ),
            (
                "10.1.2.3",
                &["198.51.100.1, 192.0.2.9, 10.9.9.9"],
                "198.51.100.1",
            ),
            ("10.1.2.3", &["198.51.100.1", "10.9.9.9"], "198.51.100.1"),
            ("10.1.2.3", &["[::ffff:198.51.100.1]:99"], "198.51.100.1"),
            // A proxy that asks for itself.
            ("10.1.2.3", &[], "10.1.2.3*"),
            ("10.1.2.3", &["10.9.9.9"], "10.9.9.9*"),
            // Somebody who is not named counts, with all like it.
            ("10.1.2.3", &["unknown"], "10.1.2.3"),
            ("10.1.2.3", &["198.51.100.66, rubbish"], "10.1.2.3"),
            ("10.1.2.3", &["unknown, 10.9.9.9"], "10.9.9.9"),
        ] {
            let lines: Vec<_> = said.iter().map(|line| (name, *line)).collect();
            let got = client(Forwarding::XForwardedFor, peer, &lines);
            assert_eq!(got, counts, "{peer} {said:?}");
        }
    }

    #[test]
    fn one_way_counts_and_what_comes_by_another_is_passed_over() {
        let both = [
            ("x-forwarded-for", "198.51.100.1"),
            ("forwarded", "for=198.51.100.2"),
        ];
        for (by, counts) in [
            (Forwarding::XForwardedFor, "198.51.100.1"),
            (Forwarding::Forwarded, "198.51.100.2"),
            (Forwarding::Proxy, "10.1.2.3*"),
        ] {
            assert_eq!(client(by, "10.1.2.3", &both), counts, "{by:?}");
        }
        let forged = [("forwarded", "for=198.51.100.2")];
        let by = Forwarding::XForwardedFor;
        assert_eq!(client(by, "10.1.2.3", &forged), "10.1.2.3*");
        let proxies = proxies(by);
        let said = |peer: &str, lines: &[_]| {
            let socket = proxies.peer(peer.parse().unwrap());
            proxies.says_it_otherwise(socket, &headers(lines))
        };
        assert!(said("10.1.2.3", &forged));
        assert!(!said("203.0.113.5", &forged));
        assert!(!said("10.1.2.3", &both));
        assert!(!said("10.1.2.3", &[]));
        let nobody = Proxies::default();
        let socket = nobody.peer("10.1.2.3".parse().unwrap());
        assert_eq!(shown(nobody.client(socket, &headers(&both))), "10.1.2.3");
    }

    #[test]
    fn a_scheme_is_known_where_a_trusted_proxy_says_it() {
        let secure = |by, peer: &str, lines: &[_]| {
            let proxies = proxies(by);
            let socket = proxies.peer(peer.parse().unwrap());
            proxies.client(socket, &headers(lines)).is_secure
        };
        let x = |peer, values: &[&'static str]| {
            let lines: Vec<_> = values
                .iter()
                .map(|value| ("x-forwarded-proto", *value))
                .collect();
            secure(Forwarding::XForwardedFor, peer, &lines)
        };
        assert_eq!(x("10.1.2.3", &["https"]), Some(true));
        assert_eq!(x("10.1.2.3", &["HTTP"]), Some(false));
        assert_eq!(x("10.1.2.3", &["https, https", "wss"]), Some(true));
        assert_eq!(x("10.1.2.3", &["https, http"]), None);
        assert_eq!(x("10.1.2.3", &["gopher"]), None);
        assert_eq!(x("10.1.2.3", &[]), None);
        assert_eq!(x("203.0.113.5", &["https"]), None);
        let forwarded = |line| secure(Forwarding::Forwarded, "10.1.2.3", &[("forwarded", line)]);
        // The one that took the request from the client knows.
        let chain = "for=198.51.100.1;proto=https, for=10.9.9.9;proto=http";
        assert_eq!(forwarded(chain), Some(true));
        assert_eq!(
            forwarded("for=198.51.100.66;proto=https, for=198.51.100.1;proto=http"),
            Some(false)
        );
        assert_eq!(forwarded("for=198.51.100.1"), None);
        let other = [("x-forwarded-proto", "https")];
        assert_eq!(secure(Forwarding::Forwarded, "10.1.2.3", &other), None);
    }

    #[test]
    fn an_introduced_client_counts_by_its_own_address() {
        let proxies = proxies(Forwarding::Proxy);
        let proxy = proxies.peer("10.1.2.3".parse().unwrap());
        let shown = |by| shown(proxies.introduced(proxy, by));
        let at = |address: &str| Introduced::Client(address.parse().unwrap());
        assert_eq!(shown(at("198.51.100.1")), "198.51.100.1");
        assert_eq!(shown(at("10.9.9.9")), "10.9.9.9*");
        assert_eq!(shown(Introduced::Itself), "10.1.2.3*");
        assert_eq!(shown(Introduced::Unknown), "10.1.2.3");
    }

    #[test]
    fn a_network_is_an_address_with_or_without_its_prefix() {
        for (text, is) in [
            ("10.1.2.3", "10.1.2.3"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("::1", "::1"),
            ("2001:db8::1/32", "2001:db8::/32"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("0.0.0.0/0", "0.0.0.0/0"),
        ] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), is);
        }
        for text in ["", "10.0.0.0/33", "10.0.0", "localhost", "10.0.0.0/", "*"] {
            let error = text.parse::<Network>().unwrap_err().to_string();
            assert!(error.contains("is not a network"), "{error}");
        }
    }
}
