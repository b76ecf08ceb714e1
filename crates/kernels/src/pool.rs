//! The thread pool and the two parallel loops that all kernels use.
//!
//! Work is cut into tasks by sizes alone, never by the number of threads, or in ways that leave each output
//! element's arithmetic unchanged. The same input therefore gives the same bytes with any number of threads.

use rayon::prelude::*;

/// The number of elements below which an element-wise pass is not worth handing to another thread.
pub(crate) const GRAIN: usize = 16 * 1024;

/// The worker threads that kernels run on inside [`ThreadPool::install`].
///
/// Outside of any pool, kernels run on rayon's global pool.
#[derive(Debug)]
pub struct ThreadPool {
    pool: rayon::ThreadPool,
}

/// The operating system refused to start the worker threads.
#[derive(Debug)]
pub struct ThreadPoolError(rayon::ThreadPoolBuildError);

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
    /// Starts a pool of `threads` workers; `None` takes one for each logical CPU that the process may use.
    ///
    /// # Errors
    ///
    /// When the operating system cannot start that many threads.
    pub fn new(threads: Option<usize>) -> Result<Self, ThreadPoolError> {
        let count = threads
            .or_else(|| std::thread::available_parallelism().ok().map(usize::from))
            .unwrap_or(1)
            .max(1);
        rayon::ThreadPoolBuilder::new()
            .num_threads(count)
            .thread_name(|index| format!("kernel-{index}"))
            .build()
            .map(|pool| Self { pool })
            .map_err(ThreadPoolError)
    }

    /// The number of workers.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `body` on a worker; every kernel that it calls uses this pool.
    ///
    /// Entering the pool costs a thread switch: enter once per model run, not once per kernel.
    pub fn install<R: Send>(&self, body: impl FnOnce() -> R + Send) -> R {
        self.pool.install(body)
    }
}

/// Whether a loop of `tasks` tasks should stay on the calling thread.
fn is_serial(tasks: usize) -> bool {
    #[cfg(test)]
    if crate::isa::forced::level() != crate::isa::forced::Level::Native {
        return true;
    }
    tasks <= 1 || rayon::current_num_threads() == 1
}

/// Calls `body` once for each index below `tasks`, on the current pool.
pub fn parallel_for(tasks: usize, body: impl Fn(usize) + Sync) {
    if is_serial(tasks) {
        (0..tasks).for_each(body);
    } else {
        (0..tasks).into_par_iter().with_max_len(1).for_each(&body);
    }
}

/// Calls `body(index, chunk)` for consecutive chunks of `data`, each `chunk_len` long but for a shorter last one.
///
/// # Panics
///
/// When `chunk_len` is zero.
pub fn for_each_chunk_mut<T: Send>(data: &mut [T], chunk_len: usize, body: impl Fn(usize, &mut [T]) + Sync) {
    if is_serial(data.len().div_ceil(chunk_len)) {
        data.chunks_mut(chunk_len).enumerate().for_each(|(index, chunk)| body(index, chunk));
    } else {
        data.par_chunks_mut(chunk_len)
            .with_max_len(1)
            .enumerate()
            .for_each(|(index, chunk)| body(index, chunk));
    }
}

/// The number of rows per task such that a task handles about [`GRAIN`] elements.
pub(crate) fn rows_per_task(row_len: usize) -> usize {
    (GRAIN / row_len.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn loops_cover_everything_once() {
        for threads in [1, 2, 5] {
            let pool = ThreadPool::new(Some(threads)).expect("threads");
            assert_eq!(pool.threads(), threads);
            pool.install(|| {
                for tasks in [0, 1, 2, 100] {
                    let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                    parallel_for(tasks, |index| {
                        counts[index].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
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
    fn a_pool_has_at_least_one_thread() {
        assert!(ThreadPool::new(None).expect("threads").threads() >= 1);
        assert_eq!(ThreadPool::new(Some(0)).expect("threads").threads(), 1);
    }
}
