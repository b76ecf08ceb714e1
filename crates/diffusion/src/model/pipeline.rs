//! The pipeline classes of diffusers that are of other architectures, or that change a model's settings.

/// Families of other architectures, by the beginning of their pipelines' names: what they are, and a
/// program that runs them. Other names are judged by the model's parts, because fine-tunes name pipelines of
/// their own.
const OTHERS: &[(&[&str], &str, &str)] = &[
    (&["Flux", "ReduxImageEncoder"], "FLUX", IMAGES),
    (&["StableDiffusion3"], "Stable Diffusion 3", IMAGES),
    (&["ZImage"], "Z-Image", IMAGES),
    (&["QwenImage"], "Qwen-Image", IMAGES),
    (&["Chroma"], "Chroma", IMAGES),
    (&["PixArt"], "PixArt", OTHER_IMAGES),
    (&["Sana"], "Sana", OTHER_IMAGES),
    (&["Kandinsky"], "Kandinsky", OTHER_IMAGES),
    (&["AuraFlow"], "AuraFlow", OTHER_IMAGES),
    (&["HunyuanDiT", "HunyuanImage"], "Hunyuan-DiT", OTHER_IMAGES),
    (&["Kolors"], "Kolors", OTHER_IMAGES),
    (&["StableCascade", "Wuerstchen"], "Stable Cascade", OTHER_IMAGES),
    (&["IFPipeline", "IFImg2Img", "IFInpainting", "IFSuperResolution"], "DeepFloyd IF", OTHER_IMAGES),
    (
        &[
            "Amused",
            "Bria",
            "CogView",
            "DiT",
            "DreamLite",
            "ErnieImage",
            "GlmImage",
            "HiDream",
            "Ideogram",
            "JoyImage",
            "Krea",
            "LDM",
            "LongCatImage",
            "Lumina",
            "NucleusMoE",
            "OmniGen",
            "OvisImage",
            "PRX",
            "UnCLIP",
            "UniDiffuser",
            "VQDiffusion",
            "VersatileDiffusion",
            "VisualCloze",
            "Cosmos2TextToImage",
            "StableUnCLIP",
            "BlipDiffusion",
            "AltDiffusion",
            "PaintByExample",
            "Marigold",
            "ConsistencyModel",
            "StableDiffusionLDM3D",
            "StableDiffusionImageVariation",
            "StableDiffusionLatentUpscale",
        ],
        "an image model of another architecture",
        OTHER_IMAGES,
    ),
    (
        &[
            "Allegro",
            "AnimateDiff",
            "AnyFlow",
            "ChronoEdit",
            "CogVideoX",
            "ConsisID",
            "Cosmos",
            "EasyAnimate",
            "Helios",
            "HunyuanVideo",
            "HunyuanSkyreels",
            "I2VGenXL",
            "LTX",
            "Latte",
            "LucyEdit",
            "Mochi",
            "MotifVideo",
            "PIA",
            "SkyReels",
            "StableVideoDiffusion",
            "TextToVideo",
            "VideoToVideo",
            "Wan",
        ],
        "a video model",
        OTHER_IMAGES,
    ),
    (
        &[
            "AceStep",
            "AudioDiffusion",
            "AudioLDM",
            "DanceDiffusion",
            "LongCatAudio",
            "MusicLDM",
            "StableAudio",
        ],
        "an audio model",
        OTHER_IMAGES,
    ),
];

/// The programs that run the image models that people ask for most.
const IMAGES: &str = "stable-diffusion.cpp, Draw Things and diffusers run it";
/// The program that runs the others.
const OTHER_IMAGES: &str = "diffusers runs it";

/// The pipelines that correct old scheduler configurations (`steps_offset`, `clip_sample`) when diffusers
/// makes them.
const CORRECTING: &[&str] = &[
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipelineLegacy",
    "StableDiffusionPAGImg2ImgPipeline",
    "StableDiffusionPAGInpaintPipeline",
    "StableDiffusionPAGPipeline",
    "StableDiffusionPipelineSafe",
];

/// The reason why models of a pipeline class can't be drawn with; `None` if their parts decide.
pub(super) fn refusal(class: &str) -> Option<String> {
    let begins = |names: &&[&str]| names.iter().any(|name| class.starts_with(name));
    let (_, family, tool) = OTHERS.iter().find(|(names, _, _)| begins(names))?;
    Some(format!("it is {family}, and mixbit draws with Stable Diffusion 1, 2 and XL; {tool}"))
}

/// True if diffusers corrects the scheduler configurations of a pipeline class.
pub(super) fn corrects_schedulers(class: &str) -> bool {
    CORRECTING.contains(&class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_of_other_architectures_are_refused() {
        for (class, family) in [
            ("FluxPipeline", "FLUX"),
            ("FluxControlNetInpaintPipeline", "FLUX"),
            ("Flux2Pipeline", "FLUX"),
            ("StableDiffusion3Pipeline", "Stable Diffusion 3"),
            ("StableDiffusion3Img2ImgPipeline", "Stable Diffusion 3"),
            ("PixArtAlphaPipeline", "PixArt"),
            ("KandinskyV22Pipeline", "Kandinsky"),
            ("ZImagePipeline", "Z-Image"),
            ("KolorsPipeline", "Kolors"),
            ("StableVideoDiffusionPipeline", "a video model"),
            ("AnimateDiffSDXLPipeline", "a video model"),
            ("StableAudioPipeline", "an audio model"),
        ] {
            let refusal = refusal(class).unwrap_or_default();
            assert!(refusal.contains(family) && refusal.contains("diffusers run"), "{class}: {refusal}");
        }
    }

    #[test]
    fn stable_diffusion_and_unknown_classes_are_judged_by_their_parts() {
        let own = ["Core ML bundle", "MyFineTunePipeline", "StableDiffusionLongPromptWeightingPipeline"];
        let others = [
            "LatentConsistencyModelPipeline",
            "OnnxStableDiffusionPipeline",
            "StableDiffusionControlNetPipeline",
            "StableDiffusionInpaintPipeline",
            "StableDiffusionXLPAGPipeline",
            "StableDiffusionXLPipeline",
        ];
        for class in CORRECTING.iter().copied().chain(own).chain(others) {
            assert_eq!(refusal(class), None, "{class}");
        }
    }
}
