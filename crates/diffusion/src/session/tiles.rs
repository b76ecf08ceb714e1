//! Tiles of a plane: their places, and how their results are blended.

use std::ops::Range;

/// The choice to decode latents in tiles, which takes less memory than the whole image.
///
/// The first layers, with the attention over the whole image, are run on all of it. The layers after them are
/// run on tiles, which share a margin and are blended there. Tiles differ from the whole image in the means
/// and deviations of the norms, which each tile computes by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tiling {
    /// If the whole image took more than 1.5 GiB for intermediate results: for Stable Diffusion's
    /// autoencoder, above 768×768.
    #[default]
    Auto,
    /// If the image has more pixels than 512×512, in tiles of at most that size.
    Always,
    /// Never.
    Never,
}

/// The bytes for intermediate results up to which an image is decoded whole.
const LARGEST_ARENA: usize = 3 << 29;

/// The most pixels of the latents in a tile with [`Tiling::Always`].
const SMALL_TILE: usize = 64 * 64;

impl Tiling {
    /// The most pixels of the latents in a tile, for a plane that takes `bytes` as a whole.
    pub(super) fn most(self, plane: usize, bytes: usize) -> usize {
        let fits = (plane as u128 * LARGEST_ARENA as u128 / bytes.max(1) as u128) as usize;
        match self {
            Tiling::Auto => fits,
            Tiling::Always => fits.min(SMALL_TILE),
            Tiling::Never => plane,
        }
    }
}

/// The rows or columns that neighbouring tiles share, in pixels of the latents.
///
/// Pixels at a cut edge lack context; [`HIDDEN`] drops the outermost and blending hides the rest.
pub(super) const OVERLAP: usize = 16;

/// The rows or columns at a cut edge of a tile that are dropped, in pixels of the latents.
const HIDDEN: usize = 4;

/// Tiles of one size that cover a plane, in pixels of the latents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    /// Height and width of every tile.
    pub(super) tile: [usize; 2],
    /// Height and width of the plane.
    pub(super) plane: [usize; 2],
    /// Tiles in each column and in each row.
    counts: [usize; 2],
}

impl Grid {
    /// The fewest tiles of at most `most` pixels each that cover a plane; neighbours share [`OVERLAP`] or a
    /// little more. A tile is never larger than the plane, nor is one made smaller than twice the overlap.
    pub(super) fn of_area(plane: [usize; 2], most: usize) -> Self {
        let mut grid = Grid { tile: plane, plane, counts: [1, 1] };
        while grid.tile[0] * grid.tile[1] > most {
            // The longer side of the tile is cut, so that tiles become square.
            let axis = usize::from(grid.tile[1] > grid.tile[0]);
            let count = grid.counts[axis] + 1;
            let tile = (plane[axis] + (count - 1) * OVERLAP).div_ceil(count);
            if tile < 2 * OVERLAP {
                break;
            }
            (grid.counts[axis], grid.tile[axis]) = (count, tile);
        }
        grid
    }

    /// True if one tile is the whole plane.
    pub(super) fn is_whole(&self) -> bool {
        self.counts == [1, 1]
    }

    /// Top and left of every tile, row by row. The last ones end where the plane ends.
    pub(super) fn tiles(&self) -> impl Iterator<Item = [usize; 2]> {
        let [rows, columns] = self.counts;
        (0..rows * columns).map(move |tile| [self.start(0, tile / columns), self.start(1, tile % columns)])
    }

    /// Rows and columns of a tile, `scale` pixels for one of the latents.
    pub(super) fn ranges(&self, start: [usize; 2], scale: usize) -> [Range<usize>; 2] {
        [0, 1].map(|axis| start[axis] * scale..(start[axis] + self.tile[axis]) * scale)
    }

    /// The first row or column of a tile.
    fn start(&self, axis: usize, index: usize) -> usize {
        let gaps = (self.counts[axis] - 1).max(1);
        index * (self.plane[axis] - self.tile[axis]) / gaps
    }

    /// The weight of each row or column of a tile, `scale` pixels for one of the latents. The weights of
    /// tiles that share a row or column add up to 1.
    fn weights(&self, axis: usize, start: usize, scale: usize) -> Vec<f32> {
        let own = self.ramps(axis, start, scale);
        let mut sum = vec![0.0; own.len()];
        for other in (0..self.counts[axis]).map(|index| self.start(axis, index)) {
            let ramps = self.ramps(axis, other, scale);
            let shift = (start as isize - other as isize) * scale as isize;
            for (at, sum) in sum.iter_mut().enumerate() {
                let there = usize::try_from(at as isize + shift).ok();
                *sum += there.and_then(|there| ramps.get(there)).copied().unwrap_or(0.0);
            }
        }
        own.iter().zip(sum).map(|(own, sum)| own / sum).collect()
    }

    /// A ramp from 0 at each cut side of a tile to 1 in its middle.
    fn ramps(&self, axis: usize, start: usize, scale: usize) -> Vec<f32> {
        let (hidden, ramp) = (HIDDEN * scale, (OVERLAP - 2 * HIDDEN) * scale);
        let len = self.tile[axis] * scale;
        let is_cut = [start > 0, start + self.tile[axis] < self.plane[axis]];
        let rise = |is_cut: bool, from_side: usize| match is_cut {
            true => ((from_side as f32 + 0.5 - hidden as f32) / ramp as f32).clamp(0.0, 1.0),
            false => 1.0,
        };
        (0..len).map(|at| rise(is_cut[0], at).min(rise(is_cut[1], len - 1 - at))).collect()
    }
}

/// The rows and columns of planes (planes, height, width).
pub(super) fn crop(
    values: &[f32],
    [height, width]: [usize; 2],
    rows: Range<usize>,
    columns: Range<usize>,
) -> Vec<f32> {
    let plane = |values: &[f32]| -> Vec<f32> {
        rows.clone().flat_map(|row| &values[row * width..][columns.clone()]).copied().collect()
    };
    values.chunks_exact(height * width).flat_map(plane).collect()
}

/// The results of the tiles of a plane, to be blended.
pub(super) struct Mosaic<'g> {
    grid: &'g Grid,
    planes: usize,
    scale: usize,
    tiles: Vec<Tile>,
}

/// The result of one tile.
struct Tile {
    start: [usize; 2],
    /// (planes, height, width).
    values: Vec<f32>,
}

impl<'g> Mosaic<'g> {
    /// An empty mosaic with `scale` pixels for one of the latents.
    pub(super) fn new(grid: &'g Grid, planes: usize, scale: usize) -> Self {
        Mosaic { grid, planes, scale, tiles: Vec::new() }
    }

    /// Adds the result of a tile (planes, height, width).
    pub(super) fn push(&mut self, start: [usize; 2], values: Vec<f32>) {
        self.tiles.push(Tile { start, values });
    }

    /// The whole (planes, height, width), each tile shifted to the brightness of its neighbours and blended
    /// with them.
    pub(super) fn into_values(self) -> Vec<f32> {
        let Mosaic { grid, planes, scale, .. } = self;
        let shifts = self.shifts();
        let [height, width] = grid.tile.map(|extent| extent * scale);
        let [whole_height, whole_width] = grid.plane.map(|extent| extent * scale);
        let mut whole = vec![0.0; planes * whole_height * whole_width];
        for (tile, shifts) in self.tiles.iter().zip(shifts.chunks_exact(planes)) {
            let [rows, columns] = [0, 1].map(|axis| grid.weights(axis, tile.start[axis], scale));
            let [top, left] = tile.start.map(|start| start * scale);
            let whole = whole.chunks_exact_mut(whole_height * whole_width);
            for ((values, whole), shift) in tile.values.chunks_exact(height * width).zip(whole).zip(shifts) {
                for (row, (values, weight)) in values.chunks_exact(width).zip(&rows).enumerate() {
                    let whole = &mut whole[(top + row) * whole_width + left..][..width];
                    for ((whole, value), column) in whole.iter_mut().zip(values).zip(&columns) {
                        *whole += (value + *shift as f32) * weight * column;
                    }
                }
            }
        }
        whole
    }

    /// The shift of each plane of each tile with which tiles differ least where they overlap (least squares)
    /// and the mean over all tiles stays.
    fn shifts(&self) -> Vec<f64> {
        let (count, planes) = (self.tiles.len(), self.planes);
        let mut pairs = Vec::new();
        for second in 0..count {
            pairs.extend((0..second).filter_map(|first| self.overlap(first, second)));
        }
        let mut shifts = vec![0.0; count * planes];
        for _ in 0..ROUNDS {
            let mut pulls = vec![0.0; count * planes];
            let mut weights = vec![0.0; count];
            for Overlap { tiles: [first, second], pixels, differences } in &pairs {
                weights[*first] += pixels;
                weights[*second] += pixels;
                for (plane, difference) in differences.iter().enumerate() {
                    let [a, b] = [first, second].map(|tile| tile * planes + plane);
                    let gap = shifts[a] - shifts[b] + difference;
                    pulls[a] -= pixels * gap;
                    pulls[b] += pixels * gap;
                }
            }
            for (at, (shift, pull)) in shifts.iter_mut().zip(&pulls).enumerate() {
                // Half the step that would close the gaps if the neighbours stood still, since both move.
                *shift += 0.5 * pull / weights[at / planes].max(1.0);
            }
        }
        for plane in 0..planes {
            let mean = shifts.iter().skip(plane).step_by(planes).sum::<f64>() / count.max(1) as f64;
            shifts.iter_mut().skip(plane).step_by(planes).for_each(|shift| *shift -= mean);
        }
        shifts
    }

    /// The overlap of two tiles without the hidden rows and columns, if they overlap.
    fn overlap(&self, first: usize, second: usize) -> Option<Overlap> {
        let Mosaic { grid, scale, planes, .. } = *self;
        let starts = [first, second].map(|tile| self.tiles[tile].start);
        let shared = [0, 1].map(|axis| {
            let [a, b] = starts.map(|start| start[axis]);
            let hidden = if a == b { 0 } else { HIDDEN };
            (a.max(b) + hidden) * scale..((a.min(b) + grid.tile[axis]).saturating_sub(hidden)) * scale
        });
        let [rows, columns] = &shared;
        let pixels = rows.len() * columns.len();
        if pixels == 0 {
            return None;
        }
        let [height, width] = grid.tile.map(|extent| extent * scale);
        let mean = |tile: usize, plane: usize| {
            let Tile { start, values } = &self.tiles[tile];
            let values = &values[plane * height * width..];
            let [top, left] = start.map(|start| start * scale);
            let row = |row: usize| &values[(row - top) * width..][columns.start - left..columns.end - left];
            rows.clone().flat_map(row).map(|&value| f64::from(value)).sum::<f64>() / pixels as f64
        };
        let differences = (0..planes).map(|plane| mean(first, plane) - mean(second, plane)).collect();
        Some(Overlap { tiles: [first, second], pixels: pixels as f64, differences })
    }
}

/// Iterations of the shifts towards the neighbours'.
const ROUNDS: usize = 500;

/// The overlap of two tiles.
struct Overlap {
    tiles: [usize; 2],
    pixels: f64,
    /// The mean difference of each plane.
    differences: Vec<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Planes and the largest tile's pixels.
    const CASES: [([usize; 2], usize); 8] = [
        ([64, 64], 4096),
        ([128, 128], 5300),
        ([129, 67], 3000),
        ([32, 400], 2000),
        ([400, 5], 1000),
        ([1, 1], 1),
        ([1000, 900], 4096),
        ([97, 40], 1),
    ];

    #[test]
    fn tiles_cover_the_plane_and_are_as_small_as_asked() {
        for (plane, most) in CASES {
            let grid = Grid::of_area(plane, most);
            assert!((0..2).all(|axis| grid.tile[axis] <= plane[axis]), "{grid:?}");
            let is_smallest = (0..2).all(|axis| grid.tile[axis] <= 3 * OVERLAP);
            assert!(grid.tile[0] * grid.tile[1] <= most || is_smallest, "{grid:?} for {most}");
            let tiles: Vec<[usize; 2]> = grid.tiles().collect();
            assert_eq!(tiles.len() == 1, grid.is_whole());
            assert_eq!(tiles[0], [0, 0]);
            let last = tiles[tiles.len() - 1];
            for axis in 0..2 {
                assert_eq!(last[axis] + grid.tile[axis], plane[axis], "{grid:?}");
                for index in 1..grid.counts[axis] {
                    let step = grid.start(axis, index) - grid.start(axis, index - 1);
                    assert!(step + OVERLAP <= grid.tile[axis] && step > 0, "{grid:?}");
                }
            }
        }
    }

    #[test]
    fn a_plane_in_tiles_is_the_plane() {
        for (plane, most) in CASES {
            let grid = Grid::of_area(plane, most);
            let scale = if plane[0] > 500 { 1 } else { 3 };
            let [height, width] = plane.map(|extent| extent * scale);
            let whole: Vec<f32> = (0..2 * height * width).map(|at| 1.0 + (at % 97) as f32).collect();
            let mut mosaic = Mosaic::new(&grid, 2, scale);
            for start in grid.tiles() {
                let [rows, columns] = grid.ranges(start, scale);
                mosaic.push(start, crop(&whole, [height, width], rows, columns));
            }
            let values = mosaic.into_values();
            let error = values.iter().zip(&whole).map(|(a, b)| (a - b).abs() / b).fold(0.0, f32::max);
            assert!(error < 1e-5, "{grid:?}: {error}");
        }
    }

    #[test]
    fn tiles_of_another_brightness_are_shifted() {
        let grid = Grid::of_area([70, 100], 60 * 50);
        let tiles: Vec<[usize; 2]> = grid.tiles().collect();
        let mut mosaic = Mosaic::new(&grid, 1, 1);
        for (index, &start) in tiles.iter().enumerate() {
            let brightness = index as f32 - (tiles.len() - 1) as f32 / 2.0;
            mosaic.push(start, vec![5.0 + brightness; grid.tile[0] * grid.tile[1]]);
        }
        let values = mosaic.into_values();
        let error = values.iter().map(|value| (value - 5.0).abs()).fold(0.0, f32::max);
        assert!(tiles.len() > 3 && error < 1e-3, "{error}");
    }

    #[test]
    fn tiles_are_as_large_as_memory_allows_or_as_asked() {
        // Latents of 1024×1024 pixels, and the bytes that Stable Diffusion's decoder takes for them in `f32`.
        let (plane, bytes) = (128 * 128, 4 * (671 << 20));
        let auto = Tiling::Auto.most(plane, bytes);
        assert!(bytes / plane * auto <= LARGEST_ARENA && auto > plane / 2, "{auto}");
        assert_eq!(Tiling::Always.most(plane, bytes), SMALL_TILE);
        assert_eq!(Tiling::Never.most(plane, bytes), plane);
        // A small plane is not cut, and one that takes much is cut small though small tiles are not asked
        // for.
        assert!(Tiling::Auto.most(plane, 1 << 20) >= plane);
        assert_eq!(Tiling::Always.most(plane, LARGEST_ARENA * plane), 1);
    }

    #[test]
    fn pixels_at_a_cut_edge_do_not_count() {
        let grid = Grid::of_area([64, 100], 64 * 60);
        assert_eq!((grid.tile, grid.counts), ([64, 58], [1, 2]));
        let weights = grid.weights(1, 42, 2);
        assert!(weights[..2 * HIDDEN].iter().all(|&weight| weight == 0.0), "{weights:?}");
        assert!(weights[2 * OVERLAP..].iter().all(|&weight| weight == 1.0), "{weights:?}");
        let rises = weights.windows(2).all(|pair| pair[0] <= pair[1]);
        assert!(rises, "{weights:?}");
        assert!(grid.weights(0, 0, 2).iter().all(|&weight| weight == 1.0));
    }
}
