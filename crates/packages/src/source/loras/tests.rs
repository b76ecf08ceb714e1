//! Adapters of every family beside the weights that the libraries of their makers merge.

use mixbit_mil::{DType, WeightRef, Weights};
use mixbit_testkit::{Failures, Fixture, fixture_root};
use serde_json::Value;

use super::*;
use crate::source::{DIFFUSERS, OpenOptions, OpenedModel, open};

/// The largest difference, relative to the largest element.
const TOLERANCE: f32 = 1e-3;

fn pipeline(model: &str) -> PathBuf {
    fixture_root().join("pipelines").join(model)
}

fn adapter(name: &str) -> PathBuf {
    fixture_root().join("adapters").join(format!("{name}.safetensors"))
}

fn opened(model: &str, loras: &[(&str, f32)]) -> Result<OpenedModel, OpenError> {
    let loras = loras.iter().map(|(name, weight)| {
        let path = if name.contains('/') { PathBuf::from(name) } else { adapter(name) };
        Lora { path, strength: Strength::of(*weight) }
    });
    let options = OpenOptions { loras: loras.collect(), ..OpenOptions::default() };
    open(Some(&pipeline(model)), &options, [&DIFFUSERS])
}

fn floats(weight: &WeightRef) -> Vec<f32> {
    let weight = weight.cast(DType::F32);
    let bytes = weight.read().unwrap();
    bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

fn values(model: &OpenedModel, component: &str, tensor: &str) -> Vec<f32> {
    floats(&model.files().weights(component).unwrap().get(tensor).unwrap())
}

#[test]
fn every_family_is_merged_as_its_library_does() {
    let fixture = Fixture::open("adapters");
    let cases = fixture.json("cases.json");
    let expected = TensorFile::open(&fixture_root().join("adapters/expected.safetensors")).unwrap();
    let mut failures = Failures::new("adapters");
    for case in cases["cases"].as_array().unwrap() {
        let (name, model) = (case["name"].as_str().unwrap(), case["model"].as_str().unwrap());
        failures.case(name, || {
            let base = opened(model, &[]).map_err(|error| error.to_string())?;
            let merged = opened(model, &[(name, 1.0)]).map_err(|error| error.to_string())?;
            let fit = &merged.loras()[0].fit;
            if fit.matched != fit.layers || !fit.unmatched.is_empty() {
                return Err(format!("{fit:?}"));
            }
            let changed: Vec<&str> =
                case["changed"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
            for &place in &changed {
                let (component, tensor) = place.split_once('/').unwrap();
                let wanted = floats(&expected.get(&format!("{name}/{place}")).unwrap());
                let found = values(&merged, component, tensor);
                let largest = wanted.iter().fold(0f32, |largest, value| largest.max(value.abs()));
                let pairs = found.iter().zip(&wanted);
                let error = pairs.fold(0f32, |error, (a, b)| error.max((a - b).abs())) / largest;
                if found.len() != wanted.len() || error.is_nan() || error > TOLERANCE {
                    return Err(format!("{place}: {error}"));
                }
                if found == values(&base, component, tensor) {
                    return Err(format!("{place}: unchanged"));
                }
            }
            for component in ["unet", "text_encoder", "text_encoder_2"] {
                let Ok(weights) = base.files().weights(component) else { continue };
                let others = weights.names().into_iter();
                for tensor in others.filter(|tensor| !changed.contains(&&*format!("{component}/{tensor}"))) {
                    if floats(&weights.get(tensor).unwrap()) != values(&merged, component, tensor) {
                        return Err(format!("{component}/{tensor} is changed"));
                    }
                }
            }
            Ok(())
        });
    }
    failures.finish();
}

#[test]
fn strengths_scale_and_add_up() {
    let tensor = "down_blocks.0.resnets.0.conv1.weight";
    let base = values(&opened("sd15", &[]).unwrap(), "unet", tensor);
    for name in ["kohya-sd15", "dora-outputs", "full"] {
        let none = opened("sd15", &[(name, 0.0)]).unwrap();
        assert_eq!(values(&none, "unet", tensor), base, "{name}");
    }
    let back = opened("sd15", &[("kohya-sd15", 0.7), ("kohya-sd15", -0.7)]).unwrap();
    assert_eq!(values(&back, "unet", tensor), base);
    let twice = opened("sd15", &[("kohya-sd15", 0.5), ("full", 0.0), ("kohya-sd15", 0.5)]).unwrap();
    assert_eq!(twice.loras().len(), 3);
    let once = opened("sd15", &[("kohya-sd15", 1.0)]).unwrap();
    let pairs = values(&twice, "unet", tensor).into_iter().zip(values(&once, "unet", tensor));
    assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 2e-3));
}

#[test]
fn files_that_do_not_fit_are_answered() {
    let scratch = mixbit_testkit::Scratch::new();
    let file = |name: &str, tensor: &str| {
        let specs = [mixbit_formats::safetensors::TensorSpec {
            name: tensor.to_string(),
            ty: mixbit_mil::TensorType::new(DType::F16, [1, 1]),
        }];
        let path = scratch.path().join(name);
        mixbit_formats::safetensors::write(&path, &Default::default(), &specs, |_, out| {
            out.write_all(&[0; 2])
        })
        .unwrap();
        path.display().to_string()
    };
    let unet = pipeline("sd15").join("unet/diffusion_pytorch_model.safetensors").display().to_string();
    let module = "lora_unet_mid_block_attentions_0_proj_in";
    let cases = [
        ("kohya-sdxl".to_string(), "made for a model with prompt embeddings of 40 channels, and this model"),
        (unet, "it is a model ("),
        (file("oft", "lora_unet_x.oft_blocks"), "OFT adapters are not supported"),
        (file("ia3", "lora_unet_x.on_input"), "IA3 adapters are not supported"),
        (file("glora", "lora_unet_x.a1.weight"), "GLoRA adapters are not supported"),
        (file("half", &format!("{module}.lora_up.weight")), "one of its two factors is missing"),
        (file("flux", "lora_unet_double_blocks_0_x.diff"), "made for Flux"),
        (file("text", "emb_params"), "a textual inversion"),
        (file("any", "x"), "it holds no LoRA (its first tensor is `x`)"),
    ];
    let mut failures = Failures::new("adapters that do not fit");
    for (path, expected) in &cases {
        failures.case(path, || match opened("sd15", &[(path, 1.0)]) {
            Ok(model) => Err(format!("it is taken: {:?}", model.loras())),
            Err(error) if error.to_string().contains(expected) => Ok(()),
            Err(error) => Err(error.to_string()),
        });
    }
    failures.finish();
}
