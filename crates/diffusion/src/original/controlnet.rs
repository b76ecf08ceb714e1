//! ControlNets in files of their own.

use std::collections::BTreeMap;
use std::sync::Arc;

use mixbit_mil::Weights;
use serde_json::{Value, json};

use super::place::{self, Found, Mapped, PartNaming};
use super::structure::{Naming, Structure};
use super::{Names, OriginalError, POOLED, Training, family_of};
use crate::arch::{self, Config};
use crate::model::{FileError, ModelFiles};

const CLASS: &str = "ControlNetModel";

/// The folder in errors.
const COMPONENT: &str = "ControlNet";

/// Fields of a UNet's configuration that a ControlNet has not.
const OF_UNETS: [&str; 3] = ["up_block_types", "out_channels", "reverse_transformer_layers_per_block"];

/// The places of a ControlNet, and a tensor that tells each.
const SPOTS: [(&str, Naming, &str); 3] = [
    ("control_model.", Naming::Original, "control_model.input_hint_block.0.weight"),
    ("", Naming::Original, "input_hint_block.0.weight"),
    ("", Naming::Diffusers, "controlnet_cond_embedding.conv_in.weight"),
];

/// A ControlNet in a file, as a model of that alone.
pub struct ControlNetFile {
    name: String,
    weights: Arc<Mapped>,
    config: Value,
}

impl ControlNetFile {
    /// The ControlNet among a file's tensors, under a name; `None` if there is none. Its configuration is
    /// that of the family whose UNet it is for, with what the tensors say otherwise.
    ///
    /// # Errors
    /// A structure or tensors that no family has.
    pub fn find(weights: Arc<dyn Weights>, name: &str) -> Result<Option<Self>, OriginalError> {
        let spot = SPOTS.iter().find(|(_, _, mark)| weights.get(mark).is_some());
        let Some(&(prefix, naming, _)) = spot else { return Ok(None) };
        let found = Found { prefix, naming: PartNaming::Unet(naming) };
        let tensors = found.tensors(&*weights);
        let structure = Structure::read(&tensors);
        let family = family_of(structure.as_ref(), &Training::default(), &BTreeMap::new(), &*weights);
        let unet = family.files().json("unet", "config.json").map_err(OriginalError::File)?;
        let unusual =
            |what| OriginalError::Unusual { component: COMPONENT.to_string(), family: family.title, what };
        let structure = structure.ok_or_else(|| unusual("no input convolution".to_string()))?;
        structure.check_published(&unet).map_err(unusual)?;
        let mut config = structure.configuration(&unet).map_err(unusual)?;
        if let Value::Object(fields) = &mut config {
            fields.retain(|field, _| !OF_UNETS.contains(&field.as_str()));
            fields.insert("_class_name".to_string(), json!(CLASS));
        }
        let network = |source| OriginalError::Network { component: COMPONENT.to_string(), source };
        let read = arch::lookup(CLASS).and_then(|it| it.config(&config)).map_err(network)?;
        let needed = read.tensors(POOLED).map_err(network)?;
        let names = match (&read, naming) {
            (Config::ControlNet(config), Naming::Original) => Some(Names::controlnet(config)),
            _ => None,
        };
        let mapped = Mapped::new(weights.clone(), &found, names.as_ref(), &needed);
        let weights = Arc::new(mapped.map_err(|problem: place::Problem| problem.of(COMPONENT))?);
        Ok(Some(ControlNetFile { name: name.to_string(), weights, config }))
    }

    /// The name of its component.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl ModelFiles for ControlNetFile {
    fn class(&self) -> &str {
        CLASS
    }

    fn component(&self, name: &str) -> Option<&str> {
        (name == self.name).then_some(CLASS)
    }

    fn option(&self, _: &str) -> Option<Value> {
        None
    }

    fn json(&self, component: &str, file: &str) -> Result<Value, FileError> {
        match (component == self.name, file) {
            (true, "config.json") => Ok(self.config.clone()),
            _ => Err(format!("a ControlNet's file has no {component}/{file}").into()),
        }
    }

    fn text(&self, _: &str, _: &str) -> Result<Option<String>, FileError> {
        Ok(None)
    }

    fn weights(&self, component: &str) -> Result<Arc<dyn Weights>, FileError> {
        match component == self.name {
            true => Ok(self.weights.clone()),
            false => Err(format!("a ControlNet's file has no {component}").into()),
        }
    }
}
