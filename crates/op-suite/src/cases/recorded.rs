//! Cases with the results of PyTorch and coremltools: `fixtures/ops`.

use mixbit_mil::{DType, Literal, Source};
use mixbit_testkit::Fixture;

use crate::case::{Case, case};

pub(crate) fn cases() -> Vec<Case> {
    ["cases.json", "coremltools.json"].into_iter().flat_map(recorded).collect()
}

/// MIL's own string for the name of an op's input.
fn input_name(op: &str, name: &str) -> &'static str {
    let def = mixbit_mil::ops::lookup(op).unwrap_or_else(|| panic!("`{op}` is not in the table"));
    def.params.iter().find(|param| param.name == name).unwrap_or_else(|| panic!("{op} has no `{name}`")).name
}

fn recorded(file: &str) -> Vec<Case> {
    let record = Fixture::open("ops").json(file);
    let entries = record["cases"].as_array().expect("a list of cases");
    let mut cases = Vec::new();
    for entry in entries {
        let op = entry["op"].as_str().expect("an op");
        let mut case = case(op).ios18();
        let constants: Vec<&str> =
            entry["constants"].as_array().expect("a list").iter().filter_map(|name| name.as_str()).collect();
        for (name, value) in entry["inputs"].as_object().expect("inputs") {
            let list = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
            for tensor in &list {
                let shape: Vec<usize> = tensor["shape"]
                    .as_array()
                    .expect("a shape")
                    .iter()
                    .map(|n| n.as_u64().expect("an extent") as usize)
                    .collect();
                let values: Vec<f64> = tensor["values"]
                    .as_array()
                    .expect("values")
                    .iter()
                    .map(|x| x.as_f64().expect("a number"))
                    .collect();
                case = match tensor["dtype"].as_str() {
                    None => case.input_of(
                        input_name(op, name),
                        &shape,
                        values.iter().map(|&x| x as f32).collect(),
                    ),
                    Some(dtype) => {
                        let dtype = DType::from_name(dtype).expect("a MIL type");
                        case.ints(
                            input_name(op, name),
                            dtype,
                            &shape,
                            &values.iter().map(|&x| x as i32).collect::<Vec<_>>(),
                        )
                    }
                };
                if constants.contains(&name.as_str()) {
                    case = case.constant();
                }
            }
        }
        for (name, value) in entry["attributes"].as_object().expect("attributes") {
            let source = match value.as_array() {
                Some(list) if list.iter().all(|item| item.is_boolean()) => Source::Literal(Literal::bools(
                    &list.iter().filter_map(|item| item.as_bool()).collect::<Vec<_>>(),
                )),
                Some(list) => Source::from(
                    list.iter().map(|item| item.as_i64().expect("an integer") as i32).collect::<Vec<_>>(),
                ),
                None if value.is_string() => Source::from(value.as_str().expect("a string")),
                None if value.is_boolean() => Source::from(value.as_bool().expect("a truth value")),
                None if value.is_i64() => Source::from(value.as_i64().expect("an integer") as i32),
                None => Source::from(value.as_f64().expect("a number")),
            };
            case = case.arg(input_name(op, name), source);
        }
        let outputs = entry["outputs"].as_array().expect("outputs");
        let numbers = |output: usize, key: &str| {
            let list = outputs[output][key].as_array().expect("a list");
            list.iter().map(|x| x.as_f64().expect("a number")).collect::<Vec<_>>()
        };
        case.expected = Some((0..outputs.len()).map(|output| numbers(output, "values")).collect());
        let shape = |output| numbers(output, "shape").into_iter().map(|extent| extent as usize).collect();
        case.expected_shapes = Some((0..outputs.len()).map(shape).collect());
        case.label = format!("{} of {file}", case.label);
        case.poisoned = false;
        case.half = false;
        cases.push(case);
    }
    cases
}
