//! Spacing of inference timesteps over the training timesteps: Table 2 of Lin et al., "Common Diffusion Noise
//! Schedules and Sample Steps are Flawed" (arXiv 2305.08891).

use super::config::SchedulerConfig;
use super::float::numpy_linspace;
use super::words::TimestepSpacing;

/// The training timesteps to choose from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    /// The number of training timesteps, `T`.
    pub train: usize,
    /// One past the last usable timestep; equals `train` unless the log-SNR is clipped.
    pub last: usize,
    /// The offset of leading timesteps.
    pub offset: usize,
}

impl Range {
    /// All training timesteps of a configuration.
    pub(super) fn of(config: &SchedulerConfig) -> Range {
        let train = config.integer("num_train_timesteps");
        let offset = if config.has("steps_offset") { config.integer("steps_offset") } else { 0 };
        Range { train, last: train, offset }
    }
}

/// Descending, unrounded timesteps that include 0, for solvers that end there or append sigma 0.
pub(super) fn inclusive(spacing: TimestepSpacing, range: Range, steps: usize) -> Vec<f64> {
    match spacing {
        TimestepSpacing::Linspace => reversed(numpy_linspace(0.0, (range.last - 1) as f64, steps)),
        TimestepSpacing::Leading => leading(range, range.last / steps, 0..steps),
        TimestepSpacing::Trailing => trailing(range, steps),
    }
}

/// Descending timesteps of the DPM-Solver family, which takes one more than requested and drops timestep 0.
pub(super) fn without_last(spacing: TimestepSpacing, range: Range, steps: usize) -> Vec<f64> {
    let mut timesteps = match spacing {
        TimestepSpacing::Linspace => reversed(numpy_linspace(0.0, (range.last - 1) as f64, steps + 1)),
        TimestepSpacing::Leading => leading(range, range.last / (steps + 1), 0..steps + 1),
        TimestepSpacing::Trailing => return trailing(range, steps),
    };
    timesteps.pop();
    timesteps.iter_mut().for_each(|t| *t = t.round_ties_even());
    timesteps
}

fn leading(range: Range, ratio: usize, multiples: std::ops::Range<usize>) -> Vec<f64> {
    multiples.rev().map(|multiple| (multiple * ratio + range.offset) as f64).collect()
}

/// `round(arange(last, 0, -train / steps)) - 1`.
///
/// For some counts, such as 61 of 1000, the quotient rounds so that NumPy's `arange` has one element more.
/// diffusers then ends at timestep -1. That element is left out here.
fn trailing(range: Range, steps: usize) -> Vec<f64> {
    let (start, step) = (range.last as f64, -(range.train as f64 / steps as f64));
    let count = ((0.0 - start) / step).ceil() as usize;
    // NumPy fills an `arange` from the difference of its first two elements.
    let step = (start + step) - start;
    let round = |index: usize| (start + index as f64 * step).round_ties_even() - 1.0;
    (0..count).map(round).filter(|&timestep| timestep >= 0.0).collect()
}

fn reversed(mut values: Vec<f64>) -> Vec<f64> {
    values.reverse();
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    const THOUSAND: Range = Range { train: 1000, last: 1000, offset: 1 };

    #[test]
    fn spacings_follow_table_2() {
        assert_eq!(inclusive(TimestepSpacing::Linspace, THOUSAND, 4), [999.0, 666.0, 333.0, 0.0]);
        assert_eq!(inclusive(TimestepSpacing::Leading, THOUSAND, 4), [751.0, 501.0, 251.0, 1.0]);
        assert_eq!(inclusive(TimestepSpacing::Trailing, THOUSAND, 4), [999.0, 749.0, 499.0, 249.0]);
        assert_eq!(without_last(TimestepSpacing::Linspace, THOUSAND, 4), [999.0, 749.0, 500.0, 250.0]);
        assert_eq!(without_last(TimestepSpacing::Leading, THOUSAND, 4), [801.0, 601.0, 401.0, 201.0]);
    }

    #[test]
    fn every_count_gives_that_many_timesteps_of_training() {
        for spacing in TimestepSpacing::ALL {
            for steps in 1..=998 {
                for timesteps in [inclusive(spacing, THOUSAND, steps), without_last(spacing, THOUSAND, steps)]
                {
                    assert_eq!(timesteps.len(), steps, "{spacing:?}");
                    assert!(timesteps.iter().all(|t| (0.0..=999.0).contains(t)), "{spacing:?} {steps}");
                }
            }
        }
    }
}
