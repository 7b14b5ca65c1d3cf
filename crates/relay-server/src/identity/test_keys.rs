//! Keys for tests, made anew in each run by the `openssl` program.

use std::io::Write;
use std::process::{Command, Stdio};

/// A private key in PKCS #8 and its public key, both PEM.
pub(crate) struct Pair {
    pub(crate) private: String,
    pub(crate) public: String,
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
