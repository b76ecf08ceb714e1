use mixbit_mil::{Builder, Bytes, DType, Function, Opset, TensorType, WeightRef};
use mixbit_testkit::{Failures, Scratch};

use super::*;

/// A file of Apple's `mixed_bit_compression_pre_analysis.py`, shortened.
const APPLES: &str = r#"{
  "single_layer": {
    "1": {"down.0.to_q": [60.1, 61.0], "conv_in": [55.4, 50.3]},
    "2": {"down.0.to_q": [70.1, 71.0], "conv_in": [65.4, 60.3]}
  },
  "cumulative": {
    "1": {
      "metadata": {
        "nbits": 1,
        "out_ngroups": 1,
        "in_ngroups": 1,
        "cumulative": true,
        "candidates": ["down.0.to_q", "conv_in"],
        "sizes": [64, 72]
      },
      "down.0.to_q": [60.1, 61.0],
      "conv_in": [50.4, 49.3]
    }
  },
  "model_version": "stabilityai/stable-diffusion-2-1-base",
  "baselines": {"original": 82.2, "linear_8bit": 66.025, "recipe_4.50_bit_mixedpalette": 75.8},
  "recipes": {
    "recipe_4.50_bit_mixedpalette": {"down.0.to_q": 1, "conv_in": 16},
    "recipe_6.55_bit_mixedpalette": {"down.0.to_q": 6, "conv_in": 8}
  }
}"#;

fn scheme(name: &str) -> Option<Scheme> {
    Some(name.parse().unwrap())
}

fn details() -> Details {
    Details {
        version: "0.1.0".to_string(),
        model: ModelIdentity {
            name: "demo".to_string(),
            weights: 136,
            bytes: 272,
            layers_checksum: "sha256:0".to_string(),
            weights_checksum: None,
        },
        calibration: Calibration {
            prompts: vec!["a cat".to_string()],
            negative_prompt: None,
            guidance_scale: 7.5,
            seeds: vec![1],
            timesteps: vec![981.0, 1.5],
            size: [512, 768],
        },
        importance: BTreeMap::from([("conv_in".to_string(), Importance::new(&[1.0, 3.0]).unwrap())]),
        int8: Some(Int8Layers {
            target_psnr: 40.0,
            measured_psnr: 41.25,
            full_precision: vec!["conv_in".to_string()],
            single_layer: BTreeMap::from([("conv_in".to_string(), vec![38.5, 39.0])]),
        }),
    }
}

#[test]
fn apples_files_are_read() {
    let file = RecipeFile::parse(APPLES).unwrap();
    assert_eq!(file.model_version, "stabilityai/stable-diffusion-2-1-base");
    assert_eq!(file.single_layer[&2][1], ("conv_in".to_string(), vec![65.4, 60.3]));
    assert_eq!(file.cumulative[&1].sizes, [64, 72]);
    assert_eq!(file.cumulative[&1].layers[0].0, "down.0.to_q");
    assert_eq!(file.baselines["linear_8bit"], 66.025);
    let (name, recipe) = file.select("4.50").unwrap();
    assert_eq!(name, "recipe_4.50_bit_mixedpalette");
    assert_eq!(recipe.layers["down.0.to_q"], scheme("palette-1"));
    assert_eq!(recipe.layers["conv_in"], None);
    assert_eq!(RecipeFile::parse(&file.to_text()).unwrap(), file);
    let ours: Value = serde_json::from_str(&file.to_text()).unwrap();
    assert_eq!(ours["cumulative"]["1"], serde_json::from_str::<Value>(APPLES).unwrap()["cumulative"]["1"]);
    assert!(ours.get("mixbit").is_none());
}

#[test]
fn ours_say_more_and_come_back() {
    let mut file = RecipeFile::parse(APPLES).unwrap();
    file.details = Some(details());
    file.other.insert("note".to_string(), serde_json::json!({"by": "me"}));
    let recipe = file.recipes.get_mut("recipe_4.50_bit_mixedpalette").unwrap();
    recipe.layers.insert("down.0.to_q".to_string(), scheme("grouped-palette-3"));
    (recipe.bytes, recipe.bits_per_weight) = (Some(100), Some(4.5));
    (recipe.predicted_psnr, recipe.measured_psnr) = (Some(70.1), Some(69.987_654_321));
    let text = file.to_text();
    let found = RecipeFile::parse(&text).unwrap();
    assert_eq!(found, file);
    assert_eq!(found.to_text(), text);
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["recipes"]["recipe_4.50_bit_mixedpalette"]["down.0.to_q"], 3);
    let scratch = Scratch::new();
    let path = scratch.path().join("r.json");
    file.write(&path).unwrap();
    assert_eq!(RecipeFile::read(&path).unwrap(), file);
}

#[test]
fn entries_of_other_tools_keep_their_order() {
    let text = r#"{"model_version": "m", "first": {}, "recipes": {"r": {"a": 4}}, "second": {"a": 30.5}, "third": 1}"#;
    let written = RecipeFile::parse(text).unwrap().to_text();
    let [first, second, third] = ["first", "second", "third"].map(|key| written.find(key).unwrap());
    assert!(first < second && second < third, "{written}");
    assert_eq!(RecipeFile::parse(&written).unwrap().to_text(), written);
}

#[test]
fn importances_are_kept_as_they_are_used() {
    let importance = Importance::new(&[1e9, 3e-9, 2.5e8, 0.0]).unwrap();
    assert_eq!(importance.values(), [1.0, 0.0, 0.25, 0.0]);
    assert_eq!(Importance::new(&importance.values()).unwrap(), importance);
    assert!(Importance::new(&[0.0]).is_none());
    assert!(Importance::new(&[f32::NAN, 1.0]).is_none());
    assert!(Importance::new(&[-1.0, 1.0]).is_none());
}

#[test]
fn what_is_wrong_is_said() {
    let with = |from: &str, to: &str| {
        assert!(APPLES.contains(from), "{from}");
        APPLES.replace(from, to)
    };
    let mut ours = RecipeFile::parse(APPLES).unwrap();
    ours.details = Some(details());
    let ours = ours.to_text();
    let cases = [
        (APPLES[..700].to_string(), "in the middle of the JSON: it was cut short; copy it again"),
        (String::new(), "the text ends at line 1, column 0"),
        ("{'a': 1}".to_string(), "it is not JSON: key must be a string at line 1 column 2"),
        ("[]".to_string(), "`the whole` is a list, not an object"),
        (with("model_version", "model"), "`model_version` is missing"),
        (with("\"recipes\"", "\"Recipes\""), "`recipes` is missing: it is not a palettization recipe"),
        (with("[55.4, 50.3]", "55.4"), "`single_layer.1.conv_in` is 55.4, not a list of dB"),
        (with("82.2", "\"?\""), "`baselines.original` is text, not a number"),
        (with("\"2\": {", "\"two\": {"), "`single_layer.two` is `two`, not a number of bits"),
        (
            with("[64, 72]", "[64, -72]"),
            "`cumulative.1.metadata.sizes` is -72, not a list of numbers of weights",
        ),
        (
            with("\"conv_in\": 8", "\"conv_in\": 5"),
            "recipe `recipe_6.55_bit_mixedpalette`, layer `conv_in`: 5 is no width; there are 1, 2, 3, 4, 6, 8, and 16 \
             for a layer that stays as it is",
        ),
        (with("\"conv_in\": 8", "\"conv_in\": \"8\""), "layer `conv_in`: \"8\" is no width"),
        (with("\"conv_in\": 8", "\"conv_in\": 4294967304"), "layer `conv_in`: 4294967304 is no width"),
        (
            ours.replacen("\"palette-6\"", "\"palette-5\"", 1),
            "layer `down.0.to_q`: there is no scheme `palette-5`; known are palette-1",
        ),
        (
            ours.replacen("\"palette-6\"", "\"palette-4\"", 1),
            "layer `down.0.to_q`: `recipes` says 6 and `mixbit.recipes` says palette-4; make them agree",
        ),
        (
            ours.replacen("\"guidance_scale\"", "\"scale\"", 1),
            "`mixbit.calibration`: missing field `guidance_scale`",
        ),
        (ours.replacen("\"model\"", "\"models\"", 1), "`mixbit.model` is missing"),
        (
            ours.replacen("VTUAPA==", "VTUAP===", 1),
            "`mixbit.importance.conv_in` is text, not halves in base 64",
        ),
    ];
    let mut failures = Failures::new("errors");
    for (text, expected) in cases {
        failures.case(expected, || match RecipeFile::parse(&text) {
            Err(error) if error.to_string().contains(expected) => Ok(()),
            Err(error) => Err(error.to_string()),
            Ok(_) => Err("no error".to_string()),
        });
    }
    failures.finish();
    let scratch = Scratch::new();
    let path = scratch.file("r.json", b"{}");
    let error = RecipeFile::read(&path).unwrap_err().to_string();
    assert!(error.contains("r.json: `model_version` is missing"), "{error}");
    let error = RecipeFile::read(&scratch.path().join("none")).unwrap_err().to_string();
    assert!(error.starts_with("can't read ") && error.contains("none"), "{error}");
}

#[test]
fn recipes_are_selected_by_their_names_or_parts() {
    let file = RecipeFile::parse(APPLES).unwrap();
    assert_eq!(file.select("6.55").unwrap().0, "recipe_6.55_bit_mixedpalette");
    let all = "recipe_4.50_bit_mixedpalette, recipe_6.55_bit_mixedpalette";
    assert_eq!(
        file.select("three").unwrap_err().to_string(),
        format!("no recipe is called `three`; the file has {all}")
    );
    let error = file.select("recipe").unwrap_err().to_string();
    assert_eq!(error, format!("several recipes have `recipe` in their names: {all}"));
}

#[test]
fn a_number_selects_the_recipe_with_the_nearest_bits() {
    let mut file = RecipeFile::parse(APPLES).unwrap();
    let (small, large) = ("recipe_4.50_bit_mixedpalette", "recipe_6.55_bit_mixedpalette");
    for (asked, name) in
        [("4.5", small), ("4", small), ("1", small), ("6", large), ("16", large), ("5.5249", small)]
    {
        assert_eq!(file.select(asked).unwrap().0, name, "{asked}");
    }
    // What was counted wins over what the name says.
    file.recipes.get_mut(small).unwrap().bits_per_weight = Some(8.0);
    assert_eq!(file.select("8").unwrap().0, small);
    for wrong in ["nan", "-1", "inf"] {
        assert!(file.select(wrong).is_err(), "{wrong}");
    }
}

/// A graph with a convolution for each name.
fn graph(names: &[(&str, &[usize])]) -> Function {
    let mut b = Builder::new("main", Opset::Ios16);
    let mut outputs = Vec::new();
    for (name, shape) in names {
        let bytes = vec![0; 2 * shape.iter().product::<usize>()];
        let weight = WeightRef::new(*name, TensorType::new(DType::F16, *shape), Bytes::new(bytes)).unwrap();
        let x = b
            .input(&format!("x_{}", outputs.len()), TensorType::new(DType::F16, [1, shape[1], 8, 8]))
            .unwrap();
        let w = b.weight(weight);
        outputs.push(b.op("conv").arg("x", x).arg("weight", w).add().unwrap());
    }
    b.finish(&outputs).unwrap()
}

const CONV_IN: &[usize] = &[2, 4, 3, 3];
const TO_Q: &[usize] = &[8, 8, 1, 1];

#[test]
fn layers_are_known_by_their_names() {
    let file = RecipeFile::parse(APPLES).unwrap();
    let (_, recipe) = file.select("4.50").unwrap();
    for names in [
        ["down.0.to_q.weight", "conv_in.weight", "other.weight"],
        ["down_0_to_q_weight_to_fp16", "conv_in_weight_to_fp16_palettized", "var_7_to_fp16"],
    ] {
        let layers =
            mixbit_compress::layers(&graph(&[(names[0], TO_Q), (names[1], CONV_IN), (names[2], TO_Q)]));
        let found = assign(&file, recipe, &layers).unwrap();
        let said: Vec<(&str, Option<Scheme>)> =
            found.layers.values().map(|(name, scheme)| (name.as_str(), *scheme)).collect();
        let mut expected = vec![("conv_in", None), ("down.0.to_q", scheme("palette-1"))];
        expected.sort_by_key(|(name, _)| *name);
        let mut said = said;
        said.sort_by_key(|(name, _)| *name);
        assert_eq!(said, expected);
    }
}

#[test]
fn a_recipe_for_another_model_is_refused() {
    let mut file = RecipeFile::parse(APPLES).unwrap();
    let assign_to = |file: &RecipeFile, names: &[(&str, &[usize])]| {
        let (_, recipe) = file.select("4.50").unwrap();
        assign(file, recipe, &mixbit_compress::layers(&graph(names))).map_err(|error| error.to_string())
    };
    let error = assign_to(&file, &[("conv_in.weight", CONV_IN)]).unwrap_err();
    assert_eq!(
        error,
        "the model lacks 1 of the recipe's 2 layers: down.0.to_q; the recipe is for another architecture"
    );
    let error = assign_to(&file, &[("op_1", CONV_IN)]).unwrap_err();
    assert!(error.starts_with(
        "none of the recipe's 2 layers is in the model: it knows `conv_in`, and the model has op_1"
    ));
    let error =
        assign_to(&file, &[("conv_in.weight", CONV_IN), ("down.0.to_q.weight", &[8, 4, 1, 1])]).unwrap_err();
    assert!(
        error.starts_with("1 layers have another size than the recipe was made on: down.0.to_q (32, not 64)"),
        "{error}"
    );
    let recipe = file.recipes.get_mut("recipe_4.50_bit_mixedpalette").unwrap();
    recipe.layers.insert("down_0.to.q".to_string(), None);
    let error = assign_to(&file, &[("down_0_to_q_weight", TO_Q), ("conv_in_weight", CONV_IN)]).unwrap_err();
    assert_eq!(
        error,
        "constant `down_0_to_q_weight` may be any of the layers down.0.to_q, down_0.to.q: the names do not say which"
    );
}

#[test]
fn fine_tunes_are_the_same_model() {
    let names: [(&str, &[usize]); 2] = [("down.0.to_q.weight", TO_Q), ("conv_in.weight", CONV_IN)];
    let layers = mixbit_compress::layers(&graph(&names));
    let mut file = RecipeFile::parse(APPLES).unwrap();
    let identity = ModelIdentity::of("demo", &layers);
    assert_eq!((identity.weights, identity.bytes), (136, 272));
    file.details = Some(Details { model: identity.clone(), ..details() });
    let (_, recipe) = file.select("4.50").unwrap();
    assert_eq!(assign(&file, recipe, &layers).unwrap().is_same, Some(true));
    let reversed: Vec<Layer> = layers.iter().rev().cloned().collect();
    assert_eq!(ModelIdentity::of("demo", &reversed), identity);
    // A layer that was not measured, such as a small one, is no other model.
    let more = mixbit_compress::layers(&graph(&[names[0], names[1], ("extra.weight", TO_Q)]));
    assert_eq!(assign(&file, recipe, &more).unwrap().is_same, Some(true));
    let turned = mixbit_compress::layers(&graph(&[("down.0.to_q.weight", &[16, 4, 1, 1]), names[1]]));
    assert_eq!(assign(&file, recipe, &turned).unwrap().is_same, Some(false));
}

#[test]
fn measurements_that_are_no_numbers_do_not_matter() {
    // What Python writes of the PSNR of equal outputs, and what other writers make of it.
    let text =
        APPLES.replace("82.2", "Infinity").replace("60.1, 61.0", "NaN, null").replace("75.8", "-Infinity");
    let file = RecipeFile::parse(&text).unwrap();
    assert_eq!(file.baselines["original"], f64::INFINITY);
    assert!(file.single_layer[&1].iter().any(|(_, values)| values.iter().all(|value| value.is_nan())));
    assert_eq!(file.recipes, RecipeFile::parse(APPLES).unwrap().recipes);
    assert!(RecipeFile::parse(&APPLES.replace("82.2", "\"high\"")).is_err());
}
