//! Any bytes as the generation parameters of an image: no panic, and a request that they give is written as
//! parameters of the same request.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mixbit_app::parameters::Parameters;

fuzz_target!(|file: &[u8]| {
    let Ok(text) = std::str::from_utf8(file) else { return };
    let parameters = Parameters::parse(text);
    let _ = parameters.to_json();
    let printed = parameters.to_string();
    assert_eq!(Parameters::parse(&printed).to_string(), printed, "{text:?}");
});
