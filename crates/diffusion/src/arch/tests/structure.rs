//! Tests of the graphs' ops, inputs, outputs and tensors.

use mixbit_testkit::{Failures, Fixture};
use serde_json::json;

use super::configs::{
    published, published_safety_checker, published_vae, safety_checker, text_encoder, unet_sd15, unet_sdxl,
    vae,
};
use super::text_encoder::Outputs;
use super::*;

const TEXT: &str = "CLIPTextModel";
const TEXT_2: &str = "CLIPTextModelWithProjection";
const UNET: &str = "UNet2DConditionModel";
const CONTROLNET: &str = "ControlNetModel";
const VAE: &str = "AutoencoderKL";
const SAFETY_CHECKER: &str = "StableDiffusionSafetyChecker";

fn f16(batch: usize, size: usize) -> GraphOptions {
    GraphOptions { batch, height: size, width: size, dtype: DType::F16, ..GraphOptions::default() }
}

/// The ops match the packages by Apple's converter (coremltools 9.0) for the same configurations, plus the
/// casts that keep our sinusoids in fp32.
#[test]
fn ops_are_those_of_apples_packages() {
    type Case =
        (&'static str, &'static str, Part, Value, GraphOptions, &'static [(&'static str, usize)], usize);
    let split =
        |batch, size| GraphOptions { attention: AttentionImplementation::SplitEinsum, ..f16(batch, size) };
    let cases: [Case; 7] = [
        (
            "text encoder",
            TEXT,
            Part::Text(Outputs::LAST),
            text_encoder("quick_gelu", 2, 64),
            f16(1, 8),
            &[
                ("add", 10),
                ("cast", 3),
                ("gather", 1),
                ("gather_nd", 1),
                ("layer_norm", 7),
                ("linear", 18),
                ("matmul", 6),
                ("mul", 9),
                ("reduce_argmax", 1),
                ("reshape", 12),
                ("sigmoid", 3),
                ("softmax", 3),
                ("stack", 1),
                ("transpose", 12),
            ],
            0,
        ),
        (
            "second text encoder",
            TEXT_2,
            Part::Text(Outputs::PENULTIMATE),
            text_encoder("gelu", 999, 80),
            f16(1, 8),
            &[
                ("add", 10),
                ("cast", 4),
                ("equal", 1),
                ("gather", 1),
                ("gather_nd", 1),
                ("gelu", 3),
                ("layer_norm", 7),
                ("linear", 19),
                ("matmul", 6),
                ("mul", 3),
                ("reduce_argmax", 1),
                ("reshape", 12),
                ("softmax", 3),
                ("stack", 1),
                ("transpose", 12),
            ],
            0,
        ),
        (
            "decoder",
            VAE,
            Part::Decoder,
            vae(),
            f16(1, 16),
            &[
                ("add", 46),
                ("batch_norm", 29),
                ("cast", 1),
                ("conv", 35),
                ("linear", 4),
                ("matmul", 2),
                ("mul", 2),
                ("real_div", 30),
                ("reduce_mean", 60),
                ("reshape", 65),
                ("silu", 29),
                ("softmax", 1),
                ("sqrt", 30),
                ("square", 30),
                ("sub", 30),
                ("transpose", 6),
                ("upsample_nearest_neighbor", 3),
            ],
            0,
        ),
        (
            "encoder",
            VAE,
            Part::Encoder,
            vae(),
            f16(1, 16),
            &[
                ("add", 34),
                ("batch_norm", 21),
                ("cast", 1),
                ("conv", 27),
                ("linear", 4),
                ("matmul", 2),
                ("mul", 2),
                ("pad", 3),
                ("real_div", 22),
                ("reduce_mean", 44),
                ("reshape", 49),
                ("silu", 21),
                ("softmax", 1),
                ("sqrt", 22),
                ("square", 22),
                ("sub", 22),
                ("transpose", 6),
            ],
            0,
        ),
        (
            "XL UNet",
            UNET,
            Part::Unet,
            unet_sdxl(),
            f16(2, 16),
            &[
                ("add", 176),
                ("batch_norm", 46),
                ("cast", 1),
                ("concat", 14),
                ("conv", 374),
                ("cos", 2),
                ("expand_dims", 6),
                ("gelu", 28),
                ("layer_norm", 84),
                ("matmul", 112),
                ("mul", 86),
                ("real_div", 46),
                ("reduce_mean", 92),
                ("reshape", 340),
                ("silu", 38),
                ("sin", 2),
                ("slice_by_index", 4),
                ("softmax", 56),
                ("split", 28),
                ("sqrt", 46),
                ("square", 46),
                ("sub", 46),
                ("upsample_nearest_neighbor", 2),
            ],
            4,
        ),
        (
            "XL UNet, split",
            UNET,
            Part::Unet,
            unet_sdxl(),
            split(2, 16),
            &[
                ("add", 176),
                ("batch_norm", 46),
                ("cast", 1),
                ("concat", 70),
                ("conv", 374),
                ("cos", 2),
                ("einsum", 296),
                ("expand_dims", 6),
                ("gelu", 28),
                ("layer_norm", 84),
                ("mul", 178),
                ("real_div", 46),
                ("reduce_mean", 92),
                ("reshape", 116),
                ("silu", 38),
                ("sin", 2),
                ("slice_by_index", 448),
                ("softmax", 148),
                ("split", 28),
                ("sqrt", 46),
                ("square", 46),
                ("sub", 46),
                ("transpose", 56),
                ("upsample_nearest_neighbor", 2),
            ],
            4,
        ),
        (
            "UNet of Stable Diffusion 1, split",
            UNET,
            Part::Unet,
            unet_sd15(),
            split(2, 16),
            &[
                ("add", 169),
                ("batch_norm", 61),
                ("cast", 1),
                ("concat", 46),
                ("conv", 282),
                ("cos", 1),
                ("einsum", 256),
                ("expand_dims", 3),
                ("gelu", 16),
                ("layer_norm", 48),
                ("mul", 145),
                ("real_div", 61),
                ("reduce_mean", 122),
                ("reshape", 154),
                ("silu", 47),
                ("sin", 1),
                ("slice_by_index", 386),
                ("softmax", 128),
                ("split", 16),
                ("sqrt", 61),
                ("square", 61),
                ("sub", 61),
                ("transpose", 32),
                ("upsample_nearest_neighbor", 3),
            ],
            2,
        ),
    ];
    let mut failures = Failures::new("ops");
    for (name, class, part, config, options, expected, more_casts) in cases {
        failures.case(name, || {
            let mut expected: BTreeMap<&str, usize> = expected.iter().copied().collect();
            *expected.entry("cast").or_insert(0) += more_casts;
            let found = histogram(&build_over_zeros(class, part, &config, &options));
            if found == expected { Ok(()) } else { Err(format!("{found:?}, expected {expected:?}")) }
        });
    }
    failures.finish();
}

#[test]
fn published_networks_have_their_published_sizes() {
    let mut failures = Failures::new("published networks");
    for case in published() {
        failures.case(case.name, || {
            let part = if case.class == UNET { Part::Unet } else { Part::Text(Outputs::LAST) };
            let options = GraphOptions { time_ids: case.time_ids, ..GraphOptions::default() };
            let tensors = tensors(case.class, part, &case.config, &options);
            let parameters: usize = tensors.values().map(|shape| shape.iter().product::<usize>()).sum();
            match (tensors.len(), parameters) {
                found if found == (case.tensors, case.parameters) => Ok(()),
                found => Err(format!("{found:?} tensors and parameters")),
            }
        });
    }
    failures.case("autoencoder", || {
        let mut all = BTreeMap::new();
        for part in [Part::Decoder, Part::Encoder] {
            all.extend(tensors(VAE, part, &published_vae(), &GraphOptions::default()));
        }
        let parameters: usize = all.values().map(|shape| shape.iter().product::<usize>()).sum();
        match (all.len(), parameters) {
            (248, 83_653_863) => Ok(()),
            found => Err(format!("{found:?} tensors and parameters")),
        }
    });
    failures.case("safety checker", || {
        let part = Part::SafetyChecker;
        let all = tensors(SAFETY_CHECKER, part, &published_safety_checker(), &GraphOptions::default());
        let parameters: usize = all.values().map(|shape| shape.iter().product::<usize>()).sum();
        match (all.len(), parameters) {
            (396, 303_981_588) => Ok(()),
            found => Err(format!("{found:?} tensors and parameters")),
        }
    });
    failures.finish();
}

/// A build requires exactly the tensors that `save_pretrained` wrote.
#[test]
fn required_tensors_are_those_of_checkpoints() {
    let fixture = Fixture::open("models");
    let mut failures = Failures::new("checkpoints");
    for entry in std::fs::read_dir(fixture.path("")).unwrap() {
        let folder = entry.unwrap().path();
        let config = folder.join("config.json");
        if !config.is_file() {
            continue;
        }
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let config: Value = serde_json::from_slice(&std::fs::read(config).unwrap()).unwrap();
        let mut saved = BTreeMap::new();
        for file in std::fs::read_dir(&folder).unwrap() {
            let file = file.unwrap().file_name().to_string_lossy().into_owned();
            if file.ends_with(".safetensors") {
                let arrays = fixture.arrays(&format!("{name}/{file}"));
                saved.extend(arrays.into_iter().map(|(name, array)| (name, array.shape)));
            }
        }
        failures.case(&name, || {
            saved.remove("text_model.embeddings.position_ids");
            let (class, parts) = class_of(&name, &config);
            let text = saved.get("add_embedding.linear_1.weight").map_or(6, |_| time_ids(&config));
            let options = GraphOptions { time_ids: text, ..GraphOptions::default() };
            let mut required = BTreeMap::new();
            for part in parts {
                required.extend(tensors(class, part, &config, &options));
            }
            saved.remove("vision_model.vision_model.embeddings.position_ids");
            if !saved.keys().any(|name| name.starts_with("vision_model.vision_model.")) {
                required = required
                    .into_iter()
                    .map(|(name, shape)| (name.replace("vision_model.vision_model.", "vision_model."), shape))
                    .collect();
            }
            if !saved.keys().any(|name| name.starts_with("text_model.")) {
                required = required
                    .into_iter()
                    .map(|(name, shape)| (name.trim_start_matches("text_model.").to_string(), shape))
                    .collect();
            }
            match required == saved {
                true => Ok(()),
                false => {
                    let differs = |a: &BTreeMap<String, Vec<usize>>, b: &BTreeMap<String, Vec<usize>>| {
                        a.iter()
                            .find(|(name, shape)| b.get(*name) != Some(*shape))
                            .map(|pair| format!("{pair:?}"))
                    };
                    Err(format!(
                        "required {:?}, saved {:?}",
                        differs(&required, &saved),
                        differs(&saved, &required)
                    ))
                }
            }
        });
    }
    assert!(failures.cases() >= 30, "only {} checkpoints", failures.cases());
    failures.finish();
}

fn class_of(name: &str, config: &Value) -> (&'static str, Vec<Part>) {
    let class = config["_class_name"].as_str().or_else(|| config["architectures"][0].as_str());
    match class {
        Some(VAE) => (VAE, vec![Part::Decoder, Part::Encoder]),
        Some(UNET) => (UNET, vec![Part::Unet]),
        Some(CONTROLNET) => (CONTROLNET, vec![Part::ControlNet]),
        Some(TEXT) => (TEXT, vec![Part::Text(Outputs::LAST)]),
        Some(TEXT_2) => (TEXT_2, vec![Part::Text(Outputs::LAST)]),
        Some(SAFETY_CHECKER) => (SAFETY_CHECKER, vec![Part::SafetyChecker]),
        other => panic!("{name} is of class {other:?}"),
    }
}

/// The tiny XL checkpoints have `text_embeds` narrower than one sinusoid.
fn time_ids(config: &Value) -> usize {
    let [all, each] = ["projection_class_embeddings_input_dim", "addition_time_embed_dim"]
        .map(|field| config[field].as_u64().unwrap() as usize);
    (all / each).min(6)
}

#[test]
fn inputs_and_outputs_are_apples() {
    let shapes = |function: &Function| {
        (signature(function, function.inputs()), signature(function, function.outputs()))
    };
    let io = |entries: &[(&str, DType, &[usize])]| -> Vec<(String, DType, Vec<usize>)> {
        entries.iter().map(|(name, dtype, shape)| (name.to_string(), *dtype, shape.to_vec())).collect()
    };
    let half = DType::F16;
    let full = DType::F32;
    let unet = build_over_zeros(UNET, Part::Unet, &unet_sdxl(), &f16(2, 16));
    let inputs = io(&[
        ("sample", half, &[2, 4, 16, 16]),
        ("timestep", half, &[2]),
        ("encoder_hidden_states", half, &[2, 64, 1, 77]),
        ("time_ids", half, &[2, 6]),
        ("text_embeds", half, &[2, 48]),
    ]);
    assert_eq!(shapes(&unet), (inputs, io(&[("noise_pred", full, &[2, 4, 16, 16])])));
    let decoder = build_over_zeros(VAE, Part::Decoder, &vae(), &GraphOptions { width: 24, ..f16(1, 16) });
    assert_eq!(
        shapes(&decoder),
        (io(&[("z", half, &[1, 4, 16, 24])]), io(&[("image", full, &[1, 3, 128, 192])]))
    );
    let encoder = build_over_zeros(VAE, Part::Encoder, &vae(), &GraphOptions { dtype: full, ..f16(1, 16) });
    assert_eq!(
        shapes(&encoder),
        (io(&[("x", full, &[1, 3, 128, 128])]), io(&[("latent", full, &[1, 8, 16, 16])]))
    );
    for dtype in [half, full] {
        let options = GraphOptions { dtype, ..f16(2, 8) };
        let config = text_encoder("gelu", 999, 80);
        let encoder = build_over_zeros(TEXT_2, Part::Text(Outputs::PENULTIMATE), &config, &options);
        let outputs = io(&[("hidden_embeds", full, &[2, 77, 80]), ("pooled_outputs", full, &[2, 48])]);
        assert_eq!(shapes(&encoder), (io(&[("input_ids", full, &[2, 77])]), outputs));
        let checker = build_over_zeros(SAFETY_CHECKER, Part::SafetyChecker, &safety_checker(), &options);
        let inputs = io(&[
            ("clip_input", dtype, &[2, 3, 56, 56]),
            ("images", dtype, &[2, 64, 64, 3]),
            ("adjustment", dtype, &[1]),
        ]);
        let outputs = io(&[
            ("filtered_images", full, &[2, 64, 64, 3]),
            ("has_nsfw_concepts", full, &[2, 1, 1, 1]),
            ("concept_scores", full, &[2, 17]),
        ]);
        assert_eq!(shapes(&checker), (inputs, outputs));
    }
}

#[test]
fn constants_keep_their_checkpoint_names() {
    let function = build_over_zeros(UNET, Part::Unet, &unet_sd15(), &GraphOptions::default());
    let path = "down_blocks.1.attentions.0.transformer_blocks.0.attn1";
    for projection in ["to_q", "to_k", "to_v", "to_out.0"] {
        let name = format!("{path}.{projection}.weight");
        let found = function.values().iter().find_map(|value| match &value.def {
            Def::Const(Constant::Weight(weight)) if weight.name() == name => Some(weight.ty().shape.clone()),
            _ => None,
        });
        assert_eq!(found, Some(vec![64, 64, 1, 1]), "{name}");
    }
    let weights =
        Zeros(BTreeMap::from([("extra".to_string(), vec![1]), ("conv_in.bias".to_string(), vec![32])]));
    assert_eq!(unused_weights(&weights, &[&function]), ["extra"]);
}

#[test]
fn skipped_layers_are_not_built_unless_they_are_pooled() {
    let config = text_encoder("quick_gelu", 2, 64);
    let options = GraphOptions { tokens: 20, ..GraphOptions::default() };
    let build = |outputs| {
        let function = build_over_zeros(TEXT, Part::Text(outputs), &config, &options);
        let layers = histogram(&function)["softmax"];
        let outputs = signature(&function, function.outputs()).into_iter().map(|(name, ..)| name);
        (layers, outputs.collect::<Vec<_>>())
    };
    assert_eq!(build(Outputs::LAST).0, 3);
    assert_eq!(build(Outputs::PENULTIMATE).0, 3);
    let one = Outputs { skipped_layers: 2, final_norm: true, pooled: false };
    assert_eq!(build(one), (1, vec!["last_hidden_state".to_string()]));
    let both = Outputs { pooled: true, ..one };
    assert_eq!(build(both), (3, vec!["last_hidden_state".to_string(), "pooled_outputs".to_string()]));
}

#[test]
fn tensor_names_may_lack_the_prefix_or_be_old() {
    let config = text_encoder("quick_gelu", 2, 64);
    let part = Part::Text(Outputs::LAST);
    let options = GraphOptions::default();
    let named = tensors(TEXT, part, &config, &options);
    let bare = named.into_iter().map(|(name, shape)| (name.replace("text_model.", ""), shape)).collect();
    build(TEXT, part, &config, &Zeros(bare), &options).unwrap();

    let new = [".to_q.", ".to_k.", ".to_v.", ".to_out.0."];
    let old = [".query.", ".key.", ".value.", ".proj_attn."];
    let rename = |(name, shape): (String, Vec<usize>)| {
        (new.iter().zip(old).fold(name, |name, (new, old)| name.replace(new, old)), shape)
    };
    let old: BTreeMap<_, _> = tensors(VAE, Part::Decoder, &vae(), &options).into_iter().map(rename).collect();
    assert!(old.contains_key("decoder.mid_block.attentions.0.proj_attn.bias"));
    build(VAE, Part::Decoder, &vae(), &Zeros(old), &options).unwrap();
}

#[test]
fn kernels_and_matrices_are_both_taken() {
    let flip = |shape: Vec<usize>| match shape[..] {
        [out, into] => vec![out, into, 1, 1],
        [out, into, 1, 1] => vec![out, into],
        _ => shape,
    };
    let options = GraphOptions { height: 8, width: 8, ..GraphOptions::default() };
    for (class, part, config) in [(UNET, Part::Unet, unet_sd15()), (VAE, Part::Decoder, vae())] {
        let flipped =
            tensors(class, part, &config, &options).into_iter().map(|(name, shape)| (name, flip(shape)));
        build(class, part, &config, &Zeros(flipped.collect()), &options).unwrap();
    }
}

#[test]
fn opsets_and_precisions_change_only_what_they_must() {
    let newest = GraphOptions { opset: Opset::Ios18, ..GraphOptions::default() };
    let attention = "scaled_dot_product_attention";
    let decoder = histogram(&build_over_zeros(VAE, Part::Decoder, &vae(), &newest));
    assert_eq!((decoder[attention], decoder.get("softmax")), (1, None));
    let small = GraphOptions { height: 8, width: 8, ..newest };
    assert!(!histogram(&build_over_zeros(UNET, Part::Unet, &unet_sd15(), &small)).contains_key(attention));

    let mut upcast = unet_sd15();
    upcast["upcast_attention"] = json!(true);
    let casts = |config: &Value, dtype| {
        let options = GraphOptions { dtype, height: 8, width: 8, ..GraphOptions::default() };
        histogram(&build_over_zeros(UNET, Part::Unet, config, &options)).get("cast").copied().unwrap_or(0)
    };
    assert_eq!(casts(&upcast, DType::F32), 0);
    assert_eq!(casts(&unet_sd15(), DType::F16), 3);
    assert_eq!(casts(&upcast, DType::F16), 3 + 3 * 32);
}

#[test]
fn sizes_that_do_not_halve_evenly_are_resized() {
    let options = GraphOptions { height: 9, width: 13, ..GraphOptions::default() };
    let counts = histogram(&build_over_zeros(UNET, Part::Unet, &unet_sd15(), &options));
    assert_eq!((counts["resize_nearest_neighbor"], counts.get("upsample_nearest_neighbor")), (3, None));
}

#[test]
fn the_text_width_tells_how_many_time_ids_there_are() {
    let config = unet::Config::from_json(&unet_sdxl()).unwrap();
    assert_eq!(config.time_id_count(48), Ok(Some(6)));
    assert_eq!(config.time_id_count(64), Ok(Some(5)));
    assert!(config.time_id_count(50).is_err() && config.time_id_count(144).is_err());
    let plain = unet::Config::from_json(&unet_sd15()).unwrap();
    assert_eq!(plain.time_id_count(48), Ok(None));
}
