//! The example without its argument.

use std::process::Command;

#[test]
fn without_a_job_it_says_how_to_call_it() {
    let output = Command::new(env!("CARGO_BIN_EXE_relay-example-worker"))
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("usage: relay-example-worker JOB [OWNER [ATTEMPT]]"),
        "{said}"
    );
}
