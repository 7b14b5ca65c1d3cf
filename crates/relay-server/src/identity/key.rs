//! The keys tokens are checked with, as they are given, and which algorithms each may be used for.
//!
//! Knows no tokens, and not which of several keys a token means (`keyring`). A text that is or may be a public key is never taken as a shared secret, because then
//! everybody who has the public key could sign.
//!
//! Invariant: a key's kind, not a token's header, decides which algorithms are tried.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::DecodingKey;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::jwks::JwksError;
use crate::fetch::UrlError;

/// A way of signing a token. There is deliberately no `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub(crate) enum Algorithm {
    /// HMAC with SHA-256.
    HS256,
    /// HMAC with SHA-384.
    HS384,
    /// HMAC with SHA-512.
    HS512,
    /// RSA (PKCS #1 v1.5) with SHA-256.
    RS256,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// Ed25519.
    EdDSA,
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Why no token could be checked with the configured key and algorithms.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum KeyError {
    /// No key, and nothing that says where keys are.
    #[error(
        "there is no key to check tokens with; set auth.key_file to a file with the shared secret or the public key (PEM), auth.key, auth.jwks, or auth.issuer and auth.audience for an OpenID provider"
    )]
    Missing,
    /// `auth.jwks` is neither a file nor an address that may be asked.
    #[error("{0}")]
    BadAddress(UrlError),
    /// Keys are to be asked of an issuer that cannot be.
    #[error(
        "{0}; that is where keys would be asked for, as there is no other: set auth.jwks, or give a key"
    )]
    BadIssuer(UrlError),
    /// The file of `auth.jwks` cannot be used.
    #[error("{} {source}", path.display())]
    Set {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: JwksError,
    },
    /// Both `auth.share_key` and `auth.share_key_file`.
    #[error("auth.share_key and auth.share_key_file are both set; keep one")]
    TwoShareKeys,
    /// A file of the relay's own affairs cannot be read.
    #[error("cannot read {}: {source}{}", path.display(), unreadable_hint(source))]
    Own {
        /// The configuration's key.
        at: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// `auth.mode = "url"` without `auth.url`.
    #[error(
        "is needed with auth.mode = \"url\": the address of the application that says who clients are"
    )]
    NoApplication,
    /// `auth.url` may not be asked.
    #[error("{0}")]
    BadApplication(UrlError),
    /// Not a header, or one that belongs to the connection.
    #[error("has {0:?}, which is not a header that can be passed on")]
    BadHeader(String),
    /// None of the algorithms is for keys that are published.
    #[error(
        "has none for a public key, and shared secrets are not published; leave it out, or write RS256, ES256 or EdDSA"
    )]
    NonePublic,
    /// Both `auth.key` and `auth.key_file`.
    #[error("auth.key and auth.key_file are both set; keep one")]
    Two,
    /// The file cannot be read.
    #[error("cannot read {}: {source}{}", path.display(), unreadable_hint(source))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Nothing in it.
    #[error("is empty; put the shared secret or the public key (PEM) there")]
    Empty {
        /// `auth.key` or `auth.key_file`.
        at: &'static str,
    },
    /// Text in another encoding, which is not what the issuer of tokens has.
    #[error("is UTF-16 text; save the file as UTF-8")]
    Utf16 {
        /// `auth.key` or `auth.key_file`.
        at: &'static str,
    },
    /// What is shown in place of a secret.
    #[error(
        "holds \"[redacted]\", which `relay check --print` shows in place of a secret; put the secret itself there"
    )]
    Placeholder {
        /// `auth.key` or `auth.key_file`.
        at: &'static str,
    },
    /// More keys than the one that an id names.
    #[error(
        "holds {count} PEM blocks, and an id (kid) names one key; give each key a file of its own, or leave out the id"
    )]
    Several {
        /// How many.
        count: usize,
    },
    /// More keys than are looked at.
    #[error(
        "are {count} keys; at most {MAX_KEYS} are used, so remove those that no token is signed with any more"
    )]
    TooMany {
        /// How many.
        count: usize,
    },
    /// Something is wrong with a file of `auth.keys`.
    #[error("{} {source}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<KeyError>,
    },
    /// A private key, which the relay has no use for.
    #[error(
        "holds a private key, which only the issuer of tokens should have; give the relay the public key: openssl pkey -in private.pem -pubout"
    )]
    Private {
        /// `auth.key` or `auth.key_file`.
        at: &'static str,
    },
    /// A certificate.
    #[error(
        "holds a certificate; give its public key: openssl x509 -in certificate.pem -noout -pubkey"
    )]
    Certificate {
        /// `auth.key` or `auth.key_file`.
        at: &'static str,
    },
    /// PEM that is not an RSA, EC or Ed25519 public key.
    #[error("holds PEM that is not an RSA, EC or Ed25519 public key")]
    UnknownPem {
        /// `auth.key` or `auth.key_file`.
        at: &'static str,
    },
    /// A public key in another form than PEM.
    #[error(
        "holds what looks like a public key, but not in PEM; write it as PEM (-----BEGIN PUBLIC KEY-----)"
    )]
    PublicNotPem {
        /// `auth.key` or `auth.key_file`.
        at: &'static str,
    },
    /// The key is of another kind than the algorithms.
    #[error(
        "{algorithm} needs {needs}, but {at} holds {holds}; set auth.algorithms = [\"{fits}\"], leave it out, or give the other key"
    )]
    Mismatch {
        /// `auth.key` or `auth.key_file`.
        at: &'static str,
        /// The algorithm that does not fit.
        algorithm: Algorithm,
        /// What it needs.
        needs: &'static str,
        /// What there is.
        holds: &'static str,
        /// What would fit.
        fits: Algorithm,
    },
    /// Right kind, wrong curve or broken.
    #[error(
        "holds a key {algorithm} cannot use: it is damaged or, for ES256, not on the curve P-256"
    )]
    Unusable {
        /// `auth.key` or `auth.key_file`.
        at: &'static str,
        /// The algorithm.
        algorithm: Algorithm,
    },
}

impl KeyError {
    /// The configuration keys at fault, the likeliest first.
    pub(crate) fn keys(&self) -> &'static [&'static str] {
        match self {
            Self::Missing => &["auth.mode", "auth.key", "auth.key_file"],
            Self::BadAddress(_) | Self::Set { .. } => &["auth.jwks"],
            Self::BadIssuer(_) => &["auth.issuer"],
            Self::TwoShareKeys => &["auth.share_key", "auth.share_key_file"],
            Self::Own { at, .. } => match *at {
                "auth.revoked_file" => &["auth.revoked_file"],
                _ => &["auth.share_key_file"],
            },
            Self::NoApplication | Self::BadApplication(_) => &["auth.url"],
            Self::BadHeader(_) => &["auth.forward"],
            Self::NonePublic => &["auth.algorithms"],
            Self::Two => &["auth.key", "auth.key_file"],
            Self::Unreadable { .. } => &["auth.key_file"],
            Self::Mismatch { .. } => &["auth.algorithms"],
            Self::Several { .. } | Self::TooMany { .. } => &["auth.keys"],
            Self::InFile { source, .. } => match &**source {
                Self::Mismatch { .. } => &["auth.algorithms"],
                _ => &["auth.keys"],
            },
            Self::Empty { at }
            | Self::Utf16 { at }
            | Self::Placeholder { at }
            | Self::Private { at }
            | Self::Certificate { at }
            | Self::UnknownPem { at }
            | Self::PublicNotPem { at }
            | Self::Unusable { at, .. } => match *at {
                "auth.key" => &["auth.key"],
                "auth.share_key_file" => &["auth.share_key_file"],
                _ => &["auth.key_file"],
            },
        }
    }
}

/// Which kind of key an algorithm needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Secret,
    Rsa,
    Ec,
    Ed,
}

impl Kind {
    pub(crate) fn of(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => Self::Secret,
            Algorithm::RS256 => Self::Rsa,
            Algorithm::ES256 => Self::Ec,
            Algorithm::EdDSA => Self::Ed,
        }
    }

    /// The algorithm to use when none is named.
    pub(crate) fn usual(self) -> Algorithm {
        match self {
            Self::Secret => Algorithm::HS256,
            Self::Rsa => Algorithm::RS256,
            Self::Ec => Algorithm::ES256,
            Self::Ed => Algorithm::EdDSA,
        }
    }

    pub(crate) fn named(self) -> &'static str {
        match self {
            Self::Secret => "a shared secret",
            Self::Rsa => "an RSA public key",
            Self::Ec => "an EC public key",
            Self::Ed => "an Ed25519 public key",
        }
    }
}

/// The algorithm as the token library names it.
pub(crate) fn library_algorithm(algorithm: Algorithm) -> jsonwebtoken::Algorithm {
    match algorithm {
        Algorithm::HS256 => jsonwebtoken::Algorithm::HS256,
        Algorithm::HS384 => jsonwebtoken::Algorithm::HS384,
        Algorithm::HS512 => jsonwebtoken::Algorithm::HS512,
        Algorithm::RS256 => jsonwebtoken::Algorithm::RS256,
        Algorithm::ES256 => jsonwebtoken::Algorithm::ES256,
        Algorithm::EdDSA => jsonwebtoken::Algorithm::EdDSA,
    }
}

/// The most keys that are configured, or taken from one place.
pub(crate) const MAX_KEYS: usize = 32;

/// One key as it was given, sorted by kind.
pub(crate) struct KeyMaterial {
    /// What tokens call it (`kid`), where that is said.
    id: Option<Box<str>>,
    kind: Kind,
    bytes: Vec<u8>,
    /// `auth.key`, `auth.key_file` or `auth.keys`.
    at: &'static str,
}

impl KeyMaterial {
    /// Takes the keys that are given, or reads the file that holds them. None are fine: they may be elsewhere.
    pub(crate) fn read(given: Option<&str>, file: Option<&Path>) -> Result<Vec<Self>, KeyError> {
        match (given, file) {
            (None, None) => Ok(Vec::new()),
            (Some(_), Some(_)) => Err(KeyError::Two),
            (Some(key), None) => Self::sort(key.as_bytes().to_vec(), None, "auth.key"),
            (None, Some(path)) => Self::sort(read_file(path)?, None, "auth.key_file"),
        }
    }

    /// Reads a file of `auth.keys`. With an `id` it holds one key.
    pub(crate) fn read_named(id: Option<&str>, path: &Path) -> Result<Vec<Self>, KeyError> {
        let read = read_file(path).and_then(|bytes| Self::sort(bytes, id, "auth.keys"));
        read.map_err(|error| match error {
            KeyError::Unreadable { .. } => error,
            error => KeyError::InFile {
                path: path.to_owned(),
                source: Box::new(error),
            },
        })
    }

    fn sort(bytes: Vec<u8>, id: Option<&str>, at: &'static str) -> Result<Vec<Self>, KeyError> {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Err(KeyError::Empty { at });
        }
        if is_utf16(&bytes) {
            return Err(KeyError::Utf16 { at });
        }
        if bytes == b"[redacted]" {
            return Err(KeyError::Placeholder { at });
        }
        let made = |kind, bytes| Self {
            id: id.map(Box::from),
            kind,
            bytes,
            at,
        };
        let labels = pem_labels(&bytes);
        if labels.is_empty() {
            if may_be_public_key(&bytes) {
                return Err(KeyError::PublicNotPem { at });
            }
            return Ok(vec![made(Kind::Secret, bytes)]);
        }
        if labels.iter().any(|label| label.contains("PRIVATE KEY")) {
            return Err(KeyError::Private { at });
        }
        if labels.iter().any(|label| label.contains("CERTIFICATE")) {
            return Err(KeyError::Certificate { at });
        }
        let count = labels.len();
        match (count, id) {
            (2.., Some(_)) => return Err(KeyError::Several { count }),
            (..=MAX_KEYS, _) => {}
            _ => return Err(KeyError::TooMany { count }),
        }
        let blocks = pem_blocks(&with_line_ends(bytes)).into_iter();
        blocks
            .map(|block| {
                let kind = public_kind(&block).ok_or(KeyError::UnknownPem { at })?;
                Ok(made(kind, block))
            })
            .collect()
    }

    /// The secret, if it is one.
    pub(crate) fn secret(&self) -> Option<&[u8]> {
        (self.kind == Kind::Secret).then_some(self.bytes.as_slice())
    }

    /// What tokens call it.
    pub(crate) fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The algorithms of `listed` that this key is for; the usual one of its kind where none are listed.
    pub(crate) fn algorithms(&self, listed: &[Algorithm]) -> Result<Vec<Algorithm>, KeyError> {
        let Some(&first) = listed.first() else {
            return Ok(vec![self.kind.usual()]);
        };
        let own = listed.iter().filter(|each| Kind::of(**each) == self.kind);
        let own: Vec<Algorithm> = own.copied().collect();
        match own.is_empty() {
            true => Err(self.mismatch(first)),
            false => Ok(own),
        }
    }

    /// The key for the token library, once it is sure that one of its own algorithms can be used with it.
    pub(crate) fn decoding_key(&self, algorithm: Algorithm) -> Result<DecodingKey, KeyError> {
        let unusable = |_| KeyError::Unusable {
            at: self.at,
            algorithm,
        };
        let key = match self.kind {
            Kind::Secret => DecodingKey::from_secret(&self.bytes),
            Kind::Rsa => DecodingKey::from_rsa_pem(&self.bytes).map_err(unusable)?,
            Kind::Ec => DecodingKey::from_ec_pem(&self.bytes).map_err(unusable)?,
            Kind::Ed => DecodingKey::from_ed_pem(&self.bytes).map_err(unusable)?,
        };
        check_usable(&key, algorithm).map_err(unusable)?;
        Ok(key)
    }

    /// That `algorithm` needs another kind of key.
    pub(crate) fn mismatch(&self, algorithm: Algorithm) -> KeyError {
        KeyError::Mismatch {
            at: self.at,
            algorithm,
            needs: Kind::of(algorithm).named(),
            holds: self.kind.named(),
            fits: self.kind.usual(),
        }
    }

    /// What is legal about the key but weaker than its algorithms.
    pub(crate) fn weakness(&self, listed: &[Algorithm]) -> Option<String> {
        let bytes = self
            .algorithms(listed)
            .ok()?
            .into_iter()
            .map(|algorithm| match algorithm {
                Algorithm::HS256 => 32,
                Algorithm::HS384 => 48,
                Algorithm::HS512 => 64,
                Algorithm::RS256 | Algorithm::ES256 | Algorithm::EdDSA => 0,
            })
            .max()?;
        let ends = [self.bytes.first(), self.bytes.last()];
        if self.kind == Kind::Secret && ends.into_iter().flatten().any(u8::is_ascii_whitespace) {
            return Some(
                "begins or ends with white space, which the issuer of tokens must have too; leave it out if it is not meant".to_owned(),
            );
        }
        (self.kind == Kind::Secret && self.bytes.len() < bytes).then(|| {
            format!(
                "has {} bytes; a secret shorter than {bytes} can be guessed from one token: openssl rand -hex {bytes}",
                self.bytes.len()
            )
        })
    }
}

impl fmt::Debug for KeyMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyMaterial")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// Fails if the key is damaged or not for this algorithm. The signature is wrong in any case: only an error about the
/// key itself matters.
pub(crate) fn check_usable(
    key: &DecodingKey,
    algorithm: Algorithm,
) -> Result<(), jsonwebtoken::errors::Error> {
    jsonwebtoken::crypto::verify("AA", b"", key, library_algorithm(algorithm)).map(|_| ())
}

fn read_file(path: &Path) -> Result<Vec<u8>, KeyError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(without_marks(bytes)),
        Err(source) => Err(KeyError::Unreadable {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Of which kind the public key in a PEM block is.
fn public_kind(pem: &[u8]) -> Option<Kind> {
    if DecodingKey::from_rsa_pem(pem).is_ok() {
        Some(Kind::Rsa)
    } else if DecodingKey::from_ec_pem(pem).is_ok() {
        Some(Kind::Ec)
    } else if DecodingKey::from_ed_pem(pem).is_ok() {
        Some(Kind::Ed)
    } else {
        None
    }
}

const PEM_BEGIN: &str = "-----BEGIN";

/// Each PEM block by itself.
fn pem_blocks(bytes: &[u8]) -> Vec<Vec<u8>> {
    let text = String::from_utf8_lossy(bytes);
    let blocks = text.split(PEM_BEGIN).skip(1);
    blocks
        .map(|rest| [PEM_BEGIN, rest].concat().into_bytes())
        .collect()
}

/// `PUBLIC KEY` of `-----BEGIN PUBLIC KEY-----`, wherever it stands, of each block.
pub(crate) fn pem_labels(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let blocks = text.split(PEM_BEGIN).skip(1);
    let labels = blocks.map(|rest| rest.split("-----").next().unwrap_or_default());
    labels.map(|label| label.trim().to_owned()).collect()
}

/// In an environment variable PEM often comes with `\n` spelled out.
pub(crate) fn with_line_ends(bytes: Vec<u8>) -> Vec<u8> {
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\n') => text.replace("\\n", "\n").into_bytes(),
        Ok(text) => text.into_bytes(),
        Err(error) => error.into_bytes(),
    }
}

/// Editors put a byte order mark before a text, and they and `echo` a line end after it, that are not part of the
/// secret.
pub(crate) fn without_marks(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
    if bytes.ends_with(b"\n") {
        bytes.pop();
        if bytes.ends_with(b"\r") {
            bytes.pop();
        }
    }
    bytes
}

/// Whether these bytes are text that was saved as UTF-16: its mark, and a zero in each pair of bytes.
pub(crate) fn is_utf16(bytes: &[u8]) -> bool {
    let marked = bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff");
    marked && bytes[2..].chunks(2).all(|pair| pair.contains(&0))
}

/// What to do about a file that the relay's user may not read.
pub(crate) fn unreadable_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; the user that the relay runs as must be able to read it (systemd: LoadCredential=)"
        }
        _ => "",
    }
}

/// Whether these bytes are a public key in a form other than PEM: SSH's, a JWK, DER or DER in base64.
fn may_be_public_key(bytes: &[u8]) -> bool {
    /// Object identifiers of RSA, EC and Ed25519 keys, as DER writes them.
    const KEY_IDS: [&[u8]; 3] = [
        &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01],
        &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01],
        &[0x06, 0x03, 0x2b, 0x65, 0x70],
    ];
    let is_der = |der: &[u8]| {
        der.first() == Some(&0x30)
            && KEY_IDS
                .iter()
                .any(|id| der.windows(id.len()).any(|w| w == *id))
    };
    let Ok(text) = std::str::from_utf8(bytes) else {
        return is_der(bytes);
    };
    let text = text.trim();
    let packed: String = text.split_ascii_whitespace().collect();
    let jwk = serde_json::from_str::<serde_json::Value>(text).is_ok_and(|j| j.get("kty").is_some());
    text.starts_with("ssh-")
        || text.starts_with("ecdsa-sha2-")
        || jwk
        || is_der(bytes)
        || STANDARD.decode(packed).is_ok_and(|der| is_der(&der))
}
