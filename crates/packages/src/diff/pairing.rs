//! The networks of two models that are compared with each other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mixbit_diffusion::arch::AttentionImplementation;

use super::DiffError;
use super::tensors::matched;
use crate::inspect::{InspectError, InspectedNetwork, is_checkpoint, is_single, joined, open};
use crate::package::{CHUNKS, ConversionOptions, DEPLOYMENT_TARGETS, PACKAGE_KINDS, WHOLE};
use crate::source::OpenOptions;

/// The networks of two models, those of A first in pairs.
pub struct NetworkPairs {
    /// The networks that belong together.
    pub pairs: Vec<[InspectedNetwork; 2]>,
    /// The names of the networks without a counterpart, of each side.
    pub only: [Vec<String>; 2],
}

/// Opens two paths and pairs their networks: by their roles in a model, or one with one. A single network is
/// compared with its like among the networks of the other path.
///
/// # Errors
/// [`DiffError`], if either can't be read, or there is nothing like the single network.
pub fn open_both(paths: [&Path; 2], files: &OpenOptions) -> Result<NetworkPairs, DiffError> {
    let options = ConversionOptions::default();
    let checkpoints = paths.map(|path| is_checkpoint(path, files));
    let mut sides = match checkpoints {
        [true, false] => {
            let b = open(paths[1], &options, files)?;
            [like(paths[0], &b, files)?, b]
        }
        [false, true] => {
            let a = open(paths[0], &options, files)?;
            let b = like(paths[1], &a, files)?;
            [a, b]
        }
        _ => [open(paths[0], &options, files)?, open(paths[1], &options, files)?],
    };
    join_chunks(&mut sides);
    match [0, 1].map(|side| !checkpoints[side] && is_single(paths[side])) {
        [true, false] => pick(&mut sides, 0, paths)?,
        [false, true] => pick(&mut sides, 1, paths)?,
        _ => {}
    }
    Ok(paired(sides))
}

/// The role of a network in a model by its file name, such as `Unet` or `UnetChunk1`; its own name if it has
/// none.
pub fn role(name: &str) -> String {
    let extensions = [".mlpackage", ".mlmodelc", ".mlmodel", ".safetensors"];
    let stem = extensions.iter().find_map(|extension| name.strip_suffix(extension)).unwrap_or(name);
    for kind in PACKAGE_KINDS {
        for ends in [WHOLE, CHUNKS[0], CHUNKS[1]] {
            if kind.has_stem(stem, ends) {
                return format!("{}{}", kind.compiled, ends[1]);
            }
        }
    }
    stem.to_string()
}

/// A checkpoint's networks in the form of the packages, as far as they show it.
fn like(
    checkpoint: &Path,
    packages: &[InspectedNetwork],
    files: &OpenOptions,
) -> Result<Vec<InspectedNetwork>, InspectError> {
    let input = |name: &str| {
        let functions = packages.iter().filter_map(|network| network.function.as_ref());
        let mut values = functions.flat_map(|f| f.inputs().iter().map(|&id| f.value(id)));
        values.find(|value| value.name == name && value.ty.rank() == 4).map(|value| value.ty.shape.clone())
    };
    let (sample, z) = (input("sample"), input("z"));
    let version = packages.iter().find_map(|network| network.specification);
    let target = DEPLOYMENT_TARGETS.iter().find(|target| Some(target.specification_version) == version);
    let roles: Vec<String> = packages.iter().map(|network| role(&network.name)).collect();
    let options = ConversionOptions {
        target: target.unwrap_or_default(),
        latent: sample.as_ref().or(z.as_ref()).map(|shape| [shape[2], shape[3]]),
        batch_one: sample.is_some_and(|shape| shape[0] == 1),
        chunk_unet: roles.iter().any(|role| role.ends_with(CHUNKS[0][1])),
        control_unet: roles.iter().any(|role| role.starts_with("ControlledUnet")),
        ..ConversionOptions::default()
    };
    let mut nearest: Option<(usize, Vec<InspectedNetwork>)> = None;
    for attention in AttentionImplementation::ALL {
        // Sizes that the checkpoint can't have are a difference to show, no error.
        let options = ConversionOptions { attention, ..options.clone() };
        let Ok(networks) = open(checkpoint, &options, files) else { break };
        let distance = op_distance(&networks, packages);
        if nearest.as_ref().is_none_or(|(least, _)| distance < *least) {
            nearest = Some((distance, networks));
        }
    }
    match nearest {
        Some((_, networks)) => Ok(networks),
        None => open(checkpoint, &ConversionOptions::default(), files),
    }
}

/// The number of ops by which networks of the same role differ, type by type.
fn op_distance(networks: &[InspectedNetwork], others: &[InspectedNetwork]) -> usize {
    let ops = |network: &InspectedNetwork| {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let ops = network.function.iter().flat_map(|function| function.ops());
        ops.filter(|op| !op.def.is_constexpr()).for_each(|op| *counts.entry(op.def.name).or_insert(0) += 1);
        counts
    };
    let mut distance = 0;
    for other in others {
        let same_role = |network: &&InspectedNetwork| role(&network.name) == role(&other.name);
        let Some(network) = networks.iter().find(same_role) else { continue };
        let (mut counts, wanted) = (ops(network), ops(other));
        for (name, count) in wanted {
            distance += counts.remove(name).unwrap_or(0).abs_diff(count);
        }
        distance += counts.values().sum::<usize>();
    }
    distance
}

/// Joins the chunks of networks that the other side has whole.
fn join_chunks(sides: &mut [Vec<InspectedNetwork>; 2]) {
    for side in 0..2 {
        let whole: Vec<String> = sides[1 - side].iter().map(|network| role(&network.name)).collect();
        for role_of_whole in whole {
            let place = |networks: &[InspectedNetwork], end: &str| {
                networks.iter().position(|network| role(&network.name) == format!("{role_of_whole}{end}"))
            };
            let networks = &mut sides[side];
            let chunks = [place(networks, CHUNKS[0][1]), place(networks, CHUNKS[1][1])];
            if let [Some(first), Some(second)] = chunks
                && let Some(network) = joined(role_of_whole, &networks[first], &networks[second])
            {
                networks[first] = network;
                networks.remove(second);
            }
        }
    }
}

/// Leaves on the other side only the network that is like the one of `side`: by its role, else by its
/// tensors.
fn pick(sides: &mut [Vec<InspectedNetwork>; 2], side: usize, paths: [&Path; 2]) -> Result<(), DiffError> {
    let [a, b] = sides;
    let (one, many) = if side == 0 { (&a[0], b) } else { (&b[0], a) };
    let in_common =
        |network: &InspectedNetwork| matched([&one.tensors, &network.tensors], [None, None]).pairs.len();
    // The first function of a package stands for the others.
    let by_role = many.iter().position(|network| role(&network.name) == role(&one.name));
    let by_tensors = || {
        let counts = many.iter().map(in_common).enumerate();
        counts.filter(|(_, count)| *count > 0).max_by_key(|(index, count)| (*count, usize::MAX - index))
    };
    let Some(index) = by_role.or_else(|| by_tensors().map(|(index, _)| index)) else {
        let [path, single] = [paths[1 - side], paths[side]].map(PathBuf::from);
        return Err(DiffError::NoLike { path, single });
    };
    let file = many[index].name.clone();
    many.retain(|network| network.name == file);
    Ok(())
}

/// Pairs networks of the same role, in the order of A.
fn paired(sides: [Vec<InspectedNetwork>; 2]) -> NetworkPairs {
    let one_file = |networks: &[InspectedNetwork]| {
        networks.iter().filter(|network| network.other_function.is_none()).count() == 1
    };
    let one_with_one = sides.iter().all(|side| one_file(side));
    let [a, mut b] = sides;
    let mut networks = NetworkPairs { pairs: Vec::new(), only: [Vec::new(), Vec::new()] };
    for network in a {
        let position = |is: &dyn Fn(&InspectedNetwork) -> bool| {
            b.iter().position(|other| other.other_function == network.other_function && is(other))
        };
        let same_name = || position(&|other| other.name == network.name);
        let same_role = || position(&|other| role(&other.name) == role(&network.name));
        let found = match one_with_one {
            true => position(&|_| true),
            false => same_name().or_else(same_role),
        };
        match found {
            Some(index) => networks.pairs.push([network, b.remove(index)]),
            None => networks.only[0].push(network.title()),
        }
    }
    networks.only[1] = b.iter().map(InspectedNetwork::title).collect();
    networks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_the_same_in_every_kind_of_file() {
        for (role_of, names) in [
            ("Unet", ["Unet", "Unet.mlmodelc", "Stable_Diffusion_version_a_b_unet.mlpackage"]),
            ("UnetChunk2", ["UnetChunk2", "UnetChunk2.mlmodelc", "x_unet_chunk2.mlpackage"]),
            ("TextEncoder2", ["TextEncoder2", "text_encoder_2.mlpackage", "x_text_encoder_2.mlpackage"]),
            ("ControlledUnet", ["ControlledUnet", "ControlledUnet.mlmodelc", "x_control-unet.mlpackage"]),
            ("mine", ["mine", "mine.mlmodelc", "mine.mlpackage"]),
        ] {
            for name in names {
                assert_eq!(role(name), role_of, "{name}");
            }
        }
    }
}
