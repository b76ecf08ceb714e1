//! Decoded images.

/// An image as the decoder gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Red, green and blue planes (3, height, width), about -1 to 1.
    pub planes: Vec<f32>,
}

impl Image {
    pub(super) fn new([width, height]: [usize; 2], planes: Vec<f32>) -> Self {
        Image { width, height, planes }
    }

    /// Rows of red, green and blue bytes, rounded as diffusers does.
    pub fn to_rgb8(&self) -> Vec<u8> {
        let pixels = self.width * self.height;
        let byte = |value: f32| ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
        (0..pixels)
            .flat_map(|pixel| [0, 1, 2].map(|plane| byte(self.planes[plane * pixels + pixel])))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_become_rows_of_bytes() {
        let image = Image::new([2, 1], vec![-1.0, 2.0, 0.0, 1.0, -3.0, 0.5]);
        assert_eq!(image.to_rgb8(), [0, 128, 0, 255, 255, 191]);
    }
}
