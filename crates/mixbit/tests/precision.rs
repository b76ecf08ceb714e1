//! How far the demo model's UNet comes off in each precision, at several steps of a drawing.

use std::sync::Arc;

use mixbit_app::source::load;
use mixbit_diffusion::random::random_source;
use mixbit_diffusion::session::{Cancel, Request, Session, Text};
use mixbit_engine::{Arithmetic, Backend, Options, Tensor};
use mixbit_engine_cpu::Cpu;
use mixbit_testkit::{ErrorStats, Failures};

type Error = Box<dyn std::error::Error>;

#[test]
fn the_demo_unet_keeps_its_predictions_in_every_precision() -> Result<(), Error> {
    let model = Arc::new(load(None, &Default::default())?.model);
    let backend = Arc::new(Cpu::new(None)?);
    let text = Text::new(
        "a large red circle at the left and a small blue square at the right on a white background",
    );
    let request = Request { steps: 12, ..Request::new(&model, text).unwrap() };
    let mut session = Session::new(model, backend.clone());
    let mut noise = random_source("torch")?.seeded(3)?;
    let mut run = session.begin(&request, &mut *noise, &Cancel::default(), &mut |_| {})?;
    let graph = run.unet_graph().clone();
    let mut failures = Failures::new("precisions");
    let mut exact = backend.compile(&graph, &Options::default())?;
    let rounded = [(Arithmetic::Bf16, 45.0), (Arithmetic::Int8, 35.0)].map(|(arithmetic, least)| {
        backend
            .compile(&graph, &Options { arithmetic, ..Options::default() })
            .map(|network| (arithmetic, least, network))
    });
    let mut rounded = rounded.into_iter().collect::<Result<Vec<_>, _>>()?;
    while run.done() < run.total() {
        for inputs in run.inputs()? {
            let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, value)| (*name, value)).collect();
            let expected = exact.run(&inputs)?;
            for (arithmetic, least, network) in &mut rounded {
                failures.case(&format!("{arithmetic:?} at step {}", run.done()), || {
                    let found = network.run(&inputs)?;
                    let values =
                        |tensors: &[Tensor]| tensors[0].as_f32().map(<[f32]>::to_vec).unwrap_or_default();
                    let stats = ErrorStats::compare(&values(&found), &values(&expected));
                    println!("{arithmetic:?} at step {}: {:.1} dB", run.done(), stats.psnr);
                    if stats.psnr < *least {
                        Err(format!("{:.1} dB", stats.psnr).into())
                    } else {
                        Ok::<(), Error>(())
                    }
                });
            }
        }
        session.step(&mut run, &mut *noise, &mut |_| {})?;
    }
    failures.finish();
    Ok(())
}
