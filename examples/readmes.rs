//! The READMEs of the published crates, so that their examples are compiled and run as documentation tests.
#![forbid(unsafe_code)]

/// Includes a README in the documentation tests.
macro_rules! readmes {
    ($($name:ident: $path:literal,)*) => {
        $(
            #[cfg(doctest)]
            #[doc = include_str!($path)]
            pub struct $name;
        )*
    };
}

readmes! {
    Mil: "../crates/mil/README.md",
    Formats: "../crates/formats/README.md",
    Compress: "../crates/compress/README.md",
    Kernels: "../crates/kernels/README.md",
    Engine: "../crates/engine/README.md",
    EngineCpu: "../crates/engine-cpu/README.md",
    Diffusion: "../crates/diffusion/README.md",
    Packages: "../crates/packages/README.md",
    App: "../crates/app/README.md",
}
