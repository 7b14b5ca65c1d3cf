//! The gate: what every request passes on its way in, and every answer on its way out.
//!
//! Preflight, origin, cookie, identity, sight, admission, counting and the headers by which a page may read an
//! answer are decided here, for HTTP, WebSocket, SSE, polls, dialects and Engine.IO alike. It does not know what
//! a route is for, in which order a route checks the rest, nor in which shape it refuses.
//!
//! Invariant: a [`Guest`] is made here alone, of a request whose origin may use the relay; nobody is identified or
//! counted without one.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Extensions, Method, Request, Response, Uri, Version};
use relay_bus::hub::Lookup;
use relay_core::id::Name;
use relay_core::limits::{LimitRefusal, Resource, Scope};
use relay_core::topic::Topic;
use relay_core::watcher::sight::{Sight, Viewer as _};

use crate::admission::Admission;
use crate::answer::{ApiError, NO_SNIFF};
use crate::forwarded::is_passed_on;
use crate::headers::asks_for_websocket;
use crate::identity::{Credential, Identity};
use crate::node::Node;
use crate::origin::{Standing, preflight};
use crate::proxies::Client;
use crate::rates::{Rate, TooOften};
use crate::refused::Refused;
use crate::whose;

/// How long a request waits for the bus to say whose a job is.
pub(crate) const LOOKUP_WAIT: Duration = Duration::from_secs(5);

/// The methods of Engine.IO.
pub(crate) const ENGINE_IO: &str = "GET, POST, OPTIONS";
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest request id that is taken over.
const MAX_REQUEST_ID: usize = 128;

/// Whom a request is from, as the door has left it there.
fn client_of(extensions: &Extensions) -> Client {
    extensions.get().copied().unwrap_or(Client::NOBODY)
}

/// A request without its body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head<'a> {
    method: &'a Method,
    uri: &'a Uri,
    version: Version,
    headers: &'a HeaderMap,
    client: Client,
}

impl<'a> Head<'a> {
    pub(crate) fn of<B>(request: &'a Request<B>) -> Self {
        Self {
            method: request.method(),
            uri: request.uri(),
            version: request.version(),
            headers: request.headers(),
            client: client_of(request.extensions()),
        }
    }

    /// Whom the request is from.
    pub(crate) fn client(self) -> Client {
        self.client
    }

    pub(crate) fn method(self) -> &'a Method {
        self.method
    }

    pub(crate) fn uri(self) -> &'a Uri {
        self.uri
    }

    pub(crate) fn version(self) -> Version {
        self.version
    }

    pub(crate) fn headers(self) -> &'a HeaderMap {
        self.headers
    }

    /// Whether it says once to which host it goes (RFC 9112, 3.2). HTTP/1.0 did not have to.
    fn has_one_host(self) -> bool {
        let mut hosts = self.headers.get_all(header::HOST).iter();
        match (hosts.next(), hosts.next()) {
            (None, _) => self.version < Version::HTTP_11,
            (Some(host), None) => {
                let is_name = |byte: &u8| byte.is_ascii_graphic() && !b",/@?#".contains(byte);
                host.as_bytes().iter().all(is_name)
            }
            (Some(_), Some(_)) => false,
        }
    }
}

/// What the gate has to know of a route.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route<'a> {
    kind: Kind,
    /// Under what its answers are counted.
    label: &'a str,
    /// The methods it takes, as `Allow` lists them; empty where there is no such path.
    allow: &'static str,
    /// Whether its answers carry a request id.
    request_id: bool,
}

/// The methods of what is read, or kept open.
pub(crate) const READ: &str = "GET, HEAD, OPTIONS";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Watch,
    Api,
    Dialect,
    EngineIo,
}

impl<'a> Route<'a> {
    /// A route of the native protocol on which jobs are watched.
    pub(crate) fn watch(path: &'a str) -> Self {
        Self::new(Kind::Watch, path, READ, false)
    }

    /// A route that answers and keeps nobody.
    pub(crate) fn api(label: &'a str, allow: &'static str) -> Self {
        Self::new(Kind::Api, label, allow, false)
    }

    /// A route of a dialect: a WebSocket, a poll, or a health path.
    pub(crate) fn dialect(path: &'a str, request_id: bool) -> Self {
        Self::new(Kind::Dialect, path, READ, request_id)
    }

    /// A route on which Engine.IO is spoken.
    pub(crate) fn engine_io(path: &'a str, request_id: bool) -> Self {
        Self::new(Kind::EngineIo, path, ENGINE_IO, request_id)
    }

    fn new(kind: Kind, label: &'a str, allow: &'static str, request_id: bool) -> Self {
        Self {
            kind,
            label,
            allow,
            request_id,
        }
    }

    /// Whether a request that is refused here is a connection that was not opened.
    fn opens(&self, headers: &HeaderMap) -> bool {
        match self.kind {
            Kind::Watch | Kind::EngineIo => true,
            Kind::Dialect => asks_for_websocket(headers),
            Kind::Api => false,
        }
    }
}

/// What a request is at first sight.
#[derive(Debug)]
pub(crate) enum Arrival<'a> {
    /// A preflight. This is its answer, and there is nothing more to it.
    Preflight(Response<Body>),
    /// A request, let in or refused for its host or its origin. Its visit is to be concluded either way.
    Visit(Visit<'a>, Result<Guest, ApiError>),
}

/// What is said in the answer to a request, whatever becomes of it.
#[derive(Debug)]
#[must_use = "a request that does not come to Gate::conclude is not counted, and no page may read its answer"]
pub(crate) struct Visit<'a> {
    label: &'a str,
    opens: bool,
    cors: Vec<(HeaderName, HeaderValue)>,
    request_id: Option<HeaderValue>,
}

impl Visit<'_> {
    /// The id of the request, where the route has one.
    pub(crate) fn request_id(&self) -> Option<&HeaderValue> {
        self.request_id.as_ref()
    }

    /// The headers by which a page may read the answer, for a head that is not written by hyper.
    pub(crate) fn cors(&self) -> &[(HeaderName, HeaderValue)] {
        &self.cors
    }
}

/// A request whose origin may use the relay. Its sender is not known yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guest {
    standing: Standing,
    client: Client,
    /// Whether it came by a proxy that is not believed.
    is_passed_on: bool,
    /// Whether it opens a connection, for which a ticket is good.
    opens: bool,
}

/// How a request ends.
#[derive(Debug)]
pub(crate) enum Outcome<T = Infallible> {
    /// It is answered.
    Answer(Response<Body>),
    /// It leaves hyper's hands.
    Leave(T),
}

/// Why a request is refused, as it is counted.
pub(crate) trait Rejection {
    /// The metric's label.
    fn label(&self) -> &'static str;
}

impl Rejection for ApiError {
    fn label(&self) -> &'static str {
        self.code()
    }
}

/// Who somebody is, or why that is not known.
type Looked = Result<Arc<Identity>, Refused>;

/// The gate of one node.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    node: Arc<Node>,
}

impl Gate {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    /// Looks at a request that comes in: is it a preflight, and may its origin use the relay?
    pub(crate) fn receive<'a>(&self, head: Head<'_>, route: Route<'a>) -> Arrival<'a> {
        let rules = self.node.rules.now();
        let origins = &rules.origins;
        let checked = match head.has_one_host() {
            true => {
                let served = rules.hosts.check(head.uri, head.headers);
                let is_secure = head.client.is_secure;
                let standing =
                    served.and_then(|()| origins.check(head.uri, head.headers, is_secure));
                standing.map_err(ApiError::from)
            }
            false => Err(ApiError::bad_request(
                "bad_host",
                "a request has one Host header, with the name and port that it goes to",
            )),
        };
        // An answer that refuses the origin depends on it all the same.
        let standing = *checked.as_ref().unwrap_or(&Standing::None);
        let cors = origins.response_headers(standing, head.headers);
        if *head.method == Method::OPTIONS {
            let mut answer = match checked {
                Ok(_) => preflight(head.headers).map(|()| Body::empty()),
                Err(refused) => refused.into_answer(),
            };
            let headers = answer.headers_mut();
            headers.extend(cors);
            if !route.allow.is_empty() {
                headers.insert(header::ALLOW, HeaderValue::from_static(route.allow));
            }
            return Arrival::Preflight(answer);
        }
        let guest = checked.map(|standing| Guest {
            standing,
            client: head.client,
            is_passed_on: !head.client.is_named && is_passed_on(head.headers),
            opens: route.kind != Kind::Api && *head.method == Method::GET,
        });
        let visit = Visit {
            label: route.label,
            opens: route.opens(head.headers),
            cors: cors.collect(),
            request_id: route.request_id.then(|| request_id(head.headers)),
        };
        Arrival::Visit(visit, guest)
    }

    /// Waits until the credential of a request can be looked at: its key may have to be fetched.
    ///
    /// # Errors
    /// 503: it cannot be.
    pub(crate) async fn prepare(
        &self,
        guest: Guest,
        head: Head<'_>,
        cookie: Option<&str>,
    ) -> Result<(), Refused> {
        // What is wrong with it is said when it is looked at.
        let Ok(Some(shown)) = self.credential(guest, head, cookie) else {
            return Ok(());
        };
        let clock = self.node.hub.clock();
        self.node.identity.prepare(shown.token(), clock).await
    }

    /// The identity a request shows. `cookie` is the name of the cookie to look for, where it is not everybody's.
    ///
    /// # Errors
    /// 401: there is no credential where one is needed, or what is wrong with it.
    pub(crate) fn identify(
        &self,
        guest: Guest,
        head: Head<'_>,
        cookie: Option<&str>,
    ) -> Result<Identity, Refused> {
        let shown = self.credential(guest, head, cookie)?;
        self.identify_by(guest, shown.as_ref())
    }

    /// The identity a request shows, where a message may show it later; `None` for a request without a credential,
    /// where clients are asked for one.
    ///
    /// # Errors
    /// 401: what is wrong with the credential.
    pub(crate) fn identify_if_shown(
        &self,
        guest: Guest,
        head: Head<'_>,
        cookie: Option<&str>,
    ) -> Result<Option<Identity>, Refused> {
        match self.credential(guest, head, cookie)? {
            None if self.node.identity.asks() => Ok(None),
            shown => self.identify_by(guest, shown.as_ref()).map(Some),
        }
    }

    fn credential(
        &self,
        guest: Guest,
        head: Head<'_>,
        cookie: Option<&str>,
    ) -> Result<Option<Credential>, Refused> {
        let name = cookie.unwrap_or(&self.node.cookie);
        let cookie = guest.standing.may_use_cookie().then_some(name);
        let identity = &self.node.identity;
        identity.credential(head.headers, head.uri, cookie)
    }

    /// The identity a request shows by each cookie that is looked for. What it shows is looked at once, because a
    /// ticket is good once.
    pub(crate) fn identify_by_each<'a>(
        &self,
        guest: Guest,
        head: Head<'_>,
        cookies: impl Iterator<Item = Option<&'a str>>,
    ) -> Vec<(Option<String>, Looked)> {
        let mut looked: Vec<(Option<Credential>, Looked)> = Vec::new();
        let mut found: Vec<(Option<String>, _)> = Vec::new();
        for cookie in cookies {
            if found.iter().any(|(known, _)| known.as_deref() == cookie) {
                continue;
            }
            let identity = self.credential(guest, head, cookie).and_then(|shown| {
                if let Some((_, same)) = looked.iter().find(|(each, _)| *each == shown) {
                    return same.clone();
                }
                let identity = self.identify_by(guest, shown.as_ref()).map(Arc::new);
                looked.push((shown, identity.clone()));
                identity
            });
            found.push((cookie.map(str::to_owned), identity));
        }
        found
    }

    fn identify_by(&self, guest: Guest, shown: Option<&Credential>) -> Result<Identity, Refused> {
        let now = self.node.hub.clock().wall();
        match guest.opens {
            true => self.node.identity.identify_opening(shown, now),
            false => self.node.identity.identify(shown, now),
        }
    }

    /// Whether all of these topics may be watched, as far as is known now.
    ///
    /// # Errors
    /// 403 for a topic of somebody else; 503 when the bus does not say whose a job is.
    pub(crate) async fn may_watch(
        &self,
        identity: &Identity,
        topics: &[Topic],
    ) -> Result<(), ApiError> {
        for topic in topics {
            match (identity.sight(topic), topic) {
                // What it means is said when it is joined.
                (Sight::Yes, _) | (Sight::WhenKnown, Topic::Group(_) | Topic::User(_)) => {}
                (Sight::No, _) => return Err(ApiError::forbidden_topic(topic)),
                (Sight::WhenKnown, Topic::Job(named)) => {
                    let meant = whose::job(&self.node.hub, named, identity, LOOKUP_WAIT).await?;
                    let last = meant.lookup().and_then(Lookup::last_word);
                    let allowed = last.is_none_or(|last| {
                        identity.may_watch(topic, Some(&last.owner), last.parent.as_ref())
                    });
                    if !allowed {
                        return Err(ApiError::forbidden_topic(topic));
                    }
                }
            }
        }
        Ok(())
    }

    /// Counts a request of `user` from where the guest is, and what it is for.
    ///
    /// # Errors
    /// 429, when that comes too often.
    pub(crate) fn allow(
        &self,
        guest: Guest,
        what: Rate,
        user: Option<&Name>,
    ) -> Result<(), ApiError> {
        let rates = &self.node.rates;
        if let Some(user) = user {
            let of_user = rates.of_user(Rate::Requests, user);
            let of_user = of_user.and_then(|()| rates.of_user(what, user));
            of_user.map_err(|refused| self.too_often(&refused))?;
        }
        let of_address = rates.of_address(what, guest.client.counted());
        of_address.map_err(|refused| self.too_often(&refused))
    }

    /// Counts a request before anything is known of it; the answer, if it comes too often.
    pub(super) fn turn_back(&self, head: Head<'_>) -> Option<Response<Body>> {
        let address = head.client.counted();
        let refused = self.node.rates.of_address(Rate::Requests, address).err()?;
        let mut answer = self.too_often(&refused).into_answer();
        // A page may read why, if it may read anything.
        let rules = self.node.rules.now();
        let origins = &rules.origins;
        let standing = origins.check(head.uri, head.headers, head.client.is_secure);
        let standing = standing.unwrap_or(Standing::None);
        let cors = origins.response_headers(standing, head.headers);
        answer.headers_mut().extend(cors);
        let status = answer.status().as_u16();
        self.node.telemetry.request("other", status);
        Some(answer)
    }

    fn too_often(&self, refused: &TooOften) -> ApiError {
        let telemetry = &self.node.telemetry;
        telemetry.limit_rejected(refused.what.as_str(), refused.scope.as_str());
        ApiError::too_often(refused)
    }

    /// Counts one more connection of `user`, from where the guest is.
    ///
    /// # Errors
    /// 429, naming the bound that is reached.
    pub(crate) fn admit(&self, guest: Guest, user: Option<&Name>) -> Result<Admission, ApiError> {
        let admitted = self.node.admissions.admit(user, guest.client);
        admitted.map_err(|refusal| {
            self.note_refusal(refusal, guest.client, guest.is_passed_on);
            ApiError::limit(refusal.code(), &refusal.to_string())
        })
    }

    /// A limit is reached: counts and says it.
    pub(crate) fn over_limit(&self, refusal: LimitRefusal, client: Client) -> ApiError {
        self.note_refusal(refusal, client, false);
        ApiError::limit(refusal.code(), &refusal.to_string())
    }

    /// Counts what is refused for a limit, and says once a minute that clients are turned away that have done nothing
    /// wrong.
    fn note_refusal(&self, refusal: LimitRefusal, client: Client, is_passed_on: bool) {
        let telemetry = &self.node.telemetry;
        telemetry.limit_rejected(refusal.what.as_str(), refusal.scope.as_str());
        let limit = refusal.limit;
        match (refusal.what, refusal.scope) {
            (Resource::Connections | Resource::Sockets, Scope::Address) => {
                if let Some(more) = self.node.told.address.allow() {
                    let advice = match is_passed_on {
                        _ if client.is_named => "a trusted proxy has named it",
                        true => {
                            "what it sends was passed on, so this looks like a proxy, and all clients behind it count as one address; name it in http.trusted_proxies, and say in http.forwarded how it names its clients"
                        }
                        false => {
                            "if this is a proxy, name it in http.trusted_proxies: all clients behind it count as one address"
                        }
                    };
                    tracing::warn!(
                        address = %client.address,
                        what = refusal.what.as_str(),
                        limit,
                        more,
                        "an address has as many connections or sockets as limits.connections_per_address allows, and further ones are rejected; {advice}"
                    );
                }
            }
            (Resource::Connections | Resource::Sockets, Scope::Node) => {
                self.say_full(usize::try_from(limit).unwrap_or(usize::MAX));
            }
            (what, Scope::Node) => {
                if let Some(more) = self.node.told.bytes.allow() {
                    tracing::warn!(
                        what = what.as_str(),
                        limit,
                        more,
                        "this node keeps as many bytes of requests or answers as limits.body_bytes or limits.answer_bytes allows, and further ones are rejected"
                    );
                }
            }
            // A user is limited on purpose, and is told so.
            _ => {}
        }
    }

    /// Says once a minute that there is no room for more clients.
    pub(super) fn say_full(&self, connections: usize) {
        if let Some(more) = self.node.told.full.allow() {
            tracing::warn!(
                connections,
                more,
                "this node has as many connections as it takes, and further ones are rejected; raise limits.connections and the limit on file descriptors, or add a node"
            );
        }
    }

    /// Ends a visit: counts it, and puts on its answer what every answer has. `shape` makes the answer of a
    /// request that is refused.
    pub(crate) fn conclude<T, E: Rejection>(
        &self,
        visit: Visit<'_>,
        answered: Result<Outcome<T>, E>,
        shape: impl FnOnce(E) -> Response<Body>,
    ) -> Outcome<T> {
        let mut answer = match answered {
            Ok(Outcome::Leave(departure)) => return Outcome::Leave(departure),
            Ok(Outcome::Answer(answer)) => answer,
            Err(rejection) => {
                if visit.opens {
                    self.refused(rejection.label());
                }
                shape(rejection)
            }
        };
        let status = answer.status().as_u16();
        self.node.telemetry.request(visit.label, status);
        let headers = answer.headers_mut();
        headers.extend([NO_SNIFF]);
        headers.extend(visit.cors);
        headers.extend(visit.request_id.map(|id| (REQUEST_ID, id)));
        Outcome::Answer(answer)
    }

    /// Counts a connection that was not opened.
    pub(crate) fn refused(&self, reason: &str) {
        self.node.telemetry.refused(reason);
    }
}

/// The client's request id, if it is one, or a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let is_id = |id: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        (1..=MAX_REQUEST_ID).contains(&id.len()) && id.chars().all(known)
    };
    let given = headers.get(REQUEST_ID);
    let given = given.filter(|value| value.to_str().is_ok_and(is_id));
    given.cloned().unwrap_or_else(|| {
        let made = format!("{:032x}", fastrand::u128(..));
        // Hexadecimal digits are of an alphabet headers take.
        HeaderValue::from_str(&made).unwrap_or_else(|_| HeaderValue::from_static("-"))
    })
}

#[cfg(test)]
mod tests;
