//! Warnings about requests that a model can't fulfil as they are meant.

use std::ops::Range;

use mixbit_diffusion::model::DiffusionModel;
use mixbit_diffusion::session::{Request, Text};
use mixbit_diffusion::tokenizer::{EMBEDDING_PREFIX, Tokenizer};

use super::printable::visible_line;

/// The most words that a warning lists.
const LISTED: usize = 6;

/// Syntax of other tools' prompts: its name, and its places in a prompt.
struct Syntax {
    /// The text that shows it, for the warning.
    shown: fn(&str) -> Option<String>,
    about: &'static str,
}

/// Syntax that reaches the text encoder as plain words.
static SYNTAX: [Syntax; 5] = [
    Syntax {
        shown: network,
        about: "--lora loads a LoRA, and --lora-dir DIR those of the prompt; the name counts as words",
    },
    Syntax { shown: weight, about: "weights have no effect yet, and their numbers count as words" },
    Syntax { shown: emphasis, about: "brackets have no effect yet, and count as words" },
    Syntax { shown: alternatives, about: "no alternative is chosen, and all of them count as words" },
    Syntax { shown: breaks, about: "prompts are not cut into parts yet, and BREAK counts as a word" },
];

/// `<lora:NAME:1>` and the like.
fn network(prompt: &str) -> Option<String> {
    prompt.match_indices('<').find_map(|(start, _)| {
        let inside = prompt[start + 1..].split_once('>')?.0;
        let (kind, _) = inside.split_once(':')?;
        let is_known = ["lora", "lyco", "hypernet"].iter().any(|known| kind.eq_ignore_ascii_case(known));
        is_known.then(|| format!("<{inside}>"))
    })
}

/// `(words:1.2)`.
fn weight(prompt: &str) -> Option<String> {
    prompt.match_indices('(').find_map(|(start, _)| {
        let inside = prompt[start + 1..].split_once(')')?.0;
        let (_, number) = inside.rsplit_once(':')?;
        number.trim().parse::<f32>().is_ok().then(|| format!("({inside})"))
    })
}

/// `[words]` and `((words))`. Single parentheses are common in plain text.
fn emphasis(prompt: &str) -> Option<String> {
    let between = |open: &str, close: &str| {
        let start = prompt.find(open)?;
        let inside = &prompt[start + open.len()..];
        let end = inside.find(close).filter(|&end| end > 0)?;
        Some(prompt[start..start + open.len() + end + close.len()].to_string())
    };
    between("((", "))").or_else(|| between("[", "]"))
}

/// `{a|b}`.
fn alternatives(prompt: &str) -> Option<String> {
    let (_, rest) = prompt.split_once('{')?;
    let (inside, _) = rest.split_once('}')?;
    inside.contains('|').then(|| format!("{{{inside}}}"))
}

/// `BREAK` by itself.
fn breaks(prompt: &str) -> Option<String> {
    prompt.split_whitespace().find(|word| *word == "BREAK").map(str::to_string)
}

/// The warnings about a request.
pub(super) fn all(model: &DiffusionModel, request: &Request, is_demo: bool) -> Vec<String> {
    let of_demo = if is_demo { of_demo(model, request) } else { Vec::new() };
    let unknown = unknown_embeddings(model, &request.text);
    [of_demo, syntax(&request.text), unknown, without_effect(model, request)].concat()
}

/// The warnings about words of textual inversion that the model has not.
fn unknown_embeddings(model: &DiffusionModel, text: &Text) -> Vec<String> {
    let Some(tokenizer) = model.text_encoders.first().map(|encoder| &encoder.tokenizer) else {
        return Vec::new();
    };
    let added: Vec<String> = tokenizer.added_tokens().into_values().collect();
    let mut warnings: Vec<String> = Vec::new();
    for prompt in prompts(text) {
        let known = tokenizer.find_words(prompt);
        let is_known = |place: &Range<usize>| {
            known.iter().any(|(known, _)| known.start < place.end && place.start < known.end)
                || added.iter().any(|token| token.eq_ignore_ascii_case(&prompt[place.clone()]))
        };
        for place in embedding_places(prompt).into_iter().filter(|place| !is_known(place)) {
            let warning = format!(
                "warning: `{}` in the prompt: no embedding of that name is loaded, and it counts as words; \
                 --embedding FILE or --embedding-dir DIR loads it",
                visible_line(&prompt[place])
            );
            if !warnings.contains(&warning) {
                warnings.push(warning);
            }
        }
    }
    warnings
}

/// The places of `embedding:NAME` and `<NAME>` in a prompt.
fn embedding_places(prompt: &str) -> Vec<Range<usize>> {
    let is_name = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    let mut places = Vec::new();
    for (start, _) in prompt.match_indices(EMBEDDING_PREFIX) {
        let name = &prompt[start + EMBEDDING_PREFIX.len()..];
        let length = name.find(|c| !is_name(c)).unwrap_or(name.len());
        if length > 0 {
            places.push(start..start + EMBEDDING_PREFIX.len() + length);
        }
    }
    for (start, _) in prompt.match_indices('<') {
        if let Some((name, _)) = prompt[start + 1..].split_once('>')
            && name.chars().any(char::is_alphanumeric)
            && name.chars().all(is_name)
        {
            places.push(start..start + name.len() + 2);
        }
    }
    places
}

/// All prompts of a request.
fn prompts(text: &Text) -> impl Iterator<Item = &String> {
    let optional = [&text.prompt_2, &text.negative_prompt, &text.negative_prompt_2];
    std::iter::once(&text.prompt).chain(optional.into_iter().flatten())
}

/// The warnings about the syntax of prompts.
fn syntax(text: &Text) -> Vec<String> {
    let one = |syntax: &Syntax| {
        let shown = prompts(text).find_map(|prompt| (syntax.shown)(prompt))?;
        Some(format!("warning: `{}` in the prompt: {}", visible_line(&shown), syntax.about))
    };
    SYNTAX.iter().filter_map(one).collect()
}

/// The warnings about what the demo model was not made for.
fn of_demo(model: &DiffusionModel, request: &Request) -> Vec<String> {
    let mut warnings = Vec::new();
    let unknown = match model.text_encoders.first() {
        Some(encoder) => unknown_words(&encoder.tokenizer, &request.text.prompt),
        None => Vec::new(),
    };
    if !unknown.is_empty() {
        warnings.push(format!(
            "warning: the demo model draws coloured shapes only and does not know {}; --model DIR draws with another model",
            listed(&unknown)
        ));
    }
    let [[width, height], [made_width, made_height]] = [request.size, model.defaults.size];
    if request.size != model.defaults.size {
        warnings.push(format!(
            "warning: the demo model was made for {made_width}x{made_height}, not {width}x{height}; --model DIR draws with \
             another model"
        ));
    }
    warnings
}

/// The words of a prompt that the vocabulary does not have whole, each once.
fn unknown_words(tokenizer: &Tokenizer, prompt: &str) -> Vec<String> {
    let mut unknown: Vec<String> = Vec::new();
    let has_weights = weight(prompt).is_some();
    for word in prompt.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        let tokens = tokenizer.encode(word).map_or(0, |encoding| encoding.used.saturating_sub(2));
        // Every letter is a token, but no training caption has one as a word, except the article.
        if has_weights && word.chars().all(|c| c.is_ascii_digit()) {
            continue;
        }
        let is_letter = word.chars().count() == 1 && !word.eq_ignore_ascii_case("a");
        if (tokens != 1 || is_letter) && !unknown.iter().any(|other| other.eq_ignore_ascii_case(word)) {
            unknown.push(word.to_string());
        }
    }
    unknown
}

/// Words in quotation marks, the first of them.
fn listed(words: &[String]) -> String {
    let quoted: Vec<String> = words.iter().take(LISTED).map(|word| format!("`{word}`")).collect();
    match words.len().saturating_sub(LISTED) {
        0 => quoted.join(", "),
        more => format!("{} and {more} more words", quoted.join(", ")),
    }
}

/// The option of a request that the model has no use for, with the reason; `None` if there is none.
pub(super) fn refused(model: &DiffusionModel, text: &Text) -> Option<String> {
    let has_one = model.text_encoders.len() < 2;
    let given = [("--prompt-2", &text.prompt_2), ("--negative-prompt-2", &text.negative_prompt_2)];
    let (option, _) = given.into_iter().find(|(_, text)| text.is_some())?;
    has_one.then(|| {
        format!(
            "{option} is for the second text encoder of XL models, and this model has only one: leave it out"
        )
    })
}

/// The warnings about options without an effect.
fn without_effect(model: &DiffusionModel, request: &Request) -> Vec<String> {
    let has_negative = request.text.negative_prompt.is_some() || request.text.negative_prompt_2.is_some();
    let is_guided = request.guidance_scale > 1.0 && !model.unet.takes_guidance;
    let mut warnings = Vec::new();
    let why = match model.unet.takes_guidance {
        true => "this model is guided without one".to_string(),
        false => format!("the guidance scale is {}, not above 1", request.guidance_scale),
    };
    if has_negative && !is_guided {
        warnings.push(format!("warning: the negative prompt has no effect: {why}"));
    }
    if request.guidance_rescale > 0.0 && !is_guided {
        warnings.push(format!("warning: --guidance-rescale has no effect: {why}"));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syntax_of_other_tools_is_warned_about() {
        for (prompt, shown) in [
            ("a cat <lora:detail:0.8>", vec!["<lora:detail:0.8>"]),
            ("a (red:1.2) cat BREAK a dog", vec!["(red:1.2)", "BREAK"]),
            ("a cat (sitting: happy), 1 < 2, 16:9 (wide), BREAKING", vec![]),
            ("((best quality)) <3", vec!["((best quality))"]),
            ("a [bad] cat, {black|white}", vec!["[bad]", "{black|white}"]),
            ("[] (( {a} ] )), [", vec!["(( {a} ] ))"]),
        ] {
            let warnings = syntax(&Text::new(prompt));
            assert_eq!(warnings.len(), shown.len(), "{prompt}: {warnings:?}");
            for (warning, shown) in warnings.iter().zip(shown) {
                assert!(warning.contains(&format!("`{shown}`")), "{warning}");
            }
        }
        let negative = Text { negative_prompt: Some("(bad:1.4)".to_string()), ..Text::new("x") };
        assert_eq!(syntax(&negative).len(), 1);
    }

    #[test]
    fn words_that_look_like_embeddings_are_found() {
        for (prompt, shown) in [
            ("a <cat-toy>, embedding:bad.v2, x", vec!["embedding:bad.v2", "<cat-toy>"]),
            ("1 < 2 > 1, <lora:x:1>, embedding: x, <3 <>", vec![]),
            ("(embedding:easy:1.2)", vec!["embedding:easy"]),
        ] {
            let found: Vec<&str> = embedding_places(prompt).into_iter().map(|place| &prompt[place]).collect();
            assert_eq!(found, shown, "{prompt}");
        }
    }

    #[test]
    #[cfg(feature = "demo-model")]
    fn the_demo_model_knows_what_it_can_not() {
        let model = mixbit_app::source::load(None, &Default::default()).unwrap().model;
        let warnings = |prompt: &str, size| {
            let request = Request { size, ..Request::new(&model, Text::new(prompt)).unwrap() };
            of_demo(&model, &request)
        };
        let size = model.defaults.size;
        assert!(
            warnings("a small red circle above a large Blue square, on a white background", size).is_empty()
        );
        let words = warnings("a Lighthouse at the left of a red lighthouse at night", size);
        assert_eq!(words.len(), 1);
        assert!(words[0].contains("`Lighthouse`, `night`;") && words[0].contains("--model"), "{words:?}");
        assert!(warnings("a b c d e f g h i", size)[0].contains("and 2 more words"));
        let sizes = warnings("a red circle", [512, 512]);
        assert!(
            sizes.len() == 1 && sizes[0].contains("128x128") && sizes[0].contains("--model"),
            "{sizes:?}"
        );
    }
}
