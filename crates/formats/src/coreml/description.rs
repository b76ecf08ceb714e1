//! The description of a model in a specification: features and metadata.

use std::collections::BTreeMap;

use mixbit_mil::{DType, TensorType};

use super::schema::{self, COLOR_SPACES, FEATURE_CODES};
use super::wire::{Field, Message, Writer};
use super::{
    ColorSpace, CoreMlError, ExtentRange, Feature, FeatureKind, FunctionFeatures, Metadata, ShapeFlexibility,
};
use crate::shown::shown;

/// A model's description.
#[derive(Clone, Debug, Default)]
pub(super) struct Description {
    /// Of several functions, those of the default one.
    pub(super) inputs: Vec<Feature>,
    pub(super) outputs: Vec<Feature>,
    pub(super) metadata: Metadata,
    /// The functions, if they are described one by one.
    pub(super) functions: Vec<FunctionFeatures>,
    pub(super) default_function: Option<String>,
}

impl Description {
    /// The types of the inputs of a function by name.
    pub(super) fn input_types(&self, function: &str) -> BTreeMap<String, TensorType> {
        let of_function = self.functions.iter().find(|described| described.name == function);
        let inputs = of_function.map_or(&self.inputs, |described| &described.inputs);
        inputs.iter().map(|input| (input.name.clone(), input.ty.clone())).collect()
    }

    pub(super) fn read(message: Message) -> Result<Self, CoreMlError> {
        let mut out = Description::default();
        for field in message.fields() {
            let field = field?;
            match field.number {
                schema::description::INPUT => out.inputs.push(feature(field.message()?)?),
                schema::description::OUTPUT => out.outputs.push(feature(field.message()?)?),
                schema::description::STATE => return Err(CoreMlError::unsupported("a model with state")),
                schema::description::FUNCTIONS => out.functions.push(function(field.message()?)?),
                schema::description::DEFAULT_FUNCTION => {
                    out.default_function = Some(field.text()?.to_string())
                }
                schema::description::METADATA => out.metadata = metadata(field.message()?)?,
                _ => {}
            }
        }
        let default = out.default_function.as_deref().unwrap_or("main");
        if let Some(function) = out.functions.iter().find(|function| function.name == default) {
            (out.inputs, out.outputs) = (function.inputs.clone(), function.outputs.clone());
        }
        Ok(out)
    }

    pub(super) fn write(&self) -> Writer {
        let mut writer = Writer::new();
        // Of several functions, each has its own.
        let [inputs, outputs]: [&[Feature]; 2] = match self.functions[..] {
            [] => [&self.inputs, &self.outputs],
            _ => [&[], &[]],
        };
        for feature in inputs {
            writer.message(schema::description::INPUT, &write_feature(feature));
        }
        for feature in outputs {
            writer.message(schema::description::OUTPUT, &write_feature(feature));
        }
        for function in &self.functions {
            writer.message(schema::description::FUNCTIONS, &write_function(function));
        }
        writer.text(schema::description::DEFAULT_FUNCTION, self.default_function.as_deref().unwrap_or(""));
        writer.message(schema::description::METADATA, &write_metadata(&self.metadata));
        writer
    }
}

/// The features of one function of several.
fn function(message: Message) -> Result<FunctionFeatures, CoreMlError> {
    let mut out = FunctionFeatures::default();
    for field in message.fields() {
        let field = field?;
        match field.number {
            schema::function_description::NAME => out.name = field.text()?.to_string(),
            schema::function_description::INPUT => out.inputs.push(feature(field.message()?)?),
            schema::function_description::OUTPUT => out.outputs.push(feature(field.message()?)?),
            schema::function_description::STATE => {
                return Err(CoreMlError::unsupported("a function with state"));
            }
            _ => {}
        }
    }
    Ok(out)
}

fn write_function(function: &FunctionFeatures) -> Writer {
    let mut writer = Writer::new();
    writer.text(schema::function_description::NAME, &function.name);
    for feature in &function.inputs {
        writer.message(schema::function_description::INPUT, &write_feature(feature));
    }
    for feature in &function.outputs {
        writer.message(schema::function_description::OUTPUT, &write_feature(feature));
    }
    writer
}

fn feature(message: Message) -> Result<Feature, CoreMlError> {
    let (mut name, mut description, mut ty) = ("", "", None);
    let mut optional = false;
    for field in message.fields() {
        let field = field?;
        match field.number {
            schema::feature::NAME => name = field.text()?,
            schema::feature::SHORT_DESCRIPTION => description = field.text()?,
            schema::feature::TYPE => ty = Some(field.message()?),
            _ => {}
        }
    }
    let mut found = None;
    for field in ty.iter().flat_map(|ty| ty.fields()) {
        let field = field?;
        match field.number {
            schema::feature_type::ARRAY => found = Some(array(name, field.message()?)?),
            schema::feature_type::IMAGE => found = Some(image(name, field.message()?)?),
            schema::feature_type::IS_OPTIONAL => optional = field.number()? != 0,
            1..=schema::feature_type::LAST_KIND => {
                const KINDS: [&str; 8] =
                    ["an integer", "a number", "a string", "", "", "a dictionary", "a sequence", "a state"];
                let kind = KINDS.get(field.number as usize - 1).unwrap_or(&"of an unknown kind");
                return Err(unsupported(name, &format!(", which is {kind},")));
            }
            _ => {}
        }
    }
    let (ty, kind) =
        found.ok_or_else(|| message.malformed(format!("feature `{}` has no type", shown(name))))?;
    Ok(Feature { name: name.to_string(), description: description.to_string(), ty, optional, kind })
}

fn unsupported(name: &str, what: &str) -> CoreMlError {
    CoreMlError::unsupported(format!("feature `{}`{what}", shown(name)))
}

fn array(name: &str, message: Message) -> Result<(TensorType, FeatureKind), CoreMlError> {
    let (mut shape, mut code, mut shapes) = (Vec::new(), 0, ShapeFlexibility::Fixed);
    for field in message.fields() {
        let field = field?;
        match field.number {
            schema::array::SHAPE => shape.extend(extents(field)?),
            schema::array::DATA_TYPE => code = field.number()?,
            schema::array::ENUMERATED_SHAPES => shapes = enumerated(field.message()?)?,
            schema::array::SHAPE_RANGE => shapes = ranges(field.message()?)?,
            schema::array::FIRST_DEFAULT..=schema::array::LAST_DEFAULT => {
                return Err(unsupported(name, " with a default value"));
            }
            _ => {}
        }
    }
    let dtype = FEATURE_CODES
        .dtype(code)
        .ok_or_else(|| unsupported(name, &format!(" of element type number {code}")))?;
    Ok((TensorType::new(dtype, shape), FeatureKind::Array(shapes)))
}

/// The extents of a shape. One that is no size is too large for anything.
fn extents(field: Field<'_>) -> Result<Vec<usize>, CoreMlError> {
    let mut extents = Vec::new();
    field.numbers(|extent| extents.push(usize::try_from(extent).unwrap_or(usize::MAX)))?;
    Ok(extents)
}

fn enumerated(message: Message) -> Result<ShapeFlexibility, CoreMlError> {
    let mut shapes = Vec::new();
    for field in message.fields() {
        let field = field?;
        if field.number == schema::enumerated_shapes::SHAPES {
            let mut shape = Vec::new();
            for field in field.message()?.fields() {
                let field = field?;
                if field.number == schema::shape::EXTENTS {
                    shape.extend(extents(field)?);
                }
            }
            shapes.push(shape);
        }
    }
    Ok(ShapeFlexibility::Enumerated(shapes))
}

fn ranges(message: Message) -> Result<ShapeFlexibility, CoreMlError> {
    let mut ranges = Vec::new();
    for field in message.fields() {
        let field = field?;
        if field.number == schema::shape_range::SIZE_RANGES {
            let (mut least, mut most) = (0, Some(0));
            for field in field.message()?.fields() {
                let field = field?;
                match field.number {
                    schema::size_range::LOWER_BOUND => least = field.number()?,
                    // A negative number, as its 64 bits, stands for no bound.
                    schema::size_range::UPPER_BOUND => {
                        most = Some(field.number()?).filter(|&most| most <= i64::MAX as u64)
                    }
                    _ => {}
                }
            }
            ranges.push(ExtentRange { least, most });
        }
    }
    Ok(ShapeFlexibility::Ranges(ranges))
}

/// An image, which the program takes as (1, channels, height, width).
fn image(name: &str, message: Message) -> Result<(TensorType, FeatureKind), CoreMlError> {
    let (mut width, mut height, mut code) = (0, 0, 0);
    for field in message.fields() {
        let field = field?;
        match field.number {
            schema::image::WIDTH => width = field.size()?,
            schema::image::HEIGHT => height = field.size()?,
            schema::image::COLOR_SPACE => code = field.number()?,
            schema::image::ENUMERATED_SIZES | schema::image::SIZE_RANGE => {
                return Err(unsupported(name, ", an image of several sizes,"));
            }
            _ => {}
        }
    }
    let color = COLOR_SPACES.iter().find(|(known, _)| *known == code).map(|(_, color)| *color);
    let color = color.ok_or_else(|| unsupported(name, &format!(", an image of color space {code},")))?;
    let ty = TensorType::new(DType::F32, [1, color.channels(), height, width]);
    Ok((ty, FeatureKind::Image(color)))
}

/// True if a feature can have elements of a type.
pub(super) fn describes(dtype: DType) -> bool {
    FEATURE_CODES.of(dtype).is_some()
}

fn write_feature(feature: &Feature) -> Writer {
    let mut ty = Writer::new();
    match &feature.kind {
        FeatureKind::Array(shapes) => {
            ty.message(schema::feature_type::ARRAY, &write_array(&feature.ty, shapes))
        }
        FeatureKind::Image(color) => {
            ty.message(schema::feature_type::IMAGE, &write_image(&feature.ty, *color))
        }
    }
    ty.number(schema::feature_type::IS_OPTIONAL, feature.optional.into());
    let mut writer = Writer::new();
    writer.text(schema::feature::NAME, &feature.name);
    writer.text(schema::feature::SHORT_DESCRIPTION, &feature.description);
    writer.message(schema::feature::TYPE, &ty);
    writer
}

fn write_array(ty: &TensorType, shapes: &ShapeFlexibility) -> Writer {
    let wide = |shape: &[usize]| shape.iter().map(|&extent| extent as u64).collect::<Vec<_>>();
    let mut array = Writer::new();
    array.numbers(schema::array::SHAPE, wide(&ty.shape));
    array.number(schema::array::DATA_TYPE, FEATURE_CODES.of(ty.dtype).unwrap_or(0));
    match shapes {
        ShapeFlexibility::Fixed => {}
        ShapeFlexibility::Enumerated(shapes) => {
            let mut all = Writer::new();
            for shape in shapes {
                let mut one = Writer::new();
                one.numbers(schema::shape::EXTENTS, wide(shape));
                all.message(schema::enumerated_shapes::SHAPES, &one);
            }
            array.message(schema::array::ENUMERATED_SHAPES, &all);
        }
        ShapeFlexibility::Ranges(ranges) => {
            let mut all = Writer::new();
            for range in ranges {
                let mut one = Writer::new();
                one.number(schema::size_range::LOWER_BOUND, range.least);
                one.number(schema::size_range::UPPER_BOUND, range.most.unwrap_or(u64::MAX));
                all.message(schema::shape_range::SIZE_RANGES, &one);
            }
            array.message(schema::array::SHAPE_RANGE, &all);
        }
    }
    array
}

fn write_image(ty: &TensorType, color: ColorSpace) -> Writer {
    let mut image = Writer::new();
    if let [.., height, width] = ty.shape[..] {
        image.number(schema::image::WIDTH, width as u64);
        image.number(schema::image::HEIGHT, height as u64);
    }
    let code = COLOR_SPACES.iter().find(|(_, known)| *known == color).map_or(0, |(code, _)| *code);
    image.number(schema::image::COLOR_SPACE, code);
    image
}

fn metadata(message: Message) -> Result<Metadata, CoreMlError> {
    let mut out = Metadata::default();
    for field in message.fields() {
        let field = field?;
        match field.number {
            schema::metadata::SHORT_DESCRIPTION => out.short_description = field.text()?.to_string(),
            schema::metadata::VERSION => out.version = field.text()?.to_string(),
            schema::metadata::AUTHOR => out.author = field.text()?.to_string(),
            schema::metadata::LICENSE => out.license = field.text()?.to_string(),
            schema::metadata::USER_DEFINED => {
                let (key, value) = field.message()?.text_entry()?;
                out.user_defined.insert(key.to_string(), value.to_string());
            }
            _ => {}
        }
    }
    Ok(out)
}

fn write_metadata(metadata: &Metadata) -> Writer {
    let mut writer = Writer::new();
    writer.text(schema::metadata::SHORT_DESCRIPTION, &metadata.short_description);
    writer.text(schema::metadata::VERSION, &metadata.version);
    writer.text(schema::metadata::AUTHOR, &metadata.author);
    writer.text(schema::metadata::LICENSE, &metadata.license);
    for (key, value) in &metadata.user_defined {
        writer.text_entry(schema::metadata::USER_DEFINED, key, value);
    }
    writer
}
