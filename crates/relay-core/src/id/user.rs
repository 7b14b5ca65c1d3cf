//! Names for users whose ids have other characters than a name may have: `auth0|64f`, an e-mail address.
//!
//! The rule is in PROTOCOL.md ("Users whose ids are not names"), with the examples that a test here reads; programs
//! of other languages follow it. Where an id comes from is not known here.
//!
//! Invariant: two ids never get the same name, and [`user_of`] gives back the id of each.

use super::{MAX_NAME_BYTES, Name, NameError, check_name};

/// In front of a name that stands for something else. An id that begins so is escaped too.
const ESCAPED: &str = "u--";

/// Why a user's id cannot have a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// Nothing there.
    #[error("is empty")]
    Empty,
    /// The owner of jobs that belong to nobody. Nobody must not be somebody.
    #[error("is \"-\", which stands for nobody")]
    Nobody,
    /// Longer than a name, escaped.
    #[error(
        "takes {0} characters as a name, and 128 are allowed; use a shorter id (auth.user_claim)"
    )]
    TooLong(usize),
}

/// The name of the user with this id: the id itself if it is a valid name, otherwise `u--` and the id with every
/// byte but `A-Z a-z 0-9 -` as `_` and two hexadecimal digits.
///
/// # Errors
/// Says why the id has no name.
pub fn user_name(id: &str) -> Result<Name, UserError> {
    match check_name(id) {
        Err(NameError::Empty) => return Err(UserError::Empty),
        Ok(()) if id == "-" => return Err(UserError::Nobody),
        Ok(()) if !id.starts_with(ESCAPED) => return Ok(Name(id.into())),
        _ => {}
    }
    let mut name = ESCAPED.to_owned();
    for byte in id.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' => name.push(char::from(byte)),
            other => name.extend(['_', hex_digit(other >> 4), hex_digit(other & 15)]),
        }
    }
    match name.len() {
        0..=MAX_NAME_BYTES => Ok(Name(name.into())),
        long => Err(UserError::TooLong(long)),
    }
}

/// The id of the user with this name; `None` for a name that no id has.
pub fn user_of(name: &Name) -> Option<String> {
    let text = name.as_str();
    let Some(escaped) = text.strip_prefix(ESCAPED) else {
        return (!name.is_nobody()).then(|| text.to_owned());
    };
    let mut id = Vec::new();
    let mut bytes = escaped.bytes();
    while let Some(byte) = bytes.next() {
        id.push(match byte {
            b'_' => hex_value(bytes.next()?)? << 4 | hex_value(bytes.next()?)?,
            other => other,
        });
    }
    let id = String::from_utf8(id).ok()?;
    // Another spelling of an id, or of one that needs none, is not its name.
    (user_name(&id).as_ref() == Ok(name)).then_some(id)
}

fn hex_digit(value: u8) -> char {
    char::from(b"0123456789ABCDEF"[usize::from(value)])
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    /// The examples that programs of other languages are tested with.
    fn examples() -> Vec<(String, String)> {
        let protocol = include_str!("../../../../PROTOCOL.md");
        let table = protocol.split("<!-- user names -->").nth(1).unwrap();
        let cells = |line: &str| {
            let mut cells = line
                .split('`')
                .skip(1)
                .step_by(2)
                .map(|cell| cell.replace("\\|", "|"));
            Some((cells.next()?, cells.next()?))
        };
        table.lines().filter_map(cells).collect()
    }

    #[test]
    fn the_examples_in_the_protocol_are_right() {
        let examples = examples();
        assert!(examples.len() >= 8, "{examples:?}");
        for (id, escaped) in examples {
            assert_eq!(user_name(&id).unwrap().as_str(), escaped);
            assert_eq!(user_of(&name(&escaped)), Some(id));
        }
    }

    #[test]
    fn an_id_without_a_name_is_refused_with_the_reason() {
        assert_eq!(user_name(""), Err(UserError::Empty));
        assert_eq!(user_name("-"), Err(UserError::Nobody));
        assert_eq!(user_name(&"x".repeat(129)), Err(UserError::TooLong(132)));
        assert_eq!(user_name(&"é".repeat(21)), Err(UserError::TooLong(129)));
        assert!(user_name(&"x".repeat(128)).is_ok());
        assert!(user_name(&format!("{}@", "x".repeat(122))).is_ok());
    }

    #[test]
    fn a_name_that_no_id_has_is_nobodys() {
        for text in [
            "-", "u--", "u--abc", "u--a_2", "u--a_2e", "u--a_2Gb", "u--_41", "u--_FF", "u--a_",
        ] {
            assert_eq!(user_of(&name(text)), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_id_comes_back_from_its_name(id in "(u--)?[a-z_@.|é\u{0}-]{0,20}") {
            if let Ok(name) = user_name(&id) {
                prop_assert!(check_name(name.as_str()).is_ok());
                prop_assert_eq!(user_of(&name), Some(id));
            }
        }

        #[test]
        fn every_name_is_that_of_one_id_or_of_none(text in "(u--)?[a-zA-F0-9_-]{1,20}") {
            let name = name(&text);
            if let Some(id) = user_of(&name) {
                prop_assert_eq!(user_name(&id), Ok(name));
            }
        }
    }
}
