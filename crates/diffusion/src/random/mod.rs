//! Random sources: the Gaussian noise generators of common Stable Diffusion tools.
//!
//! A seed gives the same starting noise here as in the tool it comes from. [`RANDOM_SOURCES`] lists NumPy's
//! legacy generator, PyTorch's CPU generator and the Philox generator of PyTorch on CUDA. All three reproduce
//! the integer stream of their library bit for bit. The last bits of a normal depend on the library's `ln`,
//! `sin` and `cos`. PyTorch's f32 versions are reproduced exactly; the others are evaluated in f64 and
//! rounded to f32. The platform's mathematical library therefore matters only in rare halfway cases.
//!
//! ```
//! use mixbit_diffusion::random::{NoiseSource, random_source};
//!
//! let mut source = random_source("torch")?.seeded(93)?;
//! let mut latents = vec![0.0; 4 * 64 * 64];
//! source.fill(&mut latents);
//! # Ok::<(), mixbit_diffusion::random::RandomError>(())
//! ```

mod mersenne_twister;
mod numpy;
mod philox;
mod torch;

pub use numpy::NumpySource;
pub use philox::PhiloxSource;
pub use torch::TorchSource;

/// A stream of standard normal values.
pub trait NoiseSource {
    /// Fills `noise` with the next values of the stream. The values equal those of one library call for a
    /// contiguous tensor with the same number of elements.
    ///
    /// The split into calls matters: PyTorch's generators give different values for two halves than for the
    /// whole.
    fn fill(&mut self, noise: &mut [f32]);
}

/// A kind of random source: a row of [`RANDOM_SOURCES`].
#[derive(Debug)]
pub struct RandomSourceEntry {
    /// The name on the command line.
    pub name: &'static str,
    /// The name in AUTOMATIC1111's generation parameters, if it has this source.
    pub label: &'static str,
    /// Aliases.
    pub aliases: &'static [&'static str],
    /// One line of help.
    pub about: &'static str,
    /// The largest seed the library accepts; `u64::MAX` unless the library refuses larger ones.
    pub max_seed: u64,
    create: fn(u64) -> Box<dyn NoiseSource + Send>,
}

/// Every random source.
pub static RANDOM_SOURCES: &[RandomSourceEntry] = &[
    RandomSourceEntry {
        name: "torch",
        label: "CPU",
        aliases: &["pytorch", "cpu"],
        about: "PyTorch's CPU generator, as diffusers uses it on any device for a CPU generator",
        max_seed: u64::MAX,
        create: |seed| Box::new(TorchSource::new(seed)),
    },
    RandomSourceEntry {
        name: "numpy",
        label: "NumPy",
        aliases: &[],
        about: "NumPy's legacy RandomState, as Apple's Core ML sample uses it",
        max_seed: u32::MAX as u64,
        create: |seed| Box::new(NumpySource::new(seed as u32)),
    },
    RandomSourceEntry {
        name: "nvidia",
        label: "NV",
        aliases: &["cuda"],
        about: "PyTorch's CUDA generator (Philox), as AUTOMATIC1111 uses it by default",
        max_seed: u64::MAX,
        create: |seed| Box::new(PhiloxSource::new(seed)),
    },
];

/// An error in creating a random source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RandomError {
    /// No source has this name.
    #[error("unknown random source `{name}`; the known ones are {known}")]
    UnknownSource {
        /// The requested name.
        name: String,
        /// The known names, separated by commas.
        known: String,
    },
    /// The library that the source follows refuses this seed.
    #[error("the random source `{name}` takes seeds up to {max}, not {seed}")]
    SeedTooLarge {
        /// The source.
        name: &'static str,
        /// The requested seed.
        seed: u64,
        /// The largest seed.
        max: u64,
    },
}

/// The source with this name or alias.
///
/// # Errors
///
/// [`RandomError::UnknownSource`], which lists the known names.
pub fn random_source(name: &str) -> Result<&'static RandomSourceEntry, RandomError> {
    RANDOM_SOURCES.iter().find(|entry| entry.name == name || entry.aliases.contains(&name)).ok_or_else(|| {
        let known: Vec<&str> = RANDOM_SOURCES.iter().map(|entry| entry.name).collect();
        RandomError::UnknownSource { name: name.to_owned(), known: known.join(", ") }
    })
}

impl RandomSourceEntry {
    /// A new stream.
    ///
    /// # Errors
    ///
    /// [`RandomError::SeedTooLarge`] where the library would refuse the seed.
    pub fn seeded(&self, seed: u64) -> Result<Box<dyn NoiseSource + Send>, RandomError> {
        if seed > self.max_seed {
            return Err(RandomError::SeedTooLarge { name: self.name, seed, max: self.max_seed });
        }
        Ok((self.create)(seed))
    }
}

/// One stream per image of a batch. Every call fills image `i` from stream `i`, so an image in a batch equals
/// the image that its seed gives alone.
pub struct PerImage {
    sources: Vec<Box<dyn NoiseSource + Send>>,
}

impl PerImage {
    /// Joins one stream per image.
    ///
    /// # Panics
    ///
    /// If there are no streams.
    pub fn new(sources: Vec<Box<dyn NoiseSource + Send>>) -> PerImage {
        assert!(!sources.is_empty(), "a batch has at least one image");
        PerImage { sources }
    }
}

impl NoiseSource for PerImage {
    /// # Panics
    ///
    /// If the length is not a multiple of the number of images.
    fn fill(&mut self, noise: &mut [f32]) {
        assert_eq!(noise.len() % self.sources.len(), 0, "the batch does not divide into images");
        let image = noise.len() / self.sources.len();
        for (index, source) in self.sources.iter_mut().enumerate() {
            source.fill(&mut noise[index * image..][..image]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_aliases_are_unique() {
        let mut names: Vec<&str> =
            RANDOM_SOURCES.iter().flat_map(|e| e.aliases.iter().copied().chain([e.name])).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        assert_eq!(random_source("cuda").expect("an alias").name, "nvidia");
    }

    #[test]
    fn unknown_names_and_large_seeds_are_refused_by_name() {
        let error = random_source("dice").expect_err("no such source");
        assert_eq!(
            error.to_string(),
            "unknown random source `dice`; the known ones are torch, numpy, nvidia"
        );
        let error = random_source("numpy").expect("known").seeded(1 << 32).err().expect("32 bits");
        assert_eq!(
            error.to_string(),
            "the random source `numpy` takes seeds up to 4294967295, not 4294967296"
        );
    }

    #[test]
    fn per_image_noise_is_each_seed_alone() {
        let torch = |seed| random_source("torch").expect("known").seeded(seed).expect("any seed");
        let mut batch = PerImage::new(vec![torch(3), torch(4)]);
        let mut noise = vec![0.0; 2 * 32];
        batch.fill(&mut noise);
        batch.fill(&mut noise);
        for (image, seed) in noise.chunks(32).zip([3, 4]) {
            let (mut alone, mut expected) = (torch(seed), vec![0.0; 32]);
            alone.fill(&mut expected);
            alone.fill(&mut expected);
            assert_eq!(image, expected);
        }
    }
}
