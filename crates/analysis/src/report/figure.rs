//! Vector drawings of lines, marks and text, and their form as SVG.

use std::fmt::Write;

/// The colour of a shape, which the page defines for its light and its dark theme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ink {
    Text,
    Muted,
    Grid,
    Paper,
    Uniform,
    Mixed,
    Linear,
    Exact([u8; 3]),
}

/// The named inks: their CSS variables, and their colours in the light and the dark theme.
const INKS: [(Ink, &str, [[u8; 3]; 2]); 7] = [
    (Ink::Text, "text", [[0x1f, 0x23, 0x28], [0xe6, 0xed, 0xf3]]),
    (Ink::Muted, "muted", [[0x59, 0x63, 0x6e], [0x9d, 0xa7, 0xb3]]),
    (Ink::Grid, "grid", [[0xd8, 0xde, 0xe4], [0x30, 0x36, 0x3d]]),
    (Ink::Paper, "paper", [[0xff, 0xff, 0xff], [0x0d, 0x11, 0x17]]),
    (Ink::Uniform, "uniform", [[0xb3, 0x4e, 0x00], [0xf0, 0x88, 0x3e]]),
    (Ink::Mixed, "mixed", [[0x09, 0x56, 0xc4], [0x58, 0xa6, 0xff]]),
    (Ink::Linear, "linear", [[0x1a, 0x7f, 0x37], [0x3f, 0xb9, 0x50]]),
];

impl Ink {
    /// The colour on white paper.
    pub(super) fn on_white(self) -> [u8; 3] {
        match self {
            Ink::Exact(colour) => colour,
            named => INKS.iter().find(|(ink, ..)| *ink == named).map_or([0; 3], |(.., [light, _])| *light),
        }
    }

    fn css(self) -> String {
        match self {
            Ink::Exact(colour) => hex(colour),
            named => {
                let name = INKS.iter().find(|(ink, ..)| *ink == named).map_or("text", |(_, name, _)| name);
                format!("var(--{name})")
            }
        }
    }
}

fn hex([red, green, blue]: [u8; 3]) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// The inks as CSS variables of a selector, for both themes and for print.
pub(super) fn variables(selector: &str) -> String {
    let all = |theme: usize| -> String {
        INKS.iter().map(|(_, name, colours)| format!("--{name}:{};", hex(colours[theme]))).collect()
    };
    format!(
        "{selector}{{{}}}\n@media screen and (prefers-color-scheme:dark){{{selector}{{{}}}}}\n",
        all(0),
        all(1)
    )
}

/// The point of a text that is at its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// The shape of a mark. Series differ in it as well as in colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Circle,
    Square,
    Diamond,
}

#[derive(Clone, Debug)]
pub(super) enum Shape {
    Line { points: Vec<[f64; 2]>, ink: Ink, width: f64 },
    Mark { at: [f64; 2], radius: f64, mark: Mark, ink: Ink, title: String },
    Rect { at: [f64; 2], size: [f64; 2], ink: Ink, title: String },
    Text { at: [f64; 2], text: String, anchor: Anchor, ink: Ink },
}

/// The height of a line of text.
pub(super) const LINE: f64 = 16.0;

/// A drawing. Coordinates begin at the top left.
#[derive(Clone, Debug)]
pub(super) struct Figure {
    pub(super) size: [f64; 2],
    /// The alternative text.
    pub(super) alt: String,
    pub(super) shapes: Vec<Shape>,
}

impl Figure {
    pub(super) fn new(size: [f64; 2], alt: impl Into<String>) -> Self {
        Figure { size, alt: alt.into(), shapes: Vec::new() }
    }

    pub(super) fn text(&mut self, at: [f64; 2], text: impl Into<String>, anchor: Anchor, ink: Ink) {
        self.shapes.push(Shape::Text { at, text: text.into(), anchor, ink });
    }

    pub(super) fn line(&mut self, points: Vec<[f64; 2]>, ink: Ink, width: f64) {
        self.shapes.push(Shape::Line { points, ink, width });
    }

    pub(super) fn rect(&mut self, at: [f64; 2], size: [f64; 2], ink: Ink, title: impl Into<String>) {
        self.shapes.push(Shape::Rect { at, size, ink, title: title.into() });
    }

    pub(super) fn mark(&mut self, at: [f64; 2], mark: Mark, ink: Ink, title: impl Into<String>) {
        self.shapes.push(Shape::Mark { at, radius: 4.5, mark, ink, title: title.into() });
    }

    /// An `svg` element for a page whose style defines the inks.
    pub(super) fn svg(&self) -> String {
        self.element("", "")
    }

    /// An SVG file.
    pub(super) fn svg_file(&self) -> String {
        let paper = format!(
            "<style>\n{}</style>\n<rect width=\"100%\" height=\"100%\" fill=\"var(--paper)\"/>\n",
            variables("svg")
        );
        // The format's namespace, not an address.
        self.element(" xmlns=\"http://www.w3.org/2000/svg\"", &paper)
    }

    fn element(&self, attributes: &str, begin: &str) -> String {
        let [width, height] = self.size;
        let alt = escaped(&self.alt);
        let mut out = format!(
            "<svg{attributes} viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
             role=\"img\" aria-label=\"{alt}\" font-family=\"system-ui, sans-serif\" \
             font-size=\"13\">\n{begin}"
        );
        for shape in &self.shapes {
            shape.write(&mut out);
        }
        out + "</svg>\n"
    }
}

impl Shape {
    fn write(&self, out: &mut String) {
        let titled = |name: &str, attributes: String, title: &str| match title {
            "" => format!("<{name} {attributes}/>\n"),
            title => format!("<{name} {attributes}><title>{}</title></{name}>\n", escaped(title)),
        };
        *out += &match self {
            Shape::Line { points, ink, width } => {
                let mut places = String::new();
                for [x, y] in points {
                    let space = if places.is_empty() { "" } else { " " };
                    let _ = write!(places, "{space}{x:.1},{y:.1}");
                }
                let ink = ink.css();
                format!(
                    "<polyline points=\"{places}\" fill=\"none\" stroke=\"{ink}\" \
                     stroke-width=\"{width}\"/>\n"
                )
            }
            Shape::Mark { at: [x, y], radius, mark: Mark::Circle, ink, title } => {
                let attributes = format!("cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{}\"", ink.css());
                titled("circle", attributes, title)
            }
            Shape::Mark { at, radius, mark, ink, title } => {
                let corners = corners(*at, *radius, *mark).map(|[x, y]| format!("{x:.1},{y:.1}")).join(" ");
                titled("polygon", format!("points=\"{corners}\" fill=\"{}\"", ink.css()), title)
            }
            Shape::Rect { at: [x, y], size: [width, height], ink, title } => {
                let attributes = format!(
                    "x=\"{x:.2}\" y=\"{y:.2}\" width=\"{width:.2}\" height=\"{height:.2}\" \
                     shape-rendering=\"crispEdges\" fill=\"{}\"",
                    ink.css()
                );
                titled("rect", attributes, title)
            }
            Shape::Text { at: [x, y], text, anchor, ink } => {
                let anchor = match anchor {
                    Anchor::Start => "start",
                    Anchor::Middle => "middle",
                    Anchor::End => "end",
                };
                let (ink, text) = (ink.css(), escaped(text));
                format!(
                    "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{ink}\">{text}</text>\n"
                )
            }
        };
    }
}

/// The corners of a square or a diamond of about the area of a circle of `radius`.
pub(super) fn corners([x, y]: [f64; 2], radius: f64, mark: Mark) -> [[f64; 2]; 4] {
    match mark {
        Mark::Diamond => {
            let r = 1.3 * radius;
            [[x - r, y], [x, y - r], [x + r, y], [x, y + r]]
        }
        Mark::Square | Mark::Circle => {
            let r = 0.9 * radius;
            [[x - r, y - r], [x + r, y - r], [x + r, y + r], [x - r, y + r]]
        }
    }
}

/// Text for elements and attributes of HTML and SVG. Characters that these can't hold become spaces.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push(' '),
            c => out.push(c),
        }
    }
    out
}
