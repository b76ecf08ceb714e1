//! The thread pool and the two parallel loops that all kernels use.
//!
//! Work is cut into tasks by sizes alone, or in ways that leave the arithmetic of each output element
//! unchanged. The same input therefore gives the same bytes with any number of threads.
//!
//! A model runs thousands of loops, one after the other, each taking microseconds to milliseconds. Waking a
//! thread takes as long as a small loop, so workers poll for the next loop for `POLL_FOR` before they
//! sleep; meanwhile they yield the core to any other thread. The thread that starts a loop, its leader, takes
//! part in it. Tasks are handed out one by one: nobody waits for more than one task of another thread, and
//! nobody waits for a worker that comes late.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Elements of an element-wise pass that are worth handing to another thread.
pub(crate) const GRAIN: usize = 16 * 1024;

/// The time that a worker polls for the next loop, and the leader for the end of the last tasks, before it
/// sleeps.
const POLL_FOR: Duration = Duration::from_micros(50);

/// Polls before the core is yielded for the first time.
const SPINS: usize = 100;

/// The threads that kernels run on inside [`ThreadPool::install`].
///
/// Outside of any pool, kernels run on one with a thread for each logical CPU.
#[derive(Debug)]
pub struct ThreadPool {
    team: Arc<Team>,
    workers: Vec<JoinHandle<()>>,
}

/// The operating system refused to start the worker threads.
#[derive(Debug)]
pub struct ThreadPoolError(std::io::Error);

impl std::fmt::Display for ThreadPoolError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot start the worker threads: {}", self.0)
    }
}

impl std::error::Error for ThreadPoolError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

impl ThreadPool {
    /// Starts a pool of `threads` threads, including the one that calls kernels; `None` takes one for each
    /// logical CPU that the process may use.
    ///
    /// # Errors
    ///
    /// When the operating system cannot start that many threads.
    pub fn new(threads: Option<usize>) -> Result<Self, ThreadPoolError> {
        let count = threads
            .or_else(|| std::thread::available_parallelism().ok().map(usize::from))
            .unwrap_or(1)
            .max(1);
        // If a thread is refused, dropping the pool ends those that were started.
        let mut pool = ThreadPool { team: Arc::new(Team::new(count)), workers: Vec::new() };
        for index in 1..count {
            let team = pool.team.clone();
            let worker = std::thread::Builder::new().name(format!("kernel-{index}"));
            pool.workers.push(worker.spawn(move || team.work(index)).map_err(ThreadPoolError)?);
        }
        Ok(pool)
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.team.threads
    }

    /// Runs `body` on this thread; every kernel that it calls uses this pool.
    pub fn install<R>(&self, body: impl FnOnce() -> R) -> R {
        /// Reinstalls the pool that was installed before.
        struct Restore(Option<Arc<Team>>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.with(|current| *current.borrow_mut() = self.0.take());
            }
        }
        let _restore = Restore(CURRENT.with(|current| current.replace(Some(self.team.clone()))));
        body()
    }

    /// Runs `body` as [`install`](Self::install) does, until `cancelled` is raised: from then on, the loops
    /// of kernels that `body` calls take no more tasks. A task lasts at most some tens of milliseconds.
    ///
    /// A kernel that was cut short returns normally. Its output, and anything packed meanwhile, is
    /// initialised memory of unspecified content. `body` itself is not interrupted: look at the flag between
    /// kernels. Calls nest; any flag of the calls around a loop ends it.
    pub fn install_until<R>(&self, cancelled: &AtomicBool, body: impl FnOnce() -> R) -> R {
        /// Puts the flags back that were in force before.
        struct Restore(Option<&'static StopFlags<'static>>);
        impl Drop for Restore {
            fn drop(&mut self) {
                STOP.set(self.0);
            }
        }
        let outer = STOP.get();
        let flags = StopFlags { flag: cancelled, outer };
        // SAFETY: only the lifetime changes. This thread's copy is replaced when `_restore` is dropped,
        // before `flags` and `cancelled` go. Workers copy it only while they take part in a loop of this
        // thread, and put theirs back before that loop ends: see `Team::for_each`.
        let lent = unsafe { std::mem::transmute::<&StopFlags<'_>, &'static StopFlags<'static>>(&flags) };
        STOP.set(Some(lent));
        let _restore = Restore(outer);
        self.install(body)
    }
}

/// The stop flags in force on a thread: one for each [`ThreadPool::install_until`] around its loops,
/// innermost first.
struct StopFlags<'a> {
    flag: &'a AtomicBool,
    outer: Option<&'a StopFlags<'a>>,
}

/// True if any of the flags is raised.
fn is_raised(mut flags: Option<&StopFlags<'_>>) -> bool {
    while let Some(StopFlags { flag, outer }) = flags {
        if flag.load(Ordering::Relaxed) {
            return true;
        }
        flags = *outer;
    }
    false
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        let mut state = self.team.lock();
        state.is_closed = true;
        // Under the lock, so that no worker falls asleep between its check and this wake-up.
        self.team.rounds.fetch_add(1, Ordering::Release);
        drop(state);
        self.team.wake.notify_all();
        for worker in self.workers.drain(..) {
            // Panics of tasks were passed on to the leader of their loop.
            let _ = worker.join();
        }
    }
}

thread_local! {
    /// The team of the pool installed on this thread.
    static CURRENT: RefCell<Option<Arc<Team>>> = const { RefCell::new(None) };
    /// True if this thread runs a task: loops within it are not shared again.
    static IS_IN_TASK: Cell<bool> = const { Cell::new(false) };
    /// The stop flags in force on this thread. They borrow from [`ThreadPool::install_until`]'s stack.
    static STOP: Cell<Option<&'static StopFlags<'static>>> = const { Cell::new(None) };
}

/// The team of the installed pool, or else of the process's default pool; `None` if its threads can't be
/// started.
fn current_team() -> Option<Arc<Team>> {
    static DEFAULT_POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();
    let default_team =
        || DEFAULT_POOL.get_or_init(|| ThreadPool::new(None).ok()).as_ref().map(|pool| pool.team.clone());
    CURRENT.with(|current| current.borrow().clone()).or_else(default_team)
}

/// The state that the threads of a pool share.
#[derive(Debug)]
struct Team {
    threads: usize,
    /// Held by the leader of the loop that workers share. Meanwhile, other threads run their loops alone.
    leader: Mutex<()>,
    /// The number of loops so far. Workers poll it.
    rounds: AtomicU64,
    /// Workers in the current loop. The leader polls it; it changes only while the state is locked.
    active: AtomicUsize,
    state: Mutex<State>,
    /// Wakes workers for a loop.
    wake: Condvar,
    /// Wakes the leader when no worker is active.
    done: Condvar,
}

#[derive(Default)]
struct State {
    /// The current loop, until all its tasks are handed out.
    take_part: Option<TakePart>,
    sleeping: usize,
    leader_sleeps: bool,
    is_closed: bool,
}

/// Takes part in a loop, given the thread's number in its team. Borrows from the leader's stack: see
/// [`Team::share`].
type TakePart = &'static (dyn Fn(usize) + Sync);

/// The tasks of a loop that nobody has taken: a range for each thread of the team. From loop to loop, a
/// thread works on the same part of the data, which is in its cache. Threads that finish their own range take
/// tasks of others.
struct Tasks {
    ranges: Vec<TaskRange>,
}

/// A range of tasks, on cache lines of its own. `next` may run past `end`.
#[repr(align(128))]
struct TaskRange {
    next: AtomicUsize,
    end: usize,
}

impl Tasks {
    fn new(tasks: usize, threads: usize) -> Self {
        let bound = |thread: usize| thread * tasks / threads;
        let range =
            |thread: usize| TaskRange { next: AtomicUsize::new(bound(thread)), end: bound(thread + 1) };
        Self { ranges: (0..threads).map(range).collect() }
    }

    /// Takes tasks and calls `body` for them, until there are none or a flag is raised.
    fn take(&self, thread: usize, stop: Option<&StopFlags<'_>>, body: &(dyn Fn(usize) + Sync)) {
        let (before, from) = self.ranges.split_at(thread.min(self.ranges.len()));
        for range in from.iter().chain(before) {
            loop {
                if is_raised(stop) {
                    return;
                }
                let index = range.next.fetch_add(1, Ordering::Relaxed);
                if index >= range.end {
                    break;
                }
                body(index);
            }
        }
    }

    /// Drops the tasks that nobody has taken.
    fn give_up(&self) {
        self.ranges.iter().for_each(|range| range.next.store(range.end, Ordering::Relaxed));
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("sleeping", &self.sleeping).finish_non_exhaustive()
    }
}

impl Team {
    fn new(threads: usize) -> Self {
        Team {
            threads,
            leader: Mutex::default(),
            rounds: AtomicU64::new(0),
            active: AtomicUsize::new(0),
            state: Mutex::default(),
            wake: Condvar::new(),
            done: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `body` for each index below `tasks`, on this thread and the workers that come in time.
    fn for_each(&self, tasks: usize, body: &(dyn Fn(usize) + Sync)) {
        let left = Tasks::new(tasks, self.threads);
        let panic: Mutex<Option<Box<dyn Any + Send>>> = Mutex::new(None);
        let stop = STOP.get();
        let take_part = |thread: usize| {
            let was_in_task = IS_IN_TASK.replace(true);
            // Loops within a worker's tasks heed the same flags.
            let own_stop = STOP.replace(stop);
            let outcome = catch_unwind(AssertUnwindSafe(|| left.take(thread, stop, body)));
            STOP.set(own_stop);
            IS_IN_TASK.set(was_in_task);
            if let Err(payload) = outcome {
                left.give_up();
                panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
            }
        };
        match self.leader.try_lock() {
            Ok(_leader) => self.share(tasks, &take_part),
            Err(_) => take_part(0),
        }
        if let Some(payload) = panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(payload);
        }
    }

    /// Runs `take_part`, which does not unwind, on this thread and on workers. Returns when all have left it.
    fn share(&self, tasks: usize, take_part: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only the lifetime changes. A worker copies the reference from the state and enters `active`
        // under one lock. Below, the reference is removed from the state, and this function waits until
        // nobody is active. Nothing in between unwinds, so no thread has the reference when this function
        // returns.
        let lent = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), TakePart>(take_part) };
        let sleeping = {
            let mut state = self.lock();
            state.take_part = Some(lent);
            self.rounds.fetch_add(1, Ordering::Release);
            state.sleeping
        };
        for _ in 0..sleeping.min(tasks - 1) {
            self.wake.notify_one();
        }
        take_part(0);
        self.lock().take_part = None;
        if poll(|| self.active.load(Ordering::Acquire) == 0) {
            return;
        }
        let mut state = self.lock();
        state.leader_sleeps = true;
        while self.active.load(Ordering::Acquire) > 0 {
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.leader_sleeps = false;
    }

    /// The loop of a worker thread, given its number in the team.
    fn work(&self, thread: usize) {
        let mut seen = 0;
        loop {
            poll(|| self.rounds.load(Ordering::Acquire) != seen);
            let mut state = self.lock();
            while self.rounds.load(Ordering::Acquire) == seen {
                state.sleeping += 1;
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.sleeping -= 1;
            }
            if state.is_closed {
                return;
            }
            seen = self.rounds.load(Ordering::Acquire);
            let Some(take_part) = state.take_part else { continue };
            self.active.fetch_add(1, Ordering::Relaxed);
            drop(state);
            take_part(thread);
            let state = self.lock();
            if self.active.fetch_sub(1, Ordering::Release) == 1 && state.leader_sleeps {
                self.done.notify_one();
            }
        }
    }
}

/// Polls for an event for a while. Returns whether it came.
fn poll(came: impl Fn() -> bool) -> bool {
    for _ in 0..SPINS {
        if came() {
            return true;
        }
        std::hint::spin_loop();
    }
    let begin = Instant::now();
    while begin.elapsed() < POLL_FOR {
        if came() {
            return true;
        }
        std::thread::yield_now();
    }
    came()
}

/// The number of threads that would share a loop of this thread.
pub(crate) fn threads() -> usize {
    team_for(usize::MAX).map_or(1, |team| team.threads)
}

/// The team for a loop of `tasks` tasks; `None` if the loop should stay on the calling thread.
fn team_for(tasks: usize) -> Option<Arc<Team>> {
    #[cfg(test)]
    if crate::isa::forced::level() != crate::isa::forced::Level::Native {
        return None;
    }
    if tasks <= 1 || IS_IN_TASK.get() {
        return None;
    }
    current_team().filter(|team| team.threads > 1)
}

/// Calls `body` once for each index below `tasks`, on the installed pool. A loop within a task stays on its
/// thread.
///
/// # Panics
///
/// When `body` does: passes on the first of its panics.
pub fn parallel_for(tasks: usize, body: impl Fn(usize) + Sync) {
    match team_for(tasks) {
        Some(team) => team.for_each(tasks, &body),
        None => serial_for(tasks, body),
    }
}

/// Calls `body` once for each index below `tasks`: on the current pool if the tasks are worth sharing, else
/// here.
pub(crate) fn run_tasks(worth_sharing: bool, tasks: usize, body: impl Fn(usize) + Sync) {
    if worth_sharing {
        parallel_for(tasks, body);
    } else {
        serial_for(tasks, body);
    }
}

/// Calls `body` once for each index below `tasks` on this thread.
fn serial_for(tasks: usize, body: impl Fn(usize)) {
    let stop = STOP.get();
    (0..tasks).take_while(|_| !is_raised(stop)).for_each(body);
}

/// Calls `body(index, chunk)` for consecutive chunks of `data`, each `chunk_len` long except for a shorter
/// last one.
///
/// # Panics
///
/// When `chunk_len` is zero, or `body` panics.
pub fn for_each_chunk_mut<T: Send>(data: &mut [T], chunk_len: usize, body: impl Fn(usize, &mut [T]) + Sync) {
    /// The start of the data.
    struct Start<T>(*mut T);
    // SAFETY: each chunk is used by one task only, and so by one thread at a time, to which `T` may be sent.
    unsafe impl<T: Send> Sync for Start<T> {}
    impl<T> Start<T> {
        /// # Safety
        /// The range lies within the data, and no other reference to it is alive.
        #[allow(clippy::mut_from_ref)]
        unsafe fn slice(&self, offset: usize, len: usize) -> &mut [T] {
            // SAFETY: the caller's promise.
            unsafe { std::slice::from_raw_parts_mut(self.0.add(offset), len) }
        }
    }

    let (len, tasks) = (data.len(), data.len().div_ceil(chunk_len));
    let Some(team) = team_for(tasks) else {
        let (stop, chunks) = (STOP.get(), data.chunks_mut(chunk_len).enumerate());
        return chunks.take_while(|_| !is_raised(stop)).for_each(|(index, chunk)| body(index, chunk));
    };
    let start = Start(data.as_mut_ptr());
    team.for_each(tasks, &|index| {
        let offset = index * chunk_len;
        // SAFETY: chunks of different indices do not overlap, each index is handed out once, and `data` stays
        // borrowed.
        let chunk = unsafe { start.slice(offset, chunk_len.min(len - offset)) };
        body(index, chunk);
    });
}

/// Rows per task such that a task handles about [`GRAIN`] elements.
pub(crate) fn rows_per_task(row_len: usize) -> usize {
    (GRAIN / row_len.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> ThreadPool {
        ThreadPool::new(Some(threads)).expect("threads")
    }

    fn check_loop(tasks: usize) {
        let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        parallel_for(tasks, |index| {
            counts[index].fetch_add(1, Ordering::Relaxed);
        });
        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
    }

    #[test]
    fn loops_cover_everything_once() {
        for threads in [1, 2, 5] {
            let pool = pool(threads);
            assert_eq!(pool.threads(), threads);
            pool.install(|| {
                for tasks in [0, 1, 2, 100] {
                    check_loop(tasks);
                    let mut data = vec![0; tasks];
                    for_each_chunk_mut(&mut data, 7, |index, chunk| {
                        for (offset, value) in chunk.iter_mut().enumerate() {
                            *value += index * 7 + offset + 1;
                        }
                    });
                    assert!(data.iter().enumerate().all(|(index, value)| *value == index + 1));
                }
            });
        }
    }

    #[test]
    fn workers_take_part_whether_they_poll_or_sleep() {
        let pool = pool(3);
        for rest in [0, 0, 3, 0, 3, 3] {
            std::thread::sleep(Duration::from_millis(rest));
            // No thread can pass before all three are in.
            let entered = AtomicUsize::new(0);
            pool.install(|| {
                parallel_for(3, |_| {
                    entered.fetch_add(1, Ordering::SeqCst);
                    while entered.load(Ordering::SeqCst) < 3 {
                        std::thread::yield_now();
                    }
                });
            });
        }
    }

    #[test]
    fn loops_within_tasks_stay_on_their_thread() {
        pool(3).install(|| {
            parallel_for(8, |_| {
                let own = std::thread::current().id();
                parallel_for(8, |_| assert_eq!(std::thread::current().id(), own));
            });
            // Afterwards loops are shared again.
            check_loop(50);
            assert!(!IS_IN_TASK.get());
        });
    }

    #[test]
    fn several_threads_may_use_one_pool() {
        let pool = pool(2);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..200).for_each(|round| pool.install(|| check_loop(round % 9))));
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_leader_and_the_pool_goes_on() {
        let pool = pool(3);
        for bad in [0, 7, 19] {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.install(|| parallel_for(20, |index| assert_ne!(index, bad, "as asked")));
            }));
            let payload = outcome.expect_err("a panic");
            assert!(payload.downcast_ref::<String>().is_some_and(|text| text.contains("as asked")));
            assert!(!IS_IN_TASK.get());
            pool.install(|| check_loop(30));
        }
    }

    #[test]
    fn pools_are_installed_within_each_other() {
        let (outer, inner) = (pool(2), pool(3));
        let installed = || current_team().map(|team| team.threads);
        outer.install(|| {
            assert_eq!(inner.install(installed), Some(3));
            assert_eq!(installed(), Some(2));
        });
    }

    #[test]
    fn a_raised_flag_ends_loops_and_the_pool_goes_on() {
        for threads in [1, 2, 5] {
            let pool = pool(threads);
            let (cancelled, done) = (AtomicBool::new(false), AtomicUsize::new(0));
            let count = |_| {
                if done.fetch_add(1, Ordering::SeqCst) >= 3 {
                    cancelled.store(true, Ordering::SeqCst);
                }
            };
            pool.install_until(&cancelled, || parallel_for(1000, count));
            // Every thread finishes the task that it has.
            assert!(done.load(Ordering::SeqCst) <= 4 + threads, "{done:?} tasks on {threads} threads");
            let mut data = [1; 100];
            pool.install_until(&cancelled, || {
                for_each_chunk_mut(&mut data, 1, |_, chunk| chunk[0] = 2);
                run_tasks(false, 5, |_| panic!("no task is taken"));
                check_nothing_is_done();
                // An inner flag does not hide the outer one.
                pool.install_until(&AtomicBool::new(false), check_nothing_is_done);
                pool.install(check_nothing_is_done);
            });
            assert_eq!(data, [1; 100]);
            // Outside, and with a flag that is down, nothing is left of it.
            pool.install(|| check_loop(100));
            pool.install_until(&AtomicBool::new(false), || check_loop(100));
            check_loop(100);
        }
    }

    fn check_nothing_is_done() {
        parallel_for(5, |_| panic!("no task is taken"));
    }

    #[test]
    fn a_raised_flag_ends_loops_within_tasks_of_workers() {
        let pool = pool(3);
        let (cancelled, entered, inner) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
        pool.install_until(&cancelled, || {
            parallel_for(3, |_| {
                entered.fetch_add(1, Ordering::SeqCst);
                while entered.load(Ordering::SeqCst) < 3 {
                    std::thread::yield_now();
                }
                cancelled.store(true, Ordering::SeqCst);
                parallel_for(100, |_| {
                    inner.fetch_add(1, Ordering::SeqCst);
                });
            });
        });
        assert_eq!(inner.load(Ordering::SeqCst), 0);
        pool.install(|| check_loop(100));
    }

    #[test]
    fn a_pool_has_at_least_one_thread() {
        assert!(ThreadPool::new(None).expect("threads").threads() >= 1);
        assert_eq!(pool(0).threads(), 1);
    }
}
