//! Exact weighted one-dimensional k-means.
//!
//! In one dimension an optimal clustering is a partition of the sorted values into runs. The best first
//! element of the last run never moves left as values are added. Each row of the dynamic programme is
//! therefore solved by divide and conquer, in O(entries · n · log n) for n distinct values, of which f16 has
//! fewer than 65,536. Two bounds prune the search: the last of more runs begins no earlier than the last of
//! fewer, and no later than where the runs before it alone have a larger error than the best so far. Entries
//! of a palette are f16 as well, and a run's error is that of its best f16 entry. That entry lies within the
//! run, which keeps the best first elements in order.

use half::f16;

use crate::Error;

/// The bits of an index into a palette: the widths of Core ML.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Width {
    /// 1 bit, 2 entries.
    One,
    /// 2 bits, 4 entries.
    Two,
    /// 3 bits, 8 entries; from iOS 18.
    Three,
    /// 4 bits, 16 entries.
    Four,
    /// 6 bits, 64 entries.
    Six,
    /// 8 bits, 256 entries.
    Eight,
}

impl Width {
    /// Every width, ascending.
    pub const ALL: [Self; 6] = [Self::One, Self::Two, Self::Three, Self::Four, Self::Six, Self::Eight];

    /// The width of `bits` bits, if Core ML has it.
    pub fn of_bits(bits: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|width| width.bits() == bits)
    }

    /// Bits of one index.
    pub fn bits(self) -> u32 {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Three => 3,
            Self::Four => 4,
            Self::Six => 6,
            Self::Eight => 8,
        }
    }

    /// Entries of the palette: two to the power of the bits.
    pub fn entries(self) -> usize {
        1 << self.bits()
    }
}

/// The distinct values of a tensor in ascending order, each with its total importance, above zero.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    values: Vec<f16>,
    importance: Vec<f64>,
}

impl Histogram {
    /// A histogram of weights of equal importance.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for a weight that is not finite, [`Error::Empty`] if there are none.
    pub fn new(weights: &[f16]) -> Result<Self, Error> {
        let mut counts = vec![0u32; 1 << 16];
        for weight in weights {
            counts[usize::from(weight.to_bits())] += 1;
        }
        let bins = counts.into_iter().map(f64::from).collect();
        Self::of_bins(bins, weights)
    }

    /// A histogram of weights with an importance each. Values of zero importance are left out.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for a weight, [`Error::Importance`] for an importance that is negative or not
    /// finite, [`Error::Empty`] if all are zero.
    pub fn weighted(weights: &[f16], importance: impl IntoIterator<Item = f64>) -> Result<Self, Error> {
        let mut bins = vec![0.0; 1 << 16];
        for (index, (value, importance)) in weights.iter().zip(importance).enumerate() {
            if !importance.is_finite() || importance < 0.0 {
                return Err(Error::Importance { index, value: importance });
            }
            bins[usize::from(value.to_bits())] += importance;
        }
        Self::of_bins(bins, weights)
    }

    /// A histogram from the total importance of every f16, by its bits.
    fn of_bins(mut bins: Vec<f64>, weights: &[f16]) -> Result<Self, Error> {
        // Positive and negative zero are one value.
        bins[0] += std::mem::take(&mut bins[usize::from(f16::NEG_ZERO.to_bits())]);
        // Negative values ascend as their bits descend.
        let ascending = (0x8000..=0xffffu16).rev().chain(0..0x8000);
        let (values, importance): (Vec<_>, Vec<_>) = ascending
            .map(|bits| (f16::from_bits(bits), bins[usize::from(bits)]))
            .filter(|&(_, importance)| importance > 0.0)
            .unzip();
        if let Some(bad) = values.iter().find(|value| !value.is_finite()) {
            let is_it = |weight: &f16| weight.to_bits() == bad.to_bits();
            return Err(Error::NotFinite { index: weights.iter().position(is_it).unwrap_or(0), value: *bad });
        }
        if values.is_empty() { Err(Error::Empty) } else { Ok(Self { values, importance }) }
    }
}

/// A lookup table of f16 entries.
#[derive(Debug, Clone, PartialEq)]
pub struct Palette {
    lut: Vec<f16>,
    used: usize,
}

impl Palette {
    /// The palette of least weighted squared error among all palettes of f16 entries.
    ///
    /// Used entries ascend. If there are fewer distinct values than entries, the values are the entries, and
    /// the rest of the table is zero.
    pub fn fit(histogram: &Histogram, width: Width) -> Self {
        let mut lut = if histogram.values.len() <= width.entries() {
            histogram.values.clone()
        } else {
            let sums = Sums::new(histogram);
            partition(&sums, width.entries())
                .windows(2)
                .map(|run| f16::from_f64(round_to_f16(sums.mean(run[0], run[1]))))
                .collect()
        };
        // Neighbouring means can round to one f16.
        lut.dedup();
        Self::of_entries(lut, width)
    }

    /// A palette of given entries, ascending and distinct, at most [`Width::entries`] of them.
    pub(crate) fn of_entries(mut lut: Vec<f16>, width: Width) -> Self {
        let used = lut.len();
        lut.resize(width.entries(), f16::ZERO);
        Self { lut, used }
    }

    /// The used entries, ascending.
    pub(crate) fn used(&self) -> &[f16] {
        &self.lut[..self.used]
    }

    /// Bits of an index into the table.
    pub fn width(&self) -> Width {
        Width::ALL.into_iter().find(|width| width.entries() == self.lut.len()).unwrap_or(Width::Eight)
    }

    /// The table of [`Width::entries`] entries.
    pub fn lut(&self) -> &[f16] {
        &self.lut
    }

    /// The index of the entry nearest to a value, or the lower one of two.
    pub fn index(&self, value: f16) -> u8 {
        let used = self.used();
        let above = used.partition_point(|&entry| entry < value);
        let distance = |i: usize| (used[i].to_f32() - value.to_f32()).abs();
        let nearest = match above {
            0 => 0,
            i if i == self.used => i - 1,
            i if distance(i - 1) <= distance(i) => i - 1,
            i => i,
        };
        nearest as u8
    }

    /// The index for every f16, by its bits.
    pub fn table(&self) -> Vec<u8> {
        (0..=u16::MAX).map(|bits| self.index(f16::from_bits(bits))).collect()
    }

    /// The weighted sum of squared errors over a histogram.
    pub fn error(&self, histogram: &Histogram) -> f64 {
        let terms = histogram.values.iter().zip(&histogram.importance);
        terms
            .map(|(&value, importance)| {
                let entry = self.lut[usize::from(self.index(value))];
                importance * (entry.to_f64() - value.to_f64()).powi(2)
            })
            .sum()
    }
}

/// The number of distinct values from which on the rounding of entries no longer affects the choice.
const DENSE_FROM: usize = 4096;

/// Prefix sums of importance, importance · x and importance · x². To avoid cancellation, x is centred on the
/// mean.
struct Sums {
    centre: f64,
    weight: Vec<f64>,
    first: Vec<f64>,
    second: Vec<f64>,
    /// True if a run's error is that of its best f16 entry rather than of its mean.
    rounds: bool,
}

impl Sums {
    fn new(histogram: &Histogram) -> Self {
        let points = || histogram.values.iter().map(|v| v.to_f64()).zip(&histogram.importance);
        let total: f64 = histogram.importance.iter().sum();
        let centre: f64 = points().map(|(x, w)| x * (w / total)).sum();
        let prefix = |power: i32| {
            let mut sum = 0.0;
            let terms = points().map(|(x, w): (f64, &f64)| {
                sum += w * (x - centre).powi(power);
                sum
            });
            std::iter::once(0.0).chain(terms).collect()
        };
        let (weight, first, second) = (prefix(0), prefix(1), prefix(2));
        Self { centre, weight, first, second, rounds: histogram.values.len() < DENSE_FROM }
    }

    fn len(&self) -> usize {
        self.weight.len() - 1
    }

    fn mean(&self, from: usize, to: usize) -> f64 {
        self.centre + (self.first[to] - self.first[from]) / (self.weight[to] - self.weight[from])
    }

    /// The weighted squared error of a run.
    fn cost(&self, from: usize, to: usize) -> f64 {
        let w = self.weight[to] - self.weight[from];
        let x = self.first[to] - self.first[from];
        let offset = x / w;
        let error = (self.second[to] - self.second[from] - x * offset).max(0.0);
        if !self.rounds {
            return error;
        }
        let mean = self.centre + offset;
        error + w * (round_to_f16(mean) - mean).powi(2)
    }

    /// The least sum of `before[i]` and the cost of the run from i to `to`, over a range of i, and the first
    /// such i.
    fn least(&self, before: &[f64], range: std::ops::RangeInclusive<usize>, to: usize) -> (f64, usize) {
        let mut found = (f64::INFINITY, *range.start());
        let mut start = *range.start();
        while start <= *range.end() {
            // `before` only grows, so from here on no sum is less.
            if before[start] > found.0 {
                break;
            }
            let end = (start + BLOCK).min(range.end() + 1);
            let mut errors = [f64::INFINITY; BLOCK];
            if self.rounds {
                for (error, from) in errors.iter_mut().zip(start..end) {
                    *error = before[from] + self.cost(from, to);
                }
            } else {
                self.errors(before, start..end, to, &mut errors);
            }
            for (error, from) in errors.iter().zip(start..end) {
                if *error < found.0 {
                    found = (*error, from);
                }
            }
            start = end;
        }
        found
    }

    /// The sums of `before` and [`cost`](Self::cost) for a block of runs that end at `to`, with means not
    /// rounded.
    #[inline]
    fn errors(&self, before: &[f64], from: std::ops::Range<usize>, to: usize, errors: &mut [f64; BLOCK]) {
        let (weight, first, second) = (self.weight[to], self.first[to], self.second[to]);
        let sums =
            self.weight[from.clone()].iter().zip(&self.first[from.clone()]).zip(&self.second[from.clone()]);
        for (error, (((w, x), xx), before)) in errors.iter_mut().zip(sums.zip(&before[from])) {
            let (w, x) = (weight - w, first - x);
            *error = before + (second - xx - x * x / w).max(0.0);
        }
    }
}

/// The number of runs whose errors are computed together.
const BLOCK: usize = 32;

/// The nearest f16 (ties to even) of a number below the largest f16, as f64.
#[inline(always)]
fn round_to_f16(value: f64) -> f64 {
    const LEAST_NORMAL: f64 = 1.0 / (1u64 << 14) as f64;
    const STEPS: f64 = (1u64 << 24) as f64;
    /// The bits of the fraction that f16 lacks.
    const DROPPED: u32 = 52 - 10;
    if value.abs() < LEAST_NORMAL {
        return (value * STEPS).round_ties_even() / STEPS;
    }
    let bits = value.to_bits();
    let half = (1 << (DROPPED - 1)) - 1 + (bits >> DROPPED & 1);
    f64::from_bits((bits + half) >> DROPPED << DROPPED)
}

/// The boundaries of the best partition into `runs` runs, from 0 to the length. There must be at least `runs`
/// points.
fn partition(sums: &Sums, runs: usize) -> Vec<usize> {
    let n = sums.len();
    // best[j]: the error of the first j points in the runs so far. starts[r][j]: the start of the last of r +
    // 2 runs.
    let mut best: Vec<f64> = (0..=n).map(|j| if j == 0 { 0.0 } else { sums.cost(0, j) }).collect();
    let mut starts: Vec<Vec<u16>> = Vec::with_capacity(runs - 1);
    let mut spans = Vec::new();
    for run in 2..=runs {
        let mut next = vec![f64::INFINITY; n + 1];
        let mut start = vec![0u16; n + 1];
        spans.push((run, n, run - 1, n - 1));
        while let Some((low, high, first, last)) = spans.pop() {
            if low > high {
                continue;
            }
            let j = low.midpoint(high);
            // The last of more runs begins no earlier than the last of fewer.
            let fewer = starts.last().map_or(0, |start| usize::from(start[j]));
            let first_of_j = first.max(fewer).min(j - 1);
            let (error, chosen) = sums.least(&best, first_of_j..=last.min(j - 1), j);
            (next[j], start[j]) = (error, chosen as u16);
            spans.push((low, j - 1, first, chosen));
            spans.push((j + 1, high, chosen, last));
        }
        best = next;
        starts.push(start);
    }
    let mut borders = vec![n];
    let mut end = n;
    for start in starts.iter().rev() {
        end = usize::from(start[end]);
        borders.push(end);
    }
    borders.push(0);
    borders.reverse();
    borders
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uniform numbers in [0, 1) from a 64-bit LCG.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.0 >> 11) as f64 / (1u64 << 53) as f64
        }

        fn normal(&mut self) -> f64 {
            (0..12).map(|_| self.next()).sum::<f64>() - 6.0
        }
    }

    fn weighted_error(points: &[(f64, f64)], clusters: &[usize], k: usize) -> f64 {
        (0..k)
            .map(|c| {
                let own = || points.iter().zip(clusters).filter(|p| *p.1 == c).map(|p| *p.0);
                let total: f64 = own().map(|(_, w)| w).sum();
                let mean = f16::from_f64(own().map(|(x, w)| x * w).sum::<f64>() / total).to_f64();
                own().map(|(x, w)| w * (x - mean).powi(2)).sum::<f64>()
            })
            .sum()
    }

    #[test]
    fn rounding_finds_the_nearest() {
        let mut random = Random(3);
        for case in 0..200_000 {
            let scale = [1.0, 1e-3, 1e-5, 1e-7, 1e-8, 1e4][case % 6];
            let value = random.normal() * scale;
            let rounded = round_to_f16(value);
            assert_eq!(f16::from_f64(rounded).to_f64(), rounded, "{value:e}");
            // The conversion may round twice, by way of f32.
            let converted = f16::from_f64(value).to_f64();
            assert!((rounded - value).abs() <= (converted - value).abs(), "{value:e}");
        }
        for bits in 0..0x7c00 {
            let value = f16::from_bits(bits).to_f64();
            assert_eq!(round_to_f16(value), value);
        }
    }

    #[test]
    fn partition_equals_brute_force_over_all_assignments() {
        let mut random = Random(1);
        for case in 0..60 {
            let n = 5 + case % 3;
            let input: Vec<_> = (0..n).map(|_| f16::from_f64(random.normal())).collect();
            let importance: Vec<_> = (0..n).map(|_| 0.1 + random.next()).collect();
            let histogram = Histogram::weighted(&input, importance).unwrap();
            let sums = Sums::new(&histogram);
            let n = sums.len();
            let points: Vec<_> =
                histogram.values.iter().map(|v| v.to_f64()).zip(histogram.importance.clone()).collect();
            for k in [2usize, 4] {
                let best = (0..k.pow(n as u32))
                    .map(|code| {
                        let clusters: Vec<_> = (0..n).map(|i| code / k.pow(i as u32) % k).collect();
                        weighted_error(&points, &clusters, k)
                    })
                    .fold(f64::INFINITY, |a, b| if b < a { b } else { a });
                let ours: f64 = partition(&sums, k).windows(2).map(|r| sums.cost(r[0], r[1])).sum();
                assert!((ours - best).abs() <= 1e-12, "case {case}, k {k}: {ours} against {best}");
            }
        }
    }

    /// Lloyd's iterations from quantiles, in f64.
    fn lloyd(points: &[(f64, f64)], k: usize) -> f64 {
        let n = points.len();
        let mut centres: Vec<f64> = (0..k).map(|c| points[(2 * c + 1) * n / (2 * k)].0).collect();
        let mut error = f64::INFINITY;
        for _ in 0..30 {
            let mut sums = vec![[0.0; 2]; k];
            error = 0.0;
            for &(x, w) in points {
                let near = (0..k).min_by(|&a, &b| (centres[a] - x).abs().total_cmp(&(centres[b] - x).abs()));
                let c = near.unwrap();
                error += w * (centres[c] - x).powi(2);
                sums[c] = [sums[c][0] + w * x, sums[c][1] + w];
            }
            for (centre, [x, w]) in centres.iter_mut().zip(sums) {
                if w > 0.0 {
                    *centre = f16::from_f64(x / w).to_f64();
                }
            }
        }
        error
    }

    #[test]
    fn never_worse_than_lloyd_at_every_width() {
        let mut random = Random(2);
        let input: Vec<_> = (0..3000).map(|_| f16::from_f64(random.normal())).collect();
        let importance: Vec<_> = input.iter().map(|_| random.next()).collect();
        let histogram = Histogram::weighted(&input, importance).unwrap();
        let sums = Sums::new(&histogram);
        let points: Vec<_> =
            histogram.values.iter().map(|v| v.to_f64()).zip(histogram.importance.clone()).collect();
        for width in Width::ALL {
            let k = width.entries();
            let ours: f64 = partition(&sums, k).windows(2).map(|r| sums.cost(r[0], r[1])).sum();
            let theirs = lloyd(&points, k);
            assert!(ours <= theirs * (1.0 + 1e-9), "{width:?}: {ours} against {theirs}");
            let found = Palette::fit(&histogram, width).error(&histogram);
            assert!(found <= ours * (1.0 + 1e-9), "{width:?}: {found} against {ours}");
        }
    }

    #[test]
    fn few_values_are_kept_exactly_and_padded_with_zeros() {
        let values = [-2.0, -0.0, 0.0, 3.5].map(f16::from_f32);
        let histogram = Histogram::new(&values).unwrap();
        for width in Width::ALL.into_iter().filter(|w| w.entries() >= 3) {
            let palette = Palette::fit(&histogram, width);
            assert_eq!(palette.lut().len(), width.entries());
            assert_eq!(palette.error(&histogram), 0.0);
            assert!(values.iter().all(|&v| palette.lut()[usize::from(palette.index(v))] == v));
        }
    }

    #[test]
    fn bad_input_is_refused_by_position() {
        let refused = |bad, importance| Histogram::weighted(&[f16::ONE, bad], [1.0, importance]).unwrap_err();
        assert!(matches!(refused(f16::NAN, 1.0), Error::NotFinite { index: 1, .. }));
        assert!(matches!(refused(f16::INFINITY, 1.0), Error::NotFinite { index: 1, .. }));
        assert!(matches!(refused(f16::ONE, -1.0), Error::Importance { index: 1, .. }));
        assert!(matches!(Histogram::new(&[f16::ONE, f16::NAN]), Err(Error::NotFinite { index: 1, .. })));
        assert!(matches!(Histogram::weighted(&[f16::ONE], [0.0]), Err(Error::Empty)));
        assert!(matches!(Histogram::new(&[]), Err(Error::Empty)));
    }
}
