//! The structure of a UNet, read from the names and shapes of its tensors.

use mixbit_mil::Weights;
use serde_json::{Map, Value, json};

/// How the tensors of a UNet are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// As in `ldm` and `sgm`: `input_blocks.0.0.weight`.
    Original,
    /// As in `ldm`'s running averages, without dots: `input_blocks00weight`.
    OriginalAverages,
    /// As in diffusers: `conv_in.weight`.
    Diffusers,
}

/// The tensors of a network inside a file.
#[derive(Clone)]
pub(super) struct Tensors<'w> {
    pub(super) weights: &'w dyn Weights,
    /// What all of the network's names begin with.
    pub(super) prefix: String,
    pub(super) naming: Naming,
}

impl Tensors<'_> {
    /// The file's name of a tensor.
    pub(super) fn full_name(&self, name: &str) -> String {
        match self.naming {
            Naming::OriginalAverages => format!("{}{}", self.prefix, name.replace('.', "")),
            Naming::Original | Naming::Diffusers => format!("{}{name}", self.prefix),
        }
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.weights.get(&self.full_name(name)).map(|weight| weight.ty().shape.clone())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.weights.get(&self.full_name(name)).is_some()
    }

    /// The number of submodules `module.0`, `module.1` and so on that have a tensor of this name.
    fn count(&self, module: &str, tensor: &str) -> usize {
        (0..).take_while(|index| self.has(&format!("{module}.{index}.{tensor}"))).count()
    }
}

/// The levels of a UNet, what they have, and the channels that go in and out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Structure {
    pub(super) in_channels: usize,
    /// Absent in a ControlNet.
    pub(super) out_channels: Option<usize>,
    /// Channels of the prompt embeddings.
    pub(super) text_channels: Option<usize>,
    /// Channels of what is embedded beside the timestep: pooled prompt embeddings and sizes.
    pub(super) added_channels: Option<usize>,
    /// Channels of the embedded guidance scale, of models that are distilled with guidance.
    condition: Option<usize>,
    /// True if the transformers' projections are linear layers.
    linear: bool,
    down: Vec<Level>,
    middle: Middle,
    up: Vec<Level>,
}

/// The layers of a level.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Level {
    channels: usize,
    /// For each layer the blocks of its transformer; `None` without one.
    depths: Vec<Option<usize>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Middle {
    None,
    Residual,
    Attention(usize),
}

/// The names of the modules that a structure is read from.
struct Modules {
    conv_in: &'static str,
    conv_out: &'static str,
    added: &'static str,
    condition: &'static str,
    /// The last convolution of a residual block.
    residual: &'static str,
}

const ORIGINAL: Modules = Modules {
    conv_in: "input_blocks.0.0.weight",
    conv_out: "out.2.weight",
    added: "label_emb.0.0.weight",
    condition: "time_embed.cond_proj.weight",
    residual: "out_layers.3.weight",
};

const DIFFUSERS: Modules = Modules {
    conv_in: "conv_in.weight",
    conv_out: "conv_out.weight",
    added: "add_embedding.linear_1.weight",
    condition: "time_embedding.cond_proj.weight",
    residual: "conv2.weight",
};

impl Structure {
    /// The structure of the UNet or ControlNet among these tensors; `None` if there is none.
    pub(super) fn read(tensors: &Tensors) -> Option<Structure> {
        let modules = match tensors.naming {
            Naming::Diffusers => DIFFUSERS,
            Naming::Original | Naming::OriginalAverages => ORIGINAL,
        };
        let in_channels = *tensors.shape(modules.conv_in)?.get(1)?;
        let mut reader = Reader { tensors, modules: &modules, attended: None };
        let (down, up) = match tensors.naming {
            Naming::Diffusers => (reader.named_levels("down_blocks"), reader.named_levels("up_blocks")),
            _ => (reader.numbered_levels("input_blocks", 1), reader.numbered_levels("output_blocks", 0)),
        };
        let middle = match tensors.naming {
            Naming::Diffusers => reader.middle("mid_block.resnets.0", "mid_block.attentions.0"),
            _ => reader.middle("middle_block.0", "middle_block.1"),
        };
        let attended = reader.attended;
        let of_attention =
            |name: &str| attended.as_ref().and_then(|at| tensors.shape(&format!("{at}.{name}")));
        let inputs = |name: &str| tensors.shape(name).and_then(|shape| shape.get(1).copied());
        Some(Structure {
            in_channels,
            out_channels: tensors.shape(modules.conv_out).and_then(|shape| shape.first().copied()),
            text_channels: of_attention("transformer_blocks.0.attn2.to_k.weight")
                .and_then(|shape| shape.get(1).copied()),
            added_channels: inputs(modules.added),
            condition: inputs(modules.condition),
            linear: of_attention("proj_in.weight").is_some_and(|shape| shape.len() == 2),
            down,
            middle,
            up,
        })
    }

    /// The levels' channels, finest first.
    pub(super) fn channels(&self) -> Vec<usize> {
        self.down.iter().map(|level| level.channels).collect()
    }

    /// Checks that a family has levels and prompt embeddings of these widths.
    ///
    /// # Errors
    /// What no family has, in words.
    pub(super) fn check_published(&self, family: &Value) -> Result<(), String> {
        let known = self.channels_of(family);
        if let Some(other) = self.channels().iter().find(|it| !known.contains(it)) {
            return Err(format!("a level of {other} channels"));
        }
        let text = family["cross_attention_dim"].as_u64().map(|text| text as usize);
        match self.text_channels {
            Some(channels) if Some(channels) != text => {
                Err(format!("{channels} channels of prompt embeddings"))
            }
            _ => Ok(()),
        }
    }

    /// A family's configuration with the fields that this structure says otherwise.
    ///
    /// # Errors
    /// A structure that the configuration can't express, in words.
    pub(super) fn configuration(&self, family: &Value) -> Result<Value, String> {
        let mut fields = family.as_object().cloned().unwrap_or_default();
        let channels = self.channels();
        self.set_levels(&mut fields)?;
        set(&mut fields, "in_channels", json!(self.in_channels));
        self.out_channels.into_iter().for_each(|out| set(&mut fields, "out_channels", json!(out)));
        self.text_channels.into_iter().for_each(|text| set(&mut fields, "cross_attention_dim", json!(text)));
        if let Some(added) = self.added_channels {
            set(&mut fields, "projection_class_embeddings_input_dim", json!(added));
        }
        self.condition.into_iter().for_each(|width| set(&mut fields, "time_cond_proj_dim", json!(width)));
        if self.text_channels.is_some() {
            set_default(&mut fields, "use_linear_projection", json!(self.linear), json!(false));
        }
        let heads = family["attention_head_dim"].as_array();
        if heads.is_some_and(|heads| heads.len() != channels.len() || self.channels_of(family) != channels) {
            let heads: Vec<usize> = channels.iter().map(|channels| channels / HEAD).collect();
            fields.insert("attention_head_dim".to_string(), json!(heads));
        }
        set(&mut fields, "block_out_channels", json!(channels));
        Ok(Value::Object(fields))
    }

    /// The channels of the levels of a configuration.
    pub(super) fn channels_of(&self, config: &Value) -> Vec<usize> {
        let channels = config["block_out_channels"].as_array().into_iter().flatten();
        channels.filter_map(Value::as_u64).map(|channels| channels as usize).collect()
    }

    fn set_levels(&self, fields: &mut Map<String, Value>) -> Result<(), String> {
        let kinds = |levels: &[Level], [plain, attending]: [&str; 2]| -> Result<Value, String> {
            let kinds = levels.iter().map(|level| {
                let first = level.depths.first().is_some_and(Option::is_some);
                match level.depths.iter().all(|depth| depth.is_some() == first) {
                    true => Ok(if first { attending } else { plain }),
                    false => Err("a level has layers with attention and layers without".to_string()),
                }
            });
            Ok(json!(kinds.collect::<Result<Vec<_>, _>>()?))
        };
        let is_controlnet = self.up.is_empty();
        set(fields, "down_block_types", kinds(&self.down, ["DownBlock2D", "CrossAttnDownBlock2D"])?);
        if !is_controlnet {
            set(fields, "up_block_types", kinds(&self.up, ["UpBlock2D", "CrossAttnUpBlock2D"])?);
        }
        let layers: Vec<usize> = self.down.iter().map(|level| level.depths.len()).collect();
        let up_layers = self.up.iter().rev().map(|level| level.depths.len());
        if !is_controlnet && !up_layers.eq(layers.iter().map(|layers| layers + 1)) {
            return Err(format!(
                "its down blocks have {layers:?} layers and its up blocks {:?}: one more each is expected",
                self.up.iter().rev().map(|level| level.depths.len()).collect::<Vec<_>>()
            ));
        }
        set(fields, "layers_per_block", uniform(&layers));
        let middle = match self.middle {
            Middle::None => Value::Null,
            Middle::Residual => json!("UNetMidBlock2D"),
            Middle::Attention(_) => json!("UNetMidBlock2DCrossAttn"),
        };
        set_default(fields, "mid_block_type", middle, json!("UNetMidBlock2DCrossAttn"));
        self.set_depths(fields)
    }

    /// Sets the transformers' depths: one number for each level if all its transformers are alike.
    fn set_depths(&self, fields: &mut Map<String, Value>) -> Result<(), String> {
        let last = self.down.len().saturating_sub(1);
        // The middle has the depth of the last level.
        let middle = |level: usize| match self.middle {
            Middle::Attention(depth) if level == last => Some(depth),
            _ => None,
        };
        let up = |level: usize| self.up.iter().rev().nth(level);
        let all = |level: usize| -> Vec<usize> {
            let layers =
                self.down[level].depths.iter().chain(up(level).into_iter().flat_map(|up| &up.depths));
            layers.copied().flatten().chain(middle(level)).collect()
        };
        let all: Vec<Vec<usize>> = (0..self.down.len()).map(all).collect();
        if all.iter().all(|depths| depths.iter().all(|depth| *depth == depths[0])) {
            let depths: Vec<usize> = all.iter().map(|depths| depths.first().copied().unwrap_or(1)).collect();
            set_default(fields, "transformer_layers_per_block", uniform(&depths), json!(1));
            return Ok(());
        }
        let given = |level: usize, of: &Level| -> Vec<usize> {
            of.depths.iter().map(|depth| depth.or(middle(level)).unwrap_or(1)).collect()
        };
        let down: Vec<Vec<usize>> =
            self.down.iter().enumerate().map(|(at, level)| given(at, level)).collect();
        if let (Some(middle), Some(depths)) = (middle(last), down.get(last))
            && depths.first() != Some(&middle)
        {
            return Err(format!("its middle has {middle} transformer blocks and its last level {depths:?}"));
        }
        let up = self.up.iter().enumerate().map(|(at, level)| given(last.saturating_sub(at), level));
        fields.insert("reverse_transformer_layers_per_block".to_string(), json!(up.collect::<Vec<_>>()));
        fields.insert("transformer_layers_per_block".to_string(), json!(down));
        Ok(())
    }
}

/// Channels of an attention head in every family but Stable Diffusion 1, whose number of heads is fixed.
const HEAD: usize = 64;

/// A list, or its number if all entries are the same.
fn uniform(entries: &[usize]) -> Value {
    match entries.first() {
        Some(first) if entries.iter().all(|entry| entry == first) => json!(first),
        _ => json!(entries),
    }
}

fn set(fields: &mut Map<String, Value>, name: &str, value: Value) {
    fields.insert(name.to_string(), value);
}

/// Sets a field, unless it is absent and the value is the one that an absent field has.
fn set_default(fields: &mut Map<String, Value>, name: &str, value: Value, absent: Value) {
    if fields.contains_key(name) || value != absent {
        set(fields, name, value);
    }
}

struct Reader<'r, 'w> {
    tensors: &'r Tensors<'w>,
    modules: &'r Modules,
    /// The first transformer.
    attended: Option<String>,
}

impl Reader<'_, '_> {
    /// The output channels of a residual block, if there is one.
    fn residual(&self, module: &str) -> Option<usize> {
        self.tensors.shape(&format!("{module}.{}", self.modules.residual))?.first().copied()
    }

    /// The blocks of a transformer, if there is one.
    fn transformer(&mut self, module: &str) -> Option<usize> {
        if !self.tensors.has(&format!("{module}.proj_in.weight")) {
            return None;
        }
        let blocks = self.tensors.count(&format!("{module}.transformer_blocks"), "norm1.weight");
        if blocks > 0 && self.attended.is_none() {
            self.attended = Some(module.to_string());
        }
        Some(blocks)
    }

    fn middle(&mut self, residual: &str, transformer: &str) -> Middle {
        match (self.residual(residual), self.transformer(transformer)) {
            (_, Some(depth)) => Middle::Attention(depth),
            (Some(_), None) => Middle::Residual,
            (None, None) => Middle::None,
        }
    }

    /// The levels of diffusers' names.
    fn named_levels(&mut self, blocks: &str) -> Vec<Level> {
        let mut levels = Vec::new();
        while let Some(channels) = self.residual(&format!("{blocks}.{}.resnets.0", levels.len())) {
            let block = format!("{blocks}.{}", levels.len());
            let layers = self.tensors.count(&format!("{block}.resnets"), self.modules.residual);
            let depths =
                (0..layers).map(|layer| self.transformer(&format!("{block}.attentions.{layer}"))).collect();
            levels.push(Level { channels, depths });
        }
        levels
    }

    /// The levels of `ldm`'s names, whose blocks are counted from `first` on. A convolution that changes the
    /// size ends a level: a block by itself on the way down, the end of a layer on the way up.
    fn numbered_levels(&mut self, blocks: &str, first: usize) -> Vec<Level> {
        let mut levels = Vec::new();
        let mut level = Level { channels: 0, depths: Vec::new() };
        for index in first.. {
            let block = format!("{blocks}.{index}");
            let residual = self.residual(&format!("{block}.0"));
            if let Some(channels) = residual {
                level.channels = channels;
                level.depths.push(self.transformer(&format!("{block}.1")));
            }
            let ends = ["0.op", "1.conv", "2.conv"];
            if ends.iter().any(|end| self.tensors.has(&format!("{block}.{end}.weight"))) {
                let depths = std::mem::take(&mut level.depths);
                levels.push(Level { channels: level.channels, depths });
            } else if residual.is_none() {
                break;
            }
        }
        if !level.depths.is_empty() {
            levels.push(level);
        }
        levels
    }
}
