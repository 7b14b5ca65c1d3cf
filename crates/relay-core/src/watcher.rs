//! One client as a node sees it: what it watches, what it was sent, and what it is still owed.
//!
//! A watcher takes commands, answers to joins, publications and the time, and says what is to be done and what
//! is to be sent next. It is one thing to be driven: by a shard that has sockets, and by models that have none.
//! It does not know bytes, transports, tokens, other watchers or a clock.
//!
//! In reading order: [`session`] (what a client may ask, and whether it is alive), [`beginning`]
//! (how a subscription begins), [`outbox`] (what waits), `endings` (what wants an
//! acknowledgement), [`horizon`] and [`holds`] (how far anybody may be sent anything),
//! `recovery` (what a client that returns has already).
//!
//! Invariant: the cursor it gives out never passes what is still owed under any of its topics.

pub mod beginning;
mod endings;
pub mod holds;
pub mod horizon;
pub mod outbox;
mod recovery;
pub mod session;
pub mod sight;

use std::sync::Arc;
use std::time::Duration;

use crate::cursor::{Cursor, Print, Told};
use crate::job::Again;
use crate::moment::Moment;
use crate::position::{Epoch, Position, Seq};
use crate::publication::Publication;
use crate::topic::Topic;
use crate::watcher::outbox::{
    GapReason, Offered, Outbox, OutboxBounds, SubscriptionId, Taken, Telling,
};
use crate::watcher::recovery::Known;
use crate::watcher::session::{
    Action, Actions, Command, CommandError, Event, Join, Session, SessionBounds, Subscription,
};

use beginning::LeftOut;
use endings::Endings;
use horizon::Horizon;
use sight::{Sight, Viewer};

/// What a watcher is held to.
#[derive(Debug, Clone, Copy)]
pub struct WatcherBounds {
    /// Times and counts of its session.
    pub session: SessionBounds,
    /// What may wait for it.
    pub outbox: OutboxBounds,
    /// How long a client has to acknowledge an ending before it is sent again.
    pub ack_timeout: Duration,
    /// How long ago a job may have ended that a user's or a group's topic begins with; `None`: however long. A
    /// client that asks for one job wants its ending; a page that shows a user's jobs as they go may take an old
    /// ending for the one it waits for.
    pub endings_within: Option<Duration>,
}

/// What only some clients have.
#[derive(Debug, Default)]
struct Rare {
    /// Subscriptions that came with a cursor, until their join is answered.
    resuming: Vec<SubscriptionId>,
    /// Subscriptions named together, until their join is answered.
    together: Vec<SubscriptionId>,
    /// Subscriptions beside others, until their join is answered, and how far the client had been sent
    /// everything when it asked.
    beside: Vec<(SubscriptionId, Seq)>,
    /// What the client's cursor spoke for; until that is live here, cursors given out go on speaking for it as
    /// that one did.
    carried: Carried,
    endings: Endings,
}

/// What a client brought a cursor for.
#[derive(Debug, Default)]
struct Carried {
    /// The life of the bus it is of. Which one this is may not be known yet, so any is kept.
    epoch: Epoch,
    told: Vec<Told>,
}

/// How a subscription was asked for.
#[derive(Debug, Default)]
struct Asked {
    /// Whether it came with a cursor.
    resumes: bool,
    /// Whether it was named together with others.
    together: bool,
    /// How far the client had been sent everything then, where it watched something already.
    at: Option<Seq>,
}

impl Rare {
    /// A join was answered: what was noted for that moment.
    fn answered(&mut self, via: SubscriptionId) -> Asked {
        let take = |list: &mut Vec<SubscriptionId>| {
            let at = list.iter().position(|each| *each == via);
            at.map(|at| list.swap_remove(at)).is_some()
        };
        let beside = self.beside.iter().position(|(each, _)| *each == via);
        Asked {
            resumes: take(&mut self.resuming),
            together: take(&mut self.together),
            at: beside.map(|at| self.beside.swap_remove(at).1),
        }
    }

    /// Forgets what belongs to a subscription that ended.
    fn forget(&mut self, via: SubscriptionId) {
        self.resuming.retain(|each| *each != via);
        self.together.retain(|each| *each != via);
        self.beside.retain(|(each, _)| *each != via);
        self.endings.forget(via);
    }

    fn is_empty(&self) -> bool {
        let Self {
            resuming,
            together,
            beside,
            carried,
            endings,
        } = self;
        resuming.is_empty()
            && together.is_empty()
            && beside.is_empty()
            && carried.told.is_empty()
            && endings.is_empty()
    }
}

/// Whether a watcher is sent a publication under one of its subscriptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Seen {
    /// It is.
    Yes,
    /// It is not: the job is another's, or the client has it already.
    No,
    /// What the subscription is about is not the client's to watch any more: the subscription has to end.
    Forbidden,
}

/// One client.
#[derive(Debug)]
pub struct Watcher {
    session: Session,
    outbox: Outbox,
    rare: Option<Box<Rare>>,
}

impl Watcher {
    /// A client that was authenticated before it began, until `expires_at`.
    pub fn new(expires_at: Option<Moment>, now: Moment, bounds: &WatcherBounds) -> Self {
        Self::of(Session::open(expires_at, now, &bounds.session))
    }

    /// A client that will authenticate by its first message.
    pub fn unauthenticated(now: Moment, bounds: &WatcherBounds) -> Self {
        Self::of(Session::unauthenticated(now, &bounds.session))
    }

    fn of(session: Session) -> Self {
        Self {
            session,
            outbox: Outbox::default(),
            rare: None,
        }
    }

    /// What it watches.
    pub fn subscriptions(&self) -> &[Subscription] {
        self.session.subscriptions()
    }

    /// One subscription, if it has not ended.
    pub fn subscription(&self, via: SubscriptionId) -> Option<&Subscription> {
        self.session.subscription(via)
    }

    /// The subscription that the client asked for as `topic`.
    pub fn subscription_to(&self, topic: &Topic) -> Option<&Subscription> {
        self.session.subscription_to(topic)
    }

    /// The subscriptions that show what `topic` means, however they were asked for.
    pub fn showing<'a>(&'a self, topic: &'a Topic) -> impl Iterator<Item = SubscriptionId> + 'a {
        self.session.showing(topic).map(|each| each.id)
    }

    /// The topics it watches, exact where it is known whose they are.
    pub fn topics(&self) -> impl Iterator<Item = &Topic> {
        self.subscriptions().iter().map(|each| &each.topic)
    }

    // --- what the client says

    /// The client sent a command; says what is to be done.
    pub fn command(
        &mut self,
        command: Command,
        viewer: &impl Viewer,
        horizon: &Horizon,
        now: Moment,
        bounds: &WatcherBounds,
    ) -> Actions {
        let wants_ack = matches!(command, Command::Subscribe { ack: true, .. });
        let mut actions = self
            .session
            .handle(Event::Command(command), now, &bounds.session);
        actions.retain(|action| match action {
            Action::Join(join) if viewer.sight(&join.topic) == Sight::No => {
                self.session.leave(join.subscription);
                let topic = join.topic.clone();
                *action = Action::Refuse(CommandError::Forbidden { topic });
                true
            }
            Action::Join(join) => {
                if wants_ack {
                    self.rare().endings.want(join.subscription);
                }
                self.note_beside(join.subscription);
                match (&join.cursor, join.again) {
                    (Some(cursor), Again::Nothing) => {
                        self.rare().resuming.push(join.subscription);
                        self.carry(cursor, horizon.epoch());
                    }
                    (Some(_), _) => {}
                    // It returned with a cursor before, but may no longer show what it had.
                    (None, Again::State) => join.cursor = self.carried_cursor(&join.topic),
                    (None, _) => {}
                }
                true
            }
            Action::Leave { subscription, .. } => {
                self.forget(*subscription);
                true
            }
            Action::Acknowledge { subscription, seq } => {
                if let Some(rare) = &mut self.rare {
                    rare.endings.acknowledge(*subscription, *seq);
                }
                false
            }
            _ => true,
        });
        self.check();
        actions
    }

    /// Bytes of any kind arrived from the client.
    pub fn sign_of_life(&mut self, now: Moment, bounds: &WatcherBounds) {
        self.session.handle(Event::SignOfLife, now, &bounds.session);
    }

    /// The client's token was good until `expires_at`, or for ever.
    pub fn authenticated(
        &mut self,
        expires_at: Option<Moment>,
        now: Moment,
        bounds: &WatcherBounds,
    ) {
        let event = Event::Authenticated { expires_at };
        self.session.handle(event, now, &bounds.session);
    }

    /// Whether it is known who the client is.
    pub fn is_authenticated(&self) -> bool {
        self.session.is_authenticated()
    }

    // --- subscriptions begin and end

    /// Subscribes without a command, perhaps from where the client's cursor stands; the join is to be asked for.
    ///
    /// # Errors
    /// As the same command would be refused.
    pub fn subscribe(
        &mut self,
        topic: Topic,
        from: Option<(&Cursor, Again)>,
        bounds: &WatcherBounds,
    ) -> Result<Join, CommandError> {
        let subscription = self.session.subscribe(topic.clone(), &bounds.session)?;
        if from.is_some() {
            self.rare().resuming.push(subscription);
        }
        self.note_beside(subscription);
        self.check();
        Ok(Join {
            subscription,
            topic,
            cursor: from.map(|(cursor, _)| cursor.clone()),
            again: from.map_or(Again::Nothing, |(_, again)| again),
        })
    }

    /// Notes where the client stands that asks for one more topic.
    fn note_beside(&mut self, via: SubscriptionId) {
        if self.subscriptions().iter().any(|each| each.live) {
            let at = self.outbox.position();
            self.rare().beside.push((via, at));
        }
    }

    /// Subscribes to topics that were named together, as the URL of a stream does. What its bounds do not allow
    /// is left out: it was refused where the URL was read.
    pub fn watch(
        &mut self,
        topics: Vec<Topic>,
        cursor: Option<&Cursor>,
        horizon: &Horizon,
        bounds: &WatcherBounds,
    ) -> Vec<Join> {
        let several = topics.len() > 1;
        let from = cursor.map(|cursor| (cursor, Again::Nothing));
        let joins = topics.into_iter().filter_map(|topic| {
            let join = self.subscribe(topic, from, bounds).ok()?;
            if several {
                self.rare().together.push(join.subscription);
            }
            if let Some(cursor) = cursor {
                self.carry(cursor, horizon.epoch());
            }
            Some(join)
        });
        joins.collect()
    }

    /// The client brought a cursor: what it speaks for stays sent, whenever that is asked for.
    pub fn carry(&mut self, cursor: &Cursor, epoch: Epoch) {
        if self.carried(epoch).is_empty() {
            self.rare().carried = Carried {
                epoch: cursor.position.epoch,
                told: cursor.told().to_vec(),
            };
        }
    }

    /// The cursor the client brought, cut down to one topic that it asks for again.
    pub fn carried_cursor(&self, topic: &Topic) -> Option<Cursor> {
        let carried = &self.rare.as_ref()?.carried;
        if topic.is_bare() {
            // Under which owner it is known there, is said when it is joined.
            let most = carried.told.iter().map(|told| told.seq).max()?;
            return Some(Cursor::new(
                Position::new(carried.epoch, most),
                carried.told.iter().copied(),
            ));
        }
        let print = Print::of(topic);
        let told = carried.told.iter().find(|told| told.print == print)?;
        Some(Cursor::new(Position::new(carried.epoch, told.seq), [*told]))
    }

    /// Ends one subscription; what it watched, if it had not ended.
    pub fn leave(&mut self, via: SubscriptionId) -> Option<Topic> {
        let topic = self.session.leave(via)?;
        self.forget(via);
        self.check();
        Some(topic)
    }

    fn forget(&mut self, via: SubscriptionId) {
        self.outbox.forget(via);
        if let Some(rare) = &mut self.rare {
            rare.forget(via);
        }
        self.tidy();
    }

    /// A topic is live here: cursors no longer speak for it as the client's own did.
    fn put_down(&mut self, print: Print) {
        if let Some(rare) = &mut self.rare {
            rare.carried.told.retain(|told| told.print != print);
        }
        self.tidy();
    }

    fn tidy(&mut self) {
        if self.rare.as_ref().is_some_and(|rare| rare.is_empty()) {
            self.rare = None;
        }
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    // --- what is published

    /// Whether a publication is sent under a subscription: its client may see it, and has not got it. `is_news`
    /// says that nothing newer was heard before it.
    pub fn sees(
        &mut self,
        publication: &Publication,
        via: SubscriptionId,
        is_news: bool,
        viewer: &impl Viewer,
    ) -> Seen {
        let seen = self.may_see(publication, via, viewer);
        if seen != Seen::Yes {
            return seen;
        }
        let known = self.known(publication.epoch);
        let may_have_it = !is_news || !known.carried.is_empty();
        match may_have_it && known.was_told(publication, via) {
            true => Seen::No,
            false => Seen::Yes,
        }
    }

    /// Whether the client may see a publication under a subscription. What it may see is asked again when that is
    /// another job, or has moved to another group.
    fn may_see(
        &mut self,
        publication: &Publication,
        via: SubscriptionId,
        viewer: &impl Viewer,
    ) -> Seen {
        let Some(subscription) = self.session.subscription_mut(via) else {
            return Seen::No;
        };
        let named = match &subscription.topic {
            // It is the client's, or was granted: that does not change but with who the client is.
            Topic::User(_) => return Seen::Yes,
            Topic::Job(_) if subscription.has_shown(publication) => return Seen::Yes,
            Topic::Job(named) | Topic::Group(named) => named,
        };
        let is_bound = match &named.owner {
            Some(owner) if *owner != publication.owner => return Seen::No,
            owner => owner.is_some(),
        };
        if is_bound && matches!(subscription.topic, Topic::Group(_)) {
            // All of a group are its owner's, and that was asked when it was bound.
            return Seen::Yes;
        }
        let (owner, parent) = (Some(&publication.owner), publication.parent.as_ref());
        match (
            viewer.may_watch(&subscription.topic, owner, parent),
            is_bound,
        ) {
            (true, _) => {
                subscription.bind(&publication.owner);
                subscription.show(publication.key, parent);
                Seen::Yes
            }
            (false, true) => Seen::Forbidden,
            // Somebody else has one with that id; the one that is waited for may come yet.
            (false, false) => Seen::No,
        }
    }

    /// The subscriptions that do not stand any more now that the client is another viewer, or has another token.
    pub fn outlawed(&self, viewer: &impl Viewer) -> Vec<SubscriptionId> {
        let live = self.subscriptions().iter().filter(|each| each.live);
        let outlawed = live.filter(|each| match viewer.sight(&each.topic) {
            Sight::Yes => false,
            Sight::No => true,
            Sight::WhenKnown => {
                let owner = each.topic.named().and_then(|named| named.owner.as_ref());
                !viewer.may_watch(&each.topic, owner, each.parent())
            }
        });
        outlawed.map(|each| each.id).collect()
    }

    /// Whether it is not known yet whose a subscription's jobs are, so that there is nothing to be counted.
    pub fn is_unbound(&self, via: SubscriptionId) -> bool {
        let subscription = self.subscription(via);
        subscription.is_some_and(Subscription::is_unbound)
    }

    /// Passes on what was just published, where nothing waits before it and it is due; the number that the
    /// client's cursor then has. `None` where it has to be offered, and nothing has changed.
    pub fn pass(
        &mut self,
        publication: &Arc<Publication>,
        via: SubscriptionId,
        horizon: &Horizon,
        now: Moment,
        bounds: &WatcherBounds,
    ) -> Option<Seq> {
        let ceiling = self.ceiling(horizon);
        let at = self
            .outbox
            .pass(publication, now, ceiling, &bounds.outbox)?;
        self.note_ending(publication, via, now, bounds);
        Some(at)
    }

    /// Offers what was just published; it waits until it is taken.
    pub fn offer(
        &mut self,
        publication: &Arc<Publication>,
        via: SubscriptionId,
        now: Moment,
        bounds: &WatcherBounds,
    ) -> Offered {
        self.outbox.offer(publication, via, now, &bounds.outbox)
    }

    /// Milestones of a job are lost to the client.
    pub fn lose(&mut self, lost: &LeftOut, reason: GapReason, via: SubscriptionId, now: Moment) {
        self.outbox.announce_gap(lost, reason, via, now);
    }

    // --- what is sent

    /// How far it may be sent anything while jobs it watches are being repaired.
    pub fn ceiling(&self, horizon: &Horizon) -> Seq {
        horizon.ceiling(self.topics())
    }

    /// Takes the next thing to be sent, if it is due and not above `ceiling`.
    pub fn next(&mut self, now: Moment, ceiling: Seq, bounds: &WatcherBounds) -> Option<Taken> {
        let taken = self.outbox.take(now, ceiling, &bounds.outbox)?;
        if let Telling::Publication(publication) = &taken.telling {
            self.note_ending(publication, taken.via, now, bounds);
        }
        Some(taken)
    }

    /// Nothing more is taken: where nothing waits, the client stands where everything was heard up to.
    pub fn settle(&mut self, horizon: &Horizon, ceiling: Seq) {
        self.outbox.advance(horizon.reached(ceiling));
    }

    fn note_ending(
        &mut self,
        publication: &Arc<Publication>,
        via: SubscriptionId,
        now: Moment,
        bounds: &WatcherBounds,
    ) {
        if let Some(rare) = &mut self.rare {
            rare.endings.note(publication, via, now, bounds.ack_timeout);
        }
    }

    /// The endings that were not acknowledged in time, to be sent again.
    pub fn endings_due(&mut self, now: Moment, bounds: &WatcherBounds) -> Vec<Taken> {
        let Some(rare) = &mut self.rare else {
            return Vec::new();
        };
        let due = rare.endings.due(now, bounds.ack_timeout);
        let again = due.into_iter().map(|(via, publication)| Taken {
            telling: Telling::Publication(publication),
            via,
            position: self.outbox.position(),
            replayed: true,
        });
        again.collect()
    }

    /// Whether something waits.
    pub fn is_owed(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Whether [`Watcher::next`] would take something.
    pub fn has_due(&self, now: Moment, ceiling: Seq) -> bool {
        self.outbox.has_due(now, ceiling)
    }

    /// Endings sent and not acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.rare.as_ref().map_or(0, |rare| rare.endings.len())
    }

    /// The age of the oldest ending that waits to be sent.
    pub fn oldest_ending(&self, now: Moment) -> Option<Duration> {
        self.outbox.oldest_ending(now)
    }

    // --- time

    /// Time has passed; says what is to be done.
    pub fn tick(&mut self, now: Moment, bounds: &WatcherBounds) -> Actions {
        let actions = self.session.handle(Event::Tick, now, &bounds.session);
        if actions.contains(&Action::Ping)
            && let Some(rare) = &mut self.rare
            && rare.resuming.is_empty()
        {
            // What was not asked for again by now is no longer wanted; if it is, it starts anew.
            rare.carried = Carried::default();
            self.tidy();
        }
        actions
    }

    /// When the next [`Watcher::tick`] is wanted for the sake of the session, at the latest.
    pub fn next_tick(&self, bounds: &WatcherBounds) -> Moment {
        self.session.next_tick(&bounds.session)
    }

    /// When the next thing that waits is due; `None` while nothing waits, or `ceiling` holds it back.
    pub fn next_due(&self, ceiling: Seq) -> Option<Moment> {
        self.outbox.next_due(ceiling)
    }

    /// When the next ending is sent again.
    pub fn next_ending(&self) -> Option<Moment> {
        self.rare.as_ref().and_then(|rare| rare.endings.next())
    }

    // --- where the client stands

    /// How far it was sent everything, but for topics that are behind.
    pub fn position(&self) -> Seq {
        self.outbox.position()
    }

    /// The cursor it has now.
    pub fn cursor(&self, epoch: Epoch) -> Cursor {
        self.cursor_at(Position::new(epoch, self.outbox.position()))
    }

    /// The cursor it has once it was sent what brings it to `position`.
    pub fn cursor_at(&self, position: Position) -> Cursor {
        let behind = |via| self.outbox.behind(via);
        let carried = self.carried(position.epoch);
        self.session.cursor(position, behind, carried)
    }

    /// Whether a publication brings it to just the cursor that every client has that watches nothing but this
    /// topic and is up to date with it.
    pub fn is_in_step(&self, publication: &Publication, via: SubscriptionId, at: Seq) -> bool {
        self.subscriptions().len() == 1
            && at == publication.seq
            && self.carried(publication.epoch).is_empty()
            && self.outbox.behind(via).is_none()
    }

    /// What cursors of this epoch still say of topics that are not (yet) live here.
    fn carried(&self, epoch: Epoch) -> &[Told] {
        let carried = self.rare.as_ref().map(|rare| &rare.carried);
        carried
            .filter(|carried| carried.epoch == epoch)
            .map_or(&[], |carried| &carried.told)
    }

    fn known(&self, epoch: Epoch) -> Known<'_> {
        Known {
            session: &self.session,
            carried: self.carried(epoch),
        }
    }

    /// Asserts what holds after every change: nothing is noted of a subscription that has ended, and nothing
    /// of a join that was answered.
    fn check(&self) {
        if !cfg!(debug_assertions) {
            return;
        }
        let Some(rare) = &self.rare else {
            return;
        };
        let noted = rare.resuming.iter().chain(&rare.together);
        for via in noted.copied().chain(rare.endings.subscriptions()) {
            debug_assert!(self.subscription(via).is_some(), "{via:?} has ended");
        }
        let beside = rare.beside.iter().map(|(via, _)| via);
        for via in rare.resuming.iter().chain(&rare.together).chain(beside) {
            let live = self.subscription(*via).is_some_and(|each| each.live);
            debug_assert!(!live, "{via:?} is still waited for, and live");
        }
    }
}

#[cfg(test)]
mod tests;
