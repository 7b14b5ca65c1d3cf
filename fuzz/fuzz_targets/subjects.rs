//! Subjects of NATS: what is read is what would be published.

#![no_main]

use libfuzzer_sys::fuzz_target;
use relay_bus::subject::Subjects;

fuzz_target!(|input: (&str, &str)| {
    let (prefix, subject) = input;
    let usual = Subjects::new("progress", "live").expect("the defaults");
    let odd = Subjects::new(prefix, "live").ok();
    for subjects in [Some(usual), odd].into_iter().flatten() {
        if let Ok(address) = subjects.parse(subject) {
            assert_eq!(subjects.of(&address.job, &address.what), subject);
        }
        if let Ok(address) = subjects.parse_live(subject) {
            let published = subjects.of(&address.job, &address.what);
            assert!(subject.ends_with(&published), "{subject:?} is read as {published:?}");
        }
    }
});
