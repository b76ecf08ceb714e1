//! Which networks of two models are compared.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::bail;
use mixbit_diffusion::arch::AttentionImplementation;

use mixbit_packages::bundle::{CHUNKS, WHOLE, is_named};
use mixbit_packages::diff::tensors::matched;
use mixbit_packages::inspect::{Form, Part, is_checkpoint, is_one, joined, open};
use mixbit_packages::package::{DEPLOYMENT_TARGETS, PARTS};

/// The networks of two models, those of A first in pairs.
pub(super) struct Networks {
    pub(super) pairs: Vec<[Part; 2]>,
    /// The names of those without a counterpart, of each side.
    pub(super) only: [Vec<String>; 2],
}

/// Opens two paths and pairs their networks: by what they are in a model, or one with one. If only one path leads to a
/// single network, it is compared with its like among the others.
///
/// # Errors
/// If either can't be read, or there is nothing like the single network.
pub(super) fn open_both(paths: [&Path; 2]) -> anyhow::Result<Networks> {
    let form = Form::default();
    let mut sides = match paths.map(is_checkpoint) {
        [true, false] => {
            let b = open(paths[1], &form)?;
            [like(paths[0], &b)?, b]
        }
        [false, true] => {
            let a = open(paths[0], &form)?;
            let b = like(paths[1], &a)?;
            [a, b]
        }
        _ => [open(paths[0], &form)?, open(paths[1], &form)?],
    };
    join_chunks(&mut sides);
    match paths.map(is_one) {
        [true, false] => pick(&mut sides, 0, paths)?,
        [false, true] => pick(&mut sides, 1, paths)?,
        _ => {}
    }
    Ok(paired(sides))
}

/// What a network is in a model, such as `Unet` or `UnetChunk1`; its own name if that is not known.
pub(super) fn role(name: &str) -> String {
    let extensions = [".mlpackage", ".mlmodelc", ".mlmodel", ".safetensors"];
    let stem = extensions.iter().find_map(|extension| name.strip_suffix(extension)).unwrap_or(name);
    for part in PARTS {
        for ends in [WHOLE, CHUNKS[0], CHUNKS[1]] {
            if is_named(stem, part, ends) {
                return format!("{}{}", part.compiled, ends[1]);
            }
        }
    }
    stem.to_string()
}

/// A checkpoint's networks in the form that packages have, as far as they show it.
fn like(checkpoint: &Path, packages: &[Part]) -> anyhow::Result<Vec<Part>> {
    let input = |name: &str| {
        let functions = packages.iter().filter_map(|part| part.function.as_ref());
        let mut values = functions.flat_map(|f| f.inputs().iter().map(|&id| f.value(id)));
        values.find(|value| value.name == name && value.ty.rank() == 4).map(|value| value.ty.shape.clone())
    };
    let (sample, z) = (input("sample"), input("z"));
    let version = packages.iter().find_map(|part| part.specification);
    let target = DEPLOYMENT_TARGETS.iter().find(|target| Some(target.specification_version) == version);
    let roles: Vec<String> = packages.iter().map(|part| role(&part.name)).collect();
    let default = Form::default();
    let form = Form {
        target: target.unwrap_or(default.target),
        latent: sample.as_ref().or(z.as_ref()).map(|shape| [shape[2], shape[3]]),
        batch_one: sample.is_some_and(|shape| shape[0] == 1),
        chunk_unet: roles.iter().any(|role| role.ends_with(CHUNKS[0][1])),
        control_unet: roles.iter().any(|role| role.starts_with("ControlledUnet")),
        ..default
    };
    let mut nearest: Option<(usize, Vec<Part>)> = None;
    for attention in AttentionImplementation::ALL {
        // Sizes that the checkpoint can't have are a difference to show, no error.
        let Ok(parts) = open(checkpoint, &Form { attention, ..form }) else { break };
        let distance = op_distance(&parts, packages);
        if nearest.as_ref().is_none_or(|(least, _)| distance < *least) {
            nearest = Some((distance, parts));
        }
    }
    match nearest {
        Some((_, parts)) => Ok(parts),
        None => open(checkpoint, &default),
    }
}

/// How many ops the networks of the same role have more or less of a type.
fn op_distance(parts: &[Part], others: &[Part]) -> usize {
    let ops = |part: &Part| {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let ops = part.function.iter().flat_map(|function| function.ops());
        ops.filter(|op| !op.def.is_constexpr()).for_each(|op| *counts.entry(op.def.name).or_insert(0) += 1);
        counts
    };
    let mut distance = 0;
    for other in others {
        let Some(part) = parts.iter().find(|part| role(&part.name) == role(&other.name)) else { continue };
        let (mut counts, wanted) = (ops(part), ops(other));
        for (name, count) in wanted {
            distance += counts.remove(name).unwrap_or(0).abs_diff(count);
        }
        distance += counts.values().sum::<usize>();
    }
    distance
}

/// Joins the chunks of networks that the other side has whole.
fn join_chunks(sides: &mut [Vec<Part>; 2]) {
    for side in 0..2 {
        let whole: Vec<String> = sides[1 - side].iter().map(|part| role(&part.name)).collect();
        for role_of_whole in whole {
            let place = |parts: &[Part], end: &str| {
                parts.iter().position(|part| role(&part.name) == format!("{role_of_whole}{end}"))
            };
            let parts = &mut sides[side];
            let chunks = [place(parts, CHUNKS[0][1]), place(parts, CHUNKS[1][1])];
            if let [Some(first), Some(second)] = chunks
                && let Some(part) = joined(role_of_whole, &parts[first], &parts[second])
            {
                parts[first] = part;
                parts.remove(second);
            }
        }
    }
}

/// Leaves of the other side only what is like the one network of `side`: by its role, else by its tensors.
fn pick(sides: &mut [Vec<Part>; 2], side: usize, paths: [&Path; 2]) -> anyhow::Result<()> {
    let [a, b] = sides;
    let (one, many) = if side == 0 { (&a[0], b) } else { (&b[0], a) };
    let in_common = |part: &Part| matched([&one.tensors, &part.tensors], [None, None]).pairs.len();
    let by_role = many.iter().position(|part| role(&part.name) == role(&one.name));
    let by_tensors = || {
        let counts = many.iter().map(in_common).enumerate();
        counts.filter(|(_, count)| *count > 0).max_by_key(|(index, count)| (*count, usize::MAX - index))
    };
    let Some(index) = by_role.or_else(|| by_tensors().map(|(index, _)| index)) else {
        bail!("{} has nothing like {}", paths[1 - side].display(), paths[side].display())
    };
    *many = vec![many.swap_remove(index)];
    Ok(())
}

/// Pairs networks of the same role, in the order of A.
fn paired(sides: [Vec<Part>; 2]) -> Networks {
    let [a, b] = sides;
    let (mut a, mut b) = (a.into_iter(), b);
    let mut networks = Networks { pairs: Vec::new(), only: [Vec::new(), Vec::new()] };
    if let (1, 1) = (a.len(), b.len()) {
        networks.pairs.extend(a.next().zip(b.pop()).map(|(a, b)| [a, b]));
        return networks;
    }
    for part in a {
        let same_name = b.iter().position(|other| other.name == part.name);
        let found = same_name.or_else(|| b.iter().position(|other| role(&other.name) == role(&part.name)));
        match found {
            Some(index) => networks.pairs.push([part, b.remove(index)]),
            None => networks.only[0].push(part.name),
        }
    }
    networks.only[1] = b.into_iter().map(|part| part.name).collect();
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
