//! What has to be loaded from the store, and who waits for it.
//!
//! Knows keys and those who wait, and nothing of what is loaded.
//!
//! Invariants: however many wait for a key, they ask for it once; nobody waits for no job at all.

use std::collections::{BTreeMap, VecDeque};

use hashbrown::{HashMap, HashSet};
use relay_core::id::{JobId, JobName, Owner};
use relay_core::moment::Moment;
use relay_core::position::Seq;
use relay_core::topic::Topic;
use tokio::sync::oneshot;

use crate::hub::rebuild::Rebuilt;
use crate::hub::request::{JoinRequest, Survey, Whose};
use crate::seam::Incoming;

/// Loads that may wait for the store; what is looked up beyond that cannot be said.
const MAX_LOADS: usize = 65_536;

/// What one repair or load is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::hub) enum LoadKey {
    /// Everything stored about one job.
    Job(JobName),
    /// Whose jobs there are with this id.
    Owners(JobId),
    /// The last states of one owner's jobs.
    Owner(Owner),
    /// The last states of all jobs: which of them belong to a group is in their bodies.
    Everything,
}

/// What the store holds of what was asked for.
#[derive(Debug)]
pub(in crate::hub) struct Answer {
    pub(in crate::hub) key: LoadKey,
    /// Which reading of the bus it was asked in.
    pub(in crate::hub) life: u64,
    pub(in crate::hub) found: Found,
}

/// What a load brought.
#[derive(Debug)]
pub(in crate::hub) enum Found {
    /// One job, read whole.
    Job(Box<Rebuilt>),
    /// Some owners, as of a number.
    Owners(Vec<Owner>, Seq),
    /// The last states of many.
    States(Vec<Incoming>),
}

impl Answer {
    /// The highest number in it.
    pub(in crate::hub) fn newest(&self) -> Seq {
        let updates = match &self.found {
            Found::Job(rebuilt) => &rebuilt.updates,
            Found::States(states) => states,
            // Of what they have nothing is said.
            Found::Owners(..) => return Seq::ZERO,
        };
        let seqs = updates.iter().map(|update| update.seq);
        seqs.max().unwrap_or(Seq::ZERO)
    }
}

/// Somebody who wants to know how the jobs of a user or a group stand, once they are known.
#[derive(Debug)]
pub(in crate::hub) struct SurveyRequest {
    pub(in crate::hub) topic: Topic,
    /// Whoever asked holds the other end; dropping that one means not to wait any more.
    pub(in crate::hub) answer: oneshot::Sender<Survey>,
}

impl SurveyRequest {
    /// Whether anybody still wants the answer.
    fn waits(&self) -> bool {
        !self.answer.is_closed()
    }
}

/// Loads to be made, and who waits for which.
#[derive(Debug, Default)]
pub(in crate::hub) struct Loads {
    queue: VecDeque<LoadKey>,
    /// What is to be loaded later, by when; the number keeps those apart that are due together.
    later: BTreeMap<(Moment, u64), LoadKey>,
    /// How many were asked for later.
    put_off: u64,
    /// Joins that wait for an owner's jobs, or for all. An emptied list stays until its load is in, which looks
    /// for it.
    joins: HashMap<LoadKey, BTreeMap<Whose, JoinRequest>>,
    /// Who waits for the same and only counts.
    surveys: HashMap<LoadKey, Vec<SurveyRequest>>,
    /// Who only wants to know whose something is, once that is known.
    questions: HashMap<LoadKey, Vec<oneshot::Sender<Vec<Owner>>>>,
    /// Who waits for the repair of single jobs, and which those are, by a number each.
    deferred: BTreeMap<u64, (HashSet<JobName>, Deferred)>,
    /// How many ever waited so.
    ever_deferred: u64,
    /// Who waits for which job.
    awaited: HashMap<JobName, Vec<u64>>,
    /// The joins among them.
    deferred_joins: HashMap<Whose, u64>,
    /// How many waited when those that do not wait any more were last looked for.
    looked_at: usize,
}

/// Who asked for the jobs of an owner or a group, and waits until some of them are read.
#[derive(Debug)]
pub(in crate::hub) enum Deferred {
    Join(JoinRequest),
    Survey(SurveyRequest),
}

impl Deferred {
    /// Whether anybody still wants the answer, as far as that can be seen from here.
    fn waits(&self) -> bool {
        match self {
            Self::Join(_) => true,
            Self::Survey(survey) => survey.waits(),
        }
    }
}

impl Loads {
    /// What has to be loaded next.
    pub(in crate::hub) fn next(&mut self, now: Moment) -> Option<LoadKey> {
        while let Some(first) = self.later.first_entry().filter(|it| it.key().0 <= now) {
            self.queue.push_back(first.remove());
        }
        self.queue.pop_front()
    }

    /// When something falls due that is to be loaded later.
    pub(in crate::hub) fn next_due(&self) -> Option<Moment> {
        self.later.first_key_value().map(|((due, _), _)| *due)
    }

    /// Whether no more can be promised.
    pub(in crate::hub) fn is_full(&self) -> bool {
        self.queue.len() + self.later.len() >= MAX_LOADS
    }

    pub(in crate::hub) fn ask(&mut self, key: LoadKey) {
        self.queue.push_back(key);
    }

    /// Asks for a load, not before `due`.
    pub(in crate::hub) fn ask_later(&mut self, key: LoadKey, due: Moment) {
        self.put_off += 1;
        self.later.insert((due, self.put_off), key);
    }

    /// Asks for a load, unless somebody waits for the same already. True if it is asked for.
    pub(in crate::hub) fn ask_once(&mut self, key: &LoadKey) -> bool {
        let is_new =
            !self.is_joined(key) && !self.is_surveyed(key) && !self.questions.contains_key(key);
        if is_new {
            self.ask(key.clone());
        }
        is_new
    }

    /// A join waits for the load.
    pub(in crate::hub) fn await_join(&mut self, key: LoadKey, join: JoinRequest) {
        self.joins
            .entry(key)
            .or_default()
            .insert(join.whose(), join);
    }

    /// Somebody who only counts waits for the load.
    pub(in crate::hub) fn await_survey(&mut self, key: LoadKey, survey: SurveyRequest) {
        let surveys = self.surveys.entry(key).or_default();
        // Whoever asks over and over while the store is away has stopped waiting for the earlier answers.
        if surveys.len().is_power_of_two() {
            surveys.retain(SurveyRequest::waits);
        }
        surveys.push(survey);
    }

    /// Somebody who asks whose something is waits for the load.
    pub(in crate::hub) fn await_owners(&mut self, key: LoadKey) -> oneshot::Receiver<Vec<Owner>> {
        let (answer, waiting) = oneshot::channel();
        let questions = self.questions.entry(key).or_default();
        questions.retain(|question| !question.is_closed());
        questions.push(answer);
        waiting
    }

    /// The load is in: those are told who asked whose something is.
    pub(in crate::hub) fn answer_owners(&mut self, key: &LoadKey, owners: &[Owner]) {
        for question in self.questions.remove(key).unwrap_or_default() {
            // Whoever asked may have stopped waiting.
            question.send(owners.to_vec()).ok();
        }
    }

    /// Whether a join waits for the load, or did.
    pub(in crate::hub) fn is_joined(&self, key: &LoadKey) -> bool {
        self.joins.contains_key(key)
    }

    /// Whether somebody who only counts waits for the load.
    pub(in crate::hub) fn is_surveyed(&self, key: &LoadKey) -> bool {
        self.surveys.contains_key(key)
    }

    /// The load is in: the joins that waited for it.
    pub(in crate::hub) fn take_joins(&mut self, key: &LoadKey) -> Vec<JoinRequest> {
        let joins = self.joins.remove(key).unwrap_or_default();
        joins.into_values().collect()
    }

    /// The load is in: who waited for it and only counts.
    pub(in crate::hub) fn take_surveys(&mut self, key: &LoadKey) -> Vec<SurveyRequest> {
        self.surveys.remove(key).unwrap_or_default()
    }

    /// Somebody waits until each of these jobs is repaired.
    pub(in crate::hub) fn defer(&mut self, unsure: HashSet<JobName>, who: Deferred) {
        if self.deferred.len() >= 2 * self.looked_at.max(16) {
            // Those who wait for a survey go without a word.
            let gone = self.deferred.iter().filter(|(_, (_, who))| !who.waits());
            for number in gone.map(|(number, _)| *number).collect::<Vec<_>>() {
                self.give_up(number);
            }
            self.looked_at = self.deferred.len();
        }
        self.ever_deferred += 1;
        let number = self.ever_deferred;
        for job in &unsure {
            self.awaited.entry(job.clone()).or_default().push(number);
        }
        if let Deferred::Join(join) = &who {
            self.deferred_joins.insert(join.whose(), number);
        }
        self.deferred.insert(number, (unsure, who));
    }

    fn give_up(&mut self, number: u64) -> Option<Deferred> {
        let (unsure, who) = self.deferred.remove(&number)?;
        for job in &unsure {
            if let Some(numbers) = self.awaited.get_mut(job) {
                numbers.retain(|each| *each != number);
                if numbers.is_empty() {
                    self.awaited.remove(job);
                }
            }
        }
        if let Deferred::Join(join) = &who {
            self.deferred_joins.remove(&join.whose());
        }
        Some(who)
    }

    /// A job's repair is done: who waited for it alone.
    pub(in crate::hub) fn take_ready(&mut self, id: &JobName) -> Vec<Deferred> {
        let mut ready = Vec::new();
        for number in self.awaited.remove(id).unwrap_or_default() {
            let Some((unsure, _)) = self.deferred.get_mut(&number) else {
                continue;
            };
            unsure.remove(id);
            if unsure.is_empty() {
                ready.extend(self.give_up(number));
            }
        }
        ready
    }

    /// Gives up a join that waits for a load, or for jobs that it brought. False if none does.
    pub(in crate::hub) fn withdraw(&mut self, key: &LoadKey, whose: Whose) -> bool {
        let joins = self.joins.get_mut(key);
        if joins.is_some_and(|joins| joins.remove(&whose).is_some()) {
            return true;
        }
        let number = self.deferred_joins.get(&whose).copied();
        number.is_some_and(|number| self.give_up(number).is_some())
    }

    /// How many joins wait.
    #[cfg(test)]
    pub(in crate::hub) fn waiting(&self) -> usize {
        self.joins.values().map(BTreeMap::len).sum::<usize>() + self.deferred_joins.len()
    }

    /// How many wait who only count.
    #[cfg(test)]
    pub(in crate::hub) fn surveys(&self) -> usize {
        self.surveys.values().map(Vec::len).sum()
    }

    /// How many loads are asked for.
    #[cfg(test)]
    pub(in crate::hub) fn len(&self) -> usize {
        self.queue.len() + self.later.len()
    }

    /// Asserts the invariants.
    pub(super) fn check(&self) {
        let mut deferred = self.deferred.values();
        let waits = deferred.all(|(unsure, _)| !unsure.is_empty());
        debug_assert!(waits, "somebody waits for nothing");
        let awaited: usize = self.awaited.values().map(Vec::len).sum();
        let unsure: usize = self.deferred.values().map(|(unsure, _)| unsure.len()).sum();
        debug_assert_eq!(awaited, unsure, "who waits for which job");
    }
}
