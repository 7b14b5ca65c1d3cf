//! The paths a dialect's file names: streams, polls and health, each checked and put into the table of routes.
//!
//! What the rest of the file says is known by the dialect that it became.
//!
//! Invariant: a path that is wrong in itself or collides is said once, and not served.

use std::sync::Arc;

use toml::Spanned;

use super::super::file::{Carrier, HealthFile, PollFile, RouteFile, UnknownFile};
use super::super::poll::{Health, Poll, Unknown};
use super::super::reserved;
use super::super::routes::Endpoint;
use super::super::template::{Template, params_of};
use super::super::{Dialect, Dialects, Voice};
use super::Reading;

/// Jobs that one list may have.
const MAX_LISTED: usize = 1000;
/// Subprotocols that one route may speak.
const MAX_SUBPROTOCOLS: usize = 8;

impl Reading<'_> {
    pub(super) fn route(&mut self, route: &RouteFile, voice: Arc<Voice>, into: &mut Dialects) {
        let at = route.path.span().start;
        let path = route.path.get_ref();
        if !self.path_is_free(at, "routes.path", path) {
            return;
        }
        let mut params = params_of(path);
        let namespace = route.namespace.as_ref().map(Spanned::get_ref);
        match (route.transport, namespace) {
            (Carrier::WebSocket | Carrier::EventStream, Some(_)) => {
                let message = "only a route with transport = \"socketio\" has namespaces";
                return self.refuse(at, "routes.namespace", message);
            }
            (Carrier::SocketIo, Some(namespace)) if !namespace.starts_with('/') => {
                return self.refuse(at, "routes.namespace", "must begin with /");
            }
            (_, namespace) => params.extend(namespace.iter().flat_map(|text| params_of(text))),
        }
        let mut topics = Vec::new();
        for topic in &route.topics {
            match Template::parse(topic.get_ref(), &params) {
                Ok(template) => topics.push(template),
                Err(error) => {
                    let message = format!("{:?} is not a valid topic: {error}", topic.get_ref());
                    self.refuse(topic.span().start, "routes.topics", message);
                }
            }
        }
        if route.transport == Carrier::EventStream && topics.is_empty() {
            let message = "an event stream takes no messages; say in routes.topics what is watched";
            return self.refuse(at, "routes.topics", message);
        }
        let endpoint = Endpoint {
            path: path.clone(),
            namespace: match route.transport {
                Carrier::WebSocket | Carrier::EventStream => None,
                Carrier::SocketIo => Some(namespace.map_or("/", String::as_str).to_owned()),
            },
            subprotocols: self.subprotocols(route),
            voice,
            topics,
        };
        if let Err(error) = into.routes.add_endpoint(endpoint) {
            self.refuse(at, "routes.path", error.to_string());
        }
    }

    /// The subprotocols a route speaks.
    fn subprotocols(&mut self, route: &RouteFile) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for each in &route.subprotocols {
            let (at, name) = (each.span().start, each.get_ref());
            // RFC 6455 section 4.1: a token of RFC 2616.
            let is_token = !name.is_empty()
                && name
                    .chars()
                    .all(|c| c.is_ascii_graphic() && !"()<>@,;:\\\"/[]?={}".contains(c));
            let message = if route.transport != Carrier::WebSocket {
                "only a route with transport = \"websocket\" has subprotocols".to_owned()
            } else if !is_token {
                format!(
                    "{name:?} is not a valid subprotocol; use letters, digits and signs such as - . _"
                )
            } else if name.starts_with("relay.") {
                format!("{name:?} cannot be used: names that begin with relay. are the relay's own")
            } else if names.contains(name) {
                format!("{name:?} is there twice")
            } else if names.len() == MAX_SUBPROTOCOLS {
                format!("more than {MAX_SUBPROTOCOLS} subprotocols")
            } else {
                names.push(name.clone());
                continue;
            };
            self.refuse(at, "routes.subprotocols", message);
        }
        names
    }

    pub(super) fn poll(&mut self, poll: &PollFile, dialect: &Arc<Dialect>, into: &mut Dialects) {
        let at = poll.path.span().start;
        let path = poll.path.get_ref();
        let body = self.mapping("polls.body", Some(&poll.body));
        let unknown = poll.unknown.as_ref().map(|unknown| self.unknown(unknown));
        if !self.path_is_free(at, "polls.path", path) {
            return;
        }
        let params = params_of(path);
        let topic = match &poll.topic {
            Some(topic) => match Template::parse(topic.get_ref(), &params) {
                Ok(template) => template,
                Err(error) => {
                    let message = format!("{:?} is not a valid topic: {error}", topic.get_ref());
                    return self.refuse(topic.span().start, "polls.topic", message);
                }
            },
            None if params == ["job"] => Template::of_job(),
            None => {
                let message =
                    "a polled path has one parameter, {job}, or polls.topic names what it watches";
                return self.refuse(at, "polls.path", message);
            }
        };
        if let Some(list) = &poll.list {
            let at = list.span().start;
            if topic.is_of_job() {
                let message =
                    "a list is of the jobs of a user: or group: topic; name one in polls.topic";
                return self.refuse(at, "polls.list", message);
            }
            if !(1..=MAX_LISTED).contains(list.get_ref()) {
                let message = format!("must be from 1 to {MAX_LISTED} jobs");
                return self.refuse(at, "polls.list", message);
            }
        }
        let (Some(body), None | Some(Some(_))) = (body, &unknown) else {
            return;
        };
        let slot = into.take_slots(1);
        let added = into.routes.add_poll(Poll {
            path: path.clone(),
            topic,
            dialect: dialect.clone(),
            per_minute: poll.per_minute,
            interval: poll.interval.map(|time| time.0),
            view: poll.view.clone(),
            list: poll.list.as_ref().map(|list| *list.get_ref()),
            body,
            unknown: unknown.flatten(),
            slot,
            slots: into.slots.clone(),
        });
        if let Err(error) = added {
            self.refuse(at, "polls.path", error.to_string());
        }
    }

    /// The answer where nothing is known; `None` if it is not right.
    fn unknown(&mut self, unknown: &UnknownFile) -> Option<Unknown> {
        let body = self.mapping("polls.unknown.body", Some(&unknown.body));
        let status = unknown.status.as_ref().map_or(200, |it| *it.get_ref());
        if !matches!(status, 200..=203 | 206..=299 | 400..=599) {
            let at = unknown.status.as_ref().map_or(0, |it| it.span().start);
            let message = format!("{status} is not a status that has a body; use 200, 202 or 404");
            self.refuse(at, "polls.unknown.status", message);
            return None;
        }
        Some(Unknown {
            status,
            body: body?,
        })
    }

    pub(super) fn health(
        &mut self,
        health: &HealthFile,
        dialect: &Arc<Dialect>,
        into: &mut Dialects,
    ) {
        let at = health.path.span().start;
        let path = health.path.get_ref();
        let body = self.mapping("health.body", Some(&health.body));
        if !self.path_is_free(at, "health.path", path) {
            return;
        }
        if !params_of(path).is_empty() {
            let message =
                "the relay's health is the same for everybody; leave out the path's parameters";
            return self.refuse(at, "health.path", message);
        }
        let Some(body) = body else {
            return;
        };
        let added = into.routes.add_health(Health {
            path: path.clone(),
            dialect: dialect.clone(),
            body,
        });
        if let Err(error) = added {
            self.refuse(at, "health.path", error.to_string());
        }
    }

    fn path_is_free(&mut self, at: usize, key: &str, path: &str) -> bool {
        let message = if !path.starts_with('/') || path == "/" {
            "must begin with / and have something behind it".to_owned()
        } else if let Some(own) = reserved::taken(path) {
            format!("collides with {own}, which is the relay's own")
        } else {
            return true;
        };
        self.refuse(at, key, message);
        false
    }
}
