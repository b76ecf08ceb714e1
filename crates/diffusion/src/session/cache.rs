//! The networks of a session: compiled once, kept within a memory budget, one at work at a time.

use std::sync::Arc;

use mixbit_engine::{Cancel, Error, MemoryBudget, Model, Tensor, Timing, TracedStep};

use super::error::GenerateError;
use super::event::{Event, OnEvent};
use super::network::{NetworkKey, PlannedNetwork};
use super::recent::Recent;
use crate::model::Network;

/// The most graphs that are kept.
const MOST_NETWORKS: usize = 32;

/// The networks of a session.
///
/// *Invariant:* one network is at work at a time. The others are suspended: they hold no memory for
/// intermediate results and no pages of mapped weights, but keep packed weights.
pub(super) struct NetworkCache {
    entries: Recent<Entry>,
    budget: MemoryBudget,
    /// True if a network is unloaded, not suspended, when another is at work.
    unloads_others: bool,
    compilations: usize,
}

/// A network that was planned, and compiled if it has run since it was unloaded.
struct Entry {
    planned: Arc<PlannedNetwork>,
    model: Option<Model>,
    is_suspended: bool,
    /// The times of models that were unloaded.
    spent: Vec<Timing>,
    /// The last run of a model that was unloaded.
    trace: Vec<TracedStep>,
}

impl NetworkCache {
    pub(super) fn new(budget: MemoryBudget, unloads_others: bool) -> Self {
        NetworkCache { entries: Recent::new(MOST_NETWORKS), budget, unloads_others, compilations: 0 }
    }

    /// The number of networks compiled so far.
    pub(super) fn compilations(&self) -> usize {
        self.compilations
    }

    /// The budget that all networks share.
    pub(super) fn budget(&self) -> &MemoryBudget {
        &self.budget
    }

    /// The graph of a key: a known one, or a new one for `planned_runs` runs.
    ///
    /// # Errors
    /// If its graph can't be built.
    pub(super) fn plan(
        &mut self,
        key: NetworkKey,
        planned_runs: usize,
    ) -> Result<Arc<PlannedNetwork>, GenerateError> {
        if let Some(entry) = self.entries.iter().find(|entry| entry.planned.key == key) {
            return Ok(entry.planned.clone());
        }
        // Packing a network that is unloaded after its run never pays.
        let planned_runs = if self.unloads_others { 1 } else { planned_runs };
        Ok(Arc::new(PlannedNetwork::new(key, planned_runs, &self.budget)?))
    }

    /// Compiles a network, unless it is.
    ///
    /// # Errors
    /// If the backend can't run it.
    pub(super) fn load(
        &mut self,
        planned: &Arc<PlannedNetwork>,
        on: &mut OnEvent,
    ) -> Result<(), GenerateError> {
        self.loaded(planned, on).map(|_| ())
    }

    /// Runs a network while the others are suspended.
    ///
    /// # Errors
    /// If it can't be run, or was cancelled.
    pub(super) fn run(
        &mut self,
        planned: &Arc<PlannedNetwork>,
        inputs: &[(&str, &Tensor)],
        cancel: &Cancel,
        on: &mut OnEvent,
    ) -> Result<Vec<Tensor>, GenerateError> {
        for entry in self.entries.iter_mut().filter(|entry| entry.planned.key != planned.key) {
            if self.unloads_others { entry.unload() } else { entry.suspend() }
        }
        loop {
            let entry = self.loaded(planned, on)?;
            entry.is_suspended = false;
            match entry.model.as_mut().map(|model| model.run_until(inputs, cancel)) {
                Some(Err(Error::Memory { .. })) if self.unload_oldest_but(planned) => {}
                Some(result) => return result.map_err(|error| planned.error(error)),
                None => {}
            }
        }
    }

    /// The entry of a network, compiled and the most recently used.
    fn loaded(
        &mut self,
        planned: &Arc<PlannedNetwork>,
        on: &mut OnEvent,
    ) -> Result<&mut Entry, GenerateError> {
        if self.entry(planned).model.is_none() {
            on(Event::Compiling(planned.component()));
            self.make_room(planned);
            let model = loop {
                match planned.compile() {
                    Err(Error::Memory { .. }) if self.unload_oldest_but(planned) => {}
                    compiled => break compiled.map_err(|error| planned.error(error))?,
                }
            };
            self.compilations += 1;
            self.entry(planned).model = Some(model);
        }
        Ok(self.entry(planned))
    }

    /// A network's entry, the most recently used from now on.
    fn entry(&mut self, planned: &Arc<PlannedNetwork>) -> &mut Entry {
        self.entries.find_or_push(|entry| entry.planned.key == planned.key, || Entry::new(planned.clone()))
    }

    /// Bytes that a run of a network takes for intermediate results. If they are more than is left, others
    /// are unloaded.
    ///
    /// # Errors
    /// If the graph can't be run, or needs more memory than there is without the others.
    pub(super) fn arena_bytes(&mut self, planned: &PlannedNetwork) -> Result<usize, Error> {
        loop {
            match planned.arena_bytes() {
                Err(Error::Memory { .. }) if self.unload_oldest_but(planned) => {}
                planned => return planned,
            }
        }
    }

    /// Unloads the networks that were used least recently, until the budget has room for another: for its
    /// intermediate results and, if it is to run often, for a packed copy of its weights.
    fn make_room(&mut self, planned: &Arc<PlannedNetwork>) {
        if self.budget.is_unlimited() || self.budget.used() == 0 {
            return;
        }
        // Packed weights take at most a quarter of a budget.
        let most = usize::try_from(self.budget.limit() / 4).unwrap_or(usize::MAX);
        let packed = if planned.planned_runs() > 1 { planned.weight_bytes().min(most) } else { 0 };
        let needed = (planned.arena_bytes().unwrap_or(0) + packed) as u64;
        while self.budget.used().saturating_add(needed) > self.budget.limit() {
            if !self.unload_oldest_but(planned) {
                break;
            }
        }
    }

    /// Unloads the least recently used network besides one, and says whether there was any.
    fn unload_oldest_but(&mut self, planned: &PlannedNetwork) -> bool {
        let others = self.entries.iter_mut().filter(|entry| entry.planned.key != planned.key);
        match others.into_iter().find(|entry| entry.model.is_some()) {
            Some(entry) => {
                entry.unload();
                true
            }
            None => false,
        }
    }

    /// Suspends every network.
    pub(super) fn suspend(&mut self) {
        self.entries.iter_mut().for_each(Entry::suspend);
    }

    /// Unloads every graph of a network; its next run compiles it again.
    pub(super) fn unload(&mut self, network: &Network) {
        self.of_network_mut(network).for_each(Entry::unload);
    }

    /// Unloads every network.
    pub(super) fn unload_all(&mut self) {
        self.entries.iter_mut().for_each(Entry::unload);
    }

    /// Forgets the networks that `is_kept` does not keep.
    pub(super) fn retain(&mut self, is_kept: impl Fn(&Network) -> bool) {
        self.entries.retain(|entry| is_kept(&entry.planned.key.network));
    }

    /// The time of all runs of the graphs that `is_counted` chooses, by kind of op, the longest first.
    pub(super) fn profile(&self, is_counted: impl Fn(&NetworkKey) -> bool) -> Vec<Timing> {
        let counted = self.entries.iter().filter(|entry| is_counted(&entry.planned.key));
        sum(counted.flat_map(Entry::profile), |first, second| first + second)
    }

    /// The steps of a network's last run.
    pub(super) fn trace(&self, planned: &PlannedNetwork) -> Vec<TracedStep> {
        let entry = self.entries.iter().find(|entry| entry.planned.key == planned.key);
        entry.map(Entry::trace).unwrap_or_default()
    }

    fn of_network_mut(&mut self, network: &Network) -> impl Iterator<Item = &mut Entry> {
        self.entries.iter_mut().filter(move |entry| entry.planned.key.network == *network)
    }
}

impl Entry {
    fn new(planned: Arc<PlannedNetwork>) -> Self {
        Entry { planned, model: None, is_suspended: true, spent: Vec::new(), trace: Vec::new() }
    }

    /// Gives back the memory of intermediate results and the pages of mapped weights.
    fn suspend(&mut self) {
        if self.is_suspended {
            return;
        }
        self.is_suspended = true;
        if let Some(model) = &mut self.model {
            model.release_arena();
        }
        self.planned.release_weights();
    }

    /// Gives all memory back.
    fn unload(&mut self) {
        if let Some(model) = self.model.take() {
            self.spent = sum(self.spent.drain(..).chain(model.profile()), usize::max);
            self.trace = model.trace();
        }
        self.suspend();
    }

    fn profile(&self) -> Vec<Timing> {
        let running = self.model.iter().flat_map(Model::profile);
        sum(self.spent.iter().cloned().chain(running), usize::max)
    }

    fn trace(&self) -> Vec<TracedStep> {
        match &self.model {
            Some(model) => model.trace(),
            None => self.trace.clone(),
        }
    }
}

/// Timings with those of one kind added up, the longest first; `steps` joins their numbers of steps.
fn sum(timings: impl IntoIterator<Item = Timing>, steps: fn(usize, usize) -> usize) -> Vec<Timing> {
    let mut sums: Vec<Timing> = Vec::new();
    for timing in timings {
        match sums.iter_mut().find(|sum| sum.kind == timing.kind) {
            Some(sum) => {
                sum.time += timing.time;
                sum.multiply_adds += timing.multiply_adds;
                sum.steps = steps(sum.steps, timing.steps);
            }
            None => sums.push(timing),
        }
    }
    sums.sort_by(|a, b| b.time.cmp(&a.time).then_with(|| a.kind.cmp(&b.kind)));
    sums
}
