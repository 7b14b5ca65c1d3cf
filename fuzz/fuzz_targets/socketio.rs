//! Socket.IO: packets in any order on one session, which joins the namespaces it asks for.

#![no_main]

use libfuzzer_sys::fuzz_target;
use relay_core::moment::{Moment, WallTime};
use relay_wire::engineio::sid::socket_id;
use relay_wire::exchange::{About, Heard};
use relay_wire::socketio::client::{Entrance, Visitor};
use relay_wire::socketio::namespace;
use relay_wire::socketio::offset::Return;
use relay_wire::socketio::protocol::Protocol;
use relay_wire::speaker::Speaker;
use relay_wire::websocket::Inbound;

#[path = "support.rs"]
mod support;

fuzz_target!(|input: (bool, &str)| {
    let (is_polling, text) = input;
    let about = About {
        user: None,
        now: WallTime::from_unix_micros(0),
    };
    let found = support::DIALECTS.routes.find("/socket.io/").expect("a path of the shipped dialects");
    let protocol = match is_polling {
        true => Protocol::polling(),
        false => Protocol::websocket(),
    };
    let visitor = Visitor {
        path: "/socket.io/".to_owned(),
        query: Vec::new(),
    };
    let mut speaker = Speaker::socket_io(protocol, visitor);
    for (number, packet) in text.split('\u{1e}').enumerate() {
        let now = Moment::from_micros(number as u64);
        let inbound = match packet {
            "binary" => Inbound::Binary,
            text => Inbound::Text(text.to_owned()),
        };
        match speaker.hear(inbound, &about, now) {
            Heard::Connect(asked, auth) => {
                if let Some(back) = Return::of(auth.as_ref()) {
                    assert!(back.cursors().count() <= 2);
                }
                let endpoint = found.socketio.iter().find_map(|endpoint| {
                    let params = namespace::params(endpoint.namespace.as_deref()?, &asked)?;
                    Some((endpoint.clone(), params))
                });
                let client = speaker.socketio_mut().expect("it speaks Socket.IO");
                match endpoint {
                    Some((endpoint, params)) if !client.is_in(&asked) => {
                        let entrance = Entrance {
                            namespace: asked,
                            endpoint,
                            params: relay_wire::dialect::Params(params),
                            socket_id: socket_id(),
                            pid: None,
                        };
                        client.enter(entrance, now);
                    }
                    _ => {
                        client.not_joined(&asked, "no", None);
                    }
                }
                assert!(client.namespaces() <= relay_wire::socketio::protocol::MAX_NAMESPACES);
            }
            Heard::Disconnect(namespace) => {
                speaker.socketio_mut().expect("it speaks Socket.IO").exit(&namespace);
            }
            Heard::Leave(_) | Heard::Broken(_) => return,
            Heard::Nothing | Heard::Pong | Heard::Answer(_) | Heard::Asked(..) | Heard::Rejected(..) => {}
        }
    }
});
