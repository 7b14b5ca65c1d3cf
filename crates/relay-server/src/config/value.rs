//! How single values of a configuration are written: durations, sizes, addresses, lists.
//!
//! Knows nothing of which key a value belongs to; the reader of a value adds the key and the place.

use std::fmt;
use std::marker::PhantomData;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use relay_wire::duration;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};

use super::auth::KeyFile;
use super::secret::Redacted;
use super::url::NatsUrl;

/// A duration in text: `"10s"`, `"250ms"`, `"24h"`. For `#[serde(with = "DurationText")]`.
#[derive(Debug)]
pub(crate) struct DurationText;

/// A size in text or as a number of bytes: `"64KiB"`, `"256MiB"`, `65536`.
#[derive(Debug)]
pub(crate) struct SizeText;

/// An address to listen on: `"127.0.0.1:8080"`, `"localhost:8080"`.
#[derive(Debug)]
pub(crate) struct AddressText;

/// A list, also written as one text with commas (the only way in an environment variable).
#[derive(Debug)]
pub(crate) struct ListOf<T>(PhantomData<T>);

/// Reads a size such as `64KiB`, `10MB` or `4096`.
///
/// # Errors
/// A sentence that says how to write one.
pub(crate) fn parse_size(text: &str) -> Result<usize, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text[digits.len()..].trim();
    let factor: usize = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return Err(not_a_size(text)),
    };
    let number: usize = digits.parse().map_err(|_| not_a_size(text))?;
    number
        .checked_mul(factor)
        .ok_or_else(|| format!("{text:?} is more bytes than this machine can count"))
}

fn not_a_size(text: &str) -> String {
    format!(
        "{text:?} is not a size; write a number of bytes, or a number with KiB, MiB or GiB, such as \"64KiB\""
    )
}

/// Writes a size with the largest binary unit that needs no fraction: `64KiB`, `1000B`.
pub(crate) fn format_size(bytes: usize) -> String {
    for (unit, name) in [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{}{name}", bytes / unit);
        }
    }
    format!("{bytes}B")
}

/// Reads an address to listen on: an IP address or a name of this machine, and a port.
///
/// # Errors
/// A sentence that says what to write instead.
pub(crate) fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let text = text.trim();
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let port = text.rsplit(':').next().unwrap_or(text);
    match (port.parse::<u16>(), text.split_once(':')) {
        (Ok(port), None | Some(("" | "*", _))) => Err(format!(
            "{text:?} has no address; write \"127.0.0.1:{port}\" for this machine only or \"0.0.0.0:{port}\" for every network"
        )),
        (Ok(port), Some((name, rest))) if is_host_name(name) && !rest.contains(':') => {
            resolve(name, port)
        }
        (Err(_), None) if is_host_name(text) => Err(format!(
            "{text:?} has no port; write for example \"{text}:8080\""
        )),
        _ => Err(format!(
            "{text:?} is not an address to listen on; write an IP address and a port, such as \"127.0.0.1:8080\" or \"[::]:8080\""
        )),
    }
}

/// Digits and dots alone are an IP address, or a misspelled one.
fn is_host_name(text: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    text.chars().all(known) && text.contains(|c: char| c.is_ascii_alphabetic())
}

/// The address of a name. An IPv4 address goes first: that is what most people mean by `localhost`.
fn resolve(name: &str, port: u16) -> Result<SocketAddr, String> {
    let found = (name, port).to_socket_addrs().map(Vec::from_iter);
    let address = found
        .as_ref()
        .ok()
        .and_then(|all| all.iter().find(|each| each.is_ipv4()).or(all.first()));
    match (address, &found) {
        (Some(address), _) => Ok(*address),
        (None, Err(error)) => Err(format!(
            "no address is known for the name {name:?} ({error}); write an IP address, such as \"127.0.0.1:{port}\""
        )),
        (None, Ok(_)) => Err(format!(
            "no address is known for the name {name:?}; write an IP address, such as \"127.0.0.1:{port}\""
        )),
    }
}

/// A visitor that takes text or an integer and hands both to functions.
struct TextOr<T> {
    expecting: &'static str,
    text: fn(&str) -> Result<T, String>,
    number: fn(u64) -> Result<T, String>,
}

impl<T> Visitor<'_> for TextOr<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.text)(text).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        (self.number)(number).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        match u64::try_from(number) {
            Ok(number) => self.visit_u64(number),
            Err(_) => Err(E::custom(format_args!("{number} is below zero"))),
        }
    }
}

impl DurationText {
    /// Writes a duration as text.
    ///
    /// # Errors
    /// Only the serializer's own.
    pub(crate) fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&duration::format(*duration))
    }

    /// Reads a duration from text.
    ///
    /// # Errors
    /// When it is not a duration; a number without a unit is refused with the unit to add.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        from.deserialize_any(TextOr {
            expecting: "a duration such as \"10s\"",
            text: duration::parse,
            number: |n| duration::parse(&n.to_string()),
        })
    }
}

impl SizeText {
    /// Writes a size as text.
    ///
    /// # Errors
    /// Only the serializer's own.
    pub(crate) fn serialize<S: Serializer>(bytes: &usize, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format_size(*bytes))
    }

    /// Reads a size from text or a number of bytes.
    ///
    /// # Errors
    /// When it is not a size.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
        from.deserialize_any(TextOr {
            expecting: "a size such as \"64KiB\"",
            text: parse_size,
            number: |n| usize::try_from(n).map_err(|_| not_a_size(&n.to_string())),
        })
    }
}

impl AddressText {
    /// Writes an address as text.
    ///
    /// # Errors
    /// Only the serializer's own.
    pub(crate) fn serialize<S: Serializer>(address: &SocketAddr, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(address)
    }

    /// Reads an address from text.
    ///
    /// # Errors
    /// When it is not an IP address or a known name, and a port; says what to write for `:8080`.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
        from.deserialize_any(TextOr {
            expecting: "an address such as \"127.0.0.1:8080\"",
            text: parse_address,
            number: |n| parse_address(&n.to_string()),
        })
    }
}

impl<T> ListOf<T> {
    /// Writes the list.
    ///
    /// # Errors
    /// Only the serializer's own.
    pub(crate) fn serialize<S: Serializer>(list: &[T], to: S) -> Result<S::Ok, S::Error>
    where
        T: Serialize,
    {
        to.collect_seq(list)
    }

    /// Reads a list, or one text with commas between the parts.
    ///
    /// # Errors
    /// The first part that is not a `T`.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error>
    where
        T: Deserialize<'de>,
    {
        from.deserialize_any(ListVisitor(PhantomData))
    }
}

struct ListVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ListVisitor<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of texts, or one text with commas")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        text.split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| T::deserialize(de::value::StrDeserializer::new(part)))
            .collect()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(part) = parts.next_element()? {
            list.push(part);
        }
        Ok(list)
    }
}

macro_rules! schema {
    ($($type:ty => $name:literal, $schema:tt;)*) => {$(
        impl JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $name.into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )*};
}

schema! {
    DurationText => "Duration", { "type": "string", "format": "duration" };
    SizeText => "Size", { "type": ["string", "integer"], "format": "size" };
    AddressText => "Address", { "type": "string", "format": "address" };
    Redacted => "Secret", { "type": "string", "format": "secret" };
    KeyFile => "KeyFile", { "type": "string", "format": "path" };
    NatsUrl => "NatsUrl", { "type": "string", "format": "URL" };
}

impl<T: JsonSchema> JsonSchema for ListOf<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("ListOf{}", T::schema_name()).into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["array", "string"], "items": generator.subschema_for::<T>() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_back_what_they_write() {
        for text in ["64KiB", "256MiB", "1GiB", "1000B"] {
            assert_eq!(format_size(parse_size(text).unwrap()), text);
        }
        assert_eq!(parse_size("4096").unwrap(), 4096);
        assert_eq!(parse_size("1 MB").unwrap(), 1_000_000);
        assert_eq!(parse_size("64kib").unwrap(), 65_536);
        for bad in ["", "KiB", "64K", "-1", "1.5MiB", "99999999999GiB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_without_an_ip_is_told_what_to_write() {
        assert!(parse_address("[::1]:80").is_ok());
        let named = parse_address("localhost:8080").unwrap();
        assert!(named.ip().is_loopback() && named.port() == 8080, "{named}");
        for (bad, hint) in [
            (":8080", "0.0.0.0:8080"),
            ("8080", "127.0.0.1:8080"),
            ("*:8080", "0.0.0.0:8080"),
            (
                "a..b:8080",
                "write an IP address, such as \"127.0.0.1:8080\"",
            ),
            ("localhost", "\"localhost:8080\""),
            ("localhost:http", "IP address and a port"),
            ("256.0.0.1:8080", "IP address and a port"),
        ] {
            let why = parse_address(bad).unwrap_err();
            assert!(why.contains(hint), "{why}");
        }
    }
}
