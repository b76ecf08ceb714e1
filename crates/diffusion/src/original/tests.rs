use std::collections::BTreeMap;
use std::sync::Arc;

use mixbit_mil::{Bytes, DType, TensorType, WeightRef, Weights};
use serde_json::{Value, json};

use super::*;
use crate::model::component_config;

/// Tensors of zeros, by name and shape.
#[derive(Default)]
struct Zeros(BTreeMap<String, Vec<usize>>);

impl Weights for Zeros {
    fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    fn get(&self, name: &str) -> Option<WeightRef> {
        let ty = TensorType::new(DType::F16, self.0.get(name)?.clone());
        let bytes = Bytes::new(vec![0u8; ty.byte_len()?]);
        WeightRef::new(name, ty, bytes).ok()
    }
}

/// The UNet of a configuration, in the original layout.
fn unet_file(config: &Value) -> Zeros {
    let Ok(Config::Unet(unet)) = arch::lookup("UNet2DConditionModel").unwrap().config(config) else {
        panic!("no UNet")
    };
    let names = Names::unet(&unet);
    let tensors = Config::Unet(unet).tensors(POOLED).unwrap().into_iter().map(|(name, shape)| {
        let place = names.place(&name).unwrap_or_else(|| panic!("{name} has no place"));
        assert_eq!(names.diffusers_of(&place.name).as_deref(), Some(&*name));
        (format!("model.diffusion_model.{}", place.name), shape)
    });
    let count = tensors.len();
    let file: BTreeMap<_, _> = tensors.collect();
    assert_eq!(file.len(), count, "two tensors have one name");
    Zeros(file)
}

fn found(file: Zeros, metadata: &[(&str, &str)]) -> Original {
    let metadata = metadata.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    Original::find(Arc::new(file), &metadata, false).unwrap()
}

#[test]
fn published_unets_are_told_and_need_no_configuration() {
    for (family, predicted) in [
        ("sd15", "epsilon"),
        ("sd21", "v"),
        ("sd21-base", "epsilon"),
        ("sdxl-base", "epsilon"),
        ("sdxl-refiner", "epsilon"),
    ] {
        let own = Family::of_name(family).unwrap().files().json("unet", "config.json").unwrap();
        let original = found(unet_file(&own), &[("modelspec.predict_key", predicted)]);
        assert_eq!(original.family().name, family);
        let config = original.config("unet", &Base::default()).unwrap();
        let read = |value: &Value| arch::lookup("UNet2DConditionModel").unwrap().config(value).unwrap();
        let (Config::Unet(mine), Config::Unet(theirs)) = (read(&config), read(&own)) else {
            panic!("{family}")
        };
        assert_eq!(mine, theirs, "{family}");
    }
}

/// Fine-tunes with blocks removed, as their makers published them: family, changed fields.
fn reduced() -> [(&'static str, &'static str, Value); 5] {
    [
        (
            "SSD-1B",
            "sdxl-base",
            json!({
                "mid_block_type": "UNetMidBlock2D",
                "transformer_layers_per_block": [[0, 0], [2, 2], [4, 4]],
                "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], [0, 0, 0]],
            }),
        ),
        (
            "Vega",
            "sdxl-base",
            json!({"mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": [0, 1, 2]}),
        ),
        (
            "KOALA-700M",
            "sdxl-base",
            json!({
                "mid_block_type": null, "layers_per_block": 1,
                "transformer_layers_per_block": [0, 2, 5],
            }),
        ),
        ("KOALA-1B", "sdxl-base", json!({"layers_per_block": 1, "transformer_layers_per_block": [0, 2, 6]})),
        (
            "tiny-sd",
            "sd15",
            json!({
                "mid_block_type": null, "layers_per_block": 1, "block_out_channels": [320, 640, 1280],
                "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            }),
        ),
    ]
}

#[test]
fn fine_tunes_with_blocks_removed_are_told_by_their_depths() {
    for (name, family, changed) in reduced() {
        let mut own = Family::of_name(family).unwrap().files().json("unet", "config.json").unwrap();
        for (field, value) in changed.as_object().unwrap() {
            own[field] = value.clone();
        }
        let read = |value: &Value| arch::lookup("UNet2DConditionModel").unwrap().config(value).unwrap();
        let original = found(unet_file(&own), &[]);
        let config =
            original.config("unet", &Base::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (Config::Unet(mine), Config::Unet(theirs)) = (read(&config), read(&own)) else {
            panic!("{name}")
        };
        assert_eq!(mine, theirs, "{name}");
    }
}

#[test]
fn unusual_widths_ask_for_a_configuration() {
    let mut own = Family::of_name("sd15").unwrap().files().json("unet", "config.json").unwrap();
    own["block_out_channels"] = json!([64, 128, 256, 256]);
    let original = found(unet_file(&own), &[]);
    let error = original.config("unet", &Base::default()).unwrap_err().to_string();
    assert!(error.contains("64 channels") && error.contains("--config DIR"), "{error}");
}

#[test]
fn every_tensor_of_published_networks_has_one_place() {
    for family in crate::family::FAMILIES {
        let files = family.files();
        for component in ["vae", "text_encoder", "text_encoder_2"] {
            if files.component(component).is_none() {
                continue;
            }
            let config = component_config(&files, component).unwrap();
            let names = match &config {
                Config::Vae(config) => Names::vae(config),
                _ => Names::open_clip(),
            };
            let places: Vec<Place> = config
                .tensors(POOLED)
                .unwrap()
                .keys()
                .map(|name| names.place(name).unwrap_or_else(|| panic!("{component}: {name}")))
                .collect();
            let mut distinct: Vec<String> = places.iter().map(|place| format!("{place:?}")).collect();
            distinct.sort();
            distinct.dedup();
            assert_eq!(distinct.len(), places.len(), "{} {component}", family.name);
        }
    }
}

#[test]
fn a_controlnet_of_published_widths_is_found_in_its_file() {
    let unet = Family::of_name("sdxl-base").unwrap().files().json("unet", "config.json").unwrap();
    let mut config = unet.clone();
    config.as_object_mut().unwrap().remove("up_block_types");
    config.as_object_mut().unwrap().remove("out_channels");
    let read = |config: &Value| arch::lookup("ControlNetModel").unwrap().config(config).unwrap();
    let Config::ControlNet(own) = read(&config) else { panic!("no ControlNet") };
    let names = Names::controlnet(&own);
    let tensors = Config::ControlNet(own.clone()).tensors(POOLED).unwrap();
    let named = |name: &String| format!("control_model.{}", names.place(name).unwrap().name);
    let original = Zeros(tensors.iter().map(|(name, shape)| (named(name), shape.clone())).collect());
    for file in [original, Zeros(tensors.clone())] {
        let found = ControlNetFile::find(Arc::new(file), "canny").unwrap().unwrap();
        let config = found.json("canny", "config.json").unwrap();
        let Config::ControlNet(mine) = read(&config) else { panic!("no ControlNet") };
        assert_eq!(mine, own);
        assert!(found.weights("canny").unwrap().names().into_iter().eq(tensors.keys()));
    }
    assert!(ControlNetFile::find(Arc::new(unet_file(&unet)), "unet").unwrap().is_none());
}
