"""The prompts of the tokenizer fixtures, by what they test."""

import random

PLAIN = """
a photo of an astronaut riding a horse on mars
a large red circle at the left and a small blue square at the right on a white background
Apple CoreML developer tools on a Macbook Air are fast
a dog, highly detailed
an oil painting of a lighthouse in a storm
portrait of a woman with freckles, soft light, 85mm lens
isometric render of a tiny kitchen
the quick brown fox jumps over the lazy dog
masterpiece, best quality, ultra-detailed, 8k uhd, dslr
lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped
a
I
x y z
to be or not to be
antidisestablishmentarianism
a cat sat on the mat
steampunk airship over victorian london at dawn
concept art by greg rutkowski and alphonse mucha
cyberpunk alley with neon signs and rain
watercolor of tulips
""".strip().split("\n")

PUNCTUATION = [
    "hello, world!", "hello,world", "hello , world", "wait...", "wait… what?", "?!?!", "!", "!!", "!!!", "a!", "a !",
    "!a", "! ! !", "what?! no!!", "(red:1.3) ball", "((masterpiece)), [blurry]", "{a|b|c}", "<lora:style:0.8>",
    "a <b> c", "</w>", "cat</w>", "a</w>b", "semi;colon:colon", "\"quoted\" text", "“curly” ‘quotes’", "em—dash–en-hyphen",
    "slash/backslash\\pipe|", "hash#tag @user", "100% sure", "$5.99 & £3", "a*b+c=d^e~f`g", "under_score __init__",
    "...leading dots", "trailing dots...", "-", "--", "---", "- -", "a-b-c", "well-known", "e.g. this, i.e. that",
    ".", ",", ";", "''", "\"", "«guillemets»", "¿qué? ¡sí!", "※ † ‡ § ¶", "• bullet", "a.b.c.d", "C++ and C#", "R&B", "AT&T",
    "http://example.com/path?query=1&b=2#frag", "mail@example.org", "1+1=2", "~~~", "a,,b,,,c", "[[[[", "()()", ":-) ;)",
]

DIGITS = [
    "0", "1", "10", "2024", "3.14159", "1,000,000", "1st 2nd 3rd", "4k", "8K UHD", "35mm f/1.8", "iphone15", "r2d2",
    "007", "1990s", "50%", "12:30", "2x4", "no.5", "½ cup ¼ tsp", "x² + y³", "Ⅳ and ⅻ", "①②③", "٣ ٤ ٥", "१२३", "一二三 3",
    "-5", "1e-5", "0xFF", "3,5", "１２３", "𝟙𝟚𝟛", "₁₂",
]

CONTRACTIONS = [
    "it's", "it’s", "don't", "I'm", "we're", "you've", "they'll", "he'd", "IT'S", "DON'T", "I'M", "'s", "'t", "'re",
    "cat's", "cats'", "'cat'", "'sup", "o'clock", "rock'n'roll", "'tis the season", "y'all'd've", "it 's", "it' s",
    "'sdog", "a'sb", "'llama", "'vest", "'dog", "'mouse", "'repeat", "''s", "'S", "'LL", "can't won't shan't",
    "it'snow", "x'd y'm", "5's", "90's kids", "!'s",
]

ACCENTS = [
    "café", "cafe\u0301", "CAFÉ", "naïve", "nai\u0308ve", "Ångström", "A\u030angstro\u0308m", "façade", "jalapeño", "über",
    "Straße", "STRASSE", "ẞ", "ﬁne ﬂow", "œuvre Æsop", "Dvořák", "Łódź", "Žižek", "crème brûlée", "İstanbul", "ISTANBUL ıi",
    "Việt Nam", "Vie\u0302\u0323t", "e\u0301\u0301", "\u0301", "a\u0301\u0302\u0303", "Škoda", "ñandú", "ΑΒΓ αβγ ς Σ",
    "ΟΔΥΣΣΕΥΣ", "Привет, мир", "ПРИВЕТ", "ё е\u0308", "й и\u0306", "ﬀ", "Ω \u2126", "K \u212a", "Å \u212b", "ǅ ǆ Ǆ",
    "Ⓐⓑ", "ＦＵＬＬ ｗｉｄｔｈ", "ʰᵢ", "ﷺ", "Ⅷ ⅷ",
]

SCRIPTS = [
    "猫", "一只猫坐在垫子上", "一只 cat 坐在 mat 上", "東京タワー", "ねこ", "ネコ", "ﾈｺ", "が か\u3099", "고양이", "\u1100\u1161",
    "안녕하세요 세계", "강아지 사진", "你好，世界！", "「引用」", "𠮷野家", "สวัสดี", "ภาพแมว", "नमस्ते", "हिन्दी चित्र", "বাংলা", "தமிழ்",
    "తెలుగు", "ქართული", "Հայերեն", "አማርኛ", "ខ្មែរ", "မြန်မာ", "ພາສາລາວ", "ᐃᓄᒃᑎᑐᑦ", "ᏣᎳᎩ", "مرحبا بالعالم", "שלום עולם", "שָׁלוֹם",
    "قطة 123 cat", "فارسی می‌شود", "اُردُو", "\u202eright to left\u202c", "a\u200fb\u200ec", "Ꭰ ꭰ", "𝒜𝓫𝔠", "𐐀𐐨",
]

EMOJI = [
    "🙂", "a 🐱 on a 🛋️", "👍🏽", "👩‍🚀", "👨‍👩‍👧‍👦 family", "🏳️‍🌈", "🇫🇷🇯🇵", "❤️", "❤", "☃", "☃️", "1️⃣ #️⃣", "😀😀😀", "😀 😀", "🤷‍♂️", "🐈‍⬛cat",
    "fire🔥fire", "©®™", "→←↑↓", "★☆", "♥♦♣♠", "♪♫", "𝄞", "🀄🃏", "☺︎ ☺️", "🫠🩷", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "⌚⏰", "✂️✈️✉️",
]

SPACES = [
    "", " ", "  ", "\n", "\t", " a", "a ", "  a  b  ", "a\tb", "a\nb", "a\r\nb", "a\u00a0b", "a\u3000b", "a\u2003b", "a\u200bb",
    "\u200b", "a\u200db", "a\u200cb", "\ufeffbom", "a\ufeffb", "a\u2060b", "a\u00adb soft hyphen", "a\u2028b", "a\u2029b",
    "a\u0085b", "a\u000bb", "a\u000cb", "a\u001cb", "a\u001fb", "a\u180eb", "a\u202fb", "a\u205fb", "\u00a0", "a \n \t b", "cat\u00a0",
]

CONTROL = [
    "a\u0000b", "\u0000", "a\u0001b", "\u0007bell", "a\bb", "\u001b[31mred", "a\u007fb", "a\u0080b", "a\u009fb", "\ufffd", "a\ufffdb",
    "\ufffe", "\uffff", "\ue000 private", "\U000f0000", "\U0010ffff", "\u0378 unassigned", "\u00ff", "\ufff9a\ufffb",
]

SPECIAL = [
    "<|endoftext|>", "<|startoftext|>", "a <|endoftext|> b", "a<|endoftext|>b", "<|startoftext|>a<|endoftext|>",
    "<|ENDOFTEXT|>", "<|EndOfText|> x", "<|StartOfText|>", "<|endoftext", "|endoftext|>", "<|endoftext|><|endoftext|>",
    "< |endoftext| >", "<|endoftext|>!", "!<|endoftext|>", "<|pad|>", "<|endoftext|>'s", "<|startoftext|> <|startoftext|>",
    "<|endoftext|>\u0301", "[CLS] [SEP] [MASK]", "<s></s><unk><pad>",
]

ENTITIES = ["&amp;", "a &lt;b&gt; c", "&quot;x&quot;", "&#39;s", "&nbsp;&nbsp;", "&eacute;t&eacute;", "it&#x27;s", "&amp;amp;", "R&amp;B"]

CASES = ["HELLO WORLD", "HeLLo", "iPhone MacBook eBay", "NASA's ISS", "USA", "McDonald's", "PHOTO OF A CAT", "ǈ ǉ Ǉ", "Ⱥ ⱥ", "ﬃ"]

WORDS = (
    "a the red green blue yellow large small circle square triangle photo painting of on in under above beside cat dog "
    "house tree mountain river castle forest city night sunrise detailed cinematic lighting watercolor oil sketch "
    "portrait landscape vintage futuristic minimalist baroque impressionist 4k hdr bokeh macro aerial telephoto"
).split()


def long_prompts(source):
    """Prompts around and past the 75 tokens that fit."""
    yield " ".join(source.choice(WORDS) for _ in range(200))
    yield ", ".join(source.choice(WORDS) for _ in range(200))
    yield " ".join(f"({source.choice(WORDS)}:{source.random():.2f})" for _ in range(200))
    for count in (73, 74, 75, 76, 77, 78, 150):
        yield " ".join(["cat"] * count)
    yield " ".join(["cat"] * 74 + ["antidisestablishmentarianism"])
    yield "a" * 300
    yield "supercalifragilisticexpialidocious" * 10
    yield "0123456789" * 12
    yield "é" * 100
    yield "猫" * 60
    yield "😀" * 40
    yield "!" * 200
    yield "ab!" * 50
    yield "x" + " " * 500 + "y"
    yield "a\n" * 90
    yield "don't " * 40
    yield "<|endoftext|>" * 80


def mixed_prompts(source):
    """Pieces of every kind, joined with and without spaces."""
    pieces = [*PUNCTUATION, *DIGITS, *CONTRACTIONS, *ACCENTS, *SCRIPTS, *EMOJI, *WORDS, *CASES, "\u200d", "\t", "<|endoftext|>"]
    for _ in range(60):
        joint = source.choice([" ", "", ", ", "-", "\u00a0", " ! "])
        yield joint.join(source.choice(pieces) for _ in range(source.randint(2, 12)))


def prompts(seed):
    """Group and prompt, without repeats."""
    source = random.Random(seed)
    groups = {
        "plain": PLAIN, "punctuation": PUNCTUATION, "digits": DIGITS, "contractions": CONTRACTIONS, "accents": ACCENTS,
        "scripts": SCRIPTS, "emoji": EMOJI, "spaces": SPACES, "control": CONTROL, "special": SPECIAL, "entities": ENTITIES,
        "case": CASES, "long": list(long_prompts(source)), "mixed": list(mixed_prompts(source)),
    }
    seen = set()
    for group, members in groups.items():
        for prompt in members:
            if prompt not in seen:
                seen.add(prompt)
                yield group, prompt
