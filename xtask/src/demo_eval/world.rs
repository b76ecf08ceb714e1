//! The demo model's world: palette, shapes, and the captions held out of its training.

use std::f64::consts::PI;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _};
use serde_json::{Map, Value};

/// `crates/app/demo/heldout.json`.
#[derive(Debug, Deserialize)]
pub(super) struct World {
    /// Width and height of a picture in pixels.
    pub(super) side: usize,
    /// The palette: red, green and blue by name, 0 to 255.
    #[serde(deserialize_with = "in_order")]
    pub(super) colours: Vec<(String, [f64; 3])>,
    /// The outlines by name, at radius 1.
    #[serde(deserialize_with = "in_order")]
    pub(super) shapes: Vec<(String, Outline)>,
    /// The held-out captions.
    pub(super) captions: Vec<Caption>,
}

/// A caption and the scene that it describes.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Caption {
    pub(super) caption: String,
    /// Of PyTorch's CPU generator.
    pub(super) seed: u64,
    /// The background's colour.
    pub(super) background: String,
    /// One or two.
    pub(super) objects: Vec<Object>,
}

/// One object of a scene.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Object {
    pub(super) colour: String,
    pub(super) shape: String,
    /// Column and row in pixels, from the picture's corner.
    pub(super) centre: [f64; 2],
    /// In pixels; the tests draw with it.
    #[cfg_attr(not(test), expect(dead_code, reason = "pictures are measured without it"))]
    pub(super) radius: f64,
}

/// An outline at radius 1, the row axis downwards.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Option<Vec<[f64; 2]>>")]
pub(super) enum Outline {
    Circle,
    Polygon(Vec<[f64; 2]>),
}

impl From<Option<Vec<[f64; 2]>>> for Outline {
    fn from(vertices: Option<Vec<[f64; 2]>>) -> Self {
        vertices.map_or(Outline::Circle, Outline::Polygon)
    }
}

/// A JSON object's entries in the order of the file, which decides between equals.
fn in_order<'de, D: Deserializer<'de>, T: DeserializeOwned>(json: D) -> Result<Vec<(String, T)>, D::Error> {
    let entries = Map::<String, Value>::deserialize(json)?.into_iter();
    entries
        .map(|(name, value)| Ok((name, serde_json::from_value(value).map_err(D::Error::custom)?)))
        .collect()
}

impl World {
    /// Reads the world and checks that every name in it is known.
    ///
    /// # Errors
    /// If the file can't be read or is malformed.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let text = fs::read_to_string(path).with_context(|| format!("{shown} can't be read"))?;
        let world: World = serde_json::from_str(&text).with_context(|| format!("{shown} is malformed"))?;
        for caption in &world.captions {
            world.check(caption).with_context(|| format!("{shown}, \"{}\"", caption.caption))?;
        }
        Ok(world)
    }

    fn check(&self, caption: &Caption) -> anyhow::Result<()> {
        if !(1..=2).contains(&caption.objects.len()) {
            bail!("{} objects", caption.objects.len());
        }
        self.colour(&caption.background)?;
        for object in &caption.objects {
            self.colour(&object.colour)?;
            self.outline(&object.shape)?;
        }
        Ok(())
    }

    /// A colour of the palette.
    ///
    /// # Errors
    /// If there is none of that name.
    pub(super) fn colour(&self, name: &str) -> anyhow::Result<[f64; 3]> {
        named(&self.colours, name).copied().with_context(|| format!("no colour is called {name}"))
    }

    /// A shape's outline.
    ///
    /// # Errors
    /// If there is none of that name.
    pub(super) fn outline(&self, name: &str) -> anyhow::Result<&Outline> {
        named(&self.shapes, name).with_context(|| format!("no shape is called {name}"))
    }
}

fn named<'a, T>(entries: &'a [(String, T)], name: &str) -> Option<&'a T> {
    entries.iter().find(|(entry, _)| entry == name).map(|(_, value)| value)
}

/// The sides of a polygon.
fn edges(vertices: &[[f64; 2]]) -> impl Iterator<Item = ([f64; 2], [f64; 2])> {
    vertices.iter().copied().zip(vertices.iter().copied().cycle().skip(1))
}

impl Outline {
    /// The distance in pixels from a point, relative to the origin of the outline at `radius`, negative
    /// inside.
    pub(super) fn signed_distance(&self, radius: f64, [x, y]: [f64; 2]) -> f64 {
        let Outline::Polygon(vertices) = self else { return x.hypot(y) - radius };
        let (mut nearest, mut inside) = (f64::INFINITY, false);
        for ([ax, ay], [bx, by]) in edges(vertices) {
            let [ax, ay, bx, by] = [ax, ay, bx, by].map(|coordinate| coordinate * radius);
            let (ex, ey) = (bx - ax, by - ay);
            let (px, py) = (x - ax, y - ay);
            let along = ((px * ex + py * ey) / (ex * ex + ey * ey)).clamp(0.0, 1.0);
            nearest = nearest.min((px - along * ex).powi(2) + (py - along * ey).powi(2));
            if (ay > y) != (by > y) && px < ex * py / ey {
                inside = !inside;
            }
        }
        let distance = nearest.sqrt();
        if inside { -distance } else { distance }
    }

    /// The area at radius 1, and the centroid.
    pub(super) fn area_and_centroid(&self) -> (f64, [f64; 2]) {
        let Outline::Polygon(vertices) = self else { return (PI, [0.0, 0.0]) };
        let (mut twice_area, mut moment) = (0.0, [0.0, 0.0]);
        for ([ax, ay], [bx, by]) in edges(vertices) {
            let cross = ax * by - bx * ay;
            twice_area += cross;
            moment[0] += (ax + bx) * cross;
            moment[1] += (ay + by) * cross;
        }
        (twice_area.abs() / 2.0, moment.map(|moment| moment / (3.0 * twice_area)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository;

    #[test]
    fn distances_areas_and_centroids_of_simple_outlines() {
        let square = Outline::Polygon(vec![[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]);
        for (point, expected) in
            [([0.0, 0.0], -2.0), ([1.5, 0.0], -0.5), ([0.0, 3.0], 1.0), ([5.0, 6.0], 5.0), ([-2.5, 1.0], 0.5)]
        {
            assert_eq!(square.signed_distance(2.0, point), expected, "{point:?}");
        }
        assert_eq!(Outline::Circle.signed_distance(2.0, [3.0, 4.0]), 3.0);
        assert_eq!(square.area_and_centroid(), (4.0, [0.0, 0.0]));
        let triangle = Outline::Polygon(vec![[0.0, 0.0], [0.0, 3.0], [6.0, 0.0]]);
        assert_eq!(triangle.area_and_centroid(), (9.0, [2.0, 1.0]));
    }

    #[test]
    fn the_held_out_captions_can_be_read() {
        let world = World::read(&repository().join("crates/app/demo/heldout.json")).unwrap();
        assert_eq!((world.side, world.captions.len()), (128, 100));
        let names: Vec<&str> = world.shapes.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["circle", "square", "triangle", "diamond", "star", "heart"]);
    }
}
