//! Tests of the scheduler table and the configuration reader.

use serde_json::{Value, json};

use super::*;

fn refusal(config: Value) -> String {
    let config = SchedulerConfig::from_json(&config);
    match config.and_then(|config| config.build(20)) {
        Ok(_) => "accepted".into(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn names_aliases_and_fields_are_unique() {
    let unique = |mut names: Vec<&str>| {
        names.sort_unstable();
        names.windows(2).all(|pair| pair[0] != pair[1])
    };
    assert!(unique(SCHEDULERS.iter().flat_map(|e| e.aliases.iter().copied().chain([e.name])).collect()));
    for entry in SCHEDULERS {
        assert!(unique(entry.fields().map(|field| field.name).collect()), "{}", entry.name);
    }
}

#[test]
fn every_entry_runs_with_its_defaults() {
    let mut failures = mixbit_testkit::Failures::new("defaults");
    for entry in SCHEDULERS {
        failures.case(entry.name, || {
            let mut scheduler = SchedulerConfig::new(entry).build(6).map_err(|error| error.to_string())?;
            let mut noise = crate::random::TorchSource::new(1);
            let mut sample = vec![0.5; 32];
            for index in 0..scheduler.timesteps().len() {
                let model_output = scheduler.scale_model_input(&sample, index);
                let input = StepInput { index, model_output: &model_output, sample: &sample, images: 2 };
                let output = scheduler.step(input, &mut noise);
                if output.previous.iter().chain(&output.original).any(|x| !x.is_finite()) {
                    return Err(format!("not finite after evaluation {index}"));
                }
                sample = output.previous;
            }
            Ok(())
        });
    }
    failures.finish();
}

#[test]
fn refusals_name_the_field_and_the_value() {
    let class = "_class_name";
    let cases = [
        (json!([]), "scheduler_config.json is not a JSON object: download it again"),
        (
            json!({}),
            "scheduler_config.json does not name the scheduler (`_class_name`): take another (--scheduler)",
        ),
        (
            json!({class: "DDIMScheduler", "beta_schedule": "cubic"}),
            "the scheduler setting `beta_schedule` = \"cubic\" of DDIMScheduler is not one of linear, scaled_linear, \
             squaredcos_cap_v2",
        ),
        (
            json!({class: "DDIMScheduler", "num_train_timesteps": 1e12}),
            "the scheduler setting `num_train_timesteps` = 1000000000000.0 of DDIMScheduler is not an integer from 1 to \
             100000",
        ),
        (
            json!({class: "DDIMScheduler", "beta_end": "big"}),
            "the scheduler setting `beta_end` = \"big\" of DDIMScheduler is not a finite number",
        ),
        (
            json!({class: "DDIMScheduler", "beta_end": 1.5}),
            "the scheduler setting `beta_end` = 1.5 of DDIMScheduler is not between 0 and 1",
        ),
        (
            json!({class: "DDIMScheduler", "trained_betas": [0.1, 0.2]}),
            "the scheduler setting `trained_betas` = [0.1,0.2] of DDIMScheduler has 2 values for 1000 timesteps",
        ),
        (
            json!({class: "DDIMScheduler", "warp_factor": 9}),
            "the scheduler setting `warp_factor` = 9 is not known for DDIMScheduler",
        ),
        (
            json!({class: "DDIMScheduler", "num_train_timesteps": 10}),
            "DDIMScheduler cannot run 20 steps: it must be from 1 to 10, the steps of training",
        ),
        (
            json!({class: "DDIMScheduler", "num_train_timesteps": 20, "steps_offset": 1}),
            "DDIMScheduler cannot run 20 steps: `steps_offset` = 1 moves a timestep past training",
        ),
        (
            json!({class: "PNDMScheduler", "prediction_type": "sample"}),
            "the scheduler setting `prediction_type` = \"sample\" of PNDMScheduler is not one of epsilon, v_prediction",
        ),
        (
            json!({class: "UniPCMultistepScheduler", "use_flow_sigmas": true}),
            "the scheduler setting `use_flow_sigmas` = true of UniPCMultistepScheduler is not supported",
        ),
        (
            json!({class: "EulerDiscreteScheduler", "use_karras_sigmas": true, "use_beta_sigmas": true}),
            "the scheduler setting `use_beta_sigmas` = true of EulerDiscreteScheduler excludes `use_karras_sigmas`",
        ),
        (
            json!({class: "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}),
            "the scheduler setting `algorithm_type` = \"dpmsolver\" of DPMSolverMultistepScheduler needs \
             `final_sigmas_type` = sigma_min",
        ),
        (
            json!({class: "DPMSolverMultistepScheduler", "num_train_timesteps": 20}),
            "DPMSolverMultistepScheduler cannot run 20 steps: steps 9 and 10 have the same noise level",
        ),
        (
            json!({class: "DPMSolverSinglestepScheduler", "lambda_min_clipped": "Infinity"}),
            "the scheduler setting `lambda_min_clipped` = \"Infinity\" of DPMSolverSinglestepScheduler is not a finite \
             number",
        ),
        (
            json!({class: "DPMSolverSinglestepScheduler", "lambda_min_clipped": 1e3}),
            "the scheduler setting `lambda_min_clipped` = 1000.0 of DPMSolverSinglestepScheduler leaves no timestep",
        ),
        (
            json!({class: "HeunDiscreteScheduler", "clip_sample": true, "clip_sample_range": -1}),
            "the scheduler setting `clip_sample_range` = -1 of HeunDiscreteScheduler is not positive",
        ),
        (
            json!({class: "UniPCMultistepScheduler", "thresholding": true, "dynamic_thresholding_ratio": 2}),
            "the scheduler setting `dynamic_thresholding_ratio` = 2 of UniPCMultistepScheduler is not from 0 to 1",
        ),
        (
            json!({class: "EulerDiscreteScheduler", "use_karras_sigmas": true, "sigma_min": 0}),
            "the scheduler setting `sigma_min` = 0 of EulerDiscreteScheduler is not positive",
        ),
        (
            json!({class: "DDPMScheduler", "beta_start": 0.999, "beta_end": 0.999}),
            "DDPMScheduler cannot run 20 steps: this noise schedule leads to numbers that are not finite",
        ),
        (
            json!({class: "LCMScheduler", "original_inference_steps": 10}),
            "LCMScheduler cannot run 20 steps: `original_inference_steps` is 10",
        ),
    ];
    let mut failures = mixbit_testkit::Failures::new("refusals");
    for (config, expected) in cases {
        let message = refusal(config.clone());
        failures.case(&config.to_string(), || if message == expected { Ok(()) } else { Err(message) });
    }
    failures.finish();
}

#[test]
fn unknown_classes_and_names_list_the_known_ones() {
    let message = refusal(json!({"_class_name": "SCMScheduler"}));
    assert!(
        message.starts_with("the model's scheduler SCMScheduler is not among those that mixbit has")
            && message.contains("--scheduler")
            && message.contains("euler, "),
        "{message}"
    );
    let config = SchedulerConfig::new(&SCHEDULERS[0]);
    for name in ["warp", "euler-warp", "warp-karras"] {
        let message = config.with_scheduler(name).expect_err("unknown").to_string();
        assert!(message.contains(&format!("`{name}`")) && message.contains("dpmpp-2m-sde, "), "{message}");
    }
    let message = config.with_scheduler("ddpm-karras").expect_err("no sigmas").to_string();
    assert_eq!(message, "the scheduler DDPMScheduler has no schedule of Karras (-karras)");
}

#[test]
fn fields_of_other_classes_and_switched_off_ones_are_ignored() {
    let file = json!({
        "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "clip_sample": false,
        "sample_max_value": 1.0, "sigma_data": 0.5, "an_option_of_tomorrow": false, "another": null,
    });
    assert!(SchedulerConfig::from_json(&file).is_ok());
}

#[test]
fn predict_epsilon_is_the_prediction_type_of_early_versions() {
    let prediction = |more: Value| {
        let mut file = json!({"_class_name": "DDIMScheduler"});
        file.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let config = SchedulerConfig::from_json(&file);
        config.map(|config| config.prediction_type().to_owned()).map_err(|error| error.to_string())
    };
    assert_eq!(prediction(json!({"predict_epsilon": true})), Ok("epsilon".to_owned()));
    assert_eq!(prediction(json!({"predict_epsilon": false})), Ok("sample".to_owned()));
    assert_eq!(prediction(json!({"predict_epsilon": null})), Ok("epsilon".to_owned()));
    let both = json!({"predict_epsilon": true, "prediction_type": "v_prediction"});
    assert_eq!(prediction(both), Ok("v_prediction".to_owned()));
    assert!(
        prediction(json!({"predict_epsilon": "yes"})).is_err_and(|error| error.contains("predict_epsilon"))
    );
}

#[test]
fn what_another_class_refuses_does_not_matter() {
    for file in [
        json!({"_class_name": "MagicScheduler", "wand": "long", "beta_start": 0.00085}),
        json!({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": true}),
        json!({"_class_name": "DDPMScheduler", "variance_type": "learned"}),
        json!({"beta_start": 0.00085}),
    ] {
        assert!(SchedulerConfig::from_json(&file).is_err(), "{file}");
        let config = SchedulerConfig::from_json_with(&file, "Euler a").expect("the override counts");
        assert_eq!(config.entry().name, "euler-ancestral");
    }
    let own = json!({"_class_name": "EulerDiscreteScheduler", "wand": "long"});
    let error = SchedulerConfig::from_json_with(&own, "euler").expect_err("its own field").to_string();
    assert!(error.contains("wand"), "{error}");
}

#[test]
fn no_clipping_may_be_written_as_minus_infinity() {
    for class in ["DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"] {
        let file = json!({"_class_name": class, "lambda_min_clipped": "-Infinity"});
        let config = SchedulerConfig::from_json(&file).expect("diffusers' own default");
        let plain = SchedulerConfig::from_json(&json!({"_class_name": class})).expect("valid");
        let timesteps = |config: &SchedulerConfig| config.build(10).expect("valid").timesteps().to_vec();
        assert_eq!(timesteps(&config), timesteps(&plain));
    }
}

#[test]
fn another_scheduler_takes_shared_fields_and_its_own_defaults() {
    let file = json!({
        "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1,
        "beta_schedule": "scaled_linear", "prediction_type": "v_prediction", "clip_sample": false,
    });
    let config = SchedulerConfig::from_json(&file).expect("valid");
    let other = config.with_scheduler("ddim").expect("known");
    assert_eq!(other.prediction_type(), "v_prediction");
    assert_eq!((other.integer("steps_offset"), other.number("beta_end")), (1, 0.012));
    // PNDM lacks this field, but the configuration keeps it for other classes. DDIM's own default is true.
    assert!(!other.bool("clip_sample"));
    assert!(other.bool("set_alpha_to_one"));

    let other = config.with_scheduler("DPMSolverMultistepScheduler").expect("a class name");
    assert_eq!((other.entry().name, other.choice("timestep_spacing")), ("dpmpp-2m", "linspace"));
    let other = other.with_scheduler("dpmpp-2m-sde-karras").expect("known");
    assert_eq!(other.choice("algorithm_type"), "sde-dpmsolver++");
    assert!(other.bool("use_karras_sigmas"));
    let other = other.with_scheduler("dpmpp-exponential").expect("an alias");
    assert_eq!(other.choice("algorithm_type"), "dpmsolver++");
    assert!(other.bool("use_exponential_sigmas") && !other.bool("use_karras_sigmas"));
}

#[test]
fn overrides_replace_the_files_own() {
    let file = json!({"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": true});
    let mut config = SchedulerConfig::from_json(&file).expect("valid");
    config.set_sigmas(SigmaSchedule::Beta).expect("Euler has it");
    config.set_timestep_spacing(TimestepSpacing::Trailing).expect("Euler has it");
    assert!(config.bool("use_beta_sigmas") && !config.bool("use_karras_sigmas"));
    assert_eq!(config.choice("timestep_spacing"), "trailing");
    config.set_sigmas(SigmaSchedule::Trained).expect("every class has it");
    assert!(!config.bool("use_beta_sigmas"));
    let message = config.set_sigmas(SigmaSchedule::Lu).expect_err("Euler has not").to_string();
    assert_eq!(message, "the scheduler EulerDiscreteScheduler has no schedule of Lu (-lu)");
}

/// diffusers ends these at NaN: the last step multiplies an infinite `B(h)` by a zero residual.
#[test]
fn unipc_with_bh1_ends_finite() {
    let file = json!({"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1"});
    let mut scheduler = SchedulerConfig::from_json(&file).and_then(|c| c.build(5)).expect("valid");
    let mut sample = vec![0.5; 16];
    for index in 0..5 {
        let input = StepInput { index, model_output: &[0.25; 16], sample: &sample, images: 1 };
        sample = scheduler.step(input, &mut crate::random::TorchSource::new(1)).previous;
    }
    assert!(sample.iter().all(|x| x.is_finite()));
}
