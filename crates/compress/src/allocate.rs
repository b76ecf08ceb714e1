//! Bit allocation by rate and distortion.
//!
//! The errors that layers cause in a network's output nearly add up: the mean squared error of a choice is
//! the sum of the errors of its options alone. The objective is the mean PSNR over samples, so the mean
//! logarithm of that error. With fixed weights of the samples it is a knapsack problem, which a Lagrange
//! multiplier solves (Everett, 1963). What is left of the budget is then filled greedily.

/// One option to store a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The stored size.
    pub bytes: u64,
    /// The mean squared error in the output for each sample, relative to the square of the peak.
    pub distortion: Vec<f64>,
}

/// The target of an allocation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// The most bytes.
    Bytes(u64),
    /// The least mean PSNR in dB.
    Psnr(f64),
}

/// Rounds of reweighting the samples.
const ROUNDS: usize = 12;

/// Bisection steps of the multiplier.
const HALVINGS: usize = 60;

/// The best choice: an index into the candidates of each layer, or `None` if no choice reaches the target.
///
/// All candidates must have the same number of samples.
pub fn allocate(layers: &[Vec<Candidate>], target: Target) -> Option<Vec<usize>> {
    let samples = layers.iter().flatten().map(|candidate| candidate.distortion.len()).min().unwrap_or(0);
    let mut weights = vec![1.0; samples];
    let mut best: Option<(Vec<usize>, f64)> = None;
    for _ in 0..ROUNDS {
        let costs: Vec<Vec<f64>> = layers
            .iter()
            .map(|candidates| {
                candidates.iter().map(|candidate| weighted(&candidate.distortion, &weights)).collect()
            })
            .collect();
        let choice = match target {
            Target::Bytes(budget) => within(layers, &costs, budget)?,
            Target::Psnr(psnr) => reaching(layers, &costs, psnr)?,
        };
        let distortion = distortion(layers, &choice);
        weights = distortion.iter().map(|&value| 1.0 / value.max(f64::MIN_POSITIVE)).collect();
        let value = match target {
            Target::Bytes(_) => -mean_psnr(&distortion),
            Target::Psnr(_) => bytes(layers, &choice) as f64,
        };
        if best.as_ref().is_none_or(|(_, least)| value < *least) {
            best = Some((choice, value));
        }
    }
    best.map(|(choice, _)| choice)
}

/// The predicted PSNR of a choice in dB, averaged over samples.
pub fn predicted_psnr(layers: &[Vec<Candidate>], choice: &[usize]) -> f64 {
    mean_psnr(&distortion(layers, choice))
}

fn mean_psnr(distortion: &[f64]) -> f64 {
    let decibels = distortion.iter().map(|&value| -10.0 * value.max(1e-30).log10());
    decibels.sum::<f64>() / distortion.len().max(1) as f64
}

fn weighted(distortion: &[f64], weights: &[f64]) -> f64 {
    distortion.iter().zip(weights).map(|(distortion, weight)| distortion * weight).sum()
}

/// The error of a choice for each sample.
fn distortion(layers: &[Vec<Candidate>], choice: &[usize]) -> Vec<f64> {
    let mut sum = Vec::new();
    for (candidates, &index) in layers.iter().zip(choice) {
        let own = &candidates[index].distortion;
        sum.resize(own.len(), 0.0);
        sum.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
    }
    sum
}

fn bytes(layers: &[Vec<Candidate>], choice: &[usize]) -> u64 {
    layers.iter().zip(choice).map(|(candidates, &index)| candidates[index].bytes).sum()
}

/// The best choice for each layer alone if a byte costs `price`.
fn priced(layers: &[Vec<Candidate>], costs: &[Vec<f64>], price: f64) -> Vec<usize> {
    let one = |(candidates, costs): (&Vec<Candidate>, &Vec<f64>)| {
        let total = |index: &usize| costs[*index] + price * candidates[*index].bytes as f64;
        // On a tie, the smaller one.
        let order = |a: &usize, b: &usize| {
            total(a).total_cmp(&total(b)).then(candidates[*a].bytes.cmp(&candidates[*b].bytes))
        };
        (0..candidates.len()).min_by(order).unwrap_or(0)
    };
    layers.iter().zip(costs).map(one).collect()
}

/// A price at which every layer takes its smallest candidate.
fn highest_price(costs: &[Vec<f64>]) -> f64 {
    let most = costs.iter().flatten().copied().filter(|cost| cost.is_finite()).fold(0.0, f64::max);
    2.0 * most.max(f64::MIN_POSITIVE)
}

/// The choice of least cost within a budget.
fn within(layers: &[Vec<Candidate>], costs: &[Vec<f64>], budget: u64) -> Option<Vec<usize>> {
    let smallest: Vec<usize> = layers
        .iter()
        .map(|candidates| (0..candidates.len()).min_by_key(|&index| candidates[index].bytes).unwrap_or(0))
        .collect();
    if bytes(layers, &smallest) > budget {
        return None;
    }
    let mut best = smallest;
    if bytes(layers, &priced(layers, costs, 0.0)) <= budget {
        best = priced(layers, costs, 0.0);
    } else {
        // In logarithms, for prices span many orders of magnitude.
        let (mut low, mut high) = (-120.0f64, highest_price(costs).log2());
        for _ in 0..HALVINGS {
            let middle = (low + high) / 2.0;
            let choice = priced(layers, costs, middle.exp2());
            if bytes(layers, &choice) <= budget {
                (best, high) = (choice, middle);
            } else {
                low = middle;
            }
        }
    }
    fill(layers, costs, budget, &mut best);
    Some(best)
}

/// Spends the rest of a budget: repeatedly the change of one layer that gains most per byte.
fn fill(layers: &[Vec<Candidate>], costs: &[Vec<f64>], budget: u64, choice: &mut [usize]) {
    loop {
        let used = bytes(layers, choice);
        let mut found: Option<(f64, usize, usize)> = None;
        for (layer, candidates) in layers.iter().enumerate() {
            let now = choice[layer];
            for (index, candidate) in candidates.iter().enumerate() {
                let gain = costs[layer][now] - costs[layer][index];
                let fits = used - candidates[now].bytes + candidate.bytes <= budget;
                if !fits || gain <= 0.0 {
                    continue;
                }
                let more = candidate.bytes.saturating_sub(candidates[now].bytes).max(1);
                let rate = gain / more as f64;
                if found.is_none_or(|(best, ..)| rate > best) {
                    found = Some((rate, layer, index));
                }
            }
        }
        match found {
            Some((_, layer, index)) => choice[layer] = index,
            None => return,
        }
    }
}

/// The choice of fewest bytes that reaches a PSNR.
fn reaching(layers: &[Vec<Candidate>], costs: &[Vec<f64>], psnr: f64) -> Option<Vec<usize>> {
    let reaches = |choice: &[usize]| predicted_psnr(layers, choice) >= psnr;
    let mut best = priced(layers, costs, 0.0);
    if !reaches(&best) {
        return None;
    }
    let (mut low, mut high) = (-120.0f64, highest_price(costs).log2());
    for _ in 0..HALVINGS {
        let middle = (low + high) / 2.0;
        let choice = priced(layers, costs, middle.exp2());
        if reaches(&choice) {
            (best, low) = (choice, middle);
        } else {
            high = middle;
        }
    }
    Some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Random(u64);

    impl Random {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.0 >> 11) as f64 / (1u64 << 53) as f64
        }
    }

    /// Layers of different sizes and sensitivities, whose error falls with the width as for palettes.
    fn layers(random: &mut Random, count: usize, samples: usize) -> Vec<Vec<Candidate>> {
        let layer = |random: &mut Random| {
            let size = (100.0 * (6.0 * random.next()).exp()) as u64;
            let gain: Vec<f64> = (0..samples).map(|_| (8.0 * random.next()).exp() * 1e-6).collect();
            let one = |bits: u64| Candidate {
                bytes: size * bits,
                distortion: gain.iter().map(|gain| gain * 0.25f64.powi(bits as i32)).collect(),
            };
            [1, 2, 4, 6, 8].map(one).into()
        };
        (0..count).map(|_| layer(random)).collect()
    }

    fn all_choices(layers: &[Vec<Candidate>]) -> Vec<Vec<usize>> {
        layers.iter().fold(vec![Vec::new()], |choices, candidates| {
            let longer = |choice: &Vec<usize>| -> Vec<Vec<usize>> {
                (0..candidates.len()).map(|index| [choice.clone(), vec![index]].concat()).collect()
            };
            choices.iter().flat_map(longer).collect()
        })
    }

    #[test]
    fn choices_are_near_the_best_of_all() {
        let mut random = Random(1);
        let (mut gaps, mut cases) = (0.0, 0);
        for _ in 0..40 {
            let layers = layers(&mut random, 6, 2);
            let all = all_choices(&layers);
            let most = bytes(&layers, &[4; 6]);
            for part in [0.2, 0.4, 0.6, 0.9] {
                let budget = (most as f64 * part) as u64;
                let best = all
                    .iter()
                    .filter(|choice| bytes(&layers, choice) <= budget)
                    .map(|choice| predicted_psnr(&layers, choice))
                    .fold(f64::NEG_INFINITY, f64::max);
                let choice = allocate(&layers, Target::Bytes(budget)).unwrap();
                assert!(bytes(&layers, &choice) <= budget);
                let gap = best - predicted_psnr(&layers, &choice);
                assert!(gap >= -1e-9);
                (gaps, cases) = (gaps + gap, cases + 1);
            }
        }
        // Six layers are few to fill a budget with.
        assert!(gaps / f64::from(cases) < 0.7, "{}", gaps / f64::from(cases));
    }

    #[test]
    fn a_psnr_is_reached_with_few_bytes() {
        let mut random = Random(2);
        let layers = layers(&mut random, 200, 3);
        for psnr in [25.0, 40.0, 55.0] {
            let choice = allocate(&layers, Target::Psnr(psnr)).unwrap();
            let reached = predicted_psnr(&layers, &choice);
            assert!((psnr..psnr + 0.5).contains(&reached), "{reached} for {psnr}");
            let again = allocate(&layers, Target::Bytes(bytes(&layers, &choice))).unwrap();
            assert!((predicted_psnr(&layers, &again) - reached).abs() < 0.5);
        }
        assert_eq!(allocate(&layers, Target::Psnr(1e3)), None);
    }

    #[test]
    fn mixed_widths_beat_uniform_ones() {
        let mut random = Random(3);
        let layers = layers(&mut random, 300, 2);
        for index in 0..5 {
            let uniform = vec![index; 300];
            let choice = allocate(&layers, Target::Bytes(bytes(&layers, &uniform))).unwrap();
            assert!(predicted_psnr(&layers, &choice) >= predicted_psnr(&layers, &uniform));
        }
        assert_eq!(allocate(&layers, Target::Bytes(1)), None);
        assert_eq!(allocate(&[], Target::Bytes(0)), Some(Vec::new()));
    }
}
