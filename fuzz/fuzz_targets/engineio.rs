//! Engine.IO: queries, payloads, packets and session ids.

#![no_main]

use libfuzzer_sys::fuzz_target;
use relay_wire::engineio::sid::{Sid, Whereabouts};
use relay_wire::engineio::{Packet, payload, request};
use relay_wire::target;

fuzz_target!(|data: &[u8]| {
    if let Ok(packets) = payload::split(data) {
        let packets: Vec<_> = packets.collect();
        assert_eq!(packets.join("\u{1e}").as_bytes(), data);
        for packet in packets {
            let _ = Packet::parse(packet).is_ok();
        }
    }
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    for method in ["GET", "POST", "PUT"] {
        for is_upgrade in [false, true] {
            if let Err(error) = request::parse(method, text, is_upgrade) {
                assert!((400..500).contains(&error.code.status()), "{error:?}");
                serde_json::from_slice::<serde_json::Value>(&error.body()).expect("an answer is JSON");
            }
        }
    }
    request::is_engine_io(text);
    for (name, value) in target::pairs(text) {
        assert!(name.len() + value.len() <= 3 * text.len());
    }
    let path = target::normal_path(text);
    assert_eq!(target::normal_path(&path), path, "a path that is normal stays as it is");
    if let Whereabouts::Here(sid) = Sid::parse(text) {
        assert_eq!(sid.to_string(), text);
    }
});
