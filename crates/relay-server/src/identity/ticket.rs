//! Tickets: words that open one connection within half a minute, for URLs that end up in logs.
//!
//! Who a ticket stands for is kept here, on the node that made it; the ticket itself says which node that is, and is
//! signed, so that another node can say what is wrong. A node that was started again knows none of its tickets.
//!
//! Invariant: a ticket is taken at most once, and never after its time.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use relay_core::moment::WallTime;
use serde::{Deserialize, Serialize};

use super::Identity;
use super::own_key::OwnKey;
use crate::refused::Refused;

/// How long a ticket is good.
pub(crate) const LIFETIME: Duration = Duration::from_secs(30);
/// Tickets that are not taken yet, of all users.
const MOST: usize = 4_096;
/// Tickets of one user that are not taken yet.
const MOST_PER_USER: usize = 64;

#[derive(Debug, Serialize, Deserialize)]
struct TicketClaims {
    jti: String,
    /// The node that made it.
    node: String,
    /// Seconds since 1970.
    exp: i64,
}

/// The tickets that a node made and nobody has taken yet.
#[derive(Debug)]
pub(crate) struct Tickets {
    key: OwnKey,
    /// What this node is called in its tickets; another one after each start.
    node: String,
    waiting: Mutex<HashMap<String, Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    identity: Identity,
    ends: WallTime,
}

impl Tickets {
    /// No tickets yet. `key` is the same on all nodes that know each other's tickets for tickets.
    pub(crate) fn new(key: OwnKey) -> Self {
        Self {
            key,
            node: random_id(),
            waiting: Mutex::default(),
        }
    }

    /// A ticket for the bearer of this `identity`.
    ///
    /// # Errors
    /// 429: too many were made and not taken.
    pub(crate) fn make(&self, identity: &Identity, now: WallTime) -> Result<String, Refused> {
        let lifetime = i64::try_from(LIFETIME.as_micros()).unwrap_or(i64::MAX);
        let ends = WallTime::from_unix_micros(now.as_unix_micros().saturating_add(lifetime));
        let jti = random_id();
        let claims = TicketClaims {
            jti: jti.clone(),
            node: self.node.clone(),
            exp: ends.as_unix_micros() / 1_000_000,
        };
        let mut waiting = self.waiting.lock();
        if waiting.len() >= MOST {
            waiting.retain(|_, each| each.ends > now);
        }
        let own = |each: &&Waiting| each.identity.user == identity.user && each.ends > now;
        let of_user = waiting.values().filter(own).count();
        if waiting.len() >= MOST || of_user >= MOST_PER_USER {
            return Err(Refused::too_many(
                "ticket_limit",
                format!(
                    "{of_user} tickets of yours are not used yet, or all tickets of this node are given out. Use one, or try again in {} seconds.",
                    LIFETIME.as_secs()
                ),
            ));
        }
        let ticket = self.key.sign(&claims).unwrap_or_default();
        let identity = identity.clone();
        waiting.insert(jti, Waiting { identity, ends });
        Ok(ticket)
    }

    /// The identity that a ticket stands for. It is taken with that.
    ///
    /// # Errors
    /// 401: it is not a ticket of this node, was taken already, or its time is over.
    pub(crate) fn take(&self, ticket: &str, now: WallTime) -> Result<Identity, Refused> {
        let refused = |why: &str| {
            let sentence = format!("{why} Get a new one with POST /v1/tickets.");
            Err(Refused::unauthorized("ticket_not_good", sentence))
        };
        let Some(claims) = self.key.open::<TicketClaims>(ticket) else {
            return refused(
                "The ticket was not made by this node since it was started, or was changed on the way.",
            );
        };
        if claims.node != self.node {
            return refused(
                "The ticket was made by another node, or before this one was started again; it opens a connection to the node that made it.",
            );
        }
        match self.waiting.lock().remove(&claims.jti) {
            Some(found) if found.ends > now => Ok(found.identity),
            Some(_) => refused("The ticket's 30 seconds are over."),
            None => refused(
                "The ticket was used already, or its 30 seconds are over; it opens one connection.",
            ),
        }
    }
}

/// An id that nobody guesses.
pub(crate) fn random_id() -> String {
    let mut bytes = [0; 16];
    // Without randomness there is none to wait for; ids are not secrets by themselves, the signature is.
    if getrandom::fill(&mut bytes).is_err() {
        fastrand::fill(&mut bytes);
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::own_key::Purpose;
    use relay_core::id::Name;

    const NOW: WallTime = WallTime::from_unix_micros(1_000_000_000);

    fn tickets(secret: &[u8]) -> Tickets {
        Tickets::new(OwnKey::derive(secret, Purpose::Ticket).unwrap())
    }

    fn of(user: &str) -> Identity {
        Identity {
            user: Some(Name::parse(user).unwrap()),
            ..Identity::nobody()
        }
    }

    fn after(seconds: i64) -> WallTime {
        WallTime::from_unix_micros(NOW.as_unix_micros() + seconds * 1_000_000)
    }

    #[test]
    fn a_ticket_is_taken_once_and_in_time() {
        let tickets = tickets(b"secret");
        let ticket = tickets.make(&of("alice"), NOW).unwrap();
        assert_eq!(tickets.take(&ticket, after(29)), Ok(of("alice")));
        let again = tickets.take(&ticket, after(29)).unwrap_err();
        assert!(again.message.contains("used already"), "{again}");
        let late = tickets.make(&of("alice"), NOW).unwrap();
        let refused = tickets.take(&late, after(30)).unwrap_err();
        assert!(refused.message.contains("are over"), "{refused}");
        assert!(tickets.take(&late, NOW).is_err());
    }

    #[test]
    fn another_node_says_that_a_ticket_is_not_its_own() {
        let (here, there) = (tickets(b"secret"), tickets(b"secret"));
        let ticket = here.make(&of("alice"), NOW).unwrap();
        let refused = there.take(&ticket, NOW).unwrap_err();
        assert!(refused.message.contains("another node"), "{refused}");
        let stranger = tickets(b"other").take(&ticket, NOW).unwrap_err();
        assert!(
            stranger.message.contains("not made by this node"),
            "{stranger}"
        );
        assert_eq!(here.take(&ticket, NOW), Ok(of("alice")));
    }

    #[test]
    fn tickets_that_nobody_takes_are_bounded_and_forgotten() {
        let tickets = tickets(b"secret");
        for _ in 0..MOST_PER_USER {
            tickets.make(&of("alice"), NOW).unwrap();
        }
        let refused = tickets.make(&of("alice"), NOW).unwrap_err();
        assert_eq!(refused.status.as_u16(), 429);
        assert!(tickets.make(&of("bob"), NOW).is_ok());
        assert!(tickets.make(&of("alice"), after(30)).is_ok());
        let mut user = 0;
        while tickets.waiting.lock().len() < MOST {
            user += 1;
            tickets.make(&of(&format!("u{user}")), after(1)).unwrap();
        }
        assert!(tickets.make(&of("carol"), after(1)).is_err());
        assert!(tickets.make(&of("carol"), after(31)).is_ok());
        assert!(tickets.waiting.lock().len() < 3);
    }
}
