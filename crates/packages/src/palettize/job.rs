//! Palettizing the packages of a model: plans for all of them, then each written and verified.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use mixbit_compress::{Layer, Plan, Scheme, uniform};
use mixbit_diffusion::arch::AttentionImplementation;
use mixbit_formats::coreml;
use mixbit_mil::{Function, Opset, Progress, constexpr};
use thiserror::Error;

use super::check::{CheckError, Report};
use super::target::{Target, TargetError};
use super::{MIN_SIZE, PalettizeError, Palettized, by_recipe, by_structure, palettize};
use crate::inspect::{InspectError, open};
use crate::package::{ConversionOptions, DeploymentTarget, PackageKind, keys};
use crate::recipe::{MatchError, Recipe, RecipeFile};

/// The source of the plan of each package.
pub enum PlanSource {
    /// One scheme for every layer of more than `min_size` weights. Of several packages, those of the kinds
    /// that are not palettized with a model stay unchanged.
    Uniform {
        /// The scheme.
        scheme: Scheme,
        /// The most weights of a layer that stays unchanged.
        min_size: usize,
    },
    /// A recipe for the UNets; other packages stay unchanged.
    Recipe {
        /// The file.
        file: Box<RecipeFile>,
        /// The recipe's name in the file.
        name: String,
        /// A checkpoint with the configuration of packages that have lost the names of their layers.
        like: Option<PathBuf>,
    },
}

/// The plan of a palettized package, as its metadata keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provenance {
    /// The scheme, or the recipe's name and checksum.
    pub recipe: String,
    /// Layers that are not computed in 8-bit integers.
    pub full_precision: Vec<String>,
}

/// Packages that are not palettized as asked, though the others are.
#[derive(Debug)]
pub enum Warning {
    /// The recipe was made on a network with other layers.
    OtherLayers {
        /// The network.
        part: &'static str,
    },
    /// The recipe does not fit: the network stays unchanged.
    Unchanged {
        /// The network.
        part: &'static str,
        /// The mismatch.
        cause: MatchError,
    },
}

/// A package that can't be palettized.
#[derive(Debug, Error)]
pub enum JobError {
    /// A package that can't be read or made.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A name that no recipe of the file has.
    #[error("the file has no recipe `{name}`")]
    NoRecipe {
        /// The name.
        name: String,
    },
    /// A recipe for a model without a UNet.
    #[error("a recipe is for a UNet, and there is none")]
    NoUnet,
    /// A recipe that fits no network.
    #[error("{part}: {cause}")]
    Mismatch {
        /// The first network.
        part: &'static str,
        /// The mismatch.
        cause: MatchError,
    },
    /// Packages of one kind that are not the two halves of a network.
    #[error("the packages of the {part} are not two halves of one network")]
    Chunks {
        /// The network.
        part: &'static str,
    },
    /// A checkpoint for names that can't be opened.
    #[error(transparent)]
    Like(#[from] InspectError),
    /// A checkpoint for names without the network.
    #[error("{} has no UNet that names could be taken from", path.display())]
    NoNames {
        /// The checkpoint.
        path: PathBuf,
    },
    /// A package that is there and was made by another plan.
    #[error("{} is there already, {found}: choose another directory, or --force", path.display())]
    Exists {
        /// The package.
        path: PathBuf,
        /// Its own plan, in words.
        found: String,
    },
    /// A package that is there and can't be read.
    #[error("{} is there already; --force writes it again: {cause}", path.display())]
    Unreadable {
        /// The package.
        path: PathBuf,
        /// The defect.
        cause: Box<mixbit_formats::Error>,
    },
    /// A package whose layers can't be palettized.
    #[error("{package}: {cause}")]
    Palettize {
        /// The package.
        package: String,
        /// The reason.
        cause: Box<PalettizeError>,
    },
    /// A package that was not written as it should be.
    #[error("{package}: {cause}")]
    Check {
        /// The package.
        package: String,
        /// The difference.
        cause: Box<CheckError>,
    },
    /// A file that can't be written.
    #[error(transparent)]
    Format(#[from] mixbit_formats::Error),
}

/// A phase of palettizing one package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Palettes are fitted: counts layers.
    Palettes,
    /// The package is written: counts bytes.
    Writing,
    /// A package that stays unchanged is written: counts bytes.
    Copying,
    /// Every layer is read again: counts layers.
    Checking,
}

/// Makes the receiver of a phase's progress.
pub type Phases<'p> = &'p dyn Fn(Phase) -> Box<dyn Progress + 'p>;

/// The result of one package.
#[derive(Debug)]
pub enum Outcome {
    /// The package was there, made by the same plan.
    Kept,
    /// The package was written unchanged.
    Copied,
    /// The package was palettized, and every layer verified.
    Palettized(Report),
}

/// Packages to be palettized, with a plan for each.
pub struct Job {
    targets: Vec<Target>,
    /// For each target; `None` for one that stays unchanged.
    plans: Vec<Option<Plan>>,
    provenance: Provenance,
}

impl PlanSource {
    /// One scheme for layers of more than [`MIN_SIZE`] weights.
    pub fn uniform(scheme: Scheme) -> Self {
        PlanSource::Uniform { scheme, min_size: MIN_SIZE }
    }

    /// The oldest deployment target with all schemes, and not older than `asked`.
    pub fn target(&self, asked: &'static DeploymentTarget) -> &'static DeploymentTarget {
        let needed = self.since().filter(|&needed| needed > asked.opset);
        needed.and_then(DeploymentTarget::of_opset).unwrap_or(asked)
    }

    /// The schemes of the layers, each once.
    pub fn schemes(&self) -> Vec<Scheme> {
        match self {
            PlanSource::Uniform { scheme, .. } => vec![*scheme],
            PlanSource::Recipe { file, name, .. } => {
                let recipe = file.recipes.get(name).map(|recipe| recipe.layers.values());
                let mut schemes: Vec<Scheme> = Vec::new();
                for scheme in recipe.into_iter().flatten().flatten() {
                    if !schemes.contains(scheme) {
                        schemes.push(*scheme);
                    }
                }
                schemes
            }
        }
    }

    /// The opset that has all schemes.
    fn since(&self) -> Option<Opset> {
        match self {
            PlanSource::Uniform { scheme, .. } => Some(scheme.since()),
            PlanSource::Recipe { file, name, .. } => {
                let schemes = file.recipes.get(name)?.layers.values().flatten();
                schemes.map(|scheme| scheme.since()).max()
            }
        }
    }

    /// The metadata of packages that are made by it.
    pub fn provenance(&self) -> Provenance {
        match self {
            PlanSource::Uniform { scheme, .. } => {
                Provenance { recipe: scheme.to_string(), full_precision: Vec::new() }
            }
            PlanSource::Recipe { file, name, .. } => {
                let checksum = file.recipes.get(name).map(Recipe::checksum).unwrap_or_default();
                let int8 = file.details.as_ref().and_then(|details| details.int8.as_ref());
                Provenance {
                    recipe: format!("{name} {checksum}"),
                    full_precision: int8.map(|int8| int8.full_precision.clone()).unwrap_or_default(),
                }
            }
        }
    }
}

impl Provenance {
    /// Palettizes a model and notes the plan in its metadata. `again` allows layers that are compressed
    /// already.
    ///
    /// # Errors
    /// [`PalettizeError`].
    pub fn palettize(
        &self,
        model: &coreml::Model,
        choices: &Plan,
        again: bool,
        progress: &dyn Progress,
    ) -> Result<Palettized, PalettizeError> {
        let mut palettized = palettize(model, choices, again, progress)?;
        let metadata = &mut palettized.model.metadata.user_defined;
        metadata.insert(keys::RECIPE.to_string(), self.recipe.clone());
        if !self.full_precision.is_empty() {
            metadata.insert(keys::FULL_PRECISION.to_string(), self.full_precision.join(" "));
        }
        Ok(palettized)
    }

    /// Refuses a package that is there and was made by another plan: a directory must not mix two.
    fn require_in(&self, path: &Path) -> Result<(), JobError> {
        let found = coreml::read(path)
            .map_err(|cause| JobError::Unreadable { path: path.to_path_buf(), cause: Box::new(cause) })?;
        let found = found.metadata.user_defined.get(keys::RECIPE);
        if found == Some(&self.recipe) {
            return Ok(());
        }
        let found = found.map_or("not palettized".to_string(), |found| format!("palettized by {found}"));
        Err(JobError::Exists { path: path.to_path_buf(), found })
    }
}

impl Job {
    /// Plans the layers of packages. No weight is read.
    ///
    /// # Errors
    /// [`JobError`], if a recipe fits none of them.
    pub fn new(targets: Vec<Target>, source: &PlanSource) -> Result<(Self, Vec<Warning>), JobError> {
        let provenance = source.provenance();
        let (plans, warnings) = match source {
            PlanSource::Uniform { scheme, min_size } => {
                (uniform_plans(&targets, *scheme, *min_size), Vec::new())
            }
            PlanSource::Recipe { file, name, like } => {
                let recipe =
                    file.recipes.get(name).ok_or_else(|| JobError::NoRecipe { name: name.clone() })?;
                recipe_plans(&targets, file, recipe, like.as_deref())?
            }
        };
        Ok((Job { targets, plans, provenance }, warnings))
    }

    /// The packages, in the order in which they are written.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// The numbers of layers that are stored in fewer bits, and of their weights.
    pub fn work(&self) -> (usize, u64) {
        let planned =
            self.targets.iter().zip(&self.plans).filter_map(|(target, plan)| Some((target, plan.as_ref()?)));
        let layers = planned.flat_map(|(target, plan)| {
            target.layers.iter().filter(|layer| plan.contains_key(&layer.name)).map(Layer::count)
        });
        layers.fold((0, 0), |(layers, weights), count| (layers + 1, weights + count as u64))
    }

    /// Writes one package and verifies it. A package that is there stays, unless `force` writes it again and
    /// compresses again what is compressed already.
    ///
    /// # Errors
    /// [`JobError`]; no partial package is left.
    pub fn write(&self, index: usize, force: bool, phases: Phases<'_>) -> Result<Outcome, JobError> {
        let (target, plan) = (&self.targets[index], &self.plans[index]);
        if target.path.exists() && !force {
            if plan.is_some() {
                self.provenance.require_in(&target.path)?;
            }
            return Ok(Outcome::Kept);
        }
        let Some(plan) = plan else {
            write_model(&target.path, &target.model, &*phases(Phase::Copying))?;
            return Ok(Outcome::Copied);
        };
        let package = || target.source.clone();
        let mut palettized = self
            .provenance
            .palettize(&target.model, plan, force, &*phases(Phase::Palettes))
            .map_err(|cause| JobError::Palettize { package: package(), cause: Box::new(cause) })?;
        palettized.model.class = target.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        write_model(&target.path, &palettized.model, &*phases(Phase::Writing))?;
        let report = palettized
            .check(&target.path, &*phases(Phase::Checking))
            .map_err(|cause| JobError::Check { package: package(), cause: Box::new(cause) })?;
        Ok(Outcome::Palettized(report))
    }
}

/// Writes a package, or a compiled model if the path ends so.
fn write_model(
    path: &Path,
    model: &coreml::Model,
    progress: &dyn Progress,
) -> Result<(), mixbit_formats::Error> {
    match path.extension().is_some_and(|extension| extension == "mlmodelc") {
        true => coreml::write_compiled(path, model, progress),
        false => coreml::write_package(path, model, progress),
    }
}

fn uniform_plans(targets: &[Target], scheme: Scheme, min_size: usize) -> Vec<Option<Plan>> {
    let plan = |target: &Target| {
        let stays = targets.len() > 1 && target.kind.is_some_and(|kind| !kind.is_palettized);
        (!stays).then(|| uniform(&target.layers, scheme, min_size))
    };
    targets.iter().map(plan).collect()
}

/// Matches a recipe with the UNets; those that it does not fit stay unchanged unless it fits none.
fn recipe_plans(
    targets: &[Target],
    file: &RecipeFile,
    recipe: &Recipe,
    like: Option<&Path>,
) -> Result<(Vec<Option<Plan>>, Vec<Warning>), JobError> {
    let mut plans: Vec<Option<Plan>> = targets.iter().map(|_| None).collect();
    let mut warnings = Vec::new();
    for (part, indices) in unets(targets) {
        let chunks: Vec<&Target> = indices.iter().map(|&index| &targets[index]).collect();
        match network_plan(part, &chunks, file, recipe, like)? {
            Ok((plan, is_same)) => {
                if is_same == Some(false) {
                    warnings.push(Warning::OtherLayers { part });
                }
                for index in indices {
                    plans[index] = Some(plan_of(&targets[index].layers, &plan));
                }
            }
            Err(cause) => warnings.push(Warning::Unchanged { part, cause }),
        }
    }
    if plans.iter().any(Option::is_some) {
        return Ok((plans, warnings));
    }
    let mismatch = warnings.into_iter().find_map(|warning| match warning {
        Warning::Unchanged { part, cause } => Some(JobError::Mismatch { part, cause }),
        Warning::OtherLayers { .. } => None,
    });
    Err(mismatch.unwrap_or(JobError::NoUnet))
}

/// The targets of each UNet: one, or its chunks. A package that is given by itself under another name is a
/// UNet.
fn unets(targets: &[Target]) -> BTreeMap<&'static str, Vec<usize>> {
    let mut unets: BTreeMap<&'static str, Vec<usize>> = BTreeMap::new();
    for (index, target) in targets.iter().enumerate() {
        let part = match target.kind {
            Some(kind) => kind.is_unet.then_some(kind.name),
            None => (targets.len() == 1).then_some("unet"),
        };
        if let Some(part) = part {
            unets.entry(part).or_default().push(index);
        }
    }
    unets
}

/// A plan for the layers of a network, and whether it has the layers that the recipe was made on.
type Matched = Result<(Plan, Option<bool>), MatchError>;

/// Matches a recipe with one network by the names of its layers, or else by its structure.
fn network_plan(
    part: &'static str,
    chunks: &[&Target],
    file: &RecipeFile,
    recipe: &Recipe,
    like: Option<&Path>,
) -> Result<Matched, JobError> {
    let layers: Vec<Layer> = chunks.iter().flat_map(|chunk| chunk.layers.iter().cloned()).collect();
    match (by_recipe(file, recipe, &layers), like) {
        (Err(_), Some(like)) => {
            Ok(by_structure(file, recipe, &network(part, chunks)?, &named_graphs(like, part)?))
        }
        (matched, _) => Ok(matched),
    }
}

/// The layers of a plan that a package has.
fn plan_of(layers: &[Layer], plan: &Plan) -> Plan {
    let own = layers.iter().filter_map(|layer| plan.get_key_value(&layer.name));
    own.map(|(name, chosen)| (name.clone(), chosen.clone())).collect()
}

/// The graph of a network, of one package or two chunks.
fn network(part: &'static str, chunks: &[&Target]) -> Result<Function, JobError> {
    let functions = chunks.iter().map(|target| {
        let unusable = |cause| JobError::Palettize { package: target.source.clone(), cause: Box::new(cause) };
        let function = target.model.program.main().ok_or_else(|| unusable(PalettizeError::NoFunction))?;
        constexpr::decoded(function).map_err(|error| unusable(error.into()))
    });
    match &functions.collect::<Result<Vec<Function>, JobError>>()?[..] {
        [whole] => Ok(whole.clone()),
        [first, second] => mixbit_mil::join(first, second).map_err(|_| JobError::Chunks { part }),
        _ => Err(JobError::Chunks { part }),
    }
}

/// The graphs of a checkpoint's UNet, one for each form of attention.
fn named_graphs(checkpoint: &Path, part: &str) -> Result<Vec<Function>, JobError> {
    let control_unet = part == "control-unet";
    let compiled = if control_unet { "ControlledUnet" } else { "Unet" };
    let mut graphs = Vec::new();
    for attention in AttentionImplementation::ALL {
        let options = ConversionOptions { attention, control_unet, ..ConversionOptions::default() };
        let networks = open(checkpoint, &options)?;
        let unet =
            networks.into_iter().find(|network| network.name.trim_end_matches(".mlmodelc") == compiled);
        graphs.extend(unet.and_then(|network| network.function));
    }
    if graphs.is_empty() {
        return Err(JobError::NoNames { path: checkpoint.to_path_buf() });
    }
    Ok(graphs)
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::OtherLayers { part } => {
                write!(f, "{part}: it has other layers than the recipe was made on")
            }
            Warning::Unchanged { part, cause } => write!(f, "{part} stays as it is: {cause}"),
        }
    }
}

/// Plans a scheme for one package of a kind that is palettized with a model; `None` for others.
///
/// # Errors
/// If the model's layers can't be found.
pub fn uniform_plan(
    kind: &PackageKind,
    model: &coreml::Model,
    scheme: Scheme,
) -> Result<Option<Plan>, PalettizeError> {
    let plan = || Ok(uniform(&super::model_layers(model)?, scheme, MIN_SIZE));
    kind.is_palettized.then(plan).transpose()
}
