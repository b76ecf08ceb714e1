//! A reader of `config.json` that rejects every field the network's code does not read.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::ArchError;

/// Limit on channels, tokens and classes. It keeps sizes in the graph far from overflow.
pub(super) const MAX_EXTENT: usize = 1 << 20;
/// Limit on consecutive layers or blocks, beyond any published network.
pub(super) const MAX_LAYERS: usize = 1 << 10;

/// The fields that diffusers' `EMAModel.save_pretrained` adds: they say how the weights were averaged, not
/// what network they are of.
const OF_AVERAGING: [&str; 7] =
    ["decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"];

/// A configuration object and the names of the fields read so far.
pub(super) struct Fields<'v> {
    map: &'v Map<String, Value>,
    taken: BTreeSet<&'static str>,
}

impl<'v> Fields<'v> {
    pub(super) fn of(config: &'v Value) -> Result<Self, ArchError> {
        let map = config.as_object().ok_or_else(|| {
            ArchError::config("(all)", format!("expected an object, found {}", short(config)))
        })?;
        Ok(Fields { map, taken: BTreeSet::new() })
    }

    /// Reads a field; `None` if it is absent.
    pub(super) fn raw(&mut self, name: &'static str) -> Option<&'v Value> {
        self.taken.insert(name);
        self.map.get(name)
    }

    /// Reads a field; `None` if it is absent or null.
    pub(super) fn optional(&mut self, name: &'static str) -> Option<&'v Value> {
        self.raw(name).filter(|value| !value.is_null())
    }

    /// Accepts fields that don't affect the network.
    pub(super) fn ignore(&mut self, names: &[&'static str]) {
        self.taken.extend(names);
    }

    /// A whole number from 1 to `max`.
    pub(super) fn count(
        &mut self,
        name: &'static str,
        default: usize,
        max: usize,
    ) -> Result<usize, ArchError> {
        self.raw(name).map_or(Ok(default), |value| as_count(name, value, max))
    }

    /// An optional whole number from 1 to [`MAX_EXTENT`].
    pub(super) fn optional_extent(&mut self, name: &'static str) -> Result<Option<usize>, ArchError> {
        self.optional(name).map(|value| as_count(name, value, MAX_EXTENT)).transpose()
    }

    /// A number.
    pub(super) fn float(&mut self, name: &'static str, default: f64) -> Result<f64, ArchError> {
        self.raw(name).map_or(Ok(default), |value| as_float(name, value))
    }

    /// A number above 0, such as an epsilon or a scale.
    pub(super) fn positive(&mut self, name: &'static str, default: f64) -> Result<f64, ArchError> {
        let value = self.float(name, default)?;
        if value > 0.0 {
            return Ok(value);
        }
        Err(ArchError::config(name, format!("expected a number above 0, found {value}")))
    }

    /// An optional number.
    pub(super) fn optional_float(&mut self, name: &'static str) -> Result<Option<f64>, ArchError> {
        self.optional(name).map(|value| as_float(name, value)).transpose()
    }

    /// An optional list of `len` numbers.
    pub(super) fn optional_floats(
        &mut self,
        name: &'static str,
        len: usize,
    ) -> Result<Option<Vec<f64>>, ArchError> {
        let Some(value) = self.optional(name) else { return Ok(None) };
        let list = as_list(name, value)?;
        if list.len() != len {
            return Err(ArchError::config(name, format!("has {} numbers, not {len}", list.len())));
        }
        list.iter().map(|value| as_float(name, value)).collect::<Result<_, _>>().map(Some)
    }

    pub(super) fn flag(&mut self, name: &'static str, default: bool) -> Result<bool, ArchError> {
        self.raw(name).map_or(Ok(default), |value| as_flag(name, value))
    }

    pub(super) fn text(&mut self, name: &'static str, default: &'v str) -> Result<&'v str, ArchError> {
        self.raw(name).map_or(Ok(default), |value| as_text(name, value))
    }

    pub(super) fn optional_text(&mut self, name: &'static str) -> Result<Option<&'v str>, ArchError> {
        self.optional(name).map(|value| as_text(name, value)).transpose()
    }

    /// A non-empty list of whole numbers from 1 to `max`.
    pub(super) fn counts(
        &mut self,
        name: &'static str,
        default: &[usize],
        max: usize,
    ) -> Result<Vec<usize>, ArchError> {
        let Some(value) = self.raw(name) else { return Ok(default.to_vec()) };
        let list = as_list(name, value)?;
        if list.is_empty() {
            return Err(ArchError::config(name, "is empty"));
        }
        list.iter().map(|value| as_count(name, value, max)).collect()
    }

    /// A list of `len` names.
    pub(super) fn names(
        &mut self,
        name: &'static str,
        default: &[&'v str],
        len: usize,
    ) -> Result<Vec<&'v str>, ArchError> {
        let names: Vec<&str> = match self.raw(name) {
            Some(value) => {
                as_list(name, value)?.iter().map(|value| as_text(name, value)).collect::<Result<_, _>>()?
            }
            None => default.to_vec(),
        };
        check_levels(name, names.len(), len)?;
        Ok(names)
    }

    /// One value for all `len` levels, or a list with one value per level.
    pub(super) fn levels<T: Clone>(
        &mut self,
        name: &'static str,
        default: T,
        len: usize,
        read: impl Fn(&'static str, &Value) -> Result<T, ArchError>,
    ) -> Result<Vec<T>, ArchError> {
        match self.raw(name) {
            Some(Value::Array(list)) => {
                check_levels(name, list.len(), len)?;
                list.iter().map(|value| read(name, value)).collect()
            }
            Some(value) => Ok(vec![read(name, value)?; len]),
            None => Ok(vec![default; len]),
        }
    }

    /// Rejects a field unless it is absent, null, `false`, 0 or `supported`.
    pub(super) fn only(&mut self, name: &'static str, supported: &str) -> Result<(), ArchError> {
        match self.raw(name) {
            Some(value) if !is_off(value) && value.as_str() != Some(supported) => {
                let supported = if supported.is_empty() { "null" } else { supported };
                Err(ArchError::config(
                    name,
                    format!("{} is not supported; supported: {supported}", short(value)),
                ))
            }
            _ => Ok(()),
        }
    }

    /// Rejects fields that were not read, unless their value disables them. Fields that begin with `_` are
    /// metadata.
    pub(super) fn finish(self) -> Result<(), ArchError> {
        let unknown = |(name, value): &(&String, &Value)| {
            let is_known = self.taken.contains(name.as_str()) || OF_AVERAGING.contains(&name.as_str());
            !is_known && !name.starts_with('_') && !is_off(value)
        };
        match self.map.iter().find(unknown) {
            Some((name, value)) => {
                let what =
                    format!("{} is not supported: the field is unknown; supported: null", short(value));
                Err(ArchError::config(name, what))
            }
            None => Ok(()),
        }
    }
}

fn check_levels(name: &str, found: usize, expected: usize) -> Result<(), ArchError> {
    if found == expected {
        return Ok(());
    }
    Err(ArchError::config(name, format!("has {found} entries, not one for each of {expected} levels")))
}

/// True if a value disables its field: null, `false`, 0 or empty.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_f64() == Some(0.0),
        Value::String(value) => value.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
    }
}

/// A value's JSON, truncated to 60 characters.
pub(super) fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

fn mismatch(name: &str, expected: &str, value: &Value) -> ArchError {
    ArchError::config(name, format!("expected {expected}, found {}", short(value)))
}

/// A whole number from 1 to `max`. Floats are accepted, because Python writes some.
pub(super) fn as_count(name: &str, value: &Value, max: usize) -> Result<usize, ArchError> {
    as_whole(name, value, 1, max)
}

/// A whole number from `min` to `max`.
pub(super) fn as_whole(name: &str, value: &Value, min: usize, max: usize) -> Result<usize, ArchError> {
    let number = value.as_u64().or_else(|| {
        value
            .as_f64()
            .filter(|float| float.fract() == 0.0 && (0.0..=1e15).contains(float))
            .map(|float| float as u64)
    });
    let count = number.and_then(|number| usize::try_from(number).ok());
    count
        .filter(|count| (min..=max).contains(count))
        .ok_or_else(|| mismatch(name, &format!("a whole number from {min} to {max}"), value))
}

pub(super) fn as_float(name: &str, value: &Value) -> Result<f64, ArchError> {
    value.as_f64().filter(|number| number.is_finite()).ok_or_else(|| mismatch(name, "a number", value))
}

/// A boolean. Null is `false`, as in some published files.
pub(super) fn as_flag(name: &str, value: &Value) -> Result<bool, ArchError> {
    match value {
        Value::Null => Ok(false),
        value => value.as_bool().ok_or_else(|| mismatch(name, "true or false", value)),
    }
}

pub(super) fn as_text<'v>(name: &str, value: &'v Value) -> Result<&'v str, ArchError> {
    value.as_str().ok_or_else(|| mismatch(name, "a string", value))
}

pub(super) fn as_list<'v>(name: &str, value: &'v Value) -> Result<&'v [Value], ArchError> {
    match value {
        Value::Array(list) if list.len() <= MAX_LAYERS => Ok(list),
        other => Err(mismatch(name, &format!("a list of at most {MAX_LAYERS}"), other)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_are_bounded() {
        for bad in
            [json!(0), json!(-1), json!(1e30), json!(1.5), json!("4"), json!(null), json!([4]), json!(101)]
        {
            let config = json!({ "n": bad });
            let error = Fields::of(&config).unwrap().count("n", 1, 100).unwrap_err();
            assert!(matches!(error, ArchError::Config { ref field, .. } if field == "n"), "{error}");
        }
        let config = json!({ "n": 4.0 });
        assert_eq!(Fields::of(&config).unwrap().count("n", 1, 100), Ok(4));
        assert_eq!(Fields::of(&config).unwrap().count("m", 7, 100), Ok(7));
    }

    #[test]
    fn unknown_fields_are_refused_unless_they_are_off() {
        let config = json!({ "_note": 1, "off": false, "none": null, "zero": 0, "empty": [], "known": 1 });
        let mut fields = Fields::of(&config).unwrap();
        fields.ignore(&["known"]);
        assert_eq!(fields.finish(), Ok(()));
        let config = json!({ "sparkle": true });
        let error = Fields::of(&config).unwrap().finish().unwrap_err().to_string();
        assert!(error.contains("sparkle") && error.contains("true"), "{error}");
    }

    #[test]
    fn levels_are_one_or_one_each() {
        let read = |config: Value| {
            Fields::of(&config).unwrap().levels("n", 1, 3, |name, value| as_count(name, value, 10))
        };
        assert_eq!(read(json!({})), Ok(vec![1, 1, 1]));
        assert_eq!(read(json!({ "n": 2 })), Ok(vec![2, 2, 2]));
        assert_eq!(read(json!({ "n": [1, 2, 3] })), Ok(vec![1, 2, 3]));
        assert!(read(json!({ "n": [1, 2] })).is_err());
        assert!(read(json!({ "n": "2" })).is_err());
    }

    #[test]
    fn long_values_are_cut() {
        assert!(short(&json!("é".repeat(1000))).chars().count() < 70);
        assert!(Fields::of(&json!([1])).is_err());
    }
}
