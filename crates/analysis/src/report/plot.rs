//! The plot of PSNR against size.

use super::figure::{Anchor, Figure, Ink, LINE, Mark};
use crate::analyze::{Analysis, Verified};

/// The margins of the axes: left, top, right, bottom.
const MARGIN: [f64; 4] = [64.0, 56.0, 24.0, 48.0];
const SIZE: [f64; 2] = [720.0, 440.0];

/// The name of the unchanged model's baseline.
const ORIGINAL: &str = "original";

/// The points of one kind.
pub(super) struct Series {
    pub(super) name: &'static str,
    ink: Ink,
    mark: Mark,
    /// Name, MB and dB, by ascending size.
    pub(super) points: Vec<(String, f64, f64)>,
}

/// The series of an analysis that have points: recipes, uniform palettes, and linear 8-bit.
pub(super) fn series(analysis: &Analysis) -> Vec<Series> {
    let one = |name, ink, mark, members: Vec<&Verified>| {
        let point =
            |verified: &&Verified| (verified.name.clone(), verified.bytes as f64 / 1e6, verified.mean_psnr());
        let mut points: Vec<_> = members.iter().map(point).filter(|(.., psnr)| psnr.is_finite()).collect();
        points.sort_by(|a, b| a.1.total_cmp(&b.1));
        Series { name, ink, mark, points }
    };
    let baselines = || analysis.baselines.iter().filter(|verified| verified.name != ORIGINAL);
    let is_linear = |verified: &&Verified| verified.name.starts_with("linear");
    let all = [
        one("mixed (recipes)", Ink::Mixed, Mark::Circle, analysis.recipes.iter().collect()),
        one("uniform palettes", Ink::Uniform, Mark::Square, baselines().filter(|v| !is_linear(v)).collect()),
        one("linear 8-bit", Ink::Linear, Mark::Diamond, baselines().filter(is_linear).collect()),
    ];
    all.into_iter().filter(|series| !series.points.is_empty()).collect()
}

/// The plot.
pub(super) fn plot(series: &[Series]) -> Figure {
    let points = || series.iter().flat_map(|series| &series.points);
    let alt = format!(
        "PSNR in dB against the size of the UNet in MB. {}",
        series
            .iter()
            .map(|series| {
                let points = series.points.iter().map(|(_, mb, psnr)| format!("{mb:.1} MB {psnr:.1} dB"));
                format!("{}: {}.", series.name, points.collect::<Vec<_>>().join(", "))
            })
            .collect::<Vec<_>>()
            .join(" ")
    );
    let mut figure = Figure::new(SIZE, alt);
    let x_axis = Axis::of(points().map(|point| point.1), [MARGIN[0], SIZE[0] - MARGIN[2]]);
    let y_axis = Axis::of(points().map(|point| point.2), [SIZE[1] - MARGIN[3], MARGIN[1]]);
    for (value, label) in x_axis.ticks() {
        let x = x_axis.place(value);
        figure.line(vec![[x, y_axis.ends[0]], [x, y_axis.ends[1]]], Ink::Grid, 1.0);
        figure.text([x, y_axis.ends[0] + LINE + 2.0], label, Anchor::Middle, Ink::Muted);
    }
    for (value, label) in y_axis.ticks() {
        let y = y_axis.place(value);
        figure.line(vec![[x_axis.ends[0], y], [x_axis.ends[1], y]], Ink::Grid, 1.0);
        figure.text([x_axis.ends[0] - 8.0, y + 4.0], label, Anchor::End, Ink::Muted);
    }
    figure.text([x_axis.ends[1], SIZE[1] - 8.0], "size of the UNet, MB", Anchor::End, Ink::Text);
    figure.text([8.0, MARGIN[1] - 14.0], "PSNR, dB", Anchor::Start, Ink::Text);
    for series in series {
        let places = series.points.iter().map(|(_, mb, psnr)| [x_axis.place(*mb), y_axis.place(*psnr)]);
        figure.line(places.collect(), series.ink, 2.0);
    }
    for series in series {
        for (name, mb, psnr) in &series.points {
            let title = format!("{name}: {mb:.1} MB, {psnr:.1} dB");
            figure.mark([x_axis.place(*mb), y_axis.place(*psnr)], series.mark, series.ink, title);
        }
    }
    let mut x = MARGIN[0] + 8.0;
    for series in series {
        figure.mark([x, 16.0], series.mark, series.ink, "");
        figure.text([x + 10.0, 20.0], series.name, Anchor::Start, Ink::Text);
        x += 40.0 + 7.4 * series.name.len() as f64;
    }
    figure
}

/// The scale along one side of the plot.
struct Axis {
    low: f64,
    high: f64,
    step: f64,
    /// The coordinates of the lowest and the highest value.
    ends: [f64; 2],
}

impl Axis {
    fn of(values: impl Iterator<Item = f64>, ends: [f64; 2]) -> Self {
        let (low, high) = values
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = match low <= high {
            true => (low, high.max(low + 1e-3 * low.abs().max(1e-3))),
            false => (0.0, 1.0),
        };
        let rough = (high - low) / 6.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(10.0 * power);
        Axis { low: (low / step).floor() * step, high: (high / step).ceil() * step, step, ends }
    }

    fn place(&self, value: f64) -> f64 {
        self.ends[0] + (value - self.low) / (self.high - self.low) * (self.ends[1] - self.ends[0])
    }

    fn ticks(&self) -> impl Iterator<Item = (f64, String)> {
        let count = ((self.high - self.low) / self.step).round() as usize;
        let digits = (-self.step.log10().floor()).max(0.0) as usize;
        (0..=count).map(move |index| {
            let value = self.low + index as f64 * self.step;
            (value, format!("{value:.digits$}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_hold_all_values_at_round_steps() {
        for values in [vec![0.3, 17.0], vec![5.0], vec![-3.0, 1e5], vec![], vec![0.0, 0.0]] {
            let axis = Axis::of(values.iter().copied(), [0.0, 100.0]);
            assert!(
                values.iter().all(|&value| (-1e-6..=100.000001).contains(&axis.place(value))),
                "{values:?}"
            );
            assert!((2..=9).contains(&axis.ticks().count()), "{values:?}");
        }
    }
}
