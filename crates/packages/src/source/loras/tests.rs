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
            let fit = &merged.opening().loras[0].fit;
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

/// Names of one module in every naming, and the tensor.
#[test]
fn every_naming_is_known() {
    let scratch = mixbit_testkit::Scratch::new();
    let [q, out] = ["self_attn.q_proj", "self_attn.out_proj"];
    let layer = "text_model.encoder.layers.0";
    let unet = "unet/down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0.weight";
    // transformers 5 leaves `text_model.` out of the first encoder's names.
    let of_text = |encoder: &str, module: &str| match encoder {
        "text_encoder" => format!("{encoder}/encoder.layers.0.{module}.weight"),
        _ => format!("{encoder}/{layer}.{module}.weight"),
    };
    let (first, second) = ("text_encoder", "text_encoder_2");
    let flat = "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0";
    let dotted = "down_blocks.1.attentions.0.transformer_blocks.0.attn1";
    let cases = [
        (
            format!("lora_unet_{flat}.lora_down.weight"),
            format!("lora_unet_{flat}.lora_up.weight"),
            unet.to_string(),
        ),
        (
            format!("lycoris_{flat}.lora_down.weight"),
            format!("lycoris_{flat}.lora_up.weight"),
            unet.to_string(),
        ),
        (
            "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_out_0.lora_down.weight".to_string(),
            "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_out_0.lora_up.weight".to_string(),
            unet.to_string(),
        ),
        (
            format!("unet.{dotted}.processor.to_out_lora.down.weight"),
            format!("unet.{dotted}.processor.to_out_lora.up.weight"),
            unet.to_string(),
        ),
        (
            format!("base_model.model.{dotted}.to_out.0.lora_A.default.weight"),
            format!("base_model.model.{dotted}.to_out.0.lora_B.default.weight"),
            unet.to_string(),
        ),
        (
            format!("unet.base_model.model.{dotted}.to_out.0.lora_A.weight"),
            format!("unet.base_model.model.{dotted}.to_out.0.lora_B.weight"),
            unet.to_string(),
        ),
        (
            format!("text_encoder.{layer}.{q}.lora_linear_layer.down.weight"),
            format!("text_encoder.{layer}.{q}.lora_linear_layer.up.weight"),
            of_text(first, q),
        ),
        (
            format!("text_encoder_2.{layer}.self_attn.to_out_lora.down.weight"),
            format!("text_encoder_2.{layer}.self_attn.to_out_lora.up.weight"),
            of_text(second, out),
        ),
        (
            "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight".to_string(),
            "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight".to_string(),
            of_text(first, "mlp.fc1"),
        ),
        (
            "lora_te2_transformer_resblocks_0_mlp_c_fc.lora_down.weight".to_string(),
            "lora_te2_transformer_resblocks_0_mlp_c_fc.lora_up.weight".to_string(),
            of_text(second, "mlp.fc1"),
        ),
        (
            "lora_te2_text_projection.lora_down.weight".to_string(),
            "lora_te2_text_projection.lora_up.weight".to_string(),
            "text_encoder_2/text_projection.weight".to_string(),
        ),
    ];
    let base = opened("sdxl", &[]).unwrap();
    let mut failures = Failures::new("namings");
    for (index, (down, up, place)) in cases.into_iter().enumerate() {
        failures.case(&down.clone(), || {
            let (component, tensor) = place.split_once('/').unwrap();
            let weight = base.files().weights(component).unwrap().get(tensor).ok_or("no such tensor")?;
            let [rows, columns] = [weight.ty().shape[0], weight.ty().shape[1]];
            let path = scratch.path().join(format!("{index}.safetensors"));
            write(&path, &[(&down, vec![1, columns]), (&up, vec![rows, 1])]);
            let merged =
                opened("sdxl", &[(&path.display().to_string(), 1.0)]).map_err(|it| it.to_string())?;
            let found = values(&merged, component, tensor);
            let own = floats(&weight);
            let is_changed = found.iter().zip(&own).all(|(found, own)| (found - own - 1.0).abs() < 2e-3);
            if is_changed { Ok(()) } else { Err("it is not changed by 1".to_string()) }
        });
    }
    failures.finish();
}

/// Writes tensors of ones.
fn write(path: &Path, tensors: &[(&str, Vec<usize>)]) {
    let specs: Vec<_> = tensors
        .iter()
        .map(|(name, shape)| mixbit_formats::safetensors::TensorSpec {
            name: name.to_string(),
            ty: mixbit_mil::TensorType::new(DType::F32, shape.clone()),
        })
        .collect();
    mixbit_formats::safetensors::write(path, &Default::default(), &specs, |index, out| {
        let count = specs[index].ty.count();
        out.write_all(&1f32.to_le_bytes().repeat(count))
    })
    .unwrap();
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
    assert_eq!(twice.opening().loras.len(), 3);
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
            Ok(model) => Err(format!("it is taken: {:?}", model.opening().loras)),
            Err(error) if error.to_string().contains(expected) => Ok(()),
            Err(error) => Err(error.to_string()),
        });
    }
    failures.finish();
}
