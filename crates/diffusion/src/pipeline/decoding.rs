//! Latents to pixels, whole or in tiles.

use std::collections::HashMap;

use mixbit_engine::{Backend, Tensor, Timing, TracedStep};
use mixbit_mil::{Function, ValueId, cut_after, waists};

use super::stage::{self, Stage};
use super::tiles::{Grid, Mosaic, crop};
use super::{PipelineError, Precision, Request, graph_options, tensor};
use crate::arch::GraphOptions;
use crate::model::DiffusionModel;

/// Whether latents are decoded in tiles, which takes less memory than the whole image.
///
/// The first layers, with the attention over the whole image, are run on all of it. Tiles are of what comes after
/// them: they share a margin and are blended there, and differ from the whole image in the means and deviations of the
/// norms, which each takes over itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tiling {
    /// If the whole image took more than 1.5 GiB for intermediate results: for Stable Diffusion's autoencoder, above
    /// 768×768.
    #[default]
    Auto,
    /// If the image is of more pixels than 512×512, in tiles of at most so many.
    Always,
    /// Never.
    Never,
}

/// The bytes for intermediate results up to which an image is decoded whole.
const LARGEST_ARENA: usize = 3 << 29;

/// The most pixels of the latents in a tile if tiles are asked for.
const SMALL_TILE: usize = 64 * 64;

/// The part of a tile's arena that the values that tiles are cut from may take.
const KEPT: usize = 4;

impl Tiling {
    /// The most pixels of the latents in a tile, for a plane that takes `bytes` as a whole.
    fn most(self, plane: usize, bytes: usize) -> usize {
        let fits = (plane as u128 * LARGEST_ARENA as u128 / bytes.max(1) as u128) as usize;
        match self {
            Tiling::Auto => fits,
            Tiling::Always => fits.min(SMALL_TILE),
            Tiling::Never => plane,
        }
    }
}

/// A decoder at one size.
pub(super) enum Decoding<'m> {
    Whole(Box<Stage<'m>>),
    Tiled(Box<Tiled<'m>>),
}

/// A decoder in tiles.
pub(super) struct Tiled<'m> {
    /// From the latents to the value that tiles are cut from.
    front: Option<Stage<'m>>,
    /// The rest, for one tile.
    tile: Stage<'m>,
    /// The name of that value.
    cut: String,
    grid: Grid,
}

impl<'m> Decoding<'m> {
    /// Plans a model's decoder.
    ///
    /// # Errors
    /// If it can't be run, or needs more memory than the machine has left.
    pub(super) fn new(
        model: &'m DiffusionModel,
        backend: &'m dyn Backend,
        request: &Request,
    ) -> Result<Self, PipelineError> {
        let decoder = &model.decoder;
        let precision = precision(model, request, backend);
        let size = graph_options(model, request, precision);
        let whole = Stage::new(&decoder.network, backend, &size, request, precision)?;
        let planned = whole.arena_bytes();
        let (plane, bytes) = ([size.height, size.width], needed(&planned));
        let most = request.tiling.most(plane[0] * plane[1], bytes);
        let grid = Grid::of_area(plane, most);
        if !grid.is_whole() {
            let tile = GraphOptions { height: grid.tile[0], width: grid.tile[1], ..size };
            // A package that was made for one size has no tiles.
            if let Ok(tile) = Stage::new(&decoder.network, backend, &tile, request, precision) {
                return Ok(Decoding::Tiled(Box::new(Tiled::new(&whole, &tile, grid)?)));
            }
        }
        planned?;
        Ok(Decoding::Whole(Box::new(whole)))
    }

    /// The planes (channels, height, width) of latents (channels, height, width) as the decoder takes them.
    pub(super) fn run(&mut self, shape: [usize; 3], latents: Vec<f32>) -> Result<Vec<f32>, PipelineError> {
        let [channels, height, width] = shape;
        let latents = tensor(&[1, channels, height, width], latents)?;
        match self {
            Decoding::Whole(stage) => {
                let results = stage.run(&[(LATENTS, &latents)])?;
                Ok(stage.output(&results, IMAGE)?.to_vec())
            }
            Decoding::Tiled(tiled) => tiled.run(latents),
        }
    }

    /// See [`Stage::load`].
    pub(super) fn load(&mut self) -> Result<(), PipelineError> {
        self.stages_mut().try_for_each(|stage| stage.load().map(|_| ()))
    }

    /// See [`Stage::rest`].
    pub(super) fn rest(&mut self) {
        self.stages_mut().for_each(Stage::rest);
    }

    /// See [`Stage::release`].
    pub(super) fn release(&mut self) {
        self.stages_mut().for_each(Stage::release);
    }

    /// Where the time of all runs went.
    pub(super) fn profile(&self) -> Vec<Timing> {
        match self {
            Decoding::Whole(stage) => stage.profile(),
            Decoding::Tiled(tiled) => {
                let front = tiled.front.iter().flat_map(Stage::profile);
                stage::sum(front.chain(tiled.tile.profile()), |front, tile| front + tile)
            }
        }
    }

    /// The steps of each stage's last run: of all tiles the last.
    pub(super) fn trace(&self) -> Vec<Vec<TracedStep>> {
        match self {
            Decoding::Whole(stage) => vec![stage.trace()],
            Decoding::Tiled(tiled) => tiled.front.iter().chain([&tiled.tile]).map(Stage::trace).collect(),
        }
    }

    fn stages_mut(&mut self) -> impl Iterator<Item = &mut Stage<'m>> {
        let (front, last) = match self {
            Decoding::Whole(stage) => (None, &mut **stage),
            Decoding::Tiled(tiled) => (tiled.front.as_mut(), &mut tiled.tile),
        };
        front.into_iter().chain([last])
    }
}

/// What the decoder is computed in.
pub(super) fn precision(model: &DiffusionModel, request: &Request, backend: &dyn Backend) -> Precision {
    match request.precision {
        Precision::F16 if model.decoder.force_upcast => Precision::F32,
        precision => precision.around(backend),
    }
}

/// The input of a decoder.
const LATENTS: &str = "z";

/// The output of a decoder.
const IMAGE: &str = "image";

/// The bytes that a plan takes, or would take if there were as many.
fn needed(planned: &Result<usize, PipelineError>) -> usize {
    match planned {
        Ok(bytes) => *bytes,
        Err(PipelineError::Engine { source: mixbit_engine::Error::Memory { needed }, .. }) => {
            (needed * 1e9) as usize
        }
        Err(_) => 0,
    }
}

impl<'m> Tiled<'m> {
    /// Cuts the decoder of the whole plane and that of a tile at the same place, as late as memory allows.
    fn new(whole: &Stage<'m>, tile: &Stage<'m>, grid: Grid) -> Result<Self, PipelineError> {
        let limit = tile.arena_bytes()?;
        let waists = common_waists(whole.graph(), tile.graph(), &grid, limit / KEPT);
        // What more of the graph is in front never takes less memory.
        let mut fits = None;
        let (mut low, mut high) = (0, waists.len());
        while low < high {
            let middle = (low + high) / 2;
            let cut = |stage: &Stage<'m>| cut_after(stage.graph(), &waists[middle]);
            let Some(([front, _], [_, back])) = cut(whole).zip(cut(tile)) else { break };
            let front = whole.of_part(front);
            match front.arena_bytes() {
                Ok(bytes) if bytes <= limit => {
                    fits = Some((front, back, waists[middle].clone()));
                    low = middle + 1;
                }
                _ => high = middle,
            }
        }
        Ok(match fits {
            Some((front, back, cut)) => Tiled { front: Some(front), tile: tile.of_part(back), cut, grid },
            None => {
                let tile_graph = tile.graph().clone();
                Tiled { front: None, tile: tile.of_part(tile_graph), cut: LATENTS.to_string(), grid }
            }
        })
    }

    fn run(&mut self, latents: Tensor) -> Result<Vec<f32>, PipelineError> {
        let kept = match &mut self.front {
            Some(front) => {
                let mut results = front.run(&[(LATENTS, &latents)])?;
                front.release();
                results.swap_remove(0)
            }
            None => latents,
        };
        let [_, channels, height, width] = image_shape(kept.shape());
        let scale = height / self.grid.plane[0];
        let values = kept.as_f32().unwrap_or_default();
        let [_, planes, tile_height, _] = image_shape(&self.tile.output_type(IMAGE)?.shape);
        let mut mosaic = Mosaic::new(&self.grid, planes, tile_height / self.grid.tile[0]);
        for start in self.grid.tiles() {
            let [rows, columns] = self.grid.ranges(start, scale);
            let shape = [1, channels, rows.len(), columns.len()];
            let part = tensor(&shape, crop(values, [height, width], rows, columns))?;
            let results = self.tile.run(&[(&self.cut, &part)])?;
            mosaic.push(start, self.tile.output(&results, IMAGE)?.to_vec());
        }
        Ok(mosaic.into_values())
    }
}

/// The names of the values of at most `most` bytes, in order, that alone cross a cut of both graphs and are the plane
/// and the tile at the same scale.
fn common_waists(whole: &Function, tile: &Function, grid: &Grid, most: usize) -> Vec<String> {
    let shape = |graph: &Function, id: ValueId| image_shape(&graph.value(id).ty.shape);
    let of_tile: HashMap<&str, [usize; 4]> =
        waists(tile).into_iter().map(|id| (tile.value(id).name.as_str(), shape(tile, id))).collect();
    let fits = |id: &ValueId| {
        let [batch, channels, height, width] = shape(whole, *id);
        let scale = height / grid.plane[0];
        let at = |[height, width]: [usize; 2]| [batch, channels, height * scale, width * scale];
        scale > 0
            && size_of::<f32>() * batch * channels * height * width <= most
            && at(grid.plane) == [batch, channels, height, width]
            && of_tile.get(whole.value(*id).name.as_str()) == Some(&at(grid.tile))
    };
    let name = |id: ValueId| whole.value(id).name.clone();
    waists(whole).into_iter().filter(fits).map(name).collect()
}

/// The shape of an image: batch, channels, height, width; zeros for what is none.
fn image_shape(shape: &[usize]) -> [usize; 4] {
    shape.try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_as_large_as_memory_allows_or_as_asked() {
        // Latents of 1024×1024 pixels, and what Stable Diffusion's decoder takes for them in `f32`.
        let (plane, bytes) = (128 * 128, 4 * (671 << 20));
        let auto = Tiling::Auto.most(plane, bytes);
        assert!(bytes / plane * auto <= LARGEST_ARENA && auto > plane / 2, "{auto}");
        assert_eq!(Tiling::Always.most(plane, bytes), SMALL_TILE);
        assert_eq!(Tiling::Never.most(plane, bytes), plane);
        // What would take little is not cut, and what would take much is cut small though small tiles are not asked for.
        assert!(Tiling::Auto.most(plane, 1 << 20) >= plane);
        assert_eq!(Tiling::Always.most(plane, LARGEST_ARENA * plane), 1);
    }
}
