//! Draws a picture with the demo model: `cargo run -p mixbit-examples --example draw -- red-circle.png`.
#![forbid(unsafe_code)]

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use mixbit_app::{picture, source};
use mixbit_diffusion::random::random_source;
use mixbit_diffusion::session::{Cancel, Placement, Request, Session, Text};
use mixbit_engine_cpu::Cpu;

fn main() -> Result<(), Box<dyn Error>> {
    let path = PathBuf::from(std::env::args().nth(1).ok_or("the path of the picture is missing")?);
    let model = source::load(None, &Default::default())?.model;
    let request = Request::new(&model, Text::new("a large red circle on a white background"))?;
    let mut session = Session::new(Arc::new(model), Placement::new(Arc::new(Cpu::new(None)?)));
    let mut noise = random_source("torch")?.seeded(1)?;
    let image = session.generate(&request, &mut *noise, &Cancel::default(), &mut |_| {})?;
    picture::write(&path, &image, "")?;
    Ok(())
}
