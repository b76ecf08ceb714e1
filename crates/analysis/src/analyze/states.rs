//! The choice of the states to measure on and to verify with.

use super::options::Options;
use super::point::Point;

/// The number of states that recipes are verified on.
pub(super) const VERIFIED_STATES: usize = 16;

/// The number of images that the states of the verification belong to.
const VERIFIED_IMAGES: usize = 8;

/// `count` states of runs of `steps` steps, from the first steps to the last. Each is of an image of its own.
pub(super) fn measured_points(options: &Options, count: usize, steps: usize) -> Vec<Point> {
    let steps = steps.max(1);
    let prompts: Vec<&String> = options.prompts.iter().step_by(2).collect();
    let point = |index: usize| Point {
        prompt: prompts[index % prompts.len()].clone(),
        seed: options.seed + index as u64,
        evaluation: (1 + (steps - 1) * index / count).min(steps - 1),
    };
    (0..count).map(point).collect()
}

/// The states to verify with, from the first steps to the last. Their prompts and noise are not those of the
/// measurements, nor are their steps, where a run has enough.
pub(super) fn verified_points(options: &Options, measured: &[Point]) -> Vec<Point> {
    let steps = options.setting.steps.max(1);
    let prompts: Vec<&String> = options.prompts.iter().skip(1).step_by(2).collect();
    let point = |index: usize| {
        let even = steps * index / VERIFIED_STATES;
        let is_free = |at: &usize| measured.iter().all(|point| point.evaluation != *at);
        Point {
            prompt: prompts[index % VERIFIED_IMAGES % prompts.len()].clone(),
            seed: options.seed + 1000 + (index % VERIFIED_IMAGES) as u64,
            evaluation: (even..steps).find(is_free).unwrap_or(even),
        }
    };
    (0..VERIFIED_STATES).map(point).collect()
}
