//! The heads of requests: credentials, origins, hosts and what a proxy says.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, Vec<(u8, &[u8])>)| relay_server::fuzzing::request(input.0, &input.1));
