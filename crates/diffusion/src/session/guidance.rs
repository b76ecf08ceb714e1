//! Classifier-free guidance.

/// The guided prediction from those without and with the prompt, `[unconditional, conditional]`.
///
/// `scale` is the guidance scale. `rescale` brings the deviation of the result part of the way back to that
/// of the conditional prediction, as in section 3.4 of arXiv 2305.08891.
pub(super) fn guide(predictions: &[f32], scale: f32, rescale: f32) -> Vec<f32> {
    let (unconditional, conditional) = predictions.split_at(predictions.len() / 2);
    let mut guided: Vec<f32> =
        unconditional.iter().zip(conditional).map(|(&u, &c)| u + scale * (c - u)).collect();
    if rescale > 0.0 {
        let ratio = deviation(conditional) / deviation(&guided);
        let factor = (f64::from(rescale) * ratio + 1.0 - f64::from(rescale)) as f32;
        guided.iter_mut().for_each(|value| *value *= factor);
    }
    guided
}

/// The sample standard deviation.
fn deviation(values: &[f32]) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
    let squares: f64 = values.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum();
    (squares / (count - 1.0).max(1.0)).sqrt()
}

/// The embedding of the guidance scale for models that were distilled with it: arXiv 2310.04378, as LCM's
/// UNet takes it in `timestep_cond`.
pub(super) fn embedding(scale: f32, channels: usize) -> Vec<f32> {
    let half = channels / 2;
    let weight = f64::from(scale - 1.0) * 1000.0;
    let step = 10000f64.ln() / (half as f64 - 1.0).max(1.0);
    let angles = (0..half).map(|index| weight * (-step * index as f64).exp());
    let sines = angles.clone().map(f64::sin);
    let mut values: Vec<f32> = sines.chain(angles.map(f64::cos)).map(|value| value as f32).collect();
    values.resize(channels, 0.0);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guidance_extrapolates_and_rescaling_restores_the_deviation() {
        let predictions = [0.0, 1.0, 2.0, 1.0, 3.0, 2.0];
        assert_eq!(guide(&predictions, 2.0, 0.0), [2.0, 5.0, 2.0]);
        let whole = guide(&predictions, 2.0, 1.0);
        assert!((deviation(&whole) - deviation(&predictions[3..])).abs() < 1e-6);
    }

    #[test]
    fn the_embedding_has_sines_then_cosines_and_any_width() {
        let values = embedding(1.0, 5);
        assert_eq!(values, [0.0, 0.0, 1.0, 1.0, 0.0]);
        let values = embedding(8.5, 4);
        assert!((f64::from(values[0]) - 7500f64.sin()).abs() < 1e-6, "{values:?}");
        assert!((f64::from(values[3]) - 0.75f64.cos()).abs() < 1e-6, "{values:?}");
    }
}
