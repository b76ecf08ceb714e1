//! Tests of rejected configurations, options and weights.

use mixbit_testkit::Failures;
use serde_json::json;

use super::configs::{safety_checker, text_encoder, unet_sd15, unet_sdxl, vae};
use super::text_encoder::Outputs;
use super::*;

type Case = (&'static str, Part, Value);

fn bases() -> [Case; 5] {
    [
        ("CLIPTextModelWithProjection", Part::Text(Outputs::LAST), text_encoder("gelu", 999, 80)),
        ("UNet2DConditionModel", Part::Unet, unet_sd15()),
        ("UNet2DConditionModel", Part::Unet, unet_sdxl()),
        ("AutoencoderKL", Part::Decoder, vae()),
        ("StableDiffusionSafetyChecker", Part::SafetyChecker, safety_checker()),
    ]
}

/// Options for a fast build of the small networks.
fn small() -> GraphOptions {
    GraphOptions { height: 8, width: 8, tokens: 7, ..GraphOptions::default() }
}

/// `EMAModel.save_pretrained` of diffusers adds these to any network's configuration.
#[test]
fn fields_of_averaging_change_nothing() {
    let averaging = json!({
        "decay": 0.9999, "inv_gamma": 1.0, "min_decay": 0.1, "optimization_step": 37000, "power": 0.667,
        "update_after_step": 5, "use_ema_warmup": true
    });
    let control = ("ControlNetModel", Part::Unet, unet_sd15());
    for (class, _, base) in bases().into_iter().chain([control]) {
        let mut config = base.clone();
        config.as_object_mut().unwrap().extend(averaging.as_object().unwrap().clone());
        let read = |config: &Value| format!("{:?}", lookup(class).unwrap().config(config));
        let expected = read(&base);
        assert!(expected.starts_with("Ok"), "{class}: {expected}");
        assert_eq!(read(&config), expected, "{class}");
    }
}

#[test]
fn a_whole_clip_holds_the_text_encoder_in_text_config() {
    for class in ["CLIPTextModel", "CLIPTextModelWithProjection"] {
        let text = text_encoder("gelu", 999, 80);
        let whole = json!({
            "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 7, "text_config": text,
            "logit_scale_init_value": 2.6592, "vision_config": { "hidden_size": 32 }
        });
        let read = |config: &Value| format!("{:?}", lookup(class).unwrap().config(config));
        let expected = read(&text);
        assert!(expected.starts_with("Ok"), "{class}: {expected}");
        assert_eq!(read(&whole), expected, "{class}");
    }
}

#[test]
fn transformers_of_depth_zero_are_their_projections() {
    let mut config = unet_sdxl();
    config["transformer_layers_per_block"] = json!([0, 0, 3]);
    let config = lookup("UNet2DConditionModel").unwrap().config(&config).unwrap();
    let Config::Unet(config) = config else { panic!("a UNet") };
    let depths = |stage: &unet::Stage| stage.attention.as_ref().map(|attention| attention.depths.clone());
    assert_eq!(
        config.down.iter().map(depths).collect::<Vec<_>>(),
        [None, Some(vec![0, 0]), Some(vec![3, 3])]
    );
    let tensors = required_tensors(|weights| unet::build(&config, weights, &small())).unwrap();
    let has = |part: &str| tensors.keys().any(|name| name.contains(part));
    assert!(
        has("down_blocks.1.attentions.0.proj_in") && !has("down_blocks.1.attentions.0.transformer_blocks")
    );
}

#[test]
fn unsupported_values_are_refused_by_name() {
    let [text, unet, xl, vae, checker] = bases();
    let cases: [(&Case, &str, Value, &str); 37] = [
        (&text, "hidden_act", json!("gelu_10"), "quick_gelu"),
        (&text, "num_attention_heads", json!(7), "divide"),
        (&text, "eos_token_id", json!([1, 2]), "one id"),
        (&text, "model_type", json!("t5"), "clip_text_model"),
        (&text, "layer_norm_eps", json!(0), "above 0"),
        (&text, "rotary", json!(true), "unknown"),
        (&text, "projection_dim", json!(null), "whole number"),
        (
            &unet,
            "down_block_types",
            json!(["AttnDownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D"]),
            "CrossAttnDownBlock2D",
        ),
        (&unet, "down_block_types", json!(["DownBlock2D"]), "levels"),
        (&unet, "up_block_types", json!("UpBlock2D"), "list"),
        (&unet, "mid_block_type", json!("UNetMidBlock2DSimpleCrossAttn"), "UNetMidBlock2DCrossAttn"),
        (&unet, "act_fn", json!("tanh"), "silu"),
        (&unet, "attention_head_dim", json!(7), "divide"),
        (&unet, "attention_head_dim", json!([8, 8]), "levels"),
        (&unet, "attention_type", json!("gated"), "default"),
        (&unet, "dual_cross_attention", json!(true), "false"),
        (&unet, "addition_embed_type", json!("image"), "text_time"),
        (&unet, "addition_embed_type", json!("text_time"), "must be there"),
        (&unet, "class_embed_type", json!("other"), "projection"),
        (&unet, "class_embed_type", json!("projection"), "must be there"),
        (&unet, "encoder_hid_dim_type", json!("ip_image_proj"), "text_proj"),
        (&unet, "encoder_hid_dim_type", json!("text_proj"), "encoder_hid_dim"),
        (&unet, "time_embedding_type", json!("wavelet"), "fourier"),
        (&unet, "resnet_time_scale_shift", json!("ada_group"), "scale_shift"),
        (&unet, "norm_num_groups", json!(5), "divide"),
        (&unet, "norm_num_groups", json!(null), "whole number"),
        (&unet, "conv_in_kernel", json!(4), "odd"),
        (&unet, "downsample_padding", json!(2), "0, 1"),
        (&unet, "freq_shift", json!(16), "half"),
        (
            &unet,
            "transformer_layers_per_block",
            json!([1, [1, 1], 1, 1]),
            "reverse_transformer_layers_per_block",
        ),
        (&xl, "cross_attention_dim", json!([64, 64, 32]), "not supported"),
        (&vae, "down_block_types", json!(vec!["AttnDownEncoderBlock2D"; 4]), "DownEncoderBlock2D"),
        (&vae, "latents_mean", json!([0.0]), "not 4"),
        (&checker, "model_type", json!("siglip"), "clip"),
        (&checker, "projection_dim", json!(0), "whole number"),
        (&checker, "vision_config", json!({ "hidden_act": "tanh" }), "vision_config.hidden_act"),
        (&checker, "vision_config", json!({ "patch_size": 225 }), "vision_config.patch_size"),
    ];
    let mut failures = Failures::new("refusals");
    for ((class, _, base), field, value, supported) in cases {
        failures.case(&format!("{class} {field} {value}"), || {
            let mut config = base.clone();
            config[field] = value;
            match lookup(class).unwrap().config(&config) {
                Ok(_) => Err("was taken".to_string()),
                Err(error @ ArchError::Config { .. }) => {
                    let text = error.to_string();
                    let tells = text.contains(supported) && !text.contains('\n');
                    if tells { Ok(()) } else { Err(format!("says: {text}")) }
                }
                Err(error) => Err(format!("another error: {error}")),
            }
        });
    }
    failures.finish();
    let error = lookup("FluxTransformer2DModel").map(|found| found.class).unwrap_err().to_string();
    assert!(error.contains("FluxTransformer2DModel") && error.contains("AutoencoderKL"), "{error}");
}

/// No field value makes reading or building panic or take long.
#[test]
fn hostile_configurations_do_no_harm() {
    let values = [
        json!(null),
        json!(-1),
        json!(0),
        json!(1),
        json!(2),
        json!(3),
        json!(1_000_000),
        json!(1_000_000_000_000_u64),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1e300),
        json!(-0.5),
        json!(true),
        json!(""),
        json!("x"),
        json!([]),
        json!({}),
        json!([0]),
        json!([1, 1, 1, 1]),
        json!([[1], [1], [1], [1]]),
        json!([1048576, 1048576, 1048576]),
        json!(vec![1; 100_000]),
        json!([null, -1, "x"]),
        json!({ "a": [1] }),
    ];
    let extra = [
        "act_fn",
        "num_attention_heads",
        "transformer_layers_per_block",
        "reverse_transformer_layers_per_block",
        "only_cross_attention",
        "mid_block_type",
        "num_class_embeds",
        "class_embed_type",
        "time_embedding_dim",
        "time_cond_proj_dim",
        "encoder_hid_dim",
        "norm_num_groups",
        "norm_eps",
        "freq_shift",
        "layers_per_block",
        "addition_embed_type",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
        "latent_channels",
        "in_channels",
        "out_channels",
        "scaling_factor",
        "conv_in_kernel",
        "layer_norm_eps",
        "vision_config_dict",
    ];
    let weights = Zeros(BTreeMap::new());
    let mut tried = 0;
    for (class, part, base) in bases() {
        assert!(matches!(build(class, part, &base, &weights, &small()), Err(ArchError::Weight(_))));
        let fields: BTreeSet<&str> =
            base.as_object().unwrap().keys().map(String::as_str).chain(extra).collect();
        for field in fields {
            for value in &values {
                let mut config = base.clone();
                config[field] = value.clone();
                let result = build(class, part, &config, &weights, &small());
                let error = result.expect_err("there are no weights").to_string();
                assert!(!error.is_empty() && error.len() < 400, "{class} {field}: {error}");
                tried += 1;
            }
        }
        for other in [json!(null), json!([]), json!("x"), json!(1)] {
            assert!(matches!(lookup(class).unwrap().config(&other), Err(ArchError::Config { .. })));
        }
    }
    assert!(tried > 2000);
}

/// Errors name the tensor that is missing or has a wrong shape.
#[test]
fn missing_and_misshapen_tensors_are_named() {
    for (class, part, config) in bases() {
        let all = tensors(class, part, &config, &small());
        for name in all.keys().step_by(7) {
            let mut weights = Zeros(all.clone());
            weights.0.remove(name);
            let error = build(class, part, &config, &weights, &small()).unwrap_err();
            assert_eq!(error, ArchError::Weight(WeightError::Missing { name: name.clone() }), "{class}");
            weights.0.insert(name.clone(), vec![3, 5, 7]);
            let error = build(class, part, &config, &weights, &small()).unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}` has shape [3, 5, 7]")), "{class}: {error}");
        }
    }
}

#[test]
fn options_that_do_not_fit_are_refused() {
    type Change = fn(&mut GraphOptions);
    let changes: [(&str, Change); 10] = [
        ("batch", |options| options.batch = 0),
        ("batch", |options| options.batch = usize::MAX),
        ("height", |options| options.height = 0),
        ("width", |options| options.width = usize::MAX),
        ("tokens", |options| options.tokens = 0),
        ("tokens", |options| options.tokens = usize::MAX),
        ("time_ids", |options| options.time_ids = 0),
        ("time_ids", |options| options.time_ids = usize::MAX),
        ("dtype", |options| options.dtype = DType::I32),
        ("opset", |options| options.opset = Opset::Ios15),
    ];
    let [text, _, xl, _, _] = bases();
    for (option, change) in changes {
        let mut options = small();
        change(&mut options);
        for (class, part, config) in [&text, &xl] {
            let applies =
                !(matches!(part, Part::Text(_)) && matches!(option, "height" | "width" | "time_ids"));
            let weights = Zeros(tensors(class, *part, config, &small()));
            match build(class, *part, config, &weights, &options) {
                Err(ArchError::Option { option: found, .. }) if found == option => {}
                Ok(_) if !applies => {}
                other => panic!("{class} {option}: {:?}", other.map(|_| ())),
            }
        }
    }
    let (class, _, config) = &text;
    let weights = Zeros(tensors(class, Part::Text(Outputs::LAST), config, &small()));
    let all_skipped = Part::Text(Outputs { skipped_layers: 3, ..Outputs::PENULTIMATE });
    let error = build(class, all_skipped, config, &weights, &small()).unwrap_err();
    assert!(matches!(error, ArchError::Option { option: "skipped_layers", .. }), "{error}");
    let huge = GraphOptions { batch: 1 << 20, height: 1 << 20, width: 1 << 20, ..small() };
    let weights = Zeros(tensors(xl.0, xl.1, &xl.2, &small()));
    assert!(build(xl.0, xl.1, &xl.2, &weights, &huge).is_err());
    let split = AttentionImplementation::SplitEinsumV2;
    let millions = GraphOptions { height: 1 << 14, width: 1 << 14, attention: split, ..small() };
    let error = build(xl.0, xl.1, &xl.2, &weights, &millions).unwrap_err();
    assert!(matches!(error, ArchError::Option { option: "attention", .. }), "{error}");
}

#[test]
fn weights_that_are_not_floats_are_refused() {
    struct Integers(Zeros);
    impl Weights for Integers {
        fn names(&self) -> Vec<&str> {
            self.0.names()
        }
        fn get(&self, name: &str) -> Option<WeightRef> {
            let ty = TensorType::new(DType::I32, self.0.0.get(name)?.clone());
            WeightRef::new(name, ty.clone(), Bytes::new(vec![0u8; ty.byte_len()?])).ok()
        }
    }
    let (class, part, config) = &bases()[3];
    let weights = Integers(Zeros(tensors(class, *part, config, &small())));
    let error = build(class, *part, config, &weights, &small()).unwrap_err();
    assert!(
        matches!(error, ArchError::WeightType { ref name, .. } if name == "post_quant_conv.weight"),
        "{error}"
    );
}
