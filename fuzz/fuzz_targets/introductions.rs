//! The header of the PROXY protocol: it asks for no byte behind itself, and what it says does not depend on how many
//! came at a time.

#![no_main]

use libfuzzer_sys::fuzz_target;
use relay_wire::introduction::{self, MAX_BYTES, Step};

fuzz_target!(|bytes: &[u8]| {
    let mut taken = 0;
    loop {
        match introduction::step(&bytes[..taken]) {
            Ok(Step::More(more)) => {
                assert!(more > 0 && taken + more <= MAX_BYTES);
                if taken + more > bytes.len() {
                    return;
                }
                taken += more;
            }
            Ok(Step::Done(_)) | Err(_) => return,
        }
    }
});
