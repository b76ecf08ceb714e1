//! Compares textual inversion with diffusers: the prompt embeddings of every case of `fixtures/embeddings/`.

mod support;

use std::path::Path;

use mixbit_diffusion::arch::GraphOptions;
use mixbit_diffusion::embedding::{EmbeddedFiles, Embedding, EmbeddingError, VectorChannels};
use mixbit_diffusion::model::{DiffusionModel, ModelFiles};
use mixbit_engine::{Backend, Options, Tensor};
use mixbit_engine_cpu::Cpu;
use mixbit_formats::TensorFile;
use mixbit_testkit::{ErrorStats, Failures, Fixture};
use serde_json::Value;

/// The error tolerance, relative to the largest value. The fixtures' vectors are exact in half precision.
const TOLERANCE: f64 = 1e-4;

type Error = Box<dyn std::error::Error>;

fn embedding(path: &Path) -> Result<Embedding, Error> {
    let file = TensorFile::open(path)?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    Ok(Embedding::read(&file, file.metadata(), &stem)?)
}

fn files(model: &str) -> Result<Box<dyn ModelFiles>, Error> {
    Ok(Box::new(support::open(&Fixture::open("pipelines").path(model))?))
}

fn model(name: &str, embeddings: &[Embedding]) -> Result<DiffusionModel, Error> {
    Ok(DiffusionModel::from_files(&EmbeddedFiles::new(files(name)?, embeddings)?)?)
}

/// The hidden states of all text encoders side by side (tokens, channels), and the last one's pooled output.
fn encoded(model: &DiffusionModel, prompt: &str) -> Result<(Vec<f32>, Option<Vec<f32>>), Error> {
    let (mut rows, mut pooled) = (Vec::new(), None);
    for encoder in &model.text_encoders {
        let ids = encoder.tokenizer.encode(prompt)?.ids;
        let options = GraphOptions { tokens: ids.len(), ..GraphOptions::default() };
        let graph = encoder.network.graph(&options)?;
        let input = Tensor::from_f32(&[1, ids.len()], ids.iter().map(|&id| id as f32).collect())?;
        let mut compiled = Cpu::new(Some(1))?.compile(&graph, &Options::default())?;
        let mut results = compiled.run(&[("input_ids", &input)])?.into_iter();
        let states = results.next().and_then(Tensor::into_f32).ok_or("no hidden states")?;
        pooled = results.next().and_then(Tensor::into_f32);
        rows.push((states.len() / ids.len(), states));
    }
    let tokens = rows[0].1.len() / rows[0].0;
    let row = |index: usize| {
        rows.iter().flat_map(move |(width, states)| states[index * width..][..*width].iter().copied())
    };
    Ok(((0..tokens).flat_map(row).collect(), pooled))
}

#[test]
fn prompt_embeddings_are_those_of_diffusers() {
    let fixture = Fixture::open("embeddings");
    let expected = fixture.arrays("expected.safetensors");
    let mut failures = Failures::new("textual inversion");
    for case in fixture.json("cases.json")["cases"].as_array().into_iter().flatten() {
        let [name, file, prompt, key] =
            ["model", "file", "prompt", "key"].map(|field| case[field].as_str().unwrap_or_default());
        failures.case(key, || {
            let embedding = embedding(&fixture.path(file))?;
            let word = embedding.name().to_string();
            let model = model(name, &[embedding])?;
            for spelling in [word.clone(), word.to_uppercase(), format!("embedding:{word}")] {
                let (states, pooled) = encoded(&model, &prompt.replace("{}", &spelling))?;
                ErrorStats::compare(&states, &expected[&format!("{key}/prompt")].f32s()).within(TOLERANCE)?;
                if let (Some(pooled), Some(expected)) = (pooled, expected.get(&format!("{key}/pooled"))) {
                    ErrorStats::compare(&pooled, &expected.f32s()).within(TOLERANCE)?;
                }
            }
            Ok::<(), Error>(())
        });
    }
    failures.finish();
}

/// All files of a model's family together: every word has its own ids, and its vectors in order.
#[test]
fn words_of_many_files_have_their_own_vectors() -> Result<(), Error> {
    let fixture = Fixture::open("embeddings");
    let mut embeddings = Vec::new();
    for (file, shapes) in fixture.json("cases.json")["files"].as_object().ok_or("no files")? {
        if shapes == &serde_json::json!([[1, 16]]) || shapes == &serde_json::json!([[4, 16]]) {
            embeddings.push(embedding(&fixture.path(file))?);
        }
    }
    assert_eq!(embeddings.len(), 6);
    let files = EmbeddedFiles::new(files("sd15")?, &embeddings)?;
    let model = DiffusionModel::from_files(&files)?;
    let tokenizer = &model.text_encoders[0].tokenizer;
    let weights = files.weights("text_encoder").map_err(|error| error.to_string())?;
    let table = weights.get("embeddings.token_embedding.weight").ok_or("no table")?;
    assert_eq!((table.ty().shape[0], tokenizer.vocabulary_size()), (604 + 18, 604 + 18));
    for embedding in &embeddings {
        let ids = tokenizer.encode(embedding.name())?;
        let ids = &ids.ids[1..ids.used - 1];
        assert_eq!(ids.len(), embedding.vector_count(), "{}", embedding.name());
        assert!(ids.windows(2).all(|pair| pair[0] + 1 == pair[1]) && ids[0] >= 604, "{ids:?}");
    }
    let plain = support::model(&Fixture::open("pipelines").path("sd15"))?;
    for prompt in ["a red circle, toys_, 5", "", "negative"] {
        assert_eq!(tokenizer.encode(prompt)?, plain.text_encoders[0].tokenizer.encode(prompt)?, "{prompt}");
    }
    // Other tools read the first vector's token by the word's name.
    let added = tokenizer.added_tokens();
    for name in ["<cat-toy>", "Easy_Neg.v1", "bad-hands 5", "bad-hands 5_3"] {
        assert!(added.values().any(|token| token == name), "{name} is not in {added:?}");
    }
    Ok(())
}

#[test]
fn a_file_s_name_and_what_it_says_of_itself_are_spellings() -> Result<(), Error> {
    let path = Fixture::open("embeddings").path("learned_embeds.bin");
    let used = |embedding: Embedding, prompt: &str| {
        let model = model("sd15", &[embedding])?;
        Ok::<_, Error>(model.text_encoders[0].tokenizer.find_words(prompt).len())
    };
    assert_eq!(used(embedding(&path)?, "a <cat-toy>, learned_embeds")?, 2);
    assert_eq!(used(embedding(&path)?.named("My Cat"), "my cat, <my cat>, <cat-toy>, learned_embeds")?, 2);
    // `circle` is a word of the vocabulary: as the name alone, it is the embedding's.
    assert_eq!(used(embedding(&path)?.named("circle"), "a red circle")?, 1);
    Ok(())
}

#[test]
fn an_embedding_for_one_of_two_text_encoders_is_left_out_of_the_other() -> Result<(), Error> {
    let path = Fixture::open("embeddings").path("second.pt");
    let embedding = embedding(&path)?;
    assert_eq!(embedding.check(&VectorChannels::of(&*files("sdxl")?)?)?, Some(vec!["text_encoder_2"]));
    let model = model("sdxl", &[embedding])?;
    let ids = |index: usize, prompt: &str| {
        let tokenizer = &model.text_encoders[index].tokenizer;
        tokenizer.encode(prompt).map(|encoding| encoding.ids)
    };
    assert_eq!(ids(0, "a red second circle")?, ids(0, "a red circle")?);
    assert!(ids(1, "a red second circle")?.contains(&604));
    Ok(())
}

#[test]
fn embeddings_of_other_families_and_equal_names_are_refused() -> Result<(), Error> {
    let fixture = Fixture::open("embeddings");
    let refused = |name: &str, files: &[&str]| {
        let embeddings: Vec<Embedding> =
            files.iter().map(|file| embedding(&fixture.path(file))).collect::<Result<_, _>>()?;
        match EmbeddedFiles::new(self::files(name)?, &embeddings) {
            Ok(_) => Err(format!("{files:?} was taken").into()),
            Err(error) => Ok::<EmbeddingError, Error>(error),
        }
    };
    let error = refused("sd15", &["wide.safetensors"])?.to_string();
    assert!(error.contains("Stable Diffusion 2.x") && error.contains("16 channels"), "{error}");
    assert!(matches!(refused("sd15", &["xl-style.safetensors"])?, EmbeddingError::OtherFamily { .. }));
    let error = refused("sd15", &["trainer.pt", "trainer.pt"])?;
    assert!(matches!(error, EmbeddingError::SameName { ref name } if name == "trainer"), "{error}");
    Ok(())
}

/// A text encoder that pools the token of the highest id pools the end token of a prompt with new ids.
#[test]
fn the_end_token_is_pooled_whatever_ids_are_added() -> Result<(), Error> {
    let path = Fixture::open("embeddings").path("xl-style.safetensors");
    let files = EmbeddedFiles::new(files("sdxl")?, &[embedding(&path)?])?;
    let config =
        |files: &dyn ModelFiles| files.json("text_encoder", "config.json").map_err(|error| error.to_string());
    let (config, base): (Value, Value) = (config(&files)?, config(&*self::files("sdxl")?)?);
    assert_eq!((&base["eos_token_id"], &config["eos_token_id"]), (&2.into(), &603.into()));
    assert_eq!(config["vocab_size"], 607);
    Ok(())
}
