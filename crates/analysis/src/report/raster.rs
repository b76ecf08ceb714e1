//! Bitmaps of drawings, labels and images.

use std::io::{self, Write};

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

use super::figure::{Anchor, Figure, Mark, Shape, corners};

/// The sizes of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Letters {
    Small,
    Large,
}

impl Letters {
    fn raster(self) -> RasterHeight {
        match self {
            Letters::Small => RasterHeight::Size16,
            Letters::Large => RasterHeight::Size24,
        }
    }

    /// The height of a line in pixels.
    pub(super) fn height(self) -> usize {
        self.raster().val()
    }

    /// The width of a character in pixels.
    pub(super) fn width(self) -> usize {
        get_raster_width(FontWeight::Regular, self.raster())
    }
}

/// Red, green and blue pixels on white.
pub(super) struct Bitmap {
    pub(super) width: usize,
    pub(super) height: usize,
    pixels: Vec<u8>,
}

impl Bitmap {
    pub(super) fn new(width: usize, height: usize) -> Self {
        Bitmap { width, height, pixels: vec![255; 3 * width * height] }
    }

    /// Mixes a colour into a pixel. Pixels outside are ignored.
    fn mix(&mut self, x: isize, y: isize, colour: [u8; 3], part: f64) {
        let inside = |at: isize, extent: usize| usize::try_from(at).ok().filter(|&at| at < extent);
        let (Some(x), Some(y)) = (inside(x, self.width), inside(y, self.height)) else { return };
        let at = 3 * (y * self.width + x);
        for (pixel, value) in self.pixels[at..at + 3].iter_mut().zip(colour) {
            let mixed = f64::from(*pixel) + part.clamp(0.0, 1.0) * (f64::from(value) - f64::from(*pixel));
            *pixel = mixed.round() as u8;
        }
    }

    /// Fills a shape in a box. `inside` is the distance of a point from the shape's edge, positive inside.
    fn fill(&mut self, [low, high]: [[f64; 2]; 2], colour: [u8; 3], inside: impl Fn([f64; 2]) -> f64) {
        for y in low[1].floor() as isize - 1..=high[1].ceil() as isize {
            for x in low[0].floor() as isize - 1..=high[0].ceil() as isize {
                let part = inside([x as f64 + 0.5, y as f64 + 0.5]) + 0.5;
                if part > 0.0 {
                    self.mix(x, y, colour, part);
                }
            }
        }
    }

    /// Draws text. Characters that the font lacks become `?`.
    pub(super) fn text(&mut self, [left, top]: [isize; 2], text: &str, letters: Letters, colour: [u8; 3]) {
        let draw = |c: char| get_raster(c, FontWeight::Regular, letters.raster());
        let mut x = left;
        for c in text.chars() {
            if let Some(glyph) = draw(c).or_else(|| draw('?')) {
                for (row, values) in glyph.rows().enumerate() {
                    for (column, &value) in values.iter().enumerate().filter(|(_, value)| **value > 0) {
                        let part = f64::from(value) / 255.0;
                        self.mix(x + column as isize, top + row as isize, colour, part);
                    }
                }
            }
            x += letters.width() as isize;
        }
    }

    /// Copies rows of red, green and blue bytes to a place. Pixels outside are ignored.
    pub(super) fn put(&mut self, [left, top]: [usize; 2], rgb: &[u8], width: usize) {
        for (row, line) in rgb.chunks_exact(3 * width.max(1)).enumerate() {
            let room = self.width.saturating_sub(left).min(width);
            let at = 3 * ((top + row) * self.width + left);
            if let Some(target) = self.pixels.get_mut(at..at + 3 * room) {
                target.copy_from_slice(&line[..3 * room]);
            }
        }
    }

    /// A drawing on white, enlarged by `scale`.
    pub(super) fn of(figure: &Figure, scale: f64) -> Self {
        let [width, height] = figure.size.map(|extent| (extent * scale).round().max(1.0) as usize);
        let mut bitmap = Bitmap::new(width, height);
        for shape in &figure.shapes {
            bitmap.draw(shape, scale);
        }
        bitmap
    }

    fn draw(&mut self, shape: &Shape, scale: f64) {
        let scaled = |[x, y]: [f64; 2]| [x * scale, y * scale];
        match shape {
            Shape::Line { points, ink, width } => {
                let radius = width * scale / 2.0;
                for pair in points.windows(2) {
                    let [a, b] = [scaled(pair[0]), scaled(pair[1])];
                    let low = [a[0].min(b[0]) - radius, a[1].min(b[1]) - radius];
                    let high = [a[0].max(b[0]) + radius, a[1].max(b[1]) + radius];
                    self.fill([low, high], ink.on_white(), |at| radius - distance(at, a, b));
                }
            }
            Shape::Mark { at, radius, mark, ink, .. } => {
                let (at, r) = (scaled(*at), radius * scale);
                let around = [[at[0] - 2.0 * r, at[1] - 2.0 * r], [at[0] + 2.0 * r, at[1] + 2.0 * r]];
                let [x, y] = at;
                let reach = corners([0.0; 2], r, *mark)[2][0];
                self.fill(around, ink.on_white(), |[px, py]| match mark {
                    Mark::Circle => r - (px - x).hypot(py - y),
                    Mark::Square => reach - (px - x).abs().max((py - y).abs()),
                    Mark::Diamond => (reach - (px - x).abs() - (py - y).abs()) / 2f64.sqrt(),
                });
            }
            Shape::Rect { at, size, ink, .. } => {
                let low = scaled(*at);
                let high = scaled([at[0] + size[0], at[1] + size[1]]);
                self.fill([low, high], ink.on_white(), |[x, y]| {
                    (x - low[0]).min(high[0] - x).min(y - low[1]).min(high[1] - y)
                });
            }
            Shape::Text { at, text, anchor, ink } => {
                let letters = Letters::Large;
                let [x, y] = scaled(*at);
                let width = (text.chars().count() * letters.width()) as f64;
                let left = match anchor {
                    Anchor::Start => x,
                    Anchor::Middle => x - width / 2.0,
                    Anchor::End => x - width,
                };
                // The place of a text is its base line.
                let top = y - 0.78 * letters.height() as f64;
                self.text([left.round() as isize, top.round() as isize], text, letters, ink.on_white());
            }
        }
    }

    /// Writes a PNG file with texts by their keywords.
    pub(super) fn write_png(&self, out: impl Write, texts: &[(&str, &str)]) -> io::Result<()> {
        let side = |extent: usize| u32::try_from(extent).map_err(io::Error::other);
        let mut encoder = png::Encoder::new(out, side(self.width)?, side(self.height)?);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        for (keyword, text) in texts {
            encoder.add_itxt_chunk(keyword.to_string(), text.to_string())?;
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.pixels)?;
        Ok(writer.finish()?)
    }
}

/// The distance of a point from the line segment between two others.
fn distance([x, y]: [f64; 2], [ax, ay]: [f64; 2], [bx, by]: [f64; 2]) -> f64 {
    let (dx, dy) = (bx - ax, by - ay);
    let square = dx * dx + dy * dy;
    let along = if square > 0.0 { (((x - ax) * dx + (y - ay) * dy) / square).clamp(0.0, 1.0) } else { 0.0 };
    (x - ax - along * dx).hypot(y - ay - along * dy)
}

#[cfg(test)]
mod tests {
    use super::super::figure::Ink;
    use super::*;

    fn pixel(bitmap: &Bitmap, x: usize, y: usize) -> [u8; 3] {
        let at = 3 * (y * bitmap.width + x);
        [bitmap.pixels[at], bitmap.pixels[at + 1], bitmap.pixels[at + 2]]
    }

    #[test]
    fn shapes_cover_their_pixels() {
        let mut figure = Figure::new([20.0, 20.0], "");
        figure.rect([2.0, 2.0], [6.0, 6.0], Ink::Exact([10, 20, 30]), "");
        figure.line(vec![[0.0, 15.0], [20.0, 15.0]], Ink::Exact([0; 3]), 2.0);
        let bitmap = Bitmap::of(&figure, 2.0);
        assert_eq!((bitmap.width, bitmap.height), (40, 40));
        let expected =
            [((10, 10), [10, 20, 30]), ((2, 2), [255; 3]), ((20, 30), [0; 3]), ((20, 36), [255; 3])];
        for ((x, y), colour) in expected {
            assert_eq!(pixel(&bitmap, x, y), colour, "{x} {y}");
        }
    }

    #[test]
    fn pixels_outside_are_ignored() {
        let mut bitmap = Bitmap::new(4, 4);
        bitmap.text([-5, -100], "a long text é 猫", Letters::Small, [0; 3]);
        bitmap.put([2, 3], &[7; 27], 3);
        assert_eq!((pixel(&bitmap, 3, 3), pixel(&bitmap, 1, 3)), ([7; 3], [255; 3]));
    }
}
