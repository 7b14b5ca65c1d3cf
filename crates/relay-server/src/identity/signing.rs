//! Signs tokens for development, so that nobody needs a login server to try the relay.
//!
//! Only `relay token` and tests use it; a serving relay never signs.
//!
//! Invariant: what is signed here is what `Verifier` reads, no more.

use jsonwebtoken::{EncodingKey, Header};
use serde::Serialize;

use super::key::{Algorithm, Kind, library_algorithm, pem_labels, with_line_ends};

/// The claims of a development token.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Claims {
    /// The user.
    pub sub: String,
    /// Seconds since 1970.
    pub iat: i64,
    /// Seconds since 1970.
    pub exp: i64,
    /// Topics beyond the user's own jobs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub topics: Vec<String>,
    /// Owners to publish for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<String>,
    /// Audience.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aud: Option<String>,
    /// Issuer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iss: Option<String>,
}

/// Why a token cannot be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SigningError {
    /// Nothing there.
    #[error("the key is empty")]
    Empty,
    /// More keys than one.
    #[error("that holds {0} PEM blocks; keep the private key to sign with alone")]
    Several(usize),
    /// A public key: it can check, not sign.
    #[error(
        "that is a public key, which can check tokens but not sign them; sign with the private key it belongs to: --key-file private.pem"
    )]
    PublicKey,
    /// A private key in another form than the library reads.
    #[error(
        "that private key is not in PKCS #8; convert it: openssl pkcs8 -topk8 -nocrypt -in key.pem"
    )]
    NotPkcs8,
    /// PEM, but of no kind known here.
    #[error("that is not an RSA, EC or Ed25519 private key")]
    UnknownPem,
    /// The algorithm needs another kind of key.
    #[error("{algorithm} cannot sign with this kind of key; leave out --alg or use {fits}")]
    Mismatch {
        /// What was asked for.
        algorithm: Algorithm,
        /// What would fit.
        fits: Algorithm,
    },
    /// Right kind, wrong curve or broken.
    #[error(
        "{algorithm} cannot sign with this key: it is damaged or, for ES256, not on the curve P-256"
    )]
    Unusable {
        /// What was asked for.
        algorithm: Algorithm,
    },
}

/// A key that can sign.
#[derive(Debug)]
pub(crate) struct SigningKey {
    key: EncodingKey,
    algorithm: Algorithm,
    /// What its tokens call it (`kid`).
    id: Option<String>,
}

impl SigningKey {
    /// Takes a private key in PEM, or any other text as a shared secret.
    ///
    /// # Errors
    /// When it is a public key, unreadable, or not for `algorithm`.
    pub(crate) fn new(key: &[u8], algorithm: Option<Algorithm>) -> Result<Self, SigningError> {
        if key.iter().all(u8::is_ascii_whitespace) {
            return Err(SigningError::Empty);
        }
        let (kind, key) = match pem_labels(key).as_slice() {
            [] => (Kind::Secret, EncodingKey::from_secret(key)),
            [label] => private_key(label, &with_line_ends(key.to_vec()))?,
            several => return Err(SigningError::Several(several.len())),
        };
        let algorithm = algorithm.unwrap_or(kind.usual());
        if Kind::of(algorithm) != kind {
            return Err(SigningError::Mismatch {
                algorithm,
                fits: kind.usual(),
            });
        }
        Ok(Self {
            key,
            algorithm,
            id: None,
        })
    }

    /// The same key, by the id that its tokens call it.
    #[cfg(test)]
    pub(crate) fn called(mut self, id: Option<&str>) -> Self {
        self.id = id.map(str::to_owned);
        self
    }

    /// Signs a token.
    ///
    /// # Errors
    /// When the key turns out to be damaged.
    pub(crate) fn sign(&self, claims: &impl Serialize) -> Result<String, SigningError> {
        let mut header = Header::new(library_algorithm(self.algorithm));
        header.kid.clone_from(&self.id);
        jsonwebtoken::encode(&header, claims, &self.key).map_err(|_| SigningError::Unusable {
            algorithm: self.algorithm,
        })
    }
}

fn private_key(label: &str, pem: &[u8]) -> Result<(Kind, EncodingKey), SigningError> {
    match label {
        "EC PRIVATE KEY" | "ENCRYPTED PRIVATE KEY" => return Err(SigningError::NotPkcs8),
        label if label.contains("PUBLIC KEY") || label.contains("CERTIFICATE") => {
            return Err(SigningError::PublicKey);
        }
        _ => {}
    }
    if let Ok(key) = EncodingKey::from_rsa_pem(pem) {
        Ok((Kind::Rsa, key))
    } else if let Ok(key) = EncodingKey::from_ec_pem(pem) {
        Ok((Kind::Ec, key))
    } else if let Ok(key) = EncodingKey::from_ed_pem(pem) {
        Ok((Kind::Ed, key))
    } else {
        Err(SigningError::UnknownPem)
    }
}
