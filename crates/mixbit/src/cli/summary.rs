//! The first lines of `mixbit inspect`: what a model is.

use std::collections::BTreeMap;

use mixbit_mil::{DType, Function};
use mixbit_packages::inspect::{InspectedNetwork, StoredTensor, bits_per_element};
use mixbit_packages::package::keys;

use super::colour::{self, Style};
use super::printable::visible_line;
use super::table::{byte_size, shortened};

/// Pixels of an image for one of its latents, in every direction.
const SCALE: usize = 8;

/// The kind, size, image and parts of a model or a network.
pub(super) fn of(networks: &[InspectedNetwork]) -> String {
    let mut text = format!("{}\n", colour::on_stdout(Style::Strong, "summary"));
    let mut line = |name: &str, value: String| text += &format!("  {name:<10}{value}\n");
    line("kind", kind(networks));
    let tensors = || networks.iter().flat_map(weights);
    let (count, bytes) = sizes(tensors());
    line("size", format!("{}, {:.2} bits a weight", byte_size(bytes), bits_per_element(count, bytes)));
    let mut encodings: BTreeMap<String, usize> = BTreeMap::new();
    tensors().for_each(|tensor| *encodings.entry(tensor.kind()).or_default() += tensor.count());
    let mut encodings: Vec<(String, usize)> = encodings.into_iter().collect();
    encodings.sort_by_key(|(_, elements)| std::cmp::Reverse(*elements));
    let share = |(name, elements): &(String, usize)| {
        format!("{name} {:.0} %", 100.0 * *elements as f64 / count.max(1) as f64)
    };
    line("weights", encodings.iter().take(3).map(share).collect::<Vec<_>>().join(", "));
    if let Some([width, height]) = networks.iter().find_map(image) {
        line("image", format!("{width}x{height}"));
    }
    if let Some(attention) =
        networks.iter().filter_map(|network| network.function.as_ref()).find_map(attention)
    {
        line("attention", attention.to_string());
    }
    if networks.len() > 1 {
        for (index, network) in networks.iter().enumerate() {
            let (_, bytes) = sizes(weights(network));
            let name = if index == 0 { "parts" } else { "" };
            line(name, format!("{:>10}  {}", byte_size(bytes), visible_line(&network.name)));
        }
    }
    text
}

fn weights(network: &InspectedNetwork) -> impl Iterator<Item = &StoredTensor> {
    network.tensors.iter().filter(|tensor| !tensor.is_table)
}

/// The number of elements, and their bytes in the file.
fn sizes<'a>(tensors: impl Iterator<Item = &'a StoredTensor>) -> (usize, usize) {
    tensors.fold((0, 0), |(count, bytes), tensor| (count + tensor.count(), bytes + tensor.bytes()))
}

/// The origin of the networks, in words.
fn kind(networks: &[InspectedNetwork]) -> String {
    let says = |key: &str| networks.iter().find_map(|network| network.metadata.get(key));
    let many = if networks.len() > 1 { "Core ML packages" } else { "a Core ML package" };
    let Some(specification) = networks.iter().find_map(|network| network.specification) else {
        let kind = networks.iter().find_map(|network| network.kind.as_ref());
        let kind = kind.map(|kind| format!("{kind}; ")).unwrap_or_default();
        return format!("{kind}a checkpoint, as the packages that mixbit makes of it");
    };
    let origin = match (says(keys::VERSION), says(keys::APPLE_VERSION)) {
        (Some(version), _) => format!(" of mixbit {}", shortened(version)),
        (None, Some(version)) => format!(" of Apple's converter {}", shortened(version)),
        (None, None) => String::new(),
    };
    let model = says("version").filter(|version| version.chars().any(char::is_alphabetic));
    let model = model.map(|model| format!(" for {}", shortened(model))).unwrap_or_default();
    format!("{many}{origin}{model}, specification {specification}")
}

/// Width and height in pixels of a UNet's images, by its latents.
fn image(network: &InspectedNetwork) -> Option<[usize; 2]> {
    let function = network.function.as_ref()?;
    let takes =
        |name: &str| function.inputs().iter().map(|&id| function.value(id)).find(|value| value.name == name);
    let (sample, _) = takes("sample").zip(takes("timestep"))?;
    match sample.ty.shape[..] {
        [_, _, height, width] if sample.ty.dtype != DType::I32 => Some([width * SCALE, height * SCALE]),
        _ => None,
    }
}

/// The form of attention: only the split one has einsums; `None` for a graph without attention.
fn attention(function: &Function) -> Option<&'static str> {
    let has = |kind: &str| function.ops().iter().any(|op| op.def.name == kind);
    let takes_states = function.inputs().iter().any(|&id| function.value(id).name == "encoder_hidden_states");
    takes_states.then(|| if has("einsum") { "SPLIT_EINSUM" } else { "ORIGINAL" })
}
