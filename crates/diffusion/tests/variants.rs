//! Models whose files say the same in another way, or something that does not count: they draw the same.

mod support;

use std::sync::Arc;

use mixbit_diffusion::model::{DiffusionModel, FileError, ModelError, ModelFiles, ModelFilesLayer};
use mixbit_diffusion::random::TorchSource;
use mixbit_diffusion::scheduler::SchedulerConfig;
use mixbit_diffusion::session::{Cancel, GenerateError, Image, Request, Session, Text};
use mixbit_engine_cpu::Cpu;
use mixbit_testkit::{Failures, Fixture};
use serde_json::{Value, json};

type Error = Box<dyn std::error::Error>;

/// A change of a component's JSON file.
type Change = dyn Fn(&str, &str, &mut Value);

/// A fixture model with one changed file, and other classes in its `model_index.json`.
struct Changed {
    base: Box<dyn ModelFiles>,
    class: Option<&'static str>,
    scheduler: Option<&'static str>,
    json: Box<Change>,
    added_tokens: Option<String>,
}

impl Changed {
    fn of(name: &str) -> Result<Self, Error> {
        let base = Box::new(support::open(&Fixture::open("pipelines").path(name))?);
        Ok(Changed { base, class: None, scheduler: None, json: Box::new(|_, _, _| {}), added_tokens: None })
    }

    /// Changes the JSON of one component.
    fn with(self, component: &'static str, change: impl Fn(&mut Value) + 'static) -> Self {
        let json = move |place: &str, file: &str, value: &mut Value| {
            if place == component && file.ends_with("config.json") {
                change(value);
            }
        };
        Changed { json: Box::new(json), ..self }
    }

    fn model(&self) -> Result<Arc<DiffusionModel>, ModelError> {
        DiffusionModel::from_files(self).map(Arc::new)
    }
}

impl ModelFilesLayer for Changed {
    fn base(&self) -> &dyn ModelFiles {
        &*self.base
    }

    fn class(&self) -> &str {
        self.class.unwrap_or(self.base.class())
    }

    fn component(&self, name: &str) -> Option<&str> {
        match (name, self.scheduler) {
            ("scheduler", Some(class)) => Some(class),
            _ => self.base.component(name),
        }
    }

    fn json(&self, component: &str, file: &str) -> Result<Value, FileError> {
        let mut value = self.base.json(component, file)?;
        (self.json)(component, file, &mut value);
        Ok(value)
    }

    fn text(&self, component: &str, file: &str) -> Result<Option<String>, FileError> {
        match (component, file, &self.added_tokens) {
            ("tokenizer", "added_tokens.json", Some(tokens)) => Ok(Some(tokens.clone())),
            _ => self.base.text(component, file),
        }
    }
}

fn draw(model: &Arc<DiffusionModel>, request: &Request) -> Result<Image, GenerateError> {
    let mut session = Session::new(model.clone(), Arc::new(Cpu::new(Some(1)).unwrap()));
    session.generate(request, &mut TorchSource::new(3), &Cancel::default(), &mut |_| {})
}

fn request(model: &DiffusionModel, text: Text) -> Result<Request, Error> {
    Ok(Request { steps: 3, size: [32, 32], ..Request::new(model, text)? })
}

fn drawn(changed: &Changed) -> Result<Image, Error> {
    let model = changed.model()?;
    Ok(draw(&model, &request(&model, Text::new("a red circle"))?)?)
}

#[test]
fn what_does_not_count_changes_nothing() {
    let expected = drawn(&Changed::of("sd15").unwrap()).unwrap();
    let averaging = |config: &mut Value| {
        config["decay"] = json!(0.9999);
        config["optimization_step"] = json!(37000);
        config["power"] = json!(0.67);
    };
    let whole_clip = |config: &mut Value| {
        let vision = json!({ "hidden_size": 7 });
        *config = json!({ "model_type": "clip", "text_config": config.take(), "vision_config": vision });
    };
    let sd15 = || Changed::of("sd15").unwrap();
    let cases = [
        ("fields of averaging", sd15().with("unet", averaging)),
        ("a whole CLIP", sd15().with("text_encoder", whole_clip)),
        ("an unused token", Changed { added_tokens: Some(r#"{"<unused>": 100000}"#.to_string()), ..sd15() }),
        (
            "another class in the file",
            sd15().with("scheduler", |c| c["_class_name"] = json!("DDIMScheduler")),
        ),
        ("no class in the file", sd15().with("scheduler", |c| c["_class_name"] = json!(null))),
        ("a community pipeline", Changed { class: Some("LongPromptWeightingPipeline"), ..sd15() }),
    ];
    let mut failures = Failures::new("variants");
    for (name, changed) in cases {
        failures.case(name, || match drawn(&changed)? == expected {
            true => Ok::<(), Error>(()),
            false => Err("another image".into()),
        });
    }
    failures.finish();
}

#[test]
fn the_class_of_model_index_counts() -> Result<(), Error> {
    let changed = Changed { scheduler: Some("EulerDiscreteScheduler"), ..Changed::of("sd15")? };
    let model = changed.model()?;
    let own = request(&model, Text::new("a red circle"))?;
    assert_eq!(own.scheduler.entry().name, "euler");
    let mut file = ModelFiles::json(&changed, "scheduler", "scheduler_config.json")
        .map_err(|error| error.to_string())?;
    file["_class_name"] = json!("EulerDiscreteScheduler");
    let scheduler = SchedulerConfig::from_json(&file)?;
    assert!(draw(&model, &own)? == draw(&model, &Request { scheduler, ..own.clone() })?);
    Ok(())
}

#[test]
fn an_unknown_scheduler_is_refused_unless_another_is_taken() -> Result<(), Error> {
    let changed = Changed { scheduler: Some("MagicScheduler"), ..Changed::of("sd15")? };
    let model = changed.model()?;
    let error = request(&model, Text::new("a")).unwrap_err().to_string();
    assert!(error.contains("MagicScheduler") && error.contains("--scheduler"), "{error}");
    let scheduler = model.scheduler.with_scheduler("euler")?;
    let taken = Request::with_scheduler(&model, Text::new("a red circle"), scheduler);
    let usual = support::model(&Fixture::open("pipelines").path("sd15"))?;
    let expected =
        Request::with_scheduler(&usual, Text::new("a red circle"), usual.scheduler.with_scheduler("euler")?);
    let small = |request: Request| Request { steps: 3, size: [32, 32], ..request };
    assert!(draw(&model, &small(taken))? == draw(&usual, &small(expected))?);
    Ok(())
}

#[test]
fn a_token_without_an_embedding_is_refused_where_it_is_used() -> Result<(), Error> {
    let tokens = Some(r#"{"<mine>": 100000}"#.to_string());
    let model = Changed { added_tokens: tokens, ..Changed::of("sd15")? }.model()?;
    let error = draw(&model, &request(&model, Text::new("a <mine> circle"))?).unwrap_err().to_string();
    assert!(error.contains("<mine>") && error.contains("embedding"), "{error}");
    Ok(())
}

#[test]
fn an_empty_second_prompt_is_the_first() -> Result<(), Error> {
    let model = Changed::of("sdxl")?.model()?;
    let first = Text { negative_prompt: Some("blue".into()), ..Text::new("a red circle") };
    let empty = Some(String::new());
    let second = Text { prompt_2: empty.clone(), negative_prompt_2: empty, ..first.clone() };
    assert!(draw(&model, &request(&model, first)?)? == draw(&model, &request(&model, second)?)?);
    Ok(())
}

#[test]
fn models_of_other_architectures_are_refused_by_name() -> Result<(), Error> {
    let error =
        Changed { class: Some("FluxPipeline"), ..Changed::of("sd15")? }.model().unwrap_err().to_string();
    assert!(error.contains("`FluxPipeline`") && error.contains("Stable Diffusion 1, 2 and XL"), "{error}");
    assert!(error.contains("Draw Things"), "{error}");
    Ok(())
}

/// diffusers' pipelines of Stable Diffusion 1 and 2 correct what old configurations say, those of XL do not.
#[test]
fn old_scheduler_configurations_are_corrected_as_in_diffusers() -> Result<(), Error> {
    let old = |config: &mut Value| {
        config["clip_sample"] = json!(true);
        config["steps_offset"] = json!(0);
    };
    for (name, corrected) in [("sd15", true), ("sdxl", false)] {
        let changed =
            Changed { scheduler: Some("DDIMScheduler"), ..Changed::of(name)?.with("scheduler", old) };
        let model = changed.model()?;
        let file = model.scheduler.file();
        let expected = if corrected { [json!(false), json!(1)] } else { [json!(true), json!(0)] };
        assert_eq!([&file["clip_sample"], &file["steps_offset"]], [&expected[0], &expected[1]], "{name}");
        assert_eq!(model.scheduler.config()?.notes().is_empty(), !corrected, "{name}");
    }
    Ok(())
}
