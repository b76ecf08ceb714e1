//! The correction of predicted PSNRs.

/// The error of predictions, interpolated between recipes that were run.
#[derive(Default)]
pub(super) struct Correction {
    /// Predicted PSNRs, ascending, and the difference of the measured ones.
    points: Vec<(f64, f64)>,
}

impl Correction {
    /// The correction by pairs of a predicted and a measured PSNR.
    pub(super) fn new(pairs: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let points = pairs.into_iter().map(|(predicted, measured)| (predicted, measured - predicted));
        let mut points: Vec<_> = points.collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Correction { points }
    }

    /// The corrected PSNR for a predicted one.
    pub(super) fn applied(&self, predicted: f64) -> f64 {
        let above = self.points.partition_point(|(point, _)| *point < predicted);
        let added = match (above.checked_sub(1).map(|below| self.points[below]), self.points.get(above)) {
            (Some((low, a)), Some(&(high, b))) if high > low => {
                a + (b - a) * (predicted - low) / (high - low)
            }
            (Some((_, only)), _) | (None, Some(&(_, only))) => only,
            (None, None) => 0.0,
        };
        predicted + added
    }

    /// The predicted PSNR for a corrected one.
    pub(super) fn undone(&self, psnr: f64) -> f64 {
        let (mut low, mut high) = (psnr - 40.0, psnr + 40.0);
        for _ in 0..50 {
            let middle = (low + high) / 2.0;
            if self.applied(middle) < psnr { low = middle } else { high = middle }
        }
        high
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_are_corrected_between_known_ones() {
        let correction = Correction::new([(50.0, 50.0), (30.0, 28.0)]);
        assert_eq!(correction.applied(40.0), 39.0);
        assert_eq!((correction.applied(10.0), correction.applied(70.0)), (8.0, 70.0));
        assert!((correction.undone(39.0) - 40.0).abs() < 1e-6);
        assert_eq!(Correction::default().applied(12.0), 12.0);
    }
}
