use mixbit_mil::Weights;
use mixbit_testkit::Failures;

use super::*;
use crate::safetensors::tests::file;
use mixbit_testkit::Scratch;

const MODEL_INDEX: &str = r#"{
    "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.29.0",
    "force_zeros_for_empty_prompt": true,
    "feature_extractor": [null, null],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"]
}"#;

/// A weight file whose only tensor is called like the file.
fn weights(name: &str) -> Vec<u8> {
    file(&[(name, "U8", &[1], &[1])])
}

fn model() -> Scratch {
    let scratch = Scratch::new();
    scratch.file(INDEX, MODEL_INDEX.as_bytes());
    scratch.file("scheduler/scheduler_config.json", br#"{"beta_start": 0.00085, "limit": -Infinity}"#);
    scratch.file("unet/config.json", br#"{"in_channels": 4}"#);
    scratch.file("unet/diffusion_pytorch_model.safetensors", &weights("w"));
    scratch.file("tokenizer/merges.txt", "é".as_bytes());
    scratch
}

#[test]
fn a_model_is_read_from_disk_and_from_memory() {
    let scratch = model();
    let names = [
        INDEX,
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "tokenizer/merges.txt",
    ];
    let in_memory = names.map(|name| {
        let bytes = std::fs::read(scratch.path().join(name)).unwrap();
        (name.to_string(), Bytes::new(bytes))
    });
    for model in [Diffusers::open(scratch.path()), Diffusers::from_files("embedded", in_memory)] {
        let model = model.unwrap();
        assert_eq!(model.class(), "StableDiffusionPipeline");
        assert_eq!(model.options()["force_zeros_for_empty_prompt"], true);
        assert_eq!(model.components().len(), 5);
        assert_eq!(model.components()["feature_extractor"], None);
        assert_eq!(model.component("unet").unwrap().class, "UNet2DConditionModel");
        assert_eq!(model.config("unet").unwrap()["in_channels"], 4);
        let scheduler = model.json("scheduler", "scheduler_config.json").unwrap();
        assert_eq!((&scheduler["beta_start"], &scheduler["limit"]), (&0.00085.into(), &"-Infinity".into()));
        assert_eq!(model.text("tokenizer", "merges.txt").unwrap(), "é");
        assert_eq!(model.optional_text("tokenizer", "vocab.json").unwrap(), None);
        assert_eq!(model.weights("unet", None).unwrap().names(), ["w"]);
        let error = model.component("feature_extractor").unwrap_err().to_string();
        assert!(error.ends_with("it has `scheduler`, `text_encoder`, `tokenizer`, `unet`"), "{error}");
    }
}

#[test]
fn the_class_of_a_community_pipeline_is_the_second_of_two_names() {
    let class = |index: &str| {
        let file = (INDEX.to_string(), Bytes::new(index.as_bytes().to_vec()));
        Diffusers::from_files("embedded", [file]).map(|model| model.class().to_string())
    };
    let community = r#"{"_class_name": ["lpw_stable_diffusion", "LongPromptWeightingPipeline"]}"#;
    assert_eq!(class(community).unwrap(), "LongPromptWeightingPipeline");
    for none in ["{}", r#"{"_class_name": []}"#, r#"{"_class_name": ["a", 1]}"#] {
        assert!(class(none).unwrap_err().to_string().contains("_class_name"), "{none}");
    }
}

#[test]
fn files_are_chosen_as_diffusers_does() {
    struct Case {
        present: &'static [&'static str],
        variant: Option<&'static str>,
        transformers: bool,
        chosen: Option<&'static str>,
    }
    const UNET: &str = "diffusion_pytorch_model.safetensors";
    const UNET_F16: &str = "diffusion_pytorch_model.fp16.safetensors";
    const UNET_EMA: &str = "diffusion_pytorch_model.non_ema.safetensors";
    const UNET_INDEX: &str = "diffusion_pytorch_model.safetensors.index.json";
    const UNET_INDEX_F16: &str = "diffusion_pytorch_model.safetensors.index.fp16.json";
    const UNET_F16_INDEX: &str = "diffusion_pytorch_model.fp16.safetensors.index.json";
    const BIN: &str = "diffusion_pytorch_model.bin";
    const BIN_F16: &str = "diffusion_pytorch_model.fp16.bin";
    const BIN_INDEX: &str = "diffusion_pytorch_model.bin.index.json";
    const BIN_INDEX_F16: &str = "diffusion_pytorch_model.bin.index.fp16.json";
    const SHARD: &str = "diffusion_pytorch_model-00001-of-00002.safetensors";
    const SHARD_F16: &str = "diffusion_pytorch_model.fp16-00001-of-00002.safetensors";
    let case = |present, variant, chosen| Case { present, variant, transformers: false, chosen };
    let text = |present, variant, chosen| Case { present, variant, transformers: true, chosen };
    let cases = [
        case(&[UNET, "config.json"], None, Some(UNET)),
        case(&[UNET_F16, UNET, UNET_EMA], None, Some(UNET)),
        case(&[UNET_F16, UNET], Some("fp16"), Some(UNET_F16)),
        case(&[UNET], Some("fp16"), Some(UNET)),
        case(&[UNET_F16, UNET_EMA], None, Some(UNET_F16)),
        case(&[UNET_F16, UNET_EMA], Some("non_ema"), Some(UNET_EMA)),
        case(&[UNET_EMA], None, Some(UNET_EMA)),
        case(&[SHARD, UNET_INDEX], None, Some(UNET_INDEX)),
        case(&[UNET, SHARD, UNET_INDEX], None, Some(UNET)),
        case(&[SHARD_F16, UNET_INDEX_F16], None, Some(UNET_INDEX_F16)),
        case(&[SHARD_F16, UNET_F16_INDEX], None, Some(UNET_F16_INDEX)),
        case(&[SHARD_F16, UNET_INDEX_F16, SHARD, UNET_INDEX], Some("fp16"), Some(UNET_INDEX_F16)),
        case(&[SHARD_F16, UNET_INDEX_F16, SHARD, UNET_INDEX], None, Some(UNET_INDEX)),
        case(&["model.safetensors"], None, Some("model.safetensors")),
        case(&["model.safetensors", UNET], None, Some(UNET)),
        text(&["model.safetensors", UNET], None, Some("model.safetensors")),
        text(&["model.fp16.safetensors", "pytorch_model.fp16.bin"], None, Some("model.fp16.safetensors")),
        text(
            &["model-00001-of-00002.safetensors", "model.safetensors.index.json"],
            None,
            Some("model.safetensors.index.json"),
        ),
        case(&[BIN], None, Some(BIN)),
        case(&[BIN, UNET_F16], None, Some(UNET_F16)),
        case(&[BIN_F16, UNET], Some("fp16"), Some(BIN_F16)),
        case(&[BIN_F16, UNET], None, Some(UNET)),
        case(&[BIN_F16, BIN], Some("fp16"), Some(BIN_F16)),
        case(&[BIN_INDEX, "diffusion_pytorch_model-00001-of-00002.bin"], None, Some(BIN_INDEX)),
        case(&["diffusion_pytorch_model.bin.index.fp16.json"], Some("fp16"), Some(BIN_INDEX_F16)),
        case(&["pytorch_model.bin", "optimizer.bin"], None, Some("pytorch_model.bin")),
        text(&["pytorch_model.bin", BIN], None, Some("pytorch_model.bin")),
        text(&["pytorch_model.fp16.bin", "model.safetensors"], None, Some("model.safetensors")),
        text(&["pytorch_model.bin.index.json"], None, Some("pytorch_model.bin.index.json")),
        case(&["model.bin", "pytorch_model.safetensors"], None, None),
        case(&["adapter.safetensors", "model_safetensors", "models.safetensors"], None, None),
        case(&[], Some("fp16"), None),
    ];
    let mut failures = Failures::new("weight files");
    for case in cases {
        failures.case(&format!("{:?} {:?}", case.present, case.variant), || {
            let present: Vec<String> = case.present.iter().map(|name| name.to_string()).collect();
            let chosen = choose(&present, case.variant, case.transformers);
            if chosen == Ok(case.chosen.map(str::to_string)) { Ok(()) } else { Err(format!("{chosen:?}")) }
        });
    }
    failures.finish();
    let open = ["model.bf16.safetensors", "model.ema.safetensors"].map(str::to_string);
    assert_eq!(choose(&open, None, true), Err(Ambiguous(open.to_vec())));
}

#[test]
fn sharded_components_are_opened() {
    let scratch = model();
    scratch.file("text_encoder/model.fp16-00001-of-00001.safetensors", &weights("shard"));
    let index = br#"{"weight_map": {"shard": "model.fp16-00001-of-00001.safetensors"}}"#;
    scratch.file("text_encoder/model.safetensors.index.fp16.json", index);
    let model = Diffusers::open(scratch.path()).unwrap();
    assert_eq!(model.weights("text_encoder", None).unwrap().names(), ["shard"]);
}

/// What `open` says, which must be an error.
fn refusal(path: &Path) -> String {
    Diffusers::open(path).expect_err("refused").to_string()
}

#[test]
fn what_is_no_model_is_refused_with_advice() {
    let scratch = Scratch::new();
    let make = |folder: &str, name: &str| {
        scratch.file(&format!("{folder}/{name}"), b"x").parent().unwrap().to_path_buf()
    };
    let whole = model();
    let empty = Scratch::new();
    let cases = [
        (scratch.path().join("absent"), "absent is not there: there is no such directory"),
        (empty.path().to_path_buf(), "model_index.json is not there: the directory is empty"),
        (make("other", "notes.txt"), "the directory has `notes.txt`"),
        (make("single", "sd15.safetensors"), "give `sd15.safetensors`, with its directory"),
        (scratch.path().join("single/sd15.safetensors"), "it is a file"),
        (whole.path().join("unet"), "give the directory above it"),
        (make("malformed", INDEX), "model_index.json: it is not JSON"),
    ];
    let mut failures = Failures::new("no models");
    for (path, expected) in cases {
        failures.case(expected, || {
            let message = refusal(&path);
            if message.contains(expected) { Ok(()) } else { Err(message) }
        });
    }
    failures.finish();
}

#[test]
fn malformed_model_indexes_are_refused() {
    let cases = [
        ("[]", "not a JSON object"),
        ("{}", "no `_class_name`"),
        (r#"{"_class_name": 3}"#, "no `_class_name`"),
        (
            r#"{"_class_name": "P", "../unet": ["diffusers", "U"]}"#,
            "component `../unet` is not a plain folder name",
        ),
        ("{", "it is not JSON"),
        ("\u{feff}{}", "it is not JSON"),
    ];
    let mut failures = Failures::new("model indexes");
    for (text, expected) in cases {
        failures.case(text, || {
            let files = [(INDEX.to_string(), Bytes::new(text.as_bytes().to_vec()))];
            let message =
                Diffusers::from_files("m", files).map(|_| String::new()).unwrap_or_else(|e| e.to_string());
            if message.contains(expected) { Ok(()) } else { Err(message) }
        });
    }
    failures.finish();
}

#[test]
fn missing_parts_are_refused_with_advice() {
    let scratch = model();
    scratch.file("pickled/diffusion_pytorch_model.bin", b"x");
    scratch.file("cut/diffusion_pytorch_model.safetensors", &weights("w")[..20]);
    scratch.file("open/model.a.safetensors", b"x");
    scratch.file("open/model.b.safetensors", b"x");
    let model = Diffusers::open(scratch.path()).unwrap();
    let message = |component: &str| model.weights(component, None).unwrap_err().to_string();
    let cases = [
        (message("text_encoder"), "text_encoder/model.safetensors is not there: the model lacks the folder"),
        (message("pickled"), "pickled/diffusion_pytorch_model.bin is cut off: it has 1 bytes"),
        (message("cut"), "cut/diffusion_pytorch_model.safetensors: the header claims"),
        (message("open"), "one of `model.a.safetensors`, `model.b.safetensors`: say which variant"),
        (message("scheduler"), "the folder has no weights, only `scheduler_config.json`"),
        (
            model.config("scheduler").unwrap_err().to_string(),
            "config.json is not there: the folder has `scheduler_config.json`",
        ),
        (model.config("text_encoder").unwrap_err().to_string(), "the model lacks the folder `text_encoder`"),
        (model.json("tokenizer", "merges.txt").unwrap_err().to_string(), "merges.txt: it is not JSON"),
    ];
    let mut failures = Failures::new("missing parts");
    for (message, expected) in cases {
        failures.case(expected, || if message.contains(expected) { Ok(()) } else { Err(message.clone()) });
    }
    failures.finish();
}

#[cfg(unix)]
#[test]
fn a_hugging_face_cache_is_a_model() {
    use std::os::unix::fs::symlink;
    let whole = model();
    let cache = Scratch::new();
    let blob = cache.file("blobs/abc", MODEL_INDEX.as_bytes());
    let snapshot = cache.path().join("snapshots/0123");
    std::fs::create_dir_all(&snapshot).unwrap();
    symlink(&blob, snapshot.join(INDEX)).unwrap();
    symlink(whole.path().join("unet"), snapshot.join("unet")).unwrap();
    std::fs::create_dir(snapshot.join("text_encoder")).unwrap();
    symlink("nowhere", snapshot.join("text_encoder/model.safetensors")).unwrap();

    let open = || Diffusers::open(cache.path());
    let model = open().unwrap();
    assert_eq!(model.path(), snapshot);
    assert_eq!(model.weights("unet", None).unwrap().names(), ["w"]);
    let message = model.weights("text_encoder", None).unwrap_err().to_string();
    assert!(message.contains("an unfinished download"), "{message}");

    std::fs::create_dir(cache.path().join("snapshots/4567")).unwrap();
    assert!(open().unwrap_err().to_string().contains("several snapshots"));
    cache.file("refs/main", b"0123\n");
    assert_eq!(open().unwrap().path(), snapshot);
    cache.file("refs/main", b"../../..");
    assert!(open().unwrap_err().to_string().contains("several snapshots"));
}

#[test]
fn a_variant_that_no_component_has_is_refused_with_those_that_are_there() {
    let scratch = model();
    let open = || Diffusers::open(scratch.path()).unwrap();
    let error = open().require_variant("pf16").unwrap_err().to_string();
    assert!(error.ends_with("of the variant `pf16`: there are weights without a variant"), "{error}");
    scratch.file("unet/diffusion_pytorch_model.fp16.safetensors", &weights("w"));
    scratch.file("text_encoder/model.safetensors.index.bf16.json", b"{}");
    // One component is enough: the others have no such weights in many models.
    for variant in ["fp16", "bf16"] {
        open().require_variant(variant).unwrap();
    }
    let error = open().require_variant("pf16").unwrap_err().to_string();
    assert!(error.contains("the variants `bf16`, `fp16`, and weights without a variant"), "{error}");
}

#[test]
fn pointers_and_folders_that_can_not_be_read_are_named() {
    let scratch = model();
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    scratch.file("unet/config.json", pointer);
    scratch.file("unet/diffusion_pytorch_model.safetensors", pointer);
    let model = Diffusers::open(scratch.path()).unwrap();
    for error in [model.config("unet").unwrap_err(), model.weights("unet", None).unwrap_err()] {
        assert!(matches!(&error, Error::LfsPointer { .. }), "{error}");
        assert!(error.to_string().contains("git lfs pull"), "{error}");
    }
    // The system refuses to look, as it does without permission: that is no absence.
    let error = model.optional_text("unet", &"x".repeat(5000)).unwrap_err();
    assert!(matches!(error, Error::Read { .. }), "{error}");
    assert!(matches!(model.weights(&"x".repeat(5000), None), Err(Error::Read { .. })));
}

#[test]
fn weights_of_pytorch_are_read() {
    let scratch = model();
    let fixture = mixbit_testkit::fixture_root().join("checkpoints/pytorch_model.bin");
    let bytes = std::fs::read(fixture).unwrap();
    scratch.file("one/diffusion_pytorch_model.bin", &bytes);
    scratch.file("two/pytorch_model-00001-of-00001.bin", &bytes);
    let index = br#"{"weight_map": {"proj.bias": "pytorch_model-00001-of-00001.bin"}}"#;
    scratch.file("two/pytorch_model.bin.index.json", index);
    let model = Diffusers::open(scratch.path()).unwrap();
    assert_eq!(model.weights("one", None).unwrap().names(), ["proj.bias", "proj.weight"]);
    let weights = model.weights("two", None).unwrap();
    assert_eq!(weights.names(), ["proj.bias"]);
    assert_eq!(
        &*weights.get("proj.bias").unwrap().read().unwrap(),
        [1f32, -1.0].map(f32::to_le_bytes).concat()
    );
}
