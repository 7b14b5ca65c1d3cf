//! How a subscription begins: what the bus answered to a join, and what of it the client is sent.
//!
//! What a client received already, under another topic or from another node, is not sent again.
//!
//! It does not know who else watches, or how the answer came.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::cursor::{Cursor, Print};
use crate::id::{JobId, Name, Owner};
use crate::job::Again;
use crate::moment::{Moment, WallTime};
use crate::position::Seq;
use crate::publication::{JobKey, Publication};
use crate::topic::Topic;
use crate::watcher::outbox::{GapReason, SubscriptionId};

use super::horizon::Horizon;
use super::session::Join;
use super::sight::{Sight, Viewer};
use super::{Watcher, WatcherBounds};

/// The answer to a join: what a subscription begins with.
#[derive(Debug)]
pub struct Joined {
    /// The subscription that waited.
    pub subscription: SubscriptionId,
    /// What it watches, as it was asked for.
    pub topic: Topic,
    /// Whose the job or the group is that the answer is about; nobody's is known where there is none. A topic without
    /// an owner is about the client's own, or about the only one there is.
    pub owner: Option<Owner>,
    /// The job's number, where it is known.
    pub key: Option<JobKey>,
    /// The parent, where the topic is a job in a group.
    pub parent: Option<Name>,
    /// Who else has one by that name, where the topic does not say whose it means and several may be meant. Then
    /// nothing else is answered: it has to be asked for again.
    pub several: Option<Box<Several>>,
    /// Where the client's cursor stood, if it meant anything here.
    pub since: Option<Seq>,
    /// Whether everything missed since the cursor follows.
    pub recovered: bool,
    /// What follows, in ascending order.
    pub publications: Vec<Arc<Publication>>,
    /// Jobs with milestones since the cursor that do not follow: the history no longer has them, or they
    /// are older than a snapshot. Where `recovered`, only jobs that changed while their snapshot was told.
    pub left_out: Vec<LeftOut>,
    /// Everything up to here that concerns the topic is in `publications`, or was before the cursor.
    pub high: Seq,
}

/// What a topic without an owner may mean.
#[derive(Debug)]
pub struct Several {
    /// The owners of what is called so, each with its job's parent.
    pub owners: Vec<(Owner, Option<Name>)>,
    /// Where the client left off.
    pub cursor: Option<Cursor>,
    /// What it is told of the time before.
    pub again: Again,
}

/// A job some of whose milestones a client is not sent.
#[derive(Debug, Clone)]
pub struct LeftOut {
    /// The job's number.
    pub key: JobKey,
    /// The job.
    pub job: JobId,
    /// The number of the last of them, or one above it.
    pub seq: Seq,
}

/// What became of the answer to a join.
#[derive(Debug)]
#[must_use]
pub enum Beginning {
    /// The subscription had ended meanwhile.
    Left,
    /// What the topic means is not the client's to watch; the subscription has ended.
    Forbidden,
    /// The topic means several that the client may watch; the subscription has ended.
    Ambiguous,
    /// Of several the client may watch one; that has to be asked for.
    Again(Join),
    /// The subscription is live, and what it begins with waits to be sent.
    Live(Begun),
}

/// A subscription that has begun.
#[derive(Debug)]
pub struct Begun {
    /// Whether the client came with a cursor.
    pub resumes: bool,
    /// Whether everything missed since the cursor follows.
    pub recovered: bool,
    /// How many jobs' states follow.
    pub jobs: usize,
    /// In how many jobs milestones are missing.
    pub gaps: usize,
    /// Where the client stands before what follows.
    pub cursor: Cursor,
}

impl Watcher {
    /// A join was answered: the subscription is live, and what it begins with is owed.
    pub fn begin(
        &mut self,
        mut joined: Joined,
        viewer: &impl Viewer,
        horizon: &Horizon,
        now: Moment,
        wall: WallTime,
        bounds: &WatcherBounds,
    ) -> Beginning {
        let (via, since) = (
            joined.subscription,
            joined.since.filter(|_| joined.recovered),
        );
        if self.subscription(via).is_none() {
            return Beginning::Left;
        }
        if let Some(several) = joined.several.take() {
            return self.choose(via, &joined.topic, *several, viewer);
        }
        if let Some(owner) = &joined.owner {
            let parent = joined.parent.as_ref();
            let allowed = viewer.may_watch(&joined.topic, Some(owner), parent);
            match (&joined.topic, allowed) {
                (Topic::Job(_), false) => {
                    self.leave(via);
                    return Beginning::Forbidden;
                }
                // One of the client's own may come yet.
                (Topic::Group(_), false) => joined.publications.clear(),
                (_, true) => self.bind(via, owner, joined.key, parent),
                (Topic::User(_), false) => {}
            }
        }
        let topic = self.subscription(via).map(|each| each.topic.clone());
        joined.topic = topic.unwrap_or(joined.topic);
        let known = self.known(horizon.epoch());
        let from = known.complete_from(&joined.topic, since, joined.high);
        self.session.joined(via, since.unwrap_or_default(), from);
        let old = bounds
            .endings_within
            .filter(|_| !matches!(joined.topic, Topic::Job(_)));
        if let Some(within) = old {
            // Also where milestones are lost: what ended since is news.
            leave_out_ended(&mut joined.publications, joined.since, within, wall);
        }
        let seen: HashSet<JobKey> = joined.publications.iter().map(|each| each.key).collect();
        // Of the rest of a snapshot a job may be told already, and yet milestones of it be lost since.
        let is_rest = joined.recovered && viewer.sight(&joined.topic) == Sight::Yes;
        joined
            .left_out
            .retain(|each| is_rest || seen.contains(&each.key));
        let begun = self.owe(joined, viewer, horizon, now, bounds);
        self.check();
        Beginning::Live(begun)
    }

    /// The subscription is about what this owner has, as it stands.
    fn bind(
        &mut self,
        via: SubscriptionId,
        owner: &Owner,
        key: Option<JobKey>,
        parent: Option<&Name>,
    ) {
        if let Some(subscription) = self.session.subscription_mut(via) {
            subscription.bind(owner);
            if let Some(key) = key {
                subscription.show(key, parent);
            }
        }
    }

    /// Of several that are called so the client's is the only one that it may watch.
    fn choose(
        &mut self,
        via: SubscriptionId,
        topic: &Topic,
        several: Several,
        viewer: &impl Viewer,
    ) -> Beginning {
        let owners = several.owners.iter();
        let mut allowed =
            owners.filter(|(owner, parent)| viewer.may_watch(topic, Some(owner), parent.as_ref()));
        let (only, more) = (allowed.next(), allowed.next());
        match (only, more) {
            (Some((owner, parent)), None) => {
                self.bind(via, owner, None, parent.as_ref());
                Beginning::Again(Join {
                    subscription: via,
                    topic: topic.of(owner),
                    cursor: several.cursor,
                    again: several.again,
                })
            }
            (None, _) => {
                self.leave(via);
                Beginning::Forbidden
            }
            (Some(_), Some(_)) => {
                self.leave(via);
                Beginning::Ambiguous
            }
        }
    }

    fn owe(
        &mut self,
        mut joined: Joined,
        viewer: &impl Viewer,
        horizon: &Horizon,
        now: Moment,
        bounds: &WatcherBounds,
    ) -> Begun {
        let via = joined.subscription;
        let ceiling = self.ceiling(horizon);
        let asked = self
            .rare
            .as_mut()
            .map(|rare| rare.answered(via))
            .unwrap_or_default();
        if let Some(since) = joined.since.filter(|_| joined.recovered) {
            // Of another topic that is being repaired the client has not been sent that much.
            self.outbox.resume(since.min(ceiling));
        }
        let goes_on = asked.resumes && joined.recovered;
        let begins_with_others = asked.together && !asked.resumes;
        if goes_on || begins_with_others {
            // What is sent under one topic is sent. A client that asks for a single one without a cursor, or has
            // to start anew, wants the snapshot.
            self.share_what_is_told(&mut joined.publications, via, viewer);
        }
        let waiting = self.take_over_what_waits(&mut joined.publications, via, viewer, now);
        if let (Some(at), false, Topic::User(_) | Topic::Group(_)) =
            (asked.at, asked.resumes, &joined.topic)
        {
            self.leave_out_what_came_meanwhile(&mut joined.publications, via, at, viewer);
        }
        for left_out in &joined.left_out {
            self.lose(left_out, GapReason::History, via, now);
        }
        for publication in &joined.publications {
            self.outbox.owe(publication, via, now, &bounds.outbox);
        }
        self.outbox.advance(joined.high.min(ceiling));
        let states = joined.publications.iter().filter(|each| each.is_state());
        let jobs: HashSet<JobKey> = states.map(|state| state.key).chain(waiting).collect();
        self.put_down(Print::of(&joined.topic));
        self.put_down(Print::of(&joined.topic.bare()));
        Begun {
            resumes: asked.resumes,
            recovered: joined.recovered,
            jobs: jobs.len(),
            gaps: joined.left_out.len(),
            cursor: self.cursor(horizon.epoch()),
        }
    }

    /// Takes out what the client was sent already, or will be, under another topic of its own.
    fn share_what_is_told(
        &mut self,
        publications: &mut Vec<Arc<Publication>>,
        via: SubscriptionId,
        viewer: &impl Viewer,
    ) {
        let states = publications.iter().filter(|each| each.is_state());
        let latest: HashMap<JobKey, Seq> = states.map(|state| (state.key, state.seq)).collect();
        let mut told = Vec::new();
        publications.retain(|publication| {
            let state = latest.get(&publication.key);
            let newest = state.is_none_or(|state| publication.seq >= *state);
            let (owner, parent) = (Some(&publication.owner), publication.parent.as_ref());
            let may_watch = |topic: &Topic| viewer.may_watch(topic, owner, parent);
            let known = self.known(publication.epoch);
            let is_told = known.is_told(publication, via, newest, may_watch);
            told.extend(is_told.then_some((publication.key, publication.seq)));
            !is_told
        });
        for (key, seq) in told {
            self.outbox.share(key, seq, via);
        }
    }

    /// What just came under another topic, and waits to be sent there, is sent under this one, once; the jobs
    /// whose states that are.
    fn take_over_what_waits(
        &mut self,
        publications: &mut Vec<Arc<Publication>>,
        via: SubscriptionId,
        viewer: &impl Viewer,
        now: Moment,
    ) -> Vec<JobKey> {
        let mut states = Vec::new();
        publications.retain(|publication| {
            let is_taken = self.comes_elsewhere(publication, via, viewer)
                && self.outbox.take_over(publication, via, now);
            if is_taken && publication.is_state() {
                states.push(publication.key);
            }
            !is_taken
        });
        states
    }

    /// Takes out what came under another topic since the client asked, when it stood `at`, and was sent there
    /// while its question was under way. The answer for one job is left whole: without its state it would read
    /// as that of a job that is not known.
    fn leave_out_what_came_meanwhile(
        &mut self,
        publications: &mut Vec<Arc<Publication>>,
        via: SubscriptionId,
        at: Seq,
        viewer: &impl Viewer,
    ) {
        publications.retain(|publication| {
            let came = publication.seq > at && self.comes_elsewhere(publication, via, viewer);
            if came {
                // Where it was shed, the gap that stands for it is owed here too.
                self.outbox.share(publication.key, publication.seq, via);
            }
            !came
        });
    }

    /// Whether a publication reached the client live under another of its topics, or will.
    fn comes_elsewhere(
        &self,
        publication: &Publication,
        via: SubscriptionId,
        viewer: &impl Viewer,
    ) -> bool {
        let (owner, parent) = (Some(&publication.owner), publication.parent.as_ref());
        let known = self.known(publication.epoch);
        publication.topics().any(|topic| {
            known.comes_live(publication, &topic, via) && viewer.may_watch(&topic, owner, parent)
        })
    }
}

/// Takes jobs that ended longer ago out of what a topic begins with, their milestones too; not what ended
/// after `since`, when its client was there.
fn leave_out_ended(
    publications: &mut Vec<Arc<Publication>>,
    since: Option<Seq>,
    within: Duration,
    now: WallTime,
) {
    let is_old = |ending: &Publication| {
        if since.is_some_and(|since| ending.seq > since) {
            return false;
        }
        let ago = now.as_unix_micros() - ending.stored_at.as_unix_micros();
        // The bus has a clock of its own, which may be ahead of ours.
        within.is_zero() || u128::try_from(ago).is_ok_and(|ago| ago > within.as_micros())
    };
    let ended = publications
        .iter()
        .filter(|each| each.is_terminal() && is_old(each));
    let ended: HashSet<JobKey> = ended.map(|each| each.key).collect();
    publications.retain(|each| !ended.contains(&each.key));
}
