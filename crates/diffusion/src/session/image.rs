//! Images as planes of floats.

use std::f64::consts::PI;

/// An image as networks take and give it.
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

    /// An image of rows of red, green and blue bytes; `None` if they are not as many as width and height ask
    /// for.
    pub fn from_rgb8([width, height]: [usize; 2], rows: &[u8]) -> Option<Self> {
        let pixels = width.checked_mul(height)?;
        if rows.len() != pixels.checked_mul(3)? {
            return None;
        }
        let plane =
            |channel: usize| rows.iter().skip(channel).step_by(3).map(|&byte| f32::from(byte) / 255.0);
        let planes = (0..3).flat_map(plane).map(|value| 2.0 * value - 1.0).collect();
        Some(Image { width, height, planes })
    }

    /// Rows of red, green and blue bytes, rounded as diffusers does.
    pub fn to_rgb8(&self) -> Vec<u8> {
        let pixels = self.width * self.height;
        let byte = |value: f32| ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
        (0..pixels)
            .flat_map(|pixel| [0, 1, 2].map(|plane| byte(self.planes[plane * pixels + pixel])))
            .collect()
    }

    /// The image at another width and height by Lanczos' filter, as Pillow resizes images of bytes and
    /// diffusers those that it starts from. An image that has the size already is unchanged.
    pub fn resized(&self, [width, height]: [usize; 2]) -> Image {
        if [width, height] == [self.width, self.height] {
            return self.clone();
        }
        let rows = self.to_rgb8();
        let across = |rows: &[u8], size| resample(rows, size, width);
        let down = |rows: &[u8], [width, old]: [usize; 2]| {
            let turned = resample(&transposed(rows, [width, old]), [old, width], height);
            transposed(&turned, [height, width])
        };
        // Each pass rounds to bytes, so their order counts. As in Pillow 13, the height goes first if it
        // shrinks by more than twice the pixels that the width shrinks by.
        let shrinks_by = |from: usize, to: usize| from as i64 - to as i64;
        let by_height = shrinks_by(self.height, height);
        let rows = match by_height > 0 && by_height > 2 * shrinks_by(self.width, width) {
            true => across(&down(&rows, [self.width, self.height]), [self.width, height]),
            false => down(&across(&rows, [self.width, self.height]), [width, self.height]),
        };
        Image::from_rgb8([width, height], &rows).unwrap_or_else(|| self.clone())
    }
}

/// Fractional bits of the filter's weights, as in Pillow.
const WEIGHT_BITS: u32 = 22;

/// The filter's radius in pixels.
const RADIUS: f64 = 3.0;

/// Rows of pixels resampled to another width.
fn resample(rows: &[u8], [width, height]: [usize; 2], new: usize) -> Vec<u8> {
    let taps: Vec<Taps> = (0..new).map(|at| Taps::new(at, width, new)).collect();
    let mut resampled = Vec::with_capacity(3 * new * height);
    for row in rows.chunks_exact(3 * width) {
        for taps in &taps {
            resampled.extend([0, 1, 2].map(|channel| taps.apply(row, channel)));
        }
    }
    resampled
}

/// The pixels that one resampled pixel is a weighted sum of.
struct Taps {
    first: usize,
    weights: Vec<i64>,
}

impl Taps {
    /// The taps of pixel `at` of `new` pixels that are made of `old`.
    fn new(at: usize, old: usize, new: usize) -> Self {
        let scale = old as f64 / new as f64;
        let stretch = scale.max(1.0);
        let center = (at as f64 + 0.5) * scale;
        let first = (center - RADIUS * stretch + 0.5).max(0.0) as usize;
        let last = ((center + RADIUS * stretch + 0.5) as usize).min(old);
        let shrink = 1.0 / stretch;
        let weights: Vec<f64> =
            (first..last).map(|pixel| lanczos((pixel as f64 - center + 0.5) * shrink)).collect();
        let norm = 1.0 / weights.iter().sum::<f64>();
        let one = f64::from(1u32 << WEIGHT_BITS);
        Taps { first, weights: weights.iter().map(|weight| (weight * norm * one).round() as i64).collect() }
    }

    fn apply(&self, row: &[u8], channel: usize) -> u8 {
        let pixels = row[3 * self.first + channel..].iter().step_by(3);
        let sum: i64 = pixels.zip(&self.weights).map(|(&byte, weight)| i64::from(byte) * weight).sum();
        ((sum + (1 << (WEIGHT_BITS - 1))) >> WEIGHT_BITS).clamp(0, 255) as u8
    }
}

/// Lanczos' windowed sinc.
fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
    if (-RADIUS..RADIUS).contains(&x) { sinc(x) * sinc(x / RADIUS) } else { 0.0 }
}

/// Rows of pixels as columns.
fn transposed(rows: &[u8], [width, height]: [usize; 2]) -> Vec<u8> {
    let pixel = |at: usize| {
        let (x, y) = (at / height, at % height);
        let start = 3 * (y * width + x);
        [rows[start], rows[start + 1], rows[start + 2]]
    };
    (0..width * height).flat_map(pixel).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_become_rows_of_bytes() {
        let image = Image::new([2, 1], vec![-1.0, 2.0, 0.0, 1.0, -3.0, 0.5]);
        assert_eq!(image.to_rgb8(), [0, 128, 0, 255, 255, 191]);
    }

    #[test]
    fn bytes_survive_the_planes() {
        let rows: Vec<u8> = (0..=255).flat_map(|byte| [byte, 255 - byte, byte / 2]).collect();
        let image = Image::from_rgb8([64, 4], &rows).unwrap();
        assert_eq!(image.planes[0], -1.0);
        assert_eq!(image.to_rgb8(), rows);
        assert!(Image::from_rgb8([64, 5], &rows).is_none());
        assert!(Image::from_rgb8([usize::MAX, 4], &rows).is_none());
    }

    /// `image.resize(size, Image.LANCZOS)` of Pillow 13.0.0, for an image of 7 by 5 pixels whose pixel `i` is
    /// `(37 i % 256, (91 i + 13) % 256, 7 i² % 256)`.
    #[test]
    fn images_are_resized_as_pillow_does() {
        #[rustfmt::skip]
        let cases: [([usize; 2], &[u8]); 6] = [
            ([6, 2], &[
                5, 80, 63, 48, 164, 54, 92, 101, 85, 134, 135, 150, 178, 170, 183, 221, 105, 222,
                13, 73, 84, 56, 157, 119, 100, 94, 141, 142, 128, 103, 186, 163, 134, 229, 98, 212,
            ]),
            ([5, 1], &[
                13, 90, 79, 65, 147, 90, 117, 97, 123, 169, 167, 136, 221, 109, 215,
            ]),
            ([4, 3], &[
                15, 109, 62, 78, 127, 67, 146, 142, 124, 209, 132, 210, 20, 122, 62, 83, 121, 99, 151,
                149, 192, 214, 128, 208, 25, 99, 112, 88, 117, 149, 156, 132, 57, 219, 122, 178,
            ]),
            ([7, 2], &[
                2, 68, 53, 39, 159, 79, 76, 135, 28, 113, 85, 162, 150, 176, 129, 187, 152, 211, 224, 102,
                216, 10, 61, 73, 47, 152, 132, 84, 128, 105, 121, 78, 167, 158, 169, 62, 195, 145, 177,
                232, 95, 206,
            ]),
            ([3, 7], &[
                24, 79, 0, 111, 116, 58, 198, 123, 204, 25, 133, 78, 112, 144, 94, 199, 146, 181, 28, 140,
                120, 115, 147, 147, 202, 148, 202, 30, 80, 39, 117, 114, 156, 204, 120, 245, 32, 136, 28,
                119, 143, 133, 206, 144, 177, 35, 123, 126, 122, 135, 98, 209, 137, 129, 36, 66, 202, 123,
                104, 84, 210, 110, 138,
            ]),
            ([10, 2], &[
                0, 60, 49, 18, 115, 75, 50, 170, 63, 74, 139, 26, 101, 86, 121, 125, 110, 162, 152, 179,
                129, 176, 170, 189, 208, 123, 223, 226, 98, 214, 8, 53, 67, 26, 108, 107, 58, 163, 130,
                82, 132, 104, 109, 79, 160, 133, 103, 132, 160, 172, 62, 184, 163, 141, 216, 116, 206,
                234, 91, 205,
            ]),
        ];
        let pixel = |i: u32| [37 * i, 91 * i + 13, 7 * i * i].map(|value| (value % 256) as u8);
        let rows: Vec<u8> = (0..35).flat_map(pixel).collect();
        let image = Image::from_rgb8([7, 5], &rows).unwrap();
        for (size, expected) in cases {
            assert_eq!(image.resized(size).to_rgb8(), expected, "{size:?}");
        }
    }

    #[test]
    fn an_image_of_one_colour_keeps_it_at_any_size() {
        let image = Image::from_rgb8([5, 7], &[10, 128, 250].repeat(35)).unwrap();
        for size in [[1, 1], [3, 9], [40, 2], [5, 7]] {
            let resized = image.resized(size);
            assert_eq!([resized.width, resized.height], size);
            assert_eq!(resized.to_rgb8(), [10, 128, 250].repeat(size[0] * size[1]));
        }
    }
}
