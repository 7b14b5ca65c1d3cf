//! From `[auth]` to what identifies clients.
//!
//! Knows which keys are meant; what a key or a token must be is for `identity`.

use super::{Auth, AuthMode, Config};
use crate::identity::key::KeyMaterial;
use crate::identity::verifier::Expected;
use crate::identity::{KeyError, Mode, Verifier};

impl Config {
    /// How clients are identified.
    ///
    /// # Errors
    /// When the key cannot be used; [`Config::load`] has found that already.
    pub(crate) fn identity(&self) -> Result<Mode, KeyError> {
        match self.auth_mode() {
            AuthMode::Anonymous => Ok(Mode::Anonymous),
            AuthMode::Jwt => self.auth.verifier().map(Mode::Jwt),
        }
    }
}

impl Auth {
    /// The key that is given or named.
    ///
    /// # Errors
    /// When there is none, or two, or it cannot be read or used.
    pub(crate) fn key_material(&self) -> Result<KeyMaterial, KeyError> {
        let given = self.key.as_ref().map(|key| key.expose());
        KeyMaterial::read(given, self.key_file.as_deref())
    }

    /// What checks tokens.
    ///
    /// # Errors
    /// When there is no usable key, or the algorithms do not belong to its kind.
    pub(crate) fn verifier(&self) -> Result<Verifier, KeyError> {
        let expected = Expected {
            algorithms: self.algorithms.clone(),
            audience: self.audience.clone(),
            issuer: self.issuer.clone(),
            leeway: self.leeway,
        };
        Verifier::new(&self.key_material()?, expected)
    }
}
