//! Tokens: nobody comes in whose token this relay's issuer did not sign.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|token: &str| relay_server::fuzzing::token(token));
