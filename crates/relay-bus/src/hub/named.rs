//! Whose a job or a group is that somebody names by its id alone.
//!
//! An id is its owner's, so several may be called the same. Who asks means its own, if it has one; else the only one
//! that it may see. What anybody may see is not known here: those that may be meant are told, and the choice is
//! theirs who know the client.
//!
//! Invariant: where somebody's own is known, nothing of others is looked at for it.

use hashbrown::HashSet;
use relay_core::id::{JobId, JobName, JobNameRef, Name, Owner};
use relay_core::position::Seq;
use relay_core::topic::Topic;
use relay_core::watcher::beginning::{Joined, Several};
use tokio::sync::oneshot;

use super::table::{Deferred, Entry, LoadKey, MOST_NAMESAKES, Table};
use super::{Hub, JoinRequest};
use crate::inbox::Message;

/// Who may be meant, or from whom it will be heard; `None` where nobody can say now.
type Asked = Result<Vec<Owner>, Option<oneshot::Receiver<Vec<Owner>>>>;

impl Hub {
    /// The owners of the job or the group that `topic` may mean, for somebody whose own is meant first: then that one
    /// alone. Waits for the store if it has to be asked. `None` if nobody can say now.
    pub async fn owners(&self, topic: &Topic, own: Option<&Owner>) -> Option<Vec<Owner>> {
        let asked = self.owners_or_wait(topic, own);
        let owners = match asked {
            Ok(owners) => owners,
            Err(waiting) => {
                let listed = waiting?.await.ok()?;
                match topic {
                    Topic::Group(named) => self.table().index.owners(&named.id).cloned().collect(),
                    Topic::Job(_) | Topic::User(_) => listed,
                }
            }
        };
        Some(first(owners, own))
    }

    fn owners_or_wait(&self, topic: &Topic, own: Option<&Owner>) -> Asked {
        let Some(named) = topic.named() else {
            return Ok(Vec::new());
        };
        if let Some(owner) = &named.owner {
            return Ok(vec![owner.clone()]);
        }
        let id = &named.id;
        let mut table = self.table();
        let key = match topic {
            Topic::Group(_) => LoadKey::Everything,
            Topic::Job(_) | Topic::User(_) => LoadKey::Owners(id.clone()),
        };
        let is_job = matches!(topic, Topic::Job(_));
        if let Some(owner) = own
            && is_job
            && table.has(JobNameRef { owner, id })
        {
            return Ok(vec![owner.clone()]);
        }
        let is_known = match is_job {
            true => table.names.is_listed(id),
            false => table.index.is_complete(&key),
        };
        if self.backing.memory().is_none() || is_known {
            return Ok(match is_job {
                true => table.owners(id).cloned().collect(),
                false => table.index.owners(id).cloned().collect(),
            });
        }
        if table.loads.is_full() {
            return Err(None);
        }
        self.load_once(&mut table, &key);
        Err(Some(table.loads.await_owners(key)))
    }

    /// Joins one of the jobs that are called so.
    pub(super) fn join_called(&self, table: &mut Table, id: &JobId, request: JoinRequest) {
        if let Some(owner) = request.own.clone()
            && table.has(JobNameRef { owner: &owner, id })
        {
            let own = JobName::new(owner, id.clone());
            return self.join_job(table, &own, request);
        }
        if self.backing.memory().is_none() || table.names.is_listed(id) {
            let owners = table.owners(id).cloned().collect();
            return self.join_one_of(table, id, owners, request);
        }
        let key = LoadKey::Owners(id.clone());
        self.load_once(table, &key);
        table.loads.await_join(key, request);
    }

    /// Joins that job of these owners which the client means, as far as that can be said here.
    pub(super) fn join_one_of(
        &self,
        table: &mut Table,
        id: &JobId,
        owners: Vec<Owner>,
        request: JoinRequest,
    ) {
        let name = |owner: &Owner| JobName::new(owner.clone(), id.clone());
        let owners = first(owners, request.own.as_ref());
        match owners.as_slice() {
            [] => self.answer_job(table, None, request),
            [only] => self.join_job(table, &name(only), request),
            several => {
                let names = several.iter().take(MOST_NAMESAKES).map(name);
                let is_unsure = |name: &JobName| {
                    let entry = table.get(name);
                    !entry
                        .is_some_and(|it| it.repair.is_none() && (it.job.is_some() || it.is_read()))
                };
                let unsure: HashSet<JobName> = match self.backing.memory() {
                    // Of which group each is, may be why it may be seen.
                    Some(_) => names.filter(is_unsure).collect(),
                    None => HashSet::new(),
                };
                match unsure.is_empty() {
                    true => self.answer_several(table, id, request),
                    false => self.defer(table, unsure, Deferred::Join(request)),
                }
            }
        }
    }

    /// Those that are called so are known: whose they are is told, unless it is one alone after all.
    pub(super) fn answer_several(&self, table: &mut Table, id: &JobId, request: JoinRequest) {
        let known = table.owners(id).filter_map(|owner| {
            let job = table.get_ref(JobNameRef { owner, id })?.job.as_deref()?;
            Some((owner.clone(), job.group().cloned()))
        });
        let owners: Vec<(Owner, Option<Name>)> = known.take(MOST_NAMESAKES).collect();
        match owners.as_slice() {
            [] => self.answer_job(table, None, request),
            [(only, _)] => {
                let name = JobName::new(only.clone(), id.clone());
                self.join_job(table, &name, request);
            }
            _ => self.tell_several(table, owners, request),
        }
    }

    /// Leaves the choice among several to whoever knows the client.
    pub(super) fn tell_several(
        &self,
        table: &Table,
        owners: Vec<(Owner, Option<Name>)>,
        request: JoinRequest,
    ) {
        let several = Several {
            owners,
            cursor: request.cursor,
            again: request.again,
        };
        let joined = Box::new(Joined {
            subscription: request.subscription,
            topic: request.topic,
            owner: None,
            key: None,
            parent: None,
            several: Some(Box::new(several)),
            since: None,
            recovered: false,
            publications: Vec::new(),
            left_out: Vec::new(),
            high: table.high(),
        });
        self.inboxes[request.shard].push(Message::Joined(request.connection, joined));
    }

    /// The store said of whom it has a job by this id.
    pub(super) fn finish_owners(
        &self,
        table: &mut Table,
        id: &JobId,
        listed: &[Owner],
        up_to: Seq,
    ) {
        let key = LoadKey::Owners(id.clone());
        if table.names.is_awaited(id) {
            // Found by a comparison: whoever waits has not been told of it.
            let missed_from = table.holdback.missed_from();
            for owner in listed.iter().take(MOST_NAMESAKES) {
                let name = JobName::new(owner.clone(), id.clone());
                let entry = table.get(&name);
                let is_known = |it: &Entry| it.job.is_some() || it.repair.is_some() || it.is_read();
                if entry.is_some_and(is_known) || table.loads.is_joined(&key) {
                    continue;
                }
                table.start_repair(&name, self.clock.now());
                table.hold(&name, missed_from.unwrap_or(Seq::ZERO));
            }
        }
        table.names.list(id, listed, up_to);
        let mut owners: Vec<Owner> = table.owners(id).cloned().collect();
        for owner in listed {
            let entry = table.get_ref(JobNameRef { owner, id });
            // What is stored of it may be nothing that can be told.
            let is_nothing = entry.is_some_and(|it| it.job.is_none() && it.is_read());
            if !is_nothing && !owners.contains(owner) {
                owners.push(owner.clone());
            }
        }
        table.loads.answer_owners(&key, &owners);
        for request in table.loads.take_joins(&key) {
            self.join_one_of(table, id, owners.clone(), request);
        }
        if table.holdback.caught_up(&key) {
            self.freshen(table);
        }
        self.tell_holds(table);
        self.work.notify_one();
    }
}

/// The client's own alone, if it is among them.
pub(super) fn first(owners: Vec<Owner>, own: Option<&Owner>) -> Vec<Owner> {
    match own.filter(|own| owners.contains(own)) {
        Some(own) => vec![own.clone()],
        None => owners,
    }
}
