use super::*;
use mixbit_mil::{Bytes, TensorType};
use mixbit_testkit::Failures;

/// The names and shapes of a file's tensors.
type Tensors = &'static [(&'static str, &'static [usize])];

/// Tensors of zeros by name.
struct Zeros(BTreeMap<String, TensorType>);

impl Zeros {
    fn of(tensors: Tensors) -> Self {
        let named =
            |&(name, shape): &(&str, &[usize])| (name.to_string(), TensorType::new(DType::F32, shape));
        Zeros(tensors.iter().map(named).collect())
    }
}

impl Weights for Zeros {
    fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    fn get(&self, name: &str) -> Option<WeightRef> {
        let ty = self.0.get(name)?;
        WeightRef::new(name, ty.clone(), Bytes::new(vec![0; ty.byte_len()?])).ok()
    }
}

#[test]
fn every_form_gives_its_names_and_vectors() {
    let cases: [(Tensors, &[&str], usize, &str); 8] = [
        (&[("string_to_param.*", &[4, 768])], &["file", "old"], 4, "Stable Diffusion 1.x (768 channels)"),
        (&[("<cat>", &[768])], &["<cat>", "file"], 1, "Stable Diffusion 1.x (768 channels)"),
        (&[("file", &[1, 2, 1024])], &["file"], 2, "Stable Diffusion 2.x (1024 channels)"),
        (&[("emb_params", &[1, 1024])], &["file"], 1, "Stable Diffusion 2.x (1024 channels)"),
        (
            &[("clip_g", &[2, 1280]), ("clip_l", &[2, 768])],
            &["file"],
            2,
            "Stable Diffusion XL (768 and 1280 channels)",
        ),
        (
            &[("text_encoders_0", &[2, 768]), ("text_encoders_1", &[2, 1280])],
            &["file"],
            2,
            "Stable Diffusion XL (768 and 1280 channels)",
        ),
        (
            &[("clip_g", &[1280])],
            &["file"],
            1,
            "the second text encoder of Stable Diffusion XL (1280 channels)",
        ),
        (&[("*", &[3, 7])], &["file"], 3, "text encoders of 7 channels"),
    ];
    let mut failures = Failures::new("forms of embeddings");
    for (tensors, names, count, made_for) in cases {
        failures.case(tensors[0].0, || {
            let metadata = BTreeMap::from([("name".to_string(), "old".to_string())]);
            let embedding =
                Embedding::read(&Zeros::of(tensors), &metadata, "file").map_err(|error| error.to_string())?;
            let found = (embedding.names(), embedding.vector_count(), embedding.made_for());
            let is_right = found.0 == names && found.1 == count && found.2 == made_for;
            if is_right { Ok(()) } else { Err(format!("{found:?}")) }
        });
    }
    failures.finish();
}

#[test]
fn other_files_are_refused_by_what_they_are() {
    let cases: [(Tensors, &str); 7] = [
        (&[], "no tensors"),
        (&[("lora_unet_x.lora_down.weight", &[4, 4])], "--lora"),
        (&[("a", &[1]), ("model.diffusion_model.out.0.weight", &[4])], "--model"),
        (&[("a", &[1]), ("b", &[1])], "its first tensor is `a` of 2"),
        (&[("string_to_param.*", &[4, 8]), ("string_to_param.+", &[4, 8])], "several words"),
        (&[("emb_params", &[2, 4, 8])], "`emb_params` has shape [2, 4, 8]"),
        (&[("emb_params", &[0, 8])], "has 0 vectors"),
    ];
    let mut failures = Failures::new("files that are no embeddings");
    for (tensors, expected) in cases {
        failures.case(expected, || match Embedding::read(&Zeros::of(tensors), &BTreeMap::new(), "file") {
            Ok(embedding) => Err(format!("read as {:?}", embedding.names())),
            Err(error) if error.to_string().contains(expected) => Ok(()),
            Err(error) => Err(error.to_string()),
        });
    }
    failures.finish();
}
