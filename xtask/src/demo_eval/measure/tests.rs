use mixbit_testkit::Failures;

use super::*;
use crate::repository;

const RIGHT: Verdict = Verdict { colour: true, position: true, shape: true };
const NOTHING: Verdict = Verdict { colour: false, position: false, shape: false };

fn world() -> World {
    World::read(&repository().join("crates/app/demo/heldout.json")).unwrap()
}

/// The drawing that a caption describes, with soft edges.
fn ideal(world: &World, caption: &Caption) -> Vec<u8> {
    let mut pixels = vec![world.colour(&caption.background).unwrap(); world.side * world.side];
    for object in &caption.objects {
        let (colour, outline) =
            (world.colour(&object.colour).unwrap(), world.outline(&object.shape).unwrap());
        for (index, pixel) in pixels.iter_mut().enumerate() {
            let centre = [(index % world.side) as f64 + 0.5, (index / world.side) as f64 + 0.5];
            let point = [centre[0] - object.centre[0], centre[1] - object.centre[1]];
            let coverage = (0.5 - outline.signed_distance(object.radius, point)).clamp(0.0, 1.0);
            for (value, wanted) in pixel.iter_mut().zip(colour) {
                *value += coverage * (wanted - *value);
            }
        }
    }
    pixels.into_iter().flatten().map(|value| value.round() as u8).collect()
}

fn verdict(world: &World, drawn: &Caption, caption: &Caption) -> Verdict {
    measure(&ideal(world, drawn), world, caption).unwrap()
}

#[test]
fn ideal_drawings_are_right() {
    let world = world();
    let mut failures = Failures::new("ideal drawings");
    for caption in &world.captions {
        failures.case(&caption.caption, || match verdict(&world, caption, caption) {
            RIGHT => Ok(()),
            wrong => Err(format!("{wrong:?}")),
        });
    }
    failures.finish();
}

/// A change of a caption before it is drawn.
type Change = fn(&mut Caption);

#[test]
fn each_fault_is_seen_as_what_it_is() {
    let world = world();
    let cases: [(&str, Change, Verdict); 8] = [
        ("the objects' order", |drawn| drawn.objects.reverse(), RIGHT),
        ("moved by 15 pixels", |drawn| drawn.objects[0].centre[1] += 15.0, RIGHT),
        (
            "moved by 17 pixels",
            |drawn| drawn.objects[0].centre[1] += 17.0,
            Verdict { position: false, ..RIGHT },
        ),
        (
            "another colour",
            |drawn| drawn.objects[1].colour = "cyan".into(),
            Verdict { colour: false, ..RIGHT },
        ),
        ("another background", |drawn| drawn.background = "gray".into(), Verdict { colour: false, ..RIGHT }),
        ("another shape", |drawn| drawn.objects[1].shape = "heart".into(), Verdict { shape: false, ..RIGHT }),
        ("one object less", |drawn| drop(drawn.objects.pop()), NOTHING),
        ("one object more", |drawn| drawn.objects.push(object("red", "star", [64.0, 110.0], 15.5)), NOTHING),
    ];
    let caption = Caption {
        caption: "a red circle and a blue square on a white background".into(),
        seed: 0,
        background: "white".into(),
        objects: vec![
            object("red", "circle", [32.0, 64.0], 19.5),
            object("blue", "square", [96.0, 64.0], 19.5),
        ],
    };
    let mut failures = Failures::new("faults");
    for (name, change, expected) in cases {
        failures.case(name, || {
            let mut drawn = caption.clone();
            change(&mut drawn);
            let found = verdict(&world, &drawn, &caption);
            if found == expected { Ok(()) } else { Err(format!("{found:?}, expected {expected:?}")) }
        });
    }
    failures.finish();
}

fn object(colour: &str, shape: &str, centre: [f64; 2], radius: f64) -> Object {
    Object { colour: colour.into(), shape: shape.into(), centre, radius }
}

#[test]
fn every_shape_is_told_from_every_other() {
    let world = world();
    let mut failures = Failures::new("shapes");
    for (drawn, _) in &world.shapes {
        for (wanted, _) in &world.shapes {
            failures.case(&format!("{drawn} for {wanted}"), || {
                let scene = |shape: &str| Caption {
                    caption: String::new(),
                    seed: 0,
                    background: "yellow".into(),
                    objects: vec![object("purple", shape, [60.3, 66.8], 15.5)],
                };
                let found = verdict(&world, &scene(drawn), &scene(wanted));
                let expected = Verdict { shape: drawn == wanted, ..RIGHT };
                if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
            });
        }
    }
    failures.finish();
}

#[test]
fn specks_and_soft_noise_do_not_count() {
    let world = world();
    let caption = &world.captions[0];
    let mut picture = ideal(&world, caption);
    let mut state = 1u32;
    for value in &mut picture {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *value = value.saturating_add((state >> 28) as u8).saturating_sub(8);
    }
    let mut speck = |side: usize| {
        for (x, y) in (0..side).flat_map(|y| (0..side).map(move |x| (x, y))) {
            picture[3 * ((100 + y) * world.side + 60 + x)..][..3].copy_from_slice(&[255, 255, 255]);
        }
        measure(&picture, &world, caption).unwrap()
    };
    assert_eq!(speck(7), RIGHT);
    assert_eq!(speck(8), NOTHING);
}

#[test]
fn pictures_of_another_size_are_refused() {
    let world = world();
    assert!(measure(&[0; 3 * 64 * 64], &world, &world.captions[0]).is_err());
}
