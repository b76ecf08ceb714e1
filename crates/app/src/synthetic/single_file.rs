//! A synthetic model in one file, in the original layout.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use mixbit_diffusion::arch::Config;
use mixbit_diffusion::original::{Names, View};
use mixbit_formats::safetensors::{self, TensorSpec};
use mixbit_mil::{DType, Progress, Tally, TensorType, Unit};

use super::weights::{self, Fill};
use super::{Skeleton, SyntheticError, architecture, make_folder, unsupported};

/// Tokens of a prompt, whose positions old files number.
const POSITIONS: usize = 77;

/// A tensor of the file.
pub(super) struct Stored {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    /// The tensors that it is made of, one after the other along the first axis: component, name and shape.
    pub(super) parts: Vec<(String, String, Vec<usize>)>,
    /// True if it is its part with axes exchanged.
    transposed: bool,
}

impl Skeleton {
    /// Writes the model with the values of [`write`](Self::write) as one file in the original layout.
    ///
    /// # Errors
    /// A file that can't be written, with its path, or a component that the layout has no place for.
    pub fn write_single_file(
        &self,
        path: &Path,
        seed: u64,
        dtype: DType,
        progress: &dyn Progress,
    ) -> Result<(), SyntheticError> {
        let stored = self.stored()?;
        let bytes =
            |stored: &Stored| stored.shape.iter().product::<usize>() as u64 * (dtype.bits() / 8) as u64;
        let tally = Tally::new(progress, stored.iter().map(bytes).sum(), Unit::Bytes);
        let mut specs: Vec<TensorSpec> = stored
            .iter()
            .map(|it| TensorSpec { name: it.name.clone(), ty: TensorType::new(dtype, it.shape.clone()) })
            .collect();
        let positions = stored.iter().find_map(|it| it.name.strip_suffix("token_embedding.weight"));
        let positions = positions.filter(|prefix| prefix.ends_with("embeddings.")).map(|prefix| TensorSpec {
            name: format!("{prefix}position_ids"),
            ty: TensorType::new(DType::I64, [1, POSITIONS]),
        });
        specs.extend(positions);
        make_folder(path)?;
        Ok(safetensors::write(path, &self.metadata(), &specs, |index, writer| {
            let Some(stored) = stored.get(index) else {
                return (0..POSITIONS as i64).try_for_each(|it| writer.write_all(&it.to_le_bytes()));
            };
            write(stored, seed, dtype, writer)?;
            tally.add(bytes(stored)).map_err(io::Error::other)
        })?)
    }

    /// What the file says of itself.
    pub(super) fn metadata(&self) -> BTreeMap<String, String> {
        let scheduler = self.files.get("scheduler/scheduler_config.json").map_or("", String::as_str);
        let predicted = if scheduler.contains("v_prediction") { "v" } else { "epsilon" };
        BTreeMap::from([("modelspec.predict_key".to_string(), predicted.to_string())])
    }

    /// Every tensor of the file.
    pub(super) fn stored(&self) -> Result<Vec<Stored>, SyntheticError> {
        let has_pair = self.shapes.contains_key("text_encoder") && self.shapes.contains_key("text_encoder_2");
        let mut all: BTreeMap<String, Stored> = BTreeMap::new();
        for (component, shapes) in &self.shapes {
            let config = architecture(self.model.component(component)?)
                .map(|architecture| {
                    architecture
                        .config(&self.model.config(component)?)
                        .map_err(|error| unsupported(component, error))
                })
                .transpose()?;
            let Some((prefix, names)) = place(component, config.as_ref(), has_pair) else { continue };
            for (name, shape) in shapes {
                let place = names.as_ref().map(|names| names.place(name));
                let (original, view) = match place {
                    Some(Some(place)) => (place.name, place.view),
                    Some(None) => {
                        return Err(SyntheticError::NoPlace { tensor: format!("{component}/{name}") });
                    }
                    None => (name.clone(), View::Whole),
                };
                let is_convolution = component == "vae" && shape.len() == 2;
                let whole = match view {
                    _ if is_convolution => [&shape[..], &[1, 1]].concat(),
                    View::Rows { of, .. } => [&[of * shape[0]], &shape[1..]].concat(),
                    View::Transposed => shape.iter().rev().copied().collect(),
                    View::Whole => shape.clone(),
                };
                let stored = all.entry(format!("{prefix}{original}")).or_insert_with_key(|name| Stored {
                    name: name.clone(),
                    shape: whole,
                    parts: Vec::new(),
                    transposed: view == View::Transposed,
                });
                stored.parts.push((component.clone(), name.clone(), shape.clone()));
                let rank =
                    |name: &str| ["q_proj", "k_proj", "v_proj"].iter().position(|it| name.contains(it));
                stored.parts.sort_by_key(|(_, name, _)| rank(name));
            }
        }
        add_last_layer(&mut all);
        Ok(all.into_values().collect())
    }
}

/// Where a component's tensors are in the original layout, and their names there if they are others.
fn place(component: &str, config: Option<&Config>, has_pair: bool) -> Option<(&'static str, Option<Names>)> {
    match (component, config?) {
        ("unet", Config::Unet(config)) => Some(("model.diffusion_model.", Some(Names::unet(config)))),
        ("vae", Config::Vae(config)) => Some(("first_stage_model.", Some(Names::vae(config)))),
        ("text_encoder", Config::TextEncoder(_)) if has_pair => {
            Some(("conditioner.embedders.0.transformer.", None))
        }
        // The first family's encoder is OpenAI's, with 768 channels.
        ("text_encoder", Config::TextEncoder(config)) if config.hidden_size == 768 => {
            Some(("cond_stage_model.transformer.", None))
        }
        ("text_encoder", Config::TextEncoder(_)) => {
            Some(("cond_stage_model.model.", Some(Names::open_clip())))
        }
        ("text_encoder_2", Config::TextEncoder(_)) => {
            let prefix =
                if has_pair { "conditioner.embedders.1.model." } else { "conditioner.embedders.0.model." };
            Some((prefix, Some(Names::open_clip())))
        }
        _ => None,
    }
}

/// Adds the last layer of Stable Diffusion 2's text encoder, which its files have and no one uses.
fn add_last_layer(all: &mut BTreeMap<String, Stored>) {
    const BLOCKS: &str = "cond_stage_model.model.transformer.resblocks.";
    let numbers = all.keys().filter_map(|name| name.strip_prefix(BLOCKS)?.split_once('.')?.0.parse().ok());
    let Some(last) = numbers.max() else { return };
    let last: usize = last;
    let (own, next) = (format!("{BLOCKS}{last}."), format!("{BLOCKS}{}.", last + 1));
    let copies: Vec<Stored> = all
        .values()
        .filter_map(|stored| {
            let name = format!("{next}{}", stored.name.strip_prefix(&own)?);
            Some(Stored { name, shape: stored.shape.clone(), parts: stored.parts.clone(), transposed: false })
        })
        .collect();
    all.extend(copies.into_iter().map(|stored| (stored.name.clone(), stored)));
}

fn write(stored: &Stored, seed: u64, dtype: DType, writer: &mut dyn Write) -> io::Result<()> {
    let fill = |name: &str, shape: &[usize]| Fill::of(seed, name, shape);
    if let ([(_, name, shape)], true) = (&stored.parts[..], stored.transposed) {
        let mut rows = Vec::new();
        weights::write(&mut rows, dtype, &fill(name, shape), shape.iter().product())?;
        let (size, width) = (dtype.bits() / 8, shape[1]);
        return (0..width).try_for_each(|column| {
            rows.chunks_exact(size).skip(column).step_by(width).try_for_each(|value| writer.write_all(value))
        });
    }
    stored.parts.iter().try_for_each(|(_, name, shape)| {
        weights::write(writer, dtype, &fill(name, shape), shape.iter().product())
    })
}
