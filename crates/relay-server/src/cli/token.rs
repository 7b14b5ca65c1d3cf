//! `relay token`: signs a token for development.
//!
//! Standard output gets the token and nothing else, so that `$(relay token …)` works in a shell.
//!
//! Invariant: a token the configured relay would refuse is not printed.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use relay_bus::clock::Clock;
use relay_core::id::user::{UserError, user_name};

use crate::config::{AuthMode, Config, ConfigErrors, Redacted, environment};
use crate::identity::key::without_marks;
use crate::identity::own_key::{OwnKey, Purpose};
use crate::identity::share::{SharedJob, SharedJobError, Shares};
use crate::identity::signing::{Claims, SigningError, SigningKey};
use crate::identity::ticket::random_id;
use crate::identity::{Algorithm, GrantError, Grants, KeyError};
use crate::refused::Refused;

/// Arguments of `relay token`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct TokenArgs {
    /// User the token is for
    #[arg(long, value_name = "USER", required_unless_present = "share")]
    pub sub: Option<String>,

    /// Make a share in place of a user's token: it may watch this one job, job:OWNER/ID, and nothing else. Its id, by which it can be revoked, goes to standard error
    #[arg(long, value_name = "JOB", conflicts_with_all = ["sub", "topic", "publish", "ttl", "audience", "issuer", "alg"])]
    pub share: Option<String>,

    /// How long a share is good
    #[arg(long = "for", value_name = "TIME", requires = "share", default_value = "24h", value_parser = relay_wire::duration::parse)]
    pub share_for: Duration,

    /// Topic it may watch besides the user's own jobs: job:ID, user:ID, group:ID, with * at the end or alone; repeatable
    #[arg(long, value_name = "TOPIC", value_delimiter = ',')]
    pub topic: Vec<String>,

    /// Owner it may publish for over HTTP, * for all; repeatable
    #[arg(long, value_name = "OWNER", value_delimiter = ',')]
    pub publish: Vec<String>,

    /// How long it is good
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = relay_wire::duration::parse)]
    pub ttl: Duration,

    /// Audience (aud); by default the one the configuration asks for
    #[arg(long, value_name = "AUD")]
    pub audience: Option<String>,

    /// Issuer (iss); by default the one the configuration asks for
    #[arg(long, value_name = "ISS")]
    pub issuer: Option<String>,

    /// Configuration file whose auth.key or auth.key_file signs
    #[arg(long, short, value_name = "FILE", env = "RELAY_CONFIG")]
    pub config: Option<PathBuf>,

    /// Shared secret to sign with; others on this machine can see it while the command runs
    #[arg(long, value_name = "SECRET", conflicts_with = "key_file", value_parser = secret)]
    pub key: Option<Redacted>,

    /// File with the shared secret or the private key (PEM) to sign with
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,

    /// Algorithm: HS256, HS384, HS512, RS256, ES256 or EdDSA; by default what fits the key
    #[arg(long, value_name = "ALG", value_parser = algorithm)]
    pub alg: Option<Algorithm>,
}

/// What was made.
#[derive(Debug)]
struct Made {
    token: String,
    /// The id of a share.
    id: Option<String>,
}

/// Why no token was signed.
#[derive(Debug, thiserror::Error)]
enum TokenError {
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    #[error("--sub {0}")]
    Sub(UserError),
    #[error("{0}")]
    Grants(#[from] GrantError),
    #[error("--share {0}")]
    Share(SharedJobError),
    #[error(
        "there is no key to sign shares with: set auth.share_key_file in the configuration of the relay (--config), or give the same secret by --key-file"
    )]
    NoShareKey,
    #[error("--ttl and --for must be at least a second and at most ten years")]
    Ttl,
    #[error(
        "there is no key to sign with: name a configuration with a shared secret in auth.key or auth.key_file (--config), or give --key-file"
    )]
    NoKey,
    #[error(
        "the configuration has only a public key ({at}), which can check tokens but not sign them; sign with the private key it belongs to: --key-file private.pem"
    )]
    OnlyPublicKey { at: &'static str },
    #[error("cannot read {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Signing(#[from] SigningError),
    #[error("{0}")]
    Key(#[from] KeyError),
    #[error("a relay with this configuration would reject the token: {0}")]
    Refused(Refused),
    #[error("cannot write the token: {0}")]
    Write(io::Error),
}

fn secret(text: &str) -> Result<Redacted, std::convert::Infallible> {
    Ok(Redacted::new(text))
}

fn algorithm(text: &str) -> Result<Algorithm, String> {
    let value = serde::de::value::StrDeserializer::<serde::de::value::Error>::new(text);
    serde::Deserialize::deserialize(value)
        .map_err(|_| "use HS256, HS384, HS512, RS256, ES256 or EdDSA".to_owned())
}

/// Prints a signed token. Exit code 1, with the reason on standard error, if it cannot be made.
pub(super) fn run(args: TokenArgs) -> ExitCode {
    let made = make(&args, environment()).and_then(|made| {
        writeln!(io::stdout().lock(), "{}", made.token).map_err(TokenError::Write)?;
        Ok(made.id)
    });
    let error = match made {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(id)) => {
            writeln!(io::stderr().lock(), "relay token: the share's id is {id}; in auth.revoked or auth.revoked_file it ends the share").ok();
            return ExitCode::SUCCESS;
        }
        Err(error) => error,
    };
    // Nobody is left to tell when standard error is closed too; the exit code still says it.
    writeln!(io::stderr().lock(), "relay token: {error}").ok();
    ExitCode::FAILURE
}

fn make(args: &TokenArgs, env: impl Iterator<Item = (String, String)>) -> Result<Made, TokenError> {
    let config = Config::load(args.config.as_deref(), env)?;
    match (&args.share, &args.sub) {
        (Some(job), _) => make_share(job, args, &config),
        (None, Some(user)) => make_token(user, args, &config),
        // The command line's reader does not let it come to this.
        (None, None) => Err(TokenError::Sub(UserError::Empty)),
    }
}

fn make_share(job: &str, args: &TokenArgs, config: &Config) -> Result<Made, TokenError> {
    let job = SharedJob::parse(job).map_err(TokenError::Share)?;
    let seconds = lifetime(args.share_for)?;
    let given = args
        .key
        .as_ref()
        .map(|key| key.expose().as_bytes().to_vec());
    let given = match (&given, &args.key_file) {
        (None, Some(path)) => Some(read(path)?),
        _ => given,
    };
    let key = match given {
        Some(secret) => OwnKey::derive(&secret, Purpose::Share),
        None => config.auth.own_key(Purpose::Share)?,
    };
    let shares = key.map(|key| Shares::new(key, 1, Arc::default()));
    let shares = shares.ok_or(TokenError::NoShareKey)?;
    let now = Clock::start().wall().as_unix_micros() / 1_000_000;
    let id = random_id();
    let token = shares.make(&job, &id, (now, now + seconds));
    Ok(Made {
        token: token.ok_or(TokenError::NoShareKey)?,
        id: Some(id),
    })
}

/// A lifetime in seconds.
fn lifetime(ttl: Duration) -> Result<i64, TokenError> {
    match ttl.as_secs() == 0 || ttl > Duration::from_secs(10 * 365 * 86_400) {
        true => Err(TokenError::Ttl),
        false => Ok(ttl.as_secs().cast_signed()),
    }
}

fn make_token(user: &str, args: &TokenArgs, config: &Config) -> Result<Made, TokenError> {
    user_name(user).map_err(TokenError::Sub)?;
    Grants::new(
        args.topic.iter().map(String::as_str),
        args.publish.iter().map(String::as_str),
    )?;
    let seconds = lifetime(args.ttl)?;
    let key = signing_key(args, config)?;
    let wall = Clock::start().wall();
    let now = wall.as_unix_micros() / 1_000_000;
    let token = key.sign(&Claims {
        sub: user.to_owned(),
        iat: now,
        exp: now + seconds,
        topics: args.topic.clone(),
        publish: args.publish.clone(),
        aud: args
            .audience
            .clone()
            .or_else(|| config.auth.audience.clone()),
        iss: args.issuer.clone().or_else(|| config.auth.issuer.clone()),
    })?;
    if config.auth_mode() == AuthMode::Jwt {
        // Whether a key that is published elsewhere fits is not asked: the relay's network is another.
        let verifier = config.auth.verifier(None);
        if let Ok(verifier) = verifier {
            verifier.verify(&token, wall).map_err(TokenError::Refused)?;
        }
    }
    Ok(Made { token, id: None })
}

fn read(path: &PathBuf) -> Result<Vec<u8>, TokenError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(without_marks(bytes)),
        Err(source) => Err(TokenError::Unreadable {
            path: path.clone(),
            source,
        }),
    }
}

/// The key from the command line, or else the configuration's, if that one can sign.
fn signing_key(args: &TokenArgs, config: &Config) -> Result<SigningKey, TokenError> {
    let auth = &config.auth;
    if let Some(path) = &args.key_file {
        return Ok(SigningKey::new(&read(path)?, args.alg)?);
    }
    if let Some(key) = &args.key {
        return Ok(SigningKey::new(key.expose().as_bytes(), args.alg)?);
    }
    let (bytes, at) = match (&auth.key, &auth.key_file) {
        (Some(key), _) => (key.expose().as_bytes().to_vec(), "auth.key"),
        (None, Some(path)) => (read(path)?, "auth.key_file"),
        (None, None) => return Err(TokenError::NoKey),
    };
    let algorithm = args.alg.or(auth.algorithms.first().copied());
    match SigningKey::new(&bytes, algorithm) {
        Err(SigningError::PublicKey) => Err(TokenError::OnlyPublicKey { at }),
        made => Ok(made?),
    }
}

#[cfg(test)]
mod tests;
