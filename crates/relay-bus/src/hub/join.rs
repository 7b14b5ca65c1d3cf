//! Joins: a subscription's first word, exactly once, with nothing lost between it and what follows.
//!
//! A join registers the shard's interest and takes the answer under one lock; the answer travels through
//! the shard's inbox behind everything published before it and ahead of everything after.

use hashbrown::HashSet;
use relay_core::id::{JobName, Owner};
use relay_core::job::{Again, Job, Replay};
use relay_core::position::Seq;
use relay_core::topic::Topic;
use relay_core::watcher::beginning::{Joined, LeftOut};
use relay_core::watcher::outbox::SubscriptionId;

use super::ahead::{AHEAD_WAIT, ahead};
use super::named::first;
use super::table::{Deferred, Early, LoadKey, MOST_NAMESAKES, Table};
use super::{Hub, JoinRequest, SNAPSHOT_JOBS};
use crate::inbox::{ConnectionId, Message};

impl Hub {
    /// Asks for the first word on a topic. The answer comes as [`Message::Joined`], at once if the table
    /// knows it, when the store has answered otherwise.
    pub fn join(&self, request: JoinRequest) {
        let mut table = self.table();
        table.watch(&request.topic, request.shard);
        if self.backing.memory().is_some()
            && let Some(since) = ahead(&table, &request)
        {
            table.ahead.keep_join(Early {
                seq: since,
                until: self.clock.now() + AHEAD_WAIT,
                what: request,
            });
            return;
        }
        self.join_now(&mut table, request);
    }

    pub(super) fn join_now(&self, table: &mut Table, request: JoinRequest) {
        match request.topic.clone() {
            Topic::Job(named) => match named.exact() {
                Some(name) => self.join_job(table, &name, request),
                None => self.join_called(table, &named.id, request),
            },
            Topic::User(owner) => {
                self.join_many(table, LoadKey::Owner(owner), request);
            }
            Topic::Group(_) => self.join_many(table, LoadKey::Everything, request),
        }
    }

    /// A connection ended before its join was answered: it is not kept for a store that may be away for
    /// long. False if the answer is on its way.
    pub fn withdraw(
        &self,
        topic: &Topic,
        shard: usize,
        connection: ConnectionId,
        subscription: SubscriptionId,
    ) -> bool {
        let whose = (shard, connection, subscription);
        let mut table = self.table();
        let ahead = table.ahead.withdraw(whose);
        let other = match topic {
            Topic::Job(named) => {
                // One without its owner waits to learn who there are, or for those.
                let key = LoadKey::Owners(named.id.clone());
                let listed = table.loads.withdraw(&key, whose);
                let names = match named.exact() {
                    Some(name) => vec![name],
                    None => table.named(&named.id),
                };
                let mut names = names.into_iter();
                listed
                    || names.any(|name| {
                        let entry = table.get_mut(&name);
                        entry.is_some_and(|entry| entry.withdraw(whose))
                    })
            }
            Topic::User(owner) => table.loads.withdraw(&LoadKey::Owner(owner.clone()), whose),
            Topic::Group(_) => table.loads.withdraw(&LoadKey::Everything, whose),
        };
        ahead || other
    }

    /// A shard has a watcher of a topic that was joined by its bare name.
    pub fn watch(&self, topic: &Topic, shard: usize) {
        self.table().watch(topic, shard);
    }

    /// A shard's last watcher of a topic left.
    pub fn leave(&self, topic: &Topic, shard: usize) {
        self.table().leave(topic, shard);
    }

    pub(super) fn join_job(&self, table: &mut Table, id: &JobName, request: JoinRequest) {
        let since = since(table, &request, &Topic::job(id.clone()));
        let ready = self.backing.memory().is_none()
            || table.get(id).is_some_and(|entry| {
                let is_known = |job: &Job| since.is_none_or(|since| since >= job.known_from());
                let is_whole = entry.repair.is_none() && !entry.partial;
                entry.is_read() || is_whole && entry.job.as_deref().is_some_and(is_known)
            });
        if ready {
            self.answer_job(table, Some(id), request);
        } else {
            let repair = table.start_repair(id, self.clock.now());
            repair.joins.insert(request.whose(), request);
            self.tell_holds(table);
            self.work.notify_one();
        }
    }

    /// Answers for one job with what the table holds; `None` where there is none that is called so.
    pub(super) fn answer_job(&self, table: &Table, id: Option<&JobName>, request: JoinRequest) {
        let exact = id.cloned().map(Topic::job);
        let topic = exact.as_ref().unwrap_or(&request.topic);
        let since = since(table, &request, topic);
        let job = id.and_then(|id| table.get(id)?.job.as_ref());
        if let Some(page) = page(table, &request, topic) {
            let jobs: Vec<&Job> = job.map(Box::as_ref).into_iter().collect();
            let owner = job.map(|job| job.owner.clone());
            return self.answer_page(table, &jobs, page, owner, request);
        }
        let mut replay = match job {
            Some(job) => job.replay_with(since, request.again),
            None => Replay {
                recovered: since.is_some_and(|since| {
                    self.backing.memory().is_some() || since >= table.known_from()
                }),
                publications: Vec::new(),
            },
        };
        if let (Some(removed), None) = (job.and_then(|job| job.removed()), since) {
            // Whoever asks for just this job is not to wait for it.
            replay.publications.push(removed.clone());
        }
        let left_out = job.filter(|_| !replay.recovered);
        let left_out = left_out.and_then(|job| left_out_since(job, since));
        let joined = Box::new(Joined {
            subscription: request.subscription,
            owner: job.map(|job| job.owner.clone()),
            key: job.map(|job| job.key),
            several: None,
            parent: job.and_then(|job| job.group().cloned()),
            topic: request.topic,
            since,
            recovered: replay.recovered,
            publications: replay.publications,
            left_out: left_out.into_iter().collect(),
            high: table.high(),
        });
        self.inboxes[request.shard].push(Message::Joined(request.connection, joined));
    }

    /// Answers somebody who was told a part of a snapshot with the rest of it, and what has come since.
    fn answer_page(
        &self,
        table: &Table,
        jobs: &[&Job],
        since: Seq,
        owner: Option<Owner>,
        request: JoinRequest,
    ) {
        let (mut publications, mut left_out) = (Vec::new(), Vec::new());
        for job in jobs {
            let (rest, missing) = job.rest(since);
            left_out.extend(missing.map(|seq| LeftOut {
                key: job.key,
                job: job.id.clone(),
                seq,
            }));
            publications.extend(rest);
        }
        publications.sort_by_key(|publication| publication.seq);
        let alone = match (&request.topic, jobs) {
            (Topic::Job(_), [job]) => Some(*job),
            _ => None,
        };
        let joined = Box::new(Joined {
            subscription: request.subscription,
            owner,
            key: alone.map(|job| job.key),
            several: None,
            parent: alone.and_then(|job| job.group().cloned()),
            topic: request.topic,
            since: Some(since),
            recovered: true,
            publications,
            left_out,
            high: table.high(),
        });
        self.inboxes[request.shard].push(Message::Joined(request.connection, joined));
    }

    fn join_many(&self, table: &mut Table, key: LoadKey, request: JoinRequest) {
        if table.index.is_complete(&key) || self.backing.memory().is_none() {
            self.answer_many(table, request);
            return;
        }
        self.load_once(table, &key);
        table.loads.await_join(key, request);
    }

    /// Sees to it that many jobs are loaded, unless they are about to be.
    pub(super) fn load_once(&self, table: &mut Table, key: &LoadKey) {
        if table.loads.ask_once(key) {
            self.work.notify_one();
        }
    }

    /// Answers for an owner or a group, once each of its jobs is known well enough.
    pub(super) fn answer_many(&self, table: &mut Table, request: JoinRequest) {
        let Some((topic, request)) = self.group_meant(table, request) else {
            return;
        };
        let since = since(table, &request, &topic);
        let members = members(table, &topic);
        let unsure = self.unsure(table, &topic, &members, since);
        if unsure.is_empty() {
            self.answer_members(table, &members, &topic, request);
        } else {
            self.defer(table, unsure, Deferred::Join(request));
        }
    }

    /// Which group is meant, where that was not said: the client's own, or the only one. `None` where there are
    /// several, and that is answered.
    fn group_meant(&self, table: &Table, request: JoinRequest) -> Option<(Topic, JoinRequest)> {
        let Topic::Group(named) = request.topic.clone() else {
            return Some((request.topic.clone(), request));
        };
        if named.owner.is_some() {
            return Some((request.topic.clone(), request));
        }
        let owners: Vec<Owner> = table.index.owners(&named.id).cloned().collect();
        match first(owners, request.own.as_ref()).as_slice() {
            [] => Some((request.topic.clone(), request)),
            [owner] => Some((request.topic.of(owner), request)),
            several => {
                let several = several.iter().take(MOST_NAMESAKES);
                let owners = several.map(|owner| (owner.clone(), None)).collect();
                self.tell_several(table, owners, request);
                None
            }
        }
    }

    /// The jobs of an owner or a group that have to be read before somebody who stands at `since` is told of them.
    pub(super) fn unsure(
        &self,
        table: &Table,
        topic: &Topic,
        members: &[JobName],
        since: Option<Seq>,
    ) -> HashSet<JobName> {
        if self.backing.memory().is_none() {
            return HashSet::new();
        }
        let known = members.iter().filter(|id| is_unsure(table, id, since));
        known.chain(table.unknown_members(topic)).cloned().collect()
    }

    /// Has jobs read, and lets somebody wait for all of them.
    pub(super) fn defer(&self, table: &mut Table, unsure: HashSet<JobName>, who: Deferred) {
        for id in &unsure {
            table.start_repair(id, self.clock.now());
        }
        table.loads.defer(unsure, who);
        self.tell_holds(table);
        self.work.notify_one();
    }

    /// A job's repair is done: whoever waited for it alone is answered.
    pub(super) fn release_deferred(&self, table: &mut Table, id: &JobName) {
        for who in table.loads.take_ready(id) {
            match who {
                Deferred::Join(request) => match request.topic.clone() {
                    Topic::Job(named) => self.answer_several(table, &named.id, request),
                    Topic::User(_) | Topic::Group(_) => {
                        let Some((topic, request)) = self.group_meant(table, request) else {
                            continue;
                        };
                        let members = members(table, &topic);
                        self.answer_members(table, &members, &topic, request);
                    }
                },
                Deferred::Survey(request) => self.answer_survey(table, request),
            }
        }
    }

    /// Answers with what was missed if all of it is known; else with the snapshot of every member, so that
    /// a client that replaces what it shows by what comes is right.
    fn answer_members(
        &self,
        table: &Table,
        members: &[JobName],
        topic: &Topic,
        request: JoinRequest,
    ) {
        let since = since(table, &request, topic);
        let owner = topic.named().and_then(|named| named.owner.clone());
        if let Some(page) = page(table, &request, topic) {
            let entries = members.iter().filter_map(|id| table.get(id));
            let jobs: Vec<&Job> = entries.filter_map(|entry| entry.job.as_deref()).collect();
            return self.answer_page(table, &jobs, page, owner, request);
        }
        let entries = members.iter().filter_map(|id| table.get(id));
        let jobs: Vec<&Job> = entries.filter_map(|entry| entry.job.as_deref()).collect();
        let recovered = since.filter(|since| {
            // More may have changed than a snapshot holds.
            let all_listed = lists_all_since(table, topic, *since);
            let all_known = self.backing.memory().is_some() || *since >= table.known_from();
            all_listed && all_known && jobs.iter().all(|job| *since >= job.known_from())
        });
        let mut publications: Vec<_> = jobs
            .iter()
            .flat_map(|job| job.replay_with(recovered, request.again).publications)
            .collect();
        publications.sort_by_key(|publication| publication.seq);
        let left_out = match recovered {
            Some(_) => Vec::new(),
            None => jobs
                .iter()
                .filter_map(|job| left_out_since(job, since))
                .collect(),
        };
        let joined = Box::new(Joined {
            subscription: request.subscription,
            topic: request.topic,
            owner,
            key: None,
            parent: None,
            several: None,
            since,
            recovered: recovered.is_some(),
            publications,
            left_out,
            high: table.high(),
        });
        self.inboxes[request.shard].push(Message::Joined(request.connection, joined));
    }
}

/// The milestones of a job that a snapshot leaves out and somebody who stood at `since` has not been told.
fn left_out_since(job: &Job, since: Option<Seq>) -> Option<LeftOut> {
    Some(LeftOut {
        key: job.key,
        job: job.id.clone(),
        seq: job.left_out_since(since?)?,
    })
}

/// The number a request's cursor stands at, if the cursor means anything here and speaks for its topic, which is the
/// one given if it was asked for bare. A cursor from before anybody's was there speaks for the bare one.
fn since(table: &Table, request: &JoinRequest, topic: &Topic) -> Option<Seq> {
    let cursor = request.cursor.as_ref()?;
    let since = cursor
        .since(topic)
        .or_else(|| cursor.since(&request.topic))?;
    (cursor.position.epoch == table.epoch() && since <= table.high()).then_some(since)
}

/// Up to where a request's cursor says that its client was told a part of a snapshot of its topic; `None` if it was told
/// the whole of it, or wants to be told again what it was told.
fn page(table: &Table, request: &JoinRequest, topic: &Topic) -> Option<Seq> {
    let cursor = request.cursor.as_ref()?;
    let is_page = cursor.is_in_snapshot(topic) && request.again == Again::Nothing;
    since(table, request, topic).filter(|_| is_page)
}

/// The most recently updated jobs of an owner or a group. However many there are, no more are looked at.
pub(super) fn members(table: &Table, topic: &Topic) -> Vec<JobName> {
    let newest = table.index.newest(topic).take(SNAPSHOT_JOBS);
    newest.map(|(_, id)| id.clone()).collect()
}

/// Whether an owner or a group has had no update above `since` but of the jobs that are listed.
fn lists_all_since(table: &Table, topic: &Topic, since: Seq) -> bool {
    let unlisted = table.index.newest(topic).nth(SNAPSHOT_JOBS);
    unlisted.is_none_or(|(last, _)| *last <= since)
}

/// Whether the store has to be asked before a client that stands at `since` can be told about a job.
fn is_unsure(table: &Table, id: &JobName, since: Option<Seq>) -> bool {
    table.get(id).is_some_and(|entry| {
        let behind = |job: &Job| since.is_some_and(|since| since < job.known_from());
        entry.repair.is_some()
            || entry.is_unsure()
            // Read once, it is known as far back as it can be.
            || (!entry.is_read() && entry.job.as_deref().is_some_and(behind))
    })
}
