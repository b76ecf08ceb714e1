//! Latents to pixels, whole or in tiles.

use std::collections::HashMap;
use std::sync::Arc;

use mixbit_engine::{Backend, Cancel, Tensor, Timing, TracedStep};
use mixbit_mil::{Function, ValueId, cut_after, single_value_cuts};

use super::cache::NetworkCache;
use super::error::GenerateError;
use super::event::OnEvent;
use super::network::{NetworkKey, PlannedNetwork, Section, tensor};
use super::placement::{Component, Placement};
use super::precision::Precision;
use super::recent::Recent;
use super::request::Request;
use super::tiles::{Grid, Mosaic, Tiling, crop};
use crate::arch::{GraphOptions, io};
use crate::model::DiffusionModel;

/// The share of a tile's arena, one of this many, that the value which tiles are cut from may take.
const CUT_VALUE_SHARE: usize = 4;

/// A decoder planned for one size.
pub(super) struct DecoderPlan {
    key: NetworkKey,
    tiling: Tiling,
    stages: Stages,
}

enum Stages {
    Whole(Arc<PlannedNetwork>),
    Tiled(Tiled),
}

/// A decoder in tiles.
struct Tiled {
    /// The graph from the latents to the value that tiles are cut from.
    front: Option<Arc<PlannedNetwork>>,
    /// The rest of the graph, for one tile.
    tile: Arc<PlannedNetwork>,
    /// The name of the value that tiles are cut from.
    cut: String,
    grid: Grid,
}

/// The decoders that a session has planned.
pub(super) struct DecoderPlans(Recent<Arc<DecoderPlan>>);

/// The most plans that are kept.
const MOST_PLANS: usize = 8;

impl DecoderPlans {
    pub(super) fn new() -> Self {
        DecoderPlans(Recent::new(MOST_PLANS))
    }

    /// Plans the decoder of a request, for `images` images. Also returns the bytes that a run takes for
    /// intermediate results.
    ///
    /// # Errors
    /// If it can't be run, or needs more memory than there is.
    pub(super) fn plan(
        &mut self,
        model: &DiffusionModel,
        request: &Request,
        placement: &Placement,
        networks: &mut NetworkCache,
        images: usize,
    ) -> Result<(Arc<DecoderPlan>, usize), GenerateError> {
        let key = decoder_key(model, request, placement);
        let known = |plan: &Arc<DecoderPlan>| plan.key == key && plan.tiling == request.tiling;
        let plan = match self.0.find(known) {
            Some(plan) => plan.clone(),
            None => {
                let plan = Arc::new(DecoderPlan::new(key, request.tiling, networks, images)?);
                self.0.push(plan.clone());
                plan
            }
        };
        let bytes = plan.arena_bytes(networks)?;
        Ok((plan, bytes))
    }

    /// Forgets the plans of networks that `is_kept` does not keep.
    pub(super) fn retain(&mut self, is_kept: impl Fn(&crate::model::Network) -> bool) {
        self.0.retain(|plan| is_kept(&plan.key.network));
    }
}

impl DecoderPlan {
    fn new(
        key: NetworkKey,
        tiling: Tiling,
        networks: &mut NetworkCache,
        images: usize,
    ) -> Result<Self, GenerateError> {
        let whole = networks.plan(key.clone(), images)?;
        let (plane, bytes) = ([key.graph.height, key.graph.width], needed(&networks.arena_bytes(&whole)));
        let grid = Grid::of_area(plane, tiling.most(plane[0] * plane[1], bytes));
        if !grid.is_whole() {
            let graph = GraphOptions { height: grid.tile[0], width: grid.tile[1], ..key.graph.clone() };
            // A package that was made for one size has no tiles.
            if let Ok(tile) = networks.plan(NetworkKey { graph, ..key.clone() }, images) {
                let stages = Stages::Tiled(Tiled::new(&whole, &tile, grid, images)?);
                return Ok(DecoderPlan { key, tiling, stages });
            }
        }
        Ok(DecoderPlan { key, tiling, stages: Stages::Whole(whole) })
    }

    /// Bytes for intermediate results: the most that one of its networks takes.
    ///
    /// # Errors
    /// If a run needs more memory than there is.
    fn arena_bytes(&self, networks: &mut NetworkCache) -> Result<usize, GenerateError> {
        self.networks().try_fold(0, |most, planned| {
            let bytes = networks.arena_bytes(planned).map_err(|error| planned.error(error))?;
            Ok(most.max(bytes))
        })
    }

    /// The precision that it is computed in.
    pub(super) fn precision(&self) -> Precision {
        self.key.precision
    }

    /// The graph that is run, unless it is run in tiles.
    pub(super) fn graph(&self) -> Option<&Function> {
        match &self.stages {
            Stages::Whole(planned) => Some(planned.graph()),
            Stages::Tiled(_) => None,
        }
    }

    /// The planes (channels, height, width) of latents (channels, height, width) in the decoder's scale.
    ///
    /// # Errors
    /// If it can't be run, or was cancelled, or its result is not finite.
    pub(super) fn run(
        &self,
        networks: &mut NetworkCache,
        shape: [usize; 3],
        latents: Vec<f32>,
        cancel: &Cancel,
        on: &mut OnEvent,
    ) -> Result<Vec<f32>, GenerateError> {
        let [channels, height, width] = shape;
        let latents = tensor(&[1, channels, height, width], latents)?;
        let (values, last) = match &self.stages {
            Stages::Whole(planned) => {
                let results = networks.run(planned, &[(io::Z, &latents)], cancel, on)?;
                (planned.output(&results, io::IMAGE)?.to_vec(), planned)
            }
            Stages::Tiled(tiled) => (tiled.run(networks, latents, cancel, on)?, &tiled.tile),
        };
        last.check_finite(&values)?;
        Ok(values)
    }

    /// Compiles its networks, unless they are.
    ///
    /// # Errors
    /// If the backend can't run them.
    pub(super) fn load(&self, networks: &mut NetworkCache, on: &mut OnEvent) -> Result<(), GenerateError> {
        self.networks().try_for_each(|planned| networks.load(planned, on))
    }

    /// The steps of each network's last run: of all tiles the last.
    pub(super) fn trace(&self, networks: &NetworkCache) -> Vec<Vec<TracedStep>> {
        self.networks().map(|planned| networks.trace(planned)).collect()
    }

    /// The time of all runs by kind of op, the longest first.
    pub(super) fn profile(&self, networks: &NetworkCache) -> Vec<Timing> {
        networks.profile(|key| self.networks().any(|planned| planned.key == *key))
    }

    fn networks(&self) -> impl Iterator<Item = &Arc<PlannedNetwork>> {
        let (front, last) = match &self.stages {
            Stages::Whole(planned) => (None, planned),
            Stages::Tiled(tiled) => (tiled.front.as_ref(), &tiled.tile),
        };
        front.into_iter().chain([last])
    }
}

/// The key of the decoder of a whole image.
fn decoder_key(model: &DiffusionModel, request: &Request, placement: &Placement) -> NetworkKey {
    let backend = placement.of(Component::Decoder);
    let precision = autoencoder_precision(model, request, &**backend);
    let graph = request.graph_options(model, precision);
    let (network, backend) = (model.autoencoder.decoder.clone(), backend.clone());
    NetworkKey { network, section: Section::Whole, graph, precision, backend }
}

/// The precision of the autoencoder's networks.
pub(super) fn autoencoder_precision(
    model: &DiffusionModel,
    request: &Request,
    backend: &dyn Backend,
) -> Precision {
    match request.precision {
        Precision::F16 if model.autoencoder.force_upcast => Precision::F32,
        precision => precision.around_unet(backend),
    }
}

/// The bytes that a plan takes, or would take if there were enough.
fn needed(planned: &Result<usize, mixbit_engine::Error>) -> usize {
    match planned {
        Ok(bytes) => *bytes,
        Err(mixbit_engine::Error::Memory { needed }) => (needed * 1e9) as usize,
        Err(_) => 0,
    }
}

impl Tiled {
    /// Cuts the decoder of the whole plane and that of a tile at the same place, as late as memory allows.
    fn new(
        whole: &PlannedNetwork,
        tile: &PlannedNetwork,
        grid: Grid,
        images: usize,
    ) -> Result<Self, GenerateError> {
        let limit = tile.arena_bytes().map_err(|error| tile.error(error))?;
        let tiles = images * grid.tiles().count();
        let cuts = common_cuts(whole.graph(), tile.graph(), &grid, limit / CUT_VALUE_SHARE);
        // A longer front never takes less memory, so a binary search finds the longest that fits.
        let mut fits = None;
        let (mut low, mut high) = (0, cuts.len());
        while low < high {
            let middle = (low + high) / 2;
            let cut = |planned: &PlannedNetwork| cut_after(planned.graph(), &cuts[middle]);
            let Some(([front, _], [_, back])) = cut(whole).zip(cut(tile)) else { break };
            let front = whole.section(Section::Before(cuts[middle].clone()), front, images);
            match front.arena_bytes() {
                Ok(bytes) if bytes <= limit => {
                    fits = Some((front, back, cuts[middle].clone()));
                    low = middle + 1;
                }
                _ => high = middle,
            }
        }
        let (front, back, cut) = match fits {
            Some((front, back, cut)) => (Some(Arc::new(front)), back, cut),
            None => (None, tile.graph().clone(), io::Z.to_string()),
        };
        let section = if front.is_some() { Section::After(cut.clone()) } else { Section::Whole };
        Ok(Tiled { front, tile: Arc::new(tile.section(section, back, tiles)), cut, grid })
    }

    fn run(
        &self,
        networks: &mut NetworkCache,
        latents: Tensor,
        cancel: &Cancel,
        on: &mut OnEvent,
    ) -> Result<Vec<f32>, GenerateError> {
        let cut_value = match &self.front {
            Some(front) => networks.run(front, &[(io::Z, &latents)], cancel, on)?.swap_remove(0),
            None => latents,
        };
        let [_, channels, height, width] = image_shape(cut_value.shape());
        let scale = height / self.grid.plane[0];
        let values = cut_value.as_f32().unwrap_or_default();
        let [_, planes, tile_height, _] = image_shape(&self.tile.output_type(io::IMAGE)?.shape);
        let mut mosaic = Mosaic::new(&self.grid, planes, tile_height / self.grid.tile[0]);
        for start in self.grid.tiles() {
            let [rows, columns] = self.grid.ranges(start, scale);
            let shape = [1, channels, rows.len(), columns.len()];
            let tile = tensor(&shape, crop(values, [height, width], rows, columns))?;
            let results = networks.run(&self.tile, &[(&self.cut, &tile)], cancel, on)?;
            mosaic.push(start, self.tile.output(&results, io::IMAGE)?.to_vec());
        }
        Ok(mosaic.into_values())
    }
}

/// The single-value cuts that both graphs share: the names of the values, in order, that alone cross a cut,
/// have at most `most` bytes, and are the plane and the tile at the same scale.
fn common_cuts(whole: &Function, tile: &Function, grid: &Grid, most: usize) -> Vec<String> {
    let shape = |graph: &Function, id: ValueId| image_shape(&graph.value(id).ty.shape);
    let of_tile: HashMap<&str, [usize; 4]> = single_value_cuts(tile)
        .into_iter()
        .map(|id| (tile.value(id).name.as_str(), shape(tile, id)))
        .collect();
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
    single_value_cuts(whole).into_iter().filter(fits).map(name).collect()
}

/// The shape of an image: batch, channels, height, width; zeros for another number of axes.
fn image_shape(shape: &[usize]) -> [usize; 4] {
    shape.try_into().unwrap_or_default()
}
