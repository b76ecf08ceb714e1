//! Measuring a picture of a scene from its pixels alone; the same algorithm as
//! `tools/demo-model/evaluate.py`.
//!
//! The background is the median of the frame, objects are the connected regions that differ from it. A
//! region's colour is the palette's nearest to the median of its inner pixels, its position its centre, its
//! shape the best of templates of the region's own area.

use anyhow::ensure;

use super::world::{Caption, Object, Outline, World};
use crate::statistics::median;

/// Width of the frame whose median is the background, in pixels.
const FRAME: usize = 2;

/// Regions below this many pixels are specks.
const MIN_AREA: usize = 60;

/// The largest offset of a centre on either axis, in pixels.
const POSITION_TOLERANCE: f64 = 16.0;

/// Radii of a template, relative to that of the region's area.
const SCALES: [f64; 3] = [0.94, 1.0, 1.06];

/// Shifts of a template from the region's centre on either axis, in pixels.
const SHIFTS: [f64; 3] = [-1.0, 0.0, 1.0];

/// The properties of a picture that agree with its caption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) colour: bool,
    pub(super) position: bool,
    pub(super) shape: bool,
}

impl Verdict {
    /// The names of the properties that don't.
    pub(super) fn wrong(self) -> impl Iterator<Item = &'static str> {
        let parts = [("colour", self.colour), ("position", self.position), ("shape", self.shape)];
        parts.into_iter().filter(|(_, right)| !right).map(|(name, _)| name)
    }
}

/// A connected part of a picture: its pixels as column and row, and their membership by index.
struct Region {
    pixels: Vec<[usize; 2]>,
    mask: Vec<bool>,
    centre: [f64; 2],
}

/// A square picture of red, green and blue.
struct Picture {
    side: usize,
    pixels: Vec<[f64; 3]>,
}

/// Measures the RGB bytes of a picture of `caption`.
///
/// # Errors
/// If the picture is not of the world's size, or the caption has names that the world does not.
pub(super) fn measure(rgb: &[u8], world: &World, caption: &Caption) -> anyhow::Result<Verdict> {
    let side = world.side;
    ensure!(rgb.len() == 3 * side * side, "{} bytes are not {side} by {side} pixels", rgb.len());
    let pixels =
        rgb.chunks_exact(3).map(|pixel| [0, 1, 2].map(|channel| f64::from(pixel[channel]))).collect();
    let picture = Picture { side, pixels };
    let background = picture.background();
    let mut gap = f64::INFINITY;
    for object in &caption.objects {
        gap = gap.min(distance(&world.colour(&object.colour)?, &background));
    }
    let threshold = (0.4 * gap).clamp(20.0, 90.0);
    let mut found = picture.regions(&background, threshold);
    if found.len() != caption.objects.len() {
        return Ok(Verdict { colour: false, position: false, shape: false });
    }
    if cost(found.iter().rev(), &caption.objects) < cost(found.iter(), &caption.objects) {
        found.reverse();
    }
    let all = |right: &dyn Fn(&Region, &Object) -> bool| {
        found.iter().zip(&caption.objects).all(|(region, object)| right(region, object))
    };
    Ok(Verdict {
        colour: nearest_colour(world, &background) == caption.background
            && all(&|region, object| nearest_colour(world, &picture.colour_of(region)) == object.colour),
        position: all(&|region, object| {
            [0, 1].iter().all(|&axis| (region.centre[axis] - object.centre[axis]).abs() <= POSITION_TOLERANCE)
        }),
        shape: all(&|region, object| best_shape(world, region) == object.shape),
    })
}

fn distance<const N: usize>(a: &[f64; N], b: &[f64; N]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()
}

/// The sum of distances between regions and objects.
fn cost<'r>(regions: impl Iterator<Item = &'r Region>, objects: &[Object]) -> f64 {
    regions.zip(objects).map(|(region, object)| distance(&region.centre, &object.centre)).sum()
}

/// The median of each channel.
fn median_colour(pixels: &[[f64; 3]]) -> [f64; 3] {
    [0, 1, 2].map(|channel| median(&pixels.iter().map(|pixel| pixel[channel]).collect::<Vec<_>>()))
}

/// The first of the entries with the smallest score.
fn first_least<T>(entries: &[(String, T)], score: impl Fn(&T) -> f64) -> &str {
    let scores = entries.iter().map(|(name, value)| (name.as_str(), score(value)));
    scores.min_by(|a, b| a.1.total_cmp(&b.1)).map_or("", |(name, _)| name)
}

fn nearest_colour<'w>(world: &'w World, colour: &[f64; 3]) -> &'w str {
    first_least(&world.colours, |entry| distance(entry, colour))
}

fn best_shape<'w>(world: &'w World, region: &Region) -> &'w str {
    let side = world.side;
    first_least(&world.shapes, |outline| -overlap(region, outline, side))
}

impl Picture {
    fn background(&self) -> [f64; 3] {
        let is_outer = |coordinate: usize| coordinate < FRAME || coordinate + FRAME >= self.side;
        let pixels = self.pixels.iter().enumerate();
        let frame = pixels.filter(|(index, _)| is_outer(index % self.side) || is_outer(index / self.side));
        median_colour(&frame.map(|(_, pixel)| *pixel).collect::<Vec<_>>())
    }

    /// The 8-connected regions of pixels that differ from the background by more than `threshold`, in scan
    /// order.
    fn regions(&self, background: &[f64; 3], threshold: f64) -> Vec<Region> {
        let mut left: Vec<bool> =
            self.pixels.iter().map(|pixel| distance(pixel, background) > threshold).collect();
        let mut regions = Vec::new();
        for start in 0..left.len() {
            if !left[start] {
                continue;
            }
            let mut mask = vec![false; left.len()];
            let (mut pixels, mut stack) = (Vec::new(), vec![start]);
            left[start] = false;
            while let Some(index) = stack.pop() {
                let (x, y) = (index % self.side, index / self.side);
                mask[index] = true;
                pixels.push([x, y]);
                for ny in y.saturating_sub(1)..(y + 2).min(self.side) {
                    for nx in x.saturating_sub(1)..(x + 2).min(self.side) {
                        let neighbour = ny * self.side + nx;
                        if left[neighbour] {
                            left[neighbour] = false;
                            stack.push(neighbour);
                        }
                    }
                }
            }
            if pixels.len() >= MIN_AREA {
                let mean =
                    |axis: usize| pixels.iter().map(|p| p[axis] as f64).sum::<f64>() / pixels.len() as f64;
                regions.push(Region { centre: [mean(0) + 0.5, mean(1) + 0.5], pixels, mask });
            }
        }
        regions
    }

    /// The colour of the pixels whose four neighbours are in the region too, or of all where there are none.
    fn colour_of(&self, region: &Region) -> [f64; 3] {
        let (side, last) = (self.side, self.side - 1);
        let is_inner = |&&[x, y]: &&[usize; 2]| {
            let is_within = x > 0 && y > 0 && x < last && y < last;
            let index = y * side + x;
            is_within && [index - side, index - 1, index + 1, index + side].iter().all(|&at| region.mask[at])
        };
        let colours = |pixels: &mut dyn Iterator<Item = &[usize; 2]>| -> Vec<[f64; 3]> {
            pixels.map(|[x, y]| self.pixels[y * side + x]).collect()
        };
        let inner = colours(&mut region.pixels.iter().filter(is_inner));
        median_colour(&if inner.is_empty() { colours(&mut region.pixels.iter()) } else { inner })
    }
}

/// The largest intersection over union of the region with the outline's templates.
fn overlap(region: &Region, outline: &Outline, side: usize) -> f64 {
    let [cx, cy] = region.centre;
    let (area, [ox, oy]) = outline.area_and_centroid();
    let total = region.pixels.len();
    let equal = (total as f64 / area).sqrt();
    // No template reaches beyond this window.
    let reach = 1.4 * SCALES[2] * equal + 3.0;
    let window = |centre: f64| (centre - reach).max(0.0) as usize..((centre + reach) as usize + 2).min(side);
    let mut best = 0.0f64;
    for scale in SCALES {
        let radius = scale * equal;
        for dy in SHIFTS {
            for dx in SHIFTS {
                let origin = [cx + dx - ox * radius, cy + dy - oy * radius];
                let (mut shared, mut size) = (0, 0);
                for y in window(cy) {
                    for x in window(cx) {
                        let point = [x as f64 + 0.5 - origin[0], y as f64 + 0.5 - origin[1]];
                        if outline.signed_distance(radius, point) < 0.0 {
                            size += 1;
                            shared += usize::from(region.mask[y * side + x]);
                        }
                    }
                }
                best = best.max(shared as f64 / (size + total - shared) as f64);
            }
        }
    }
    best
}

#[cfg(test)]
mod tests;
