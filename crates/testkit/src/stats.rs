//! How far one array is from another.

use std::fmt;

/// Error statistics of an array against a reference of the same length, computed in f64.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ErrorStats {
    /// `max |actual - expected|`; NaN and mismatched infinities are left out here and counted in `bad`.
    pub max_abs: f64,
    /// `max |actual - expected| / max |expected|`, the maximum relative error of the array as a whole;
    /// the absolute error where the reference is all zeros.
    pub max_rel: f64,
    /// Peak signal-to-noise ratio in dB, with `max |expected|` as the peak; infinite for equal arrays.
    pub psnr: f64,
    /// Elements that are NaN on one side only, or infinite on one side only or with the other sign.
    pub bad: usize,
    /// Index of the worst element, the first bad one if there are any.
    pub worst: usize,
    /// The values at `worst`: actual, expected.
    pub worst_values: (f64, f64),
}

impl ErrorStats {
    /// Compares `actual` with `expected`.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    #[track_caller]
    pub fn compare<T: Copy + Into<f64>>(actual: &[T], expected: &[T]) -> ErrorStats {
        assert_eq!(actual.len(), expected.len(), "lengths differ: actual, expected");
        let mut stats = ErrorStats {
            max_abs: 0.0,
            max_rel: 0.0,
            psnr: f64::INFINITY,
            bad: 0,
            worst: 0,
            worst_values: (0.0, 0.0),
        };
        let (mut peak, mut squares) = (0.0_f64, 0.0_f64);
        for (index, (&a, &e)) in actual.iter().zip(expected).enumerate() {
            let (a, e): (f64, f64) = (a.into(), e.into());
            if a == e || (a.is_nan() && e.is_nan()) {
                if e.is_finite() {
                    peak = peak.max(e.abs());
                }
                continue;
            }
            if !a.is_finite() || !e.is_finite() {
                if stats.bad == 0 {
                    (stats.worst, stats.worst_values) = (index, (a, e));
                }
                stats.bad += 1;
                continue;
            }
            peak = peak.max(e.abs());
            let error = (a - e).abs();
            squares += error * error;
            if error > stats.max_abs {
                stats.max_abs = error;
                if stats.bad == 0 {
                    (stats.worst, stats.worst_values) = (index, (a, e));
                }
            }
        }
        stats.max_rel = if peak > 0.0 { stats.max_abs / peak } else { stats.max_abs };
        if squares > 0.0 {
            stats.psnr = 10.0 * (peak * peak * actual.len() as f64 / squares).log10();
        }
        stats
    }

    /// `Ok` if there is no bad element and the maximum relative error is at most `max_rel`.
    ///
    /// # Errors
    ///
    /// The statistics, with the limit that they passed.
    pub fn within(&self, max_rel: f64) -> Result<(), String> {
        if self.bad == 0 && self.max_rel <= max_rel {
            Ok(())
        } else {
            Err(format!("{self} (limit {max_rel:e})"))
        }
    }
}

impl fmt::Display for ErrorStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (actual, expected) = self.worst_values;
        write!(f, "max rel {:.3e}, max abs {:.3e}, PSNR {:.1} dB", self.max_rel, self.max_abs, self.psnr)?;
        if self.bad > 0 {
            write!(f, ", {} NaN or infinite", self.bad)?;
        }
        write!(f, ", worst at {}: {actual} for {expected}", self.worst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_relative_to_the_largest_reference_value() {
        let stats = ErrorStats::compare(&[1.0_f32, -4.0, 0.5], &[1.0, -4.0, 0.25]);
        assert_eq!((stats.max_abs, stats.max_rel, stats.worst), (0.25, 0.0625, 2));
        assert!((stats.psnr - 10.0 * (16.0_f64 * 3.0 / 0.0625).log10()).abs() < 1e-9);
        assert!(stats.within(0.0625).is_ok());
        assert!(stats.within(0.0624).is_err());
    }

    #[test]
    fn equal_arrays_have_no_error() {
        let values = [0.0_f32, f32::NAN, f32::INFINITY, -2.0];
        let stats = ErrorStats::compare(&values, &values);
        assert_eq!((stats.max_rel, stats.bad, stats.psnr), (0.0, 0, f64::INFINITY));
    }

    #[test]
    fn nan_and_infinity_on_one_side_are_bad() {
        let nan = ErrorStats::compare(&[1.0_f32, f32::NAN], &[1.0, 2.0]);
        assert_eq!((nan.bad, nan.worst), (1, 1));
        assert!(nan.within(f64::MAX).is_err());
        let infinity = ErrorStats::compare(&[f32::INFINITY], &[f32::NEG_INFINITY]);
        assert_eq!(infinity.bad, 1);
        let lost = ErrorStats::compare(&[0.0_f32], &[f32::NAN]);
        assert_eq!(lost.bad, 1);
    }
}
