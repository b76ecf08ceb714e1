//! Tests of sessions: consecutive requests, threads, cancellation and memory budgets.

mod support;

use std::sync::Arc;

use mixbit_diffusion::arch::GraphOptions;
use mixbit_diffusion::model::DiffusionModel;
use mixbit_diffusion::random::{NoiseSource, TorchSource};
use mixbit_diffusion::session::{
    Cancel, Event, GenerateError, Image, MemoryBudget, Request, Role, Session, SessionOptions, Start, Text,
    Tiling,
};
use mixbit_engine::{Backend, Options, Tensor};
use mixbit_engine_cpu::Cpu;
use mixbit_testkit::Fixture;

type Error = Box<dyn std::error::Error>;

fn model(name: &str) -> Result<Arc<DiffusionModel>, Error> {
    support::model(&Fixture::open("pipelines").path(name))
}

fn session(model: &Arc<DiffusionModel>) -> Result<Session, Error> {
    Ok(Session::new(model.clone(), Arc::new(Cpu::new(Some(1))?)))
}

fn request(model: &DiffusionModel, prompt: &str) -> Request {
    Request { steps: 6, size: [64, 48], ..Request::new(model, Text::new(prompt)).unwrap() }
}

fn draw(session: &mut Session, request: &Request) -> Result<Image, GenerateError> {
    session.generate(request, &mut TorchSource::new(1), &Cancel::default(), &mut |_| {})
}

/// The names of a request's events, with step numbers.
fn events(session: &mut Session, request: &Request) -> Result<(Image, Vec<String>), GenerateError> {
    let mut events = Vec::new();
    let mut on = |event: Event<'_>| {
        events.push(match event {
            Event::Encoding(network) => format!("encoding {network}"),
            Event::Compiling(network) => format!("compiling {network}"),
            Event::Step { done, total, predicted } => {
                assert!(predicted.iter().all(|value| value.is_finite()));
                format!("step {done}/{total}")
            }
            Event::Decoding => "decoding".to_string(),
        })
    };
    let image = session.generate(request, &mut TorchSource::new(1), &Cancel::default(), &mut on)?;
    Ok((image, events))
}

#[test]
fn a_session_is_sent_between_threads() {
    fn is_send<T: Send>() {}
    is_send::<Session>();
    is_send::<Request>();
}

#[test]
fn the_second_request_compiles_nothing() -> Result<(), Error> {
    let model = model("sd15")?;
    let mut session = session(&model)?;
    let request = request(&model, "a red circle");
    let (first, told) = events(&mut session, &request)?;
    let steps = request.scheduler.build(request.steps)?.timesteps().len();
    let steps: Vec<String> = (1..=steps).map(|done| format!("step {done}/{steps}")).collect();
    let before =
        ["encoding text_encoder", "compiling text_encoder", "encoding text_encoder", "compiling unet"];
    let after = ["decoding", "compiling vae"];
    let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
    assert_eq!(told, [names(&before), steps.clone(), names(&after)].concat());
    let compilations = session.compilations();

    let (second, told) = events(&mut session, &request)?;
    assert_eq!(told, [steps.clone(), names(&["decoding"])].concat());
    assert_eq!(first, second);

    // The new prompt is encoded; the empty negative prompt is cached.
    let other = Request { text: Text::new("a blue square"), ..request.clone() };
    let (third, told) = events(&mut session, &other)?;
    assert_eq!(told, [names(&["encoding text_encoder"]), steps, names(&["decoding"])].concat());
    assert!(first != third);
    assert_eq!(session.compilations(), compilations);
    Ok(())
}

#[test]
fn requests_do_not_depend_on_those_before() -> Result<(), Error> {
    for name in ["sd15", "sdxl"] {
        let model = model(name)?;
        let first = request(&model, "a red circle");
        let negative = Some("blurry".to_string());
        let variants = [
            first.clone(),
            Request { size: [32, 32], ..first.clone() },
            Request { text: Text { negative_prompt: negative, ..first.text.clone() }, ..first.clone() },
            Request { guidance_scale: 1.0, ..first.clone() },
            Request { tiling: Tiling::Always, size: [520, 512], steps: 1, ..first.clone() },
            first.clone(),
        ];
        let mut shared = session(&model)?;
        for (index, variant) in variants.iter().enumerate() {
            let alone = draw(&mut session(&model)?, variant)?;
            assert!(alone == draw(&mut shared, variant)?, "{name}, variant {index}");
        }
    }
    Ok(())
}

#[test]
fn two_sessions_in_two_threads_draw_as_each_alone() -> Result<(), Error> {
    let models = [model("sd15")?, model("sdxl")?];
    let prompts = ["a red circle", "a blue square"];
    let alone = [0, 1].map(|index| {
        let mut session = session(&models[index]).unwrap();
        draw(&mut session, &request(&models[index], prompts[index])).unwrap()
    });
    let backend = Arc::new(Cpu::new(Some(2))?);
    std::thread::scope(|scope| {
        let threads = [0, 1].map(|index| {
            let mut session = Session::new(models[index].clone(), backend.clone());
            let request = request(&models[index], prompts[index]);
            scope.spawn(move || [(); 3].map(|()| draw(&mut session, &request).unwrap()))
        });
        for (thread, alone) in threads.into_iter().zip(&alone) {
            assert!(thread.join().unwrap().iter().all(|image| image == alone));
        }
    });
    Ok(())
}

#[test]
fn after_a_cancelled_request_the_next_draws_the_same() -> Result<(), Error> {
    let model = model("sd15")?;
    let request = request(&model, "a red circle");
    let expected = draw(&mut session(&model)?, &request)?;
    let mut session = session(&model)?;
    for at in ["encoding", "compiling", "step", "decoding"] {
        let cancel = Cancel::default();
        let mut on = |event: Event<'_>| {
            let name = match event {
                Event::Encoding(_) => "encoding",
                Event::Compiling(_) => "compiling",
                Event::Step { done: 3, .. } => "step",
                Event::Step { .. } => "",
                Event::Decoding => "decoding",
            };
            if name == at {
                cancel.cancel();
            }
        };
        let result = session.generate(&request, &mut TorchSource::new(1), &cancel, &mut on);
        assert!(matches!(result, Err(GenerateError::Cancelled)), "{at}: {:?}", result.map(|_| ()));
        session.unload();
    }
    assert!(draw(&mut session, &request)? == expected);
    assert!(draw(&mut session, &request)? == expected);
    Ok(())
}

#[test]
fn reduced_memory_draws_the_same() -> Result<(), Error> {
    let model = model("sdxl")?;
    let request = request(&model, "a red circle");
    let options = SessionOptions { reduce_memory: true, ..SessionOptions::default() };
    let mut reduced = Session::with_options(model.clone(), Arc::new(Cpu::new(Some(1))?), options);
    assert!(draw(&mut reduced, &request)? == draw(&mut session(&model)?, &request)?);
    // Two text encoders, the UNet and the decoder.
    assert_eq!(reduced.compilations(), 4);
    draw(&mut reduced, &request)?;
    assert_eq!(reduced.compilations(), 6);
    Ok(())
}

#[test]
fn a_refiner_continues_what_the_base_began() -> Result<(), Error> {
    let (base, refiner) = (model("sdxl")?, model("refiner")?);
    let mut session = session(&base)?;
    let first = request(&base, "a red circle");
    let missing = Request { role: Role::Refiner, ..first.clone() };
    assert!(matches!(draw(&mut session, &missing), Err(GenerateError::NoModel { role: Role::Refiner })));
    session.set_model(Role::Refiner, refiner.clone());
    let mut noise = TorchSource::new(1);
    let mut run = session.begin(&first, &mut noise, &Cancel::default(), &mut |_| {})?;
    for _ in 0..run.total() - 2 {
        session.step(&mut run, &mut noise, &mut |_| {})?;
    }
    let start = Start::Continue { latents: run.latents().to_vec(), from: 0.7 };
    let second = Request { role: Role::Refiner, start, ..request(&refiner, "a red circle") };
    let refined = draw(&mut session, &second)?;
    let mut alone = Session::new(refiner, Arc::new(Cpu::new(Some(1))?));
    assert!(refined == draw(&mut alone, &Request { role: Role::Base, ..second })?);
    // The base model's networks are still loaded.
    let compilations = session.compilations();
    session.begin(&first, &mut noise, &Cancel::default(), &mut |_| {})?;
    assert_eq!(session.compilations(), compilations);
    Ok(())
}

#[test]
fn an_image_is_encoded_resized_and_noised() -> Result<(), Error> {
    let model = model("sd15")?;
    let rows: Vec<u8> = (0..3 * 80 * 56).map(|at| (at * 31 % 251) as u8).collect();
    let image = Image::from_rgb8([80, 56], &rows).ok_or("the image has another size")?;
    let start = Start::Image { image: image.clone(), strength: 0.5 };
    let from_image = Request { start, ..request(&model, "a red circle") };
    let (found, told) = events(&mut session(&model)?, &from_image)?;
    assert!(told.contains(&"encoding vae".to_string()), "{told:?}");

    // The manual equivalent: the encoder's graph on the same backend, with the same noise.
    let [width, height] = from_image.size;
    let options = GraphOptions { width: width / 8, height: height / 8, ..GraphOptions::default() };
    let graph = model.autoencoder.encoder.as_ref().ok_or("no encoder")?.graph(&options)?;
    let pixels = Tensor::from_f32(&[1, 3, height, width], image.resized([width, height]).planes)?;
    let mut encoder = Cpu::new(Some(1))?.compile(&graph, &Options::default())?;
    let moments = encoder.run(&[("x", &pixels)])?.remove(0);
    let mut noise = TorchSource::new(1);
    let latents = model.autoencoder.latent.from_encoder(moments.as_f32().ok_or("no floats")?, &mut noise);
    let start = Start::Latents { latents, strength: 0.5 };
    let from_latents = Request { start, ..from_image };
    let expected = session(&model)?.generate(&from_latents, &mut noise, &Cancel::default(), &mut |_| {})?;
    assert!(found == expected);
    Ok(())
}

#[test]
fn a_memory_budget_is_held() -> Result<(), Error> {
    let model = model("sd15")?;
    let sizes = [[64, 48], [96, 64], [64, 48], [128, 128]];
    let requests = sizes.map(|size| Request { size, ..request(&model, "a red circle") });
    let run = |budget: &MemoryBudget| {
        // Packed weights pay off for this many images, and each size has its own.
        let options =
            SessionOptions { budget: budget.clone(), planned_images: 8, ..SessionOptions::default() };
        let mut session = Session::with_options(model.clone(), Arc::new(Cpu::new(Some(1))?), options);
        let mut most = 0;
        let mut images = Vec::new();
        for request in &requests {
            let mut on = |_: Event<'_>| most = most.max(budget.used());
            images.push(session.generate(request, &mut TorchSource::new(1), &Cancel::default(), &mut on)?);
        }
        Ok::<_, Error>((images, most, session.compilations()))
    };
    let (expected, most, compilations) = run(&MemoryBudget::new(1 << 40))?;
    // Enough for the largest request alone, but not for all of them together.
    let alone = MemoryBudget::new(1 << 40);
    let options = SessionOptions { budget: alone.clone(), reduce_memory: true, ..SessionOptions::default() };
    let mut largest = 0;
    Session::with_options(model.clone(), Arc::new(Cpu::new(Some(1))?), options).generate(
        &requests[3],
        &mut TorchSource::new(1),
        &Cancel::default(),
        &mut |_| largest = largest.max(alone.used()),
    )?;
    let limit = largest + largest / 8;
    assert!(limit < most, "{limit} of {most}");
    let budget = MemoryBudget::new(limit);
    let (found, held, more_compilations) = run(&budget)?;
    assert!(found == expected);
    assert!(held <= limit, "{held} of {limit}");
    assert!(more_compilations >= compilations);
    assert!(run(&MemoryBudget::new(1 << 12)).is_err());
    Ok(())
}

/// A noise source that panics if it is used.
struct NoNoise;

impl NoiseSource for NoNoise {
    fn fill(&mut self, _: &mut [f32]) {
        panic!("noise is asked for before the request is checked");
    }
}

#[test]
fn too_large_images_are_refused_before_the_first_step() -> Result<(), Error> {
    let model = model("sd15")?;
    let mut session = session(&model)?;
    let wide = Request { size: [1 << 14, 64], ..request(&model, "a") };
    let result = session.begin(&wide, &mut NoNoise, &Cancel::default(), &mut |_| {});
    assert!(matches!(result.map(|_| ()), Err(GenerateError::Option { option: "width", .. })));
    Ok(())
}
