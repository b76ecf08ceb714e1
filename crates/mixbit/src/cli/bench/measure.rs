//! Timings of a model's parts.

use std::time::{Duration, Instant};

use mixbit_diffusion::arch::AttentionImplementation;
use mixbit_diffusion::session::{Cancel, Component, GenerateError, PipelineStage, Precision, Session};
use mixbit_engine::{Timing, TracedStep};

use super::super::backends::Machine;
use super::super::progress::Progress;

/// The measurements of a part.
pub(super) struct Measured {
    pub(super) component: Component,
    pub(super) folder: String,
    pub(super) precision: Precision,
    /// Network evaluations per run.
    pub(super) evaluations: usize,
    /// The attention implementation; `None` for a part that runs in tiles.
    pub(super) attention: Option<AttentionImplementation>,
    /// The compilation time.
    pub(super) prepare: Duration,
    /// The time of the first run, which reads the weights from their files and allocates memory.
    pub(super) first: Duration,
    /// The times of the later runs, in order.
    pub(super) runs: Vec<Duration>,
    /// The time of the later runs by kind of op.
    pub(super) profile: Vec<Timing>,
    /// The steps of the last evaluation.
    pub(super) trace: Vec<Vec<TracedStep>>,
}

/// Prepares a part, runs it once and then `runs` times, and unloads it.
pub(super) fn measure(
    session: &mut Session,
    stage: PipelineStage,
    runs: usize,
    cancel: &Cancel,
    progress: &Progress,
) -> Result<Measured, GenerateError> {
    let prepare = {
        let _preparing = progress.wait(format!("preparing, {}", stage.folder));
        timed(|| stage.load(session))?
    };
    let counter = progress.count_as(&stage.folder, "runs", runs + 1);
    let first = timed(|| stage.run(session, cancel))?;
    counter.steps(1, runs + 1);
    let before = stage.profile(session);
    let mut times = Vec::with_capacity(runs);
    for done in 0..runs {
        times.push(timed(|| stage.run(session, cancel))?);
        counter.steps(done + 2, runs + 1);
    }
    let measured = Measured {
        component: stage.component,
        folder: stage.folder.clone(),
        precision: stage.precision,
        evaluations: stage.evaluations(),
        attention: stage.graph().map(attention),
        prepare,
        first,
        runs: times,
        profile: difference(stage.profile(session), &before),
        trace: stage.trace(session),
    };
    session.unload();
    Ok(measured)
}

fn timed(work: impl FnOnce() -> Result<(), GenerateError>) -> Result<Duration, GenerateError> {
    let begin = Instant::now();
    work()?;
    Ok(begin.elapsed())
}

/// The attention implementation of a graph: only the split one has einsums.
fn attention(graph: &mixbit_mil::Function) -> AttentionImplementation {
    match graph.ops().iter().any(|op| graph.view(op).kind() == "einsum") {
        true => AttentionImplementation::SplitEinsum,
        false => AttentionImplementation::Original,
    }
}

/// Timings minus those of earlier runs, longest first.
fn difference(all: Vec<Timing>, before: &[Timing]) -> Vec<Timing> {
    let without = |timing: Timing| match before.iter().find(|before| before.kind == timing.kind) {
        Some(before) => Timing {
            time: timing.time.saturating_sub(before.time),
            multiply_adds: timing.multiply_adds.saturating_sub(before.multiply_adds),
            ..timing
        },
        None => timing,
    };
    let mut rest: Vec<Timing> = all.into_iter().map(without).collect();
    rest.sort_by_key(|timing| std::cmp::Reverse(timing.time));
    rest
}

impl Measured {
    /// The times in seconds, sorted.
    fn sorted(&self) -> Vec<f64> {
        let mut seconds: Vec<f64> = self.runs.iter().map(Duration::as_secs_f64).collect();
        seconds.sort_by(f64::total_cmp);
        seconds
    }

    /// The median time of a run in seconds.
    pub(super) fn median(&self) -> f64 {
        median(&self.sorted())
    }

    /// The shortest and the longest time in seconds.
    pub(super) fn extremes(&self) -> [f64; 2] {
        let sorted = self.sorted();
        [sorted.first(), sorted.last()].map(|seconds| seconds.copied().unwrap_or_default())
    }

    /// Operations per run; a multiply-add counts as two.
    pub(super) fn operations(&self) -> f64 {
        let all: u64 = self.profile.iter().map(|timing| timing.multiply_adds).sum();
        2.0 * all as f64 / self.runs.len().max(1) as f64
    }

    /// Operations per second.
    pub(super) fn rate(&self) -> f64 {
        self.operations() / self.median().max(1e-9)
    }
}

/// The median of sorted numbers; 0 if there are none.
fn median(sorted: &[f64]) -> f64 {
    match sorted.len() {
        0 => 0.0,
        count if count % 2 == 1 => sorted[count / 2],
        count => (sorted[count / 2 - 1] + sorted[count / 2]) / 2.0,
    }
}

/// The machine's peak rates: the best of several measurements, because other programs' load varies.
#[derive(Default)]
pub(super) struct Peaks(Vec<(Precision, Option<f64>)>);

impl Peaks {
    /// Measures the peak for a precision; a later measurement replaces it only if higher.
    pub(super) fn measure(&mut self, machine: &Machine, precision: Precision) {
        let peak = machine.peak(precision.arithmetic());
        match self.0.iter_mut().find(|(known, _)| *known == precision) {
            // `None < Some(_)`.
            Some((_, best)) => *best = if peak > *best { peak } else { *best },
            None => self.0.push((precision, peak)),
        }
    }

    /// The peak operations per second; `None` if unknown.
    pub(super) fn of(&self, precision: Precision) -> Option<f64> {
        self.0.iter().find(|(known, _)| *known == precision).and_then(|(_, peak)| *peak)
    }

    /// Each precision with its peak.
    pub(super) fn all(&self) -> &[(Precision, Option<f64>)] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_in_the_middle() {
        for (sorted, expected) in [(&[][..], 0.0), (&[3.0], 3.0), (&[1.0, 2.0], 1.5), (&[1.0, 2.0, 9.0], 2.0)]
        {
            assert_eq!(median(sorted), expected, "{sorted:?}");
        }
    }

    #[test]
    fn a_profile_is_without_the_first_run() {
        let timing = |kind: &str, millis, multiply_adds| Timing {
            kind: kind.to_string(),
            steps: 2,
            time: Duration::from_millis(millis),
            multiply_adds,
        };
        let all = vec![timing("conv", 100, 30), timing("add", 50, 0)];
        let rest = difference(all, &[timing("conv", 80, 10), timing("add", 10, 0)]);
        assert_eq!(rest, [timing("add", 40, 0), timing("conv", 20, 20)]);
    }
}
