//! What a client that came back knows already: it was told under another topic, or by a node that had heard more.
//!
//! This is told from the numbers in its cursor alone; no node keeps who was told what.
//!
//! Invariant: where the numbers do not say, it does not count as told. Rather twice than never.

use crate::cursor::{Print, Told};
use crate::position::Seq;
use crate::publication::Publication;
use crate::topic::Topic;
use crate::watcher::outbox::SubscriptionId;
use crate::watcher::session::{Session, Subscription};

/// What the numbers of one connection say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known<'a> {
    /// Its topics.
    pub(super) session: &'a Session,
    /// What its cursor says of topics that are not (yet) live on the connection.
    pub(super) carried: &'a [Told],
}

impl Known<'_> {
    /// From which number on a topic that is answered now is told whole: from `high` on, or as its cursor says if
    /// it goes on from `since`.
    pub(super) fn complete_from(&self, topic: &Topic, since: Option<Seq>, high: Seq) -> Seq {
        let Some(since) = since else {
            return high;
        };
        let print = Print::of(topic);
        let mut carried = self.carried.iter();
        let told = carried.find(|told| told.print == print && told.seq == since);
        told.map_or(since, |told| told.from)
    }

    /// Whether the client has been told what an answer to `via` would tell it, or will be, under another topic
    /// that `may_watch` allows it. A topic that began with a snapshot is told everything since and, if it began on
    /// this connection, what its snapshot has: that of which no state of its job is newer (`newest`). What was in
    /// one that another node gave, or that was not told whole, is not known.
    pub(super) fn is_told(
        &self,
        publication: &Publication,
        via: SubscriptionId,
        newest: bool,
        may_watch: impl Fn(&Topic) -> bool,
    ) -> bool {
        let seq = publication.seq;
        publication.topics().any(|topic| {
            let mut others = self.live(&topic).filter(|other| other.id != via);
            let live =
                others.any(|other| seq > other.complete_from || (newest && other.begins_here()));
            let mut carried = self.carried(&topic);
            (live || carried.any(|told| told.from < seq && seq <= told.seq)) && may_watch(&topic)
        })
    }

    /// Whether another node told the client what comes under `via` before it came here: under that topic or, if
    /// that was behind, under another. One that began with a snapshot was not told the milestones and earlier
    /// endings before it.
    pub(super) fn was_told(&self, publication: &Publication, via: SubscriptionId) -> bool {
        let seq = publication.seq;
        match self.session.subscription(via) {
            None => return false,
            Some(own) if own.begins_here() => return false,
            Some(own) if seq <= own.since => return true,
            Some(_) => {}
        }
        let replaced = publication.is_state() && !publication.is_terminal();
        let told = |from: Seq, to: Seq| seq <= to && (replaced || seq > from);
        publication.topics().any(|topic| {
            let mut live = self.live(&topic);
            live.any(|other| told(other.complete_from, other.since))
                || self.carried(&topic).any(|each| told(each.from, each.seq))
        })
    }

    /// Whether a publication came live under `topic`, which is not that of `via`: it is newer than what that one
    /// began with, and no other node has told the client.
    pub(super) fn comes_live(
        &self,
        publication: &Publication,
        topic: &Topic,
        via: SubscriptionId,
    ) -> bool {
        let mut others = self.live(topic).filter(|other| other.id != via);
        others.any(|other| {
            publication.seq > other.complete_from && !self.was_told(publication, other.id)
        })
    }

    fn live<'a>(&'a self, topic: &'a Topic) -> impl Iterator<Item = &'a Subscription> {
        self.session.showing(topic).filter(|each| each.live)
    }

    fn carried(&self, topic: &Topic) -> impl Iterator<Item = &Told> {
        let print = Print::of(topic);
        self.carried.iter().filter(move |told| told.print == print)
    }
}
