use mixbit_compress::{Scheme, Width};

use super::figure::escaped;
use super::*;
use crate::analyze::{Candidate, Point};
use mixbit_packages::recipe::ModelIdentity;

/// A name that is trouble wherever it is not escaped.
const EVIL: &str = "down_blocks.0.<script src=\"http://x\">'&\u{0}";

fn image(value: f32) -> Picture {
    let image = Image { width: 8, height: 8, planes: vec![value; 192] };
    Picture { image, latents: vec![value; 4] }
}

fn analysis() -> Analysis {
    let names = [EVIL, "mid_block.a", "up_blocks.1.b"];
    let point = Point { prompt: EVIL.to_string(), seed: 1, evaluation: 0 };
    let four = Scheme::palette(Width::Four);
    let verified = |name: &str, bytes, psnr, predicted| Verified {
        name: name.to_string(),
        layers: names.iter().map(|layer| (layer.to_string(), four)).collect(),
        bytes,
        bits: 4.0,
        predicted,
        measured: vec![psnr - 1.0, psnr + 1.0],
    };
    Analysis {
        candidates: names
            .iter()
            .map(|name| Candidate { name: name.to_string(), shape: vec![8, 4] })
            .collect(),
        identity: ModelIdentity::of("", &[]),
        bytes: 4_000_000,
        single_layer: vec![(four, names.iter().map(|name| (name.to_string(), vec![40.0, 60.0])).collect())],
        cumulative: Vec::new(),
        importance: BTreeMap::new(),
        baselines: vec![
            verified("original", 4_000_000, 200.0, None),
            verified("palette-4", 1_000_000, 40.0, None),
            verified("linear-8", 2_000_000, 70.0, None),
        ],
        recipes: vec![verified("<b>mixed</b>", 1_500_000, 52.0, Some(51.0))],
        unreached: Vec::new(),
        int8: None,
        points: vec![point.clone()],
        timesteps: vec![500.0],
        verified_points: vec![point],
        evaluations: 10.0,
        whole_evaluations: 100.0,
    }
}

/// Every tag that is opened is closed, in order.
fn assert_balanced(text: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = text;
    while let Some(begin) = rest.find('<') {
        let end = begin + rest[begin..].find('>').expect("a tag is not finished");
        let tag = &rest[begin + 1..end];
        rest = &rest[end + 1..];
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap_or_default();
        match (tag.starts_with('!') || tag.ends_with('/'), tag.starts_with('/')) {
            (true, _) => {}
            (false, true) => assert_eq!(open.pop(), Some(name)),
            (false, false) => open.push(name),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

fn html() -> String {
    let analysis = analysis();
    let pictures = Pictures {
        prompt: EVIL.to_string(),
        seed: 7,
        original: image(0.0),
        recipes: vec![("<b>mixed</b>".to_string(), image(0.5))],
    };
    let report = Report { analysis: &analysis, name: EVIL, pictures: Some(pictures) };
    page::page(&report, &plot::plot(&plot::series(&analysis))).unwrap()
}

#[test]
fn the_page_is_well_formed_and_needs_nothing_else() {
    let html = html();
    assert_balanced(&html);
    assert!(!html.contains("<script") && !html.contains("<b>") && !html.contains('\0'));
    for (place, _) in html.match_indices("src=\"") {
        assert!(html[place..].starts_with("src=\"data:image/png;base64,"));
    }
    // The only address is the made-up one in the names, as text.
    let escaped_name = escaped(EVIL);
    assert!(html.contains(&escaped_name));
    assert!(!html.replace(&escaped_name, "").contains("http"));
    assert_eq!(html.matches("<img ").count(), 2);
    assert_eq!(html.matches(" alt=\"").count(), 2);
}

#[test]
fn recipes_are_listed_with_what_was_expected_and_measured() {
    let html = html();
    let row = "<tr><td>&lt;b&gt;mixed&lt;/b&gt;</td><td>4.00</td><td>1.5</td>\
               <td>2.67×</td><td>51.0</td><td>52.0</td></tr>";
    assert!(html.contains(row), "{html}");
}

#[test]
fn the_plot_has_every_point_but_the_original() {
    let series = plot::series(&analysis());
    let shown: Vec<_> = series.iter().map(|series| (series.name, series.points.clone())).collect();
    let point = |name: &str, mb: f64, psnr: f64| vec![(name.to_string(), mb, psnr)];
    assert_eq!(
        shown,
        [
            ("mixed (recipes)", point("<b>mixed</b>", 1.5, 52.0)),
            ("uniform palettes", point("palette-4", 1.0, 40.0)),
            ("linear 8-bit", point("linear-8", 2.0, 70.0)),
        ]
    );
    let svg = plot::plot(&series).svg_file();
    assert_balanced(&svg);
    // The axes end at 1.0 and 2.0 MB, from 64 to 696; at 40 and 70 dB, from 392 to 56.
    for place in ["cx=\"380.0\" cy=\"257.6\"", "points=\"60.0,387.9 ", "points=\"690.1,56.0 "] {
        assert!(svg.contains(place), "{place}: {svg}");
    }
}

#[test]
fn files_are_written_without_images() {
    let directory = mixbit_testkit::Scratch::new();
    let analysis = Analysis { recipes: Vec::new(), ..analysis() };
    let paths = write(directory.path(), &Report { analysis: &analysis, name: "m", pictures: None }).unwrap();
    assert_balanced(&std::fs::read_to_string(&paths[0]).unwrap());
    let png = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&paths[2]).unwrap()));
    let info = png.read_info().unwrap();
    assert_eq!((info.info().width, info.info().height), (1440, 880));
}

#[test]
fn equal_images_have_no_error() {
    let (a, b) = (image(0.0), image(0.5));
    assert_eq!(
        (latent_psnr(&a.latents, &a.latents), pixel_psnr(&a.image, &a.image)),
        (f64::INFINITY, f64::INFINITY)
    );
    assert!((latent_psnr(&[1.0, -2.0], &[1.0, -1.0]) - 20.0 * (2.0 / 0.5f64.sqrt()).log10()).abs() < 1e-9);
    assert!((pixel_psnr(&a.image, &b.image) - 20.0 * (255.0f64 / 63.0).log10()).abs() < 1e-9);
}

#[test]
fn grids_have_room_for_all_images_and_names() {
    let pictures = [image(0.0), image(0.5)];
    let wide = Image { width: 160, height: 96, planes: vec![0.0; 3 * 160 * 96] };
    let cell = |image, caption: &str| Cell { image, caption: caption.to_string() };
    let grid = Grid {
        columns: vec!["a", "a name that is longer than the column is wide, and is not cut at its end\n4 MB"],
        rows: vec![
            ("prompt", vec![cell(&wide, ""), cell(&pictures[1].image, "31.2 dB")]),
            ("猫", vec![cell(&wide, ""), cell(&wide, "equal")]),
        ],
    };
    // 160 pixels hold 20 letters: the name takes four lines, and the size one.
    assert_eq!(grid.size(), [8 + 2 * 168, 8 + 5 * 16 + 2 * (16 + 4 + 96 + 16 + 8)]);
    let mut png = Vec::new();
    grid.write_png(&mut png, "a prompt").unwrap();
    assert!(png.len() > 100);
}
