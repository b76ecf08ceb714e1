//! Compares CLIP's tokenizer with transformers: every prompt of `fixtures/tokenizer/` with every
//! configuration.

use mixbit_diffusion::tokenizer::{Tokenizer, TokenizerFiles};
use mixbit_testkit::{Failures, Fixture};
use serde_json::Value;

/// A length above that of every prompt in the fixture.
const UNCUT: usize = 4096;

#[test]
fn ids_are_those_of_transformers() {
    let fixture = Fixture::open("tokenizer");
    let [vocab, merges] =
        ["vocab.json", "merges.txt"].map(|name| std::fs::read_to_string(fixture.path(name)).unwrap());
    let tokenizer = |config: &Value| {
        let config = config.to_string();
        let (vocab, merges, config) = (Some(&*vocab), Some(&*merges), Some(&*config));
        Tokenizer::new(&TokenizerFiles { vocab, merges, config, ..TokenizerFiles::default() }).unwrap()
    };
    let cases = fixture.json("cases.json");
    let length = cases["length"].as_u64().unwrap() as usize;
    let mut failures = Failures::new("tokenizer");
    for (name, config) in cases["tokenizers"].as_object().unwrap() {
        let padded = tokenizer(config);
        assert_eq!(padded.length(), length);
        let mut config = config.clone();
        config["model_max_length"] = UNCUT.into();
        let uncut = tokenizer(&config);
        for case in cases["cases"].as_array().unwrap() {
            failures.case(&format!("{name}: {}", case["prompt"]), || check(&padded, &uncut, name, case));
        }
    }
    failures.finish();
}

fn check(padded: &Tokenizer, uncut: &Tokenizer, name: &str, case: &Value) -> Result<(), String> {
    let prompt = case["prompt"].as_str().unwrap();
    let encode = |tokenizer: &Tokenizer| tokenizer.encode(prompt).map_err(|error| error.to_string());
    let (padded, uncut) = (encode(padded)?, encode(uncut)?);
    let whole = expected(case, "ids", name);
    equal("ids", &uncut.ids[..uncut.used], &whole)?;
    equal("padded ids", &padded.ids, &expected(case, "padded", name))?;
    if padded.dropped.is_some() == (whole.len() > padded.ids.len()) {
        Ok(())
    } else {
        Err(format!("dropped {:?} of {} tokens", padded.dropped, whole.len()))
    }
}

/// The ids of a tokenizer, or those of `plain` if they are the same.
fn expected(case: &Value, field: &str, name: &str) -> Vec<u32> {
    let ids = case[field].get(name).unwrap_or(&case[field]["plain"]);
    ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn equal(what: &str, found: &[u32], expected: &[u32]) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{what} {found:?} for {expected:?}")) }
}
