//! Keys for tests, made anew in each run by the `openssl` program.

use std::io::Write;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// A private key in PKCS #8 and its public key, both PEM.
pub(crate) struct Pair {
    pub(crate) private: String,
    pub(crate) public: String,
}

impl Pair {
    /// The public key as a JSON Web Key.
    pub(crate) fn jwk(&self, kid: &str) -> Value {
        let der = openssl_bytes(&["pkey", "-pubin", "-outform", "DER"], &self.public);
        let part = |bytes: &[u8]| json!(URL_SAFE_NO_PAD.encode(bytes));
        let mut jwk = match der.len() {
            // What stands before the key itself is the same for all keys of a kind.
            44 => json!({ "kty": "OKP", "crv": "Ed25519", "x": part(&der[12..]) }),
            91 => {
                let (x, y) = der[27..].split_at(32);
                json!({ "kty": "EC", "crv": "P-256", "x": part(x), "y": part(y) })
            }
            294 => json!({ "kty": "RSA", "n": part(&der[33..289]), "e": "AQAB" }),
            other => panic!("a public key of {other} bytes"),
        };
        jwk["kid"] = json!(kid);
        jwk["use"] = json!("sig");
        jwk
    }
}

pub(crate) fn rsa() -> Pair {
    pair(&["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
}

pub(crate) fn ec() -> Pair {
    ec_on("P-256")
}

pub(crate) fn ec_on(curve: &str) -> Pair {
    let curve = format!("ec_paramgen_curve:{curve}");
    pair(&["-algorithm", "EC", "-pkeyopt", &curve])
}

pub(crate) fn ed() -> Pair {
    pair(&["-algorithm", "ED25519"])
}

fn pair(options: &[&str]) -> Pair {
    let private = openssl(&[&["genpkey"], options].concat(), "");
    let public = openssl(&["pkey", "-pubout"], &private);
    Pair { private, public }
}

/// Runs `openssl` with `input`; what it prints is text.
pub(crate) fn openssl(args: &[&str], input: &str) -> String {
    String::from_utf8(openssl_bytes(args, input)).unwrap()
}

pub(crate) fn openssl_bytes(args: &[&str], input: &str) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("these tests make their keys with the openssl program; install it");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "openssl {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}
