//! Peak signal-to-noise ratios in dB, with the largest magnitude of the expected values as the peak.

/// The usual ratio, from the peak and the mean squared error: infinite if nothing differs.
pub fn psnr(peak: f64, mean_square: f64) -> f64 {
    match mean_square == 0.0 {
        true => f64::INFINITY,
        false => 20.0 * peak.log10() - 10.0 * mean_square.log10(),
    }
}

/// The ratio of Apple's converter and scripts (`compute_psnr` of ml-stable-diffusion): finite even if nothing
/// differs.
pub fn apple_psnr(peak: f64, mean_square: f64) -> f64 {
    20.0 * ((peak + 1e-5) / (mean_square.sqrt() + 1e-10)).log10()
}

/// [`psnr`] of values against the expected ones.
pub fn psnr_of(found: impl Iterator<Item = f64>, expected: impl Iterator<Item = f64> + Clone) -> f64 {
    psnr(peak(expected.clone()), mean_square(found.zip(expected)))
}

/// [`apple_psnr`] of values against the expected ones.
pub fn apple_psnr_of(found: impl Iterator<Item = f64>, expected: impl Iterator<Item = f64> + Clone) -> f64 {
    apple_psnr(peak(expected.clone()), mean_square(found.zip(expected)))
}

/// The mean squared difference of pairs of numbers; 0 for none.
pub fn mean_square(pairs: impl IntoIterator<Item = (f64, f64)>) -> f64 {
    let (sum, count) =
        pairs.into_iter().fold((0.0, 0u64), |(sum, count), (a, b)| (sum + (a - b) * (a - b), count + 1));
    sum / count.max(1) as f64
}

/// The largest magnitude; 0 for none.
pub fn peak(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(0.0, |most, value| most.max(value.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tenth_of_the_peak_is_twenty_decibels() {
        let (expected, found) = ([2.0, -1.0, 0.5, 0.0], [2.2, -1.2, 0.7, -0.2]);
        let error = mean_square(expected.into_iter().zip(found));
        assert!((psnr(peak(expected), error) - 20.0).abs() < 1e-9);
        assert!((apple_psnr(peak(expected), error) - 20.0).abs() < 1e-3);
        assert_eq!(psnr(1.0, mean_square([(1.0, 1.0)])), f64::INFINITY);
        assert!((apple_psnr(1.0, 0.0) - 200.0).abs() < 1e-3);
        assert!(apple_psnr(1.0, f64::NAN).is_nan() && psnr(1.0, f64::NAN).is_nan());
    }
}
