//! Images that are decoded in tiles, beside the same decoded whole.

use std::sync::Arc;

use mixbit_diffusion::random::random_source;
use mixbit_diffusion::session::{Cancel, Request, Session, Text, Tiling};
use mixbit_engine_cpu::Cpu;
use mixbit_packages::psnr::{mean_square, psnr};
use mixbit_testkit::Failures;

type Error = Box<dyn std::error::Error>;

/// The demo model's images of one size after a few steps, decoded in each way from the same latents.
fn decode<const N: usize>(size: [usize; 2], ways: [(Tiling, usize); N]) -> Result<[Vec<u8>; N], Error> {
    let model = Arc::new(mixbit_app::source::load(None, &Default::default())?.model);
    let text = Text::new(
        "a large red circle at the left and a small blue square at the right on a white background",
    );
    let request = Request { size, steps: 4, ..Request::new(&model, text).unwrap() };
    let mut latents: Option<Vec<f32>> = None;
    let mut images = ways.map(|_| Vec::new());
    for (image, (tiling, threads)) in images.iter_mut().zip(ways) {
        let mut session = Session::new(model.clone(), Arc::new(Cpu::new(Some(threads))?));
        let request = Request { tiling, ..request.clone() };
        let mut noise = random_source("torch")?.seeded(1)?;
        let mut run = session.begin(&request, &mut *noise, &Cancel::default(), &mut |_| {})?;
        if latents.is_none() {
            while session.step(&mut run, &mut *noise, &mut |_| {})? {}
            latents = Some(run.latents().to_vec());
        }
        *image = session.decode(&run, latents.as_deref().unwrap_or_default(), &mut |_| {})?.to_rgb8();
    }
    Ok(images)
}

#[test]
fn tiles_are_hardly_seen() {
    let mut failures = Failures::new("sizes in tiles");
    // Tiles in a row, in a column and in both, of sizes that their number does not divide.
    for size in [[1000, 520], [520, 840], [776, 768]] {
        failures.case(&format!("{size:?}"), || {
            let [whole, tiled] = decode(size, [(Tiling::Never, 2), (Tiling::Always, 2)])?;
            assert!(whole != tiled, "there is one tile");
            let pairs = whole.iter().zip(&tiled).map(|(&whole, &tiled)| (whole.into(), tiled.into()));
            let found = psnr(255.0, mean_square(pairs));
            println!("{size:?}: {found:.1} dB");
            if found < 38.0 {
                return Err(format!("{found:.1} dB").into());
            }
            Ok::<(), Error>(())
        });
    }
    failures.finish();
}

#[test]
fn tiles_do_not_depend_on_the_threads() -> Result<(), Error> {
    let [one, three] = decode([520, 600], [(Tiling::Always, 1), (Tiling::Always, 3)])?;
    assert!(one == three);
    Ok(())
}

#[test]
fn what_is_one_tile_is_decoded_whole() -> Result<(), Error> {
    for size in [[512, 512], [64, 128]] {
        let [whole, tiled, auto] =
            decode(size, [Tiling::Never, Tiling::Always, Tiling::Auto].map(|tiling| (tiling, 2)))?;
        assert!(whole == tiled && whole == auto, "{size:?}");
    }
    Ok(())
}
