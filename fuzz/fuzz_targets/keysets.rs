//! Key sets (JWKS) from the URL of an issuer.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| relay_server::fuzzing::key_set(bytes));
