//! Any bytes as a picture file: no panic, and parameters that are found can be parsed.
#![no_main]

use std::io::Cursor;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use mixbit_app::parameters::Parameters;
use mixbit_app::picture::parameters_in;

fuzz_target!(|file: &[u8]| {
    if let Ok(text) = parameters_in(Path::new("fuzz.png"), Cursor::new(file)) {
        let _ = Parameters::parse(&text);
    }
});
