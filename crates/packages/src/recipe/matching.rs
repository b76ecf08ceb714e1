//! The layers of a graph that a recipe's names stand for.

use std::collections::{BTreeMap, HashMap};

use mixbit_compress::{Layer, Scheme, layers};
use mixbit_mil::Function;
use thiserror::Error;

use super::structure::{Correspondence, correspondence};
use super::{ModelIdentity, Recipe, RecipeFile};

/// The most names that an error lists.
const LISTED: usize = 10;

/// The schemes that a recipe has for the layers of a graph.
#[derive(Clone, Debug, Default)]
pub struct Assignment {
    /// By the layer's name in the graph: its name in the recipe, and how it is to be stored.
    pub layers: BTreeMap<String, (String, Option<Scheme>)>,
    /// True if the graph's layers are those that the recipe was made on, where both are known.
    pub is_same: Option<bool>,
}

/// A recipe that does not fit a graph.
#[derive(Debug, Error)]
pub enum MatchError {
    /// No layer has a name that the recipe knows.
    #[error(
        "none of the recipe's {count} layers is in the model: it knows `{recipe}`, and the model has {model}; the recipe \
         is for another architecture, or the package has lost the names of its weights: then a checkpoint of the same \
         configuration tells which is which (--like CHECKPOINT)"
    )]
    Nothing {
        /// The number of the recipe's layers.
        count: usize,
        /// One of them.
        recipe: String,
        /// Some of the graph's.
        model: String,
    },
    /// Some layers of the recipe are not there.
    #[error(
        "the model lacks {count} of the recipe's {of} layers: {names}; the recipe is for another architecture"
    )]
    Lacking {
        /// Their number.
        count: usize,
        /// The number of the recipe's layers.
        of: usize,
        /// The first of them.
        names: String,
    },
    /// Layers have other sizes than those that were measured.
    #[error(
        "{count} layers have another size than the recipe was made on: {names}; the recipe is for another architecture"
    )]
    Sizes {
        /// Their number.
        count: usize,
        /// The first of them, with both sizes.
        names: String,
    },
    /// Constants whose names may mean several layers.
    #[error("constant `{constant}` may be any of the layers {candidates}: the names do not say which")]
    Ambiguous {
        /// The constant.
        constant: String,
        /// The recipe's layers.
        candidates: String,
    },
    /// The graph computes something else than the one that has the names.
    #[error(
        "nothing in the model computes what {count} of the recipe's layers do: {names}; of the model's own layers {constants} \
         are like none of the checkpoint's; it has another architecture"
    )]
    Structure {
        /// Their number.
        count: usize,
        /// The first of the recipe's layers.
        names: String,
        /// The first of the model's layers.
        constants: String,
    },
    /// Layers of different bits that the graph does not tell apart.
    #[error(
        "the layers {layers} may be any of the constants {constants}: the graph does not say which, and the recipe gives them \
         different bits"
    )]
    Alike {
        /// The recipe's layers.
        layers: String,
        /// The model's constants.
        constants: String,
    },
}

/// Assigns a recipe's schemes to the layers of a UNet, or of both of its chunks, by their names.
///
/// Layers are matched by their names in the checkpoint, which packages of mixbit carry. The packages of other
/// tools are matched by the constants' names, which are those of the modules with underscores.
///
/// # Errors
/// If a layer of the recipe is not among them, or it is not clear which it is.
pub fn assign(file: &RecipeFile, recipe: &Recipe, found: &[Layer]) -> Result<Assignment, MatchError> {
    let is_named = found.iter().any(|layer| recipe.layers.contains_key(&layer.name));
    let names = match is_named {
        true => found.iter().map(|layer| (layer.name.clone(), layer.name.clone())).collect(),
        false => by_constants(recipe, found)?,
    };
    assigned(file, recipe, found, &names, is_named)
}

/// The plan of a recipe for layers whose names are lost: those of `network`, with decoded constants, matched
/// by structure. `named` is a graph of the same configuration whose layers have their names, written
/// as one of them is: the one that is most like the network counts.
///
/// # Errors
/// If a layer of the recipe is not in the graphs, or if the graph does not say which it is and that matters.
pub fn assign_by_structure(
    file: &RecipeFile,
    recipe: &Recipe,
    network: &Function,
    named: &[Function],
) -> Result<Assignment, MatchError> {
    let found = layers(network);
    let compared = named.iter().map(|named| (correspondence(network, named), layers(named)));
    let Some((nearest, named)) =
        compared.min_by_key(|(compared, _)| compared.only.0.len() + compared.only.1.len())
    else {
        return assign(file, recipe, &found);
    };
    let names = by_structure(recipe, &found, &named, &nearest)?;
    assigned(file, recipe, &found, &names, false)
}

/// The recipe's names of the layers of a network, by the layers of another that they correspond to.
fn by_structure(
    recipe: &Recipe,
    found: &[Layer],
    named: &[Layer],
    nearest: &Correspondence,
) -> Result<HashMap<String, String>, MatchError> {
    let name = |&index: &usize| named[index].name.clone();
    let constant = |&index: &usize| found[index].name.clone();
    let unlike: Vec<String> =
        nearest.only.1.iter().map(name).filter(|name| recipe.layers.contains_key(name)).collect();
    if !unlike.is_empty() {
        return Err(MatchError::Structure {
            count: unlike.len(),
            names: listed(unlike),
            constants: listed(nearest.only.0.iter().map(constant).collect()),
        });
    }
    let mut pairs = nearest.pairs.clone();
    for (of_network, of_named) in &nearest.ambiguous {
        let mut schemes = of_named.iter().map(|&index| recipe.layers.get(&named[index].name));
        let first = schemes.next();
        if schemes.any(|scheme| Some(scheme) != first) {
            return Err(MatchError::Alike {
                layers: listed(of_named.iter().map(name).collect()),
                constants: listed(of_network.iter().map(constant).collect()),
            });
        }
        pairs.extend(of_network.iter().copied().zip(of_named.iter().copied()));
    }
    let mut names: HashMap<String, String> = HashMap::new();
    for (of_network, of_named) in &pairs {
        if let Some(other) = names.insert(constant(of_network), name(of_named)) {
            return Err(MatchError::Ambiguous {
                constant: constant(of_network),
                candidates: listed(vec![other, name(of_named)]),
            });
        }
    }
    Ok(names)
}

/// Assigns a recipe's schemes to layers by their names in the recipe.
fn assigned(
    file: &RecipeFile,
    recipe: &Recipe,
    found: &[Layer],
    names: &HashMap<String, String>,
    is_named: bool,
) -> Result<Assignment, MatchError> {
    let mut layers = BTreeMap::new();
    let mut places: HashMap<&str, &Layer> = HashMap::new();
    for layer in found {
        let Some(name) = names.get(&layer.name) else { continue };
        if let Some((name, scheme)) = recipe.layers.get_key_value(name) {
            places.insert(name, layer);
            layers.insert(layer.name.clone(), (name.clone(), *scheme));
        }
    }
    let lacking: Vec<&String> =
        recipe.layers.keys().filter(|name| !places.contains_key(name.as_str())).collect();
    if let (Some(first), true) = (lacking.first(), places.is_empty()) {
        let mut model: Vec<String> = found.iter().map(|layer| layer.name.clone()).collect();
        model.sort();
        return Err(MatchError::Nothing {
            count: recipe.layers.len(),
            recipe: first.to_string(),
            model: listed(model),
        });
    }
    if !lacking.is_empty() {
        return Err(MatchError::Lacking {
            count: lacking.len(),
            of: recipe.layers.len(),
            names: listed(lacking.into_iter().cloned().collect()),
        });
    }
    sizes(file, &places)?;
    let made_on = file.details.as_ref().map(|details| &details.model.layers_checksum);
    // The recipe was made on the layers that it names: smaller ones were not measured.
    let measured: Vec<Layer> = places.into_values().cloned().collect();
    let is_same = made_on
        .filter(|_| is_named)
        .map(|checksum| *checksum == ModelIdentity::of("", &measured).layers_checksum);
    Ok(Assignment { layers, is_same })
}

/// The first names, and how many more there are.
fn listed(mut names: Vec<String>) -> String {
    let more = names.len().saturating_sub(LISTED);
    names.truncate(LISTED);
    match more {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

/// Refuses layers with other numbers of weights than those that were measured, where the file has these.
fn sizes(file: &RecipeFile, places: &HashMap<&str, &Layer>) -> Result<(), MatchError> {
    let curves = file.cumulative.values();
    let measured: BTreeMap<&str, u64> = curves
        .flat_map(|curve| {
            curve.layers.iter().map(|(layer, _)| layer.as_str()).zip(curve.sizes.iter().copied())
        })
        .collect();
    let differs = |(layer, size): (&str, u64)| {
        let found = places.get(layer)?.count() as u64;
        (found != size).then(|| format!("{layer} ({found}, not {size})"))
    };
    let names: Vec<String> = measured.into_iter().filter_map(differs).collect();
    match names.len() {
        0 => Ok(()),
        count => Err(MatchError::Sizes { count, names: listed(names) }),
    }
}

/// The recipe's names of layers that are known by the names of constants.
fn by_constants(recipe: &Recipe, found: &[Layer]) -> Result<HashMap<String, String>, MatchError> {
    let mut known: HashMap<String, Vec<&str>> = HashMap::new();
    for name in recipe.layers.keys() {
        known.entry(name.replace('.', "_")).or_default().push(name);
    }
    let mut names: HashMap<String, String> = HashMap::new();
    let mut taken: HashMap<&str, &str> = HashMap::new();
    for layer in found {
        match known.get(module(&layer.name)).map(Vec::as_slice) {
            None => {}
            Some([name]) => {
                if let Some(other) = taken.insert(name, &layer.name) {
                    return Err(MatchError::Ambiguous {
                        constant: format!("{other}` or `{}", layer.name),
                        candidates: name.to_string(),
                    });
                }
                names.insert(layer.name.clone(), name.to_string());
            }
            Some(several) => {
                return Err(MatchError::Ambiguous {
                    constant: layer.name.clone(),
                    candidates: several.join(", "),
                });
            }
        }
    }
    Ok(names)
}

/// Suffixes that converters and compressors append to a module's name.
fn module(constant: &str) -> &str {
    let mut name = constant;
    for suffix in ["_palettized", "_quantized", "_to_fp16", "_to_fp32", "_weight"] {
        name = name.strip_suffix(suffix).unwrap_or(name);
    }
    name
}
