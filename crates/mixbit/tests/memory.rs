//! What palettized weights take in memory.

use mixbit_compress::{Encoder, Scheme, Width, layers, uniform};
use mixbit_diffusion::arch::GraphOptions;
use mixbit_engine::{Backend, Options, Reference};
use mixbit_engine_cpu::Cpu;

#[test]
fn the_demo_model_in_four_bits_takes_less_than_a_third_of_its_weights() {
    let model = mixbit_app::source::load(None, &Default::default()).unwrap().model;
    let size = model.defaults.size.map(|extent| extent / model.autoencoder.latent.scale);
    let options = GraphOptions {
        width: size[0],
        height: size[1],
        time_ids: model.unet.time_ids.unwrap_or_default(),
        ..GraphOptions::default()
    };
    let graph = model.unet.network.graph(&options).unwrap();
    let four_bits = Scheme::palette(Width::Four);
    let plan = uniform(&layers(&graph), four_bits, 2048);
    let small = Encoder::new().apply(&graph, &plan, &()).unwrap();
    let whole: usize = layers(&graph).iter().map(|layer| 2 * layer.count()).sum();
    let backends: [&dyn Backend; 2] = [&Cpu::new(Some(1)).unwrap(), &Reference];
    for backend in backends {
        let bytes = backend.compile(&small, &Options::default()).unwrap().weight_bytes();
        // All constants are in the sum, norms and biases too.
        assert!(bytes as f64 <= 0.3 * whole as f64, "{}: {bytes} of {whole}", backend.name());
        assert!(bytes as f64 > 0.25 * whole as f64, "{}: {bytes} of {whole}", backend.name());
    }
}
