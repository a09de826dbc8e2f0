//! Lists of a `ModelInferRequest`, counted before they are decoded: a tensor or a parameter may
//! take two bytes on the wire, and what is made of it some hundreds.

use tonic::Status;

use super::super::elements::{each_field, frames};

/// Tensors of each kind that a message may have. One of each is used.
const MAX_TENSORS: usize = 16;
/// Parameters of a message, or of a tensor.
const MAX_PARAMETERS: usize = 64;

/// A list of a message: its name for errors, its number, and the most that it may have.
struct List {
    name: &'static str,
    number: u64,
    most: usize,
}

const fn list(name: &'static str, number: u64, most: usize) -> List {
    List { name, number, most }
}

const PARAMETERS: List = list("parameters", 4, MAX_PARAMETERS);
const INPUTS: List = list("inputs", 5, MAX_TENSORS);
const OUTPUTS: List = list("outputs", 6, MAX_TENSORS);
const RAW: List = list("raw_input_contents", 7, MAX_TENSORS);
const OF_INPUT: List = list("inputs.parameters", 4, MAX_PARAMETERS);
const OF_OUTPUT: List = list("outputs.parameters", 2, MAX_PARAMETERS);
const ELEMENTS: List = list("inputs.contents.bytes_contents", 8, MAX_TENSORS);
/// Fields of an input with its dimensions and its elements.
const SHAPE: u64 = 3;
const CONTENTS: u64 = 5;
/// Fields of an input's elements that are lists of numbers.
const NUMBERS: std::ops::RangeInclusive<u64> = 1..=7;
/// Bytes of dimensions. An input has one.
const MAX_SHAPE_BYTES: usize = 64;

/// Refuses a body of messages whose lists are too long.
///
/// # Errors
/// Names the list.
pub(in super::super) fn check_body(body: &[u8]) -> Result<(), Status> {
    frames(body).try_for_each(check)
}

/// Refuses a message whose lists are too long.
///
/// # Errors
/// Names the list.
pub(super) fn check(message: &[u8]) -> Result<(), Status> {
    for whole in [&PARAMETERS, &INPUTS, &OUTPUTS, &RAW] {
        whole.check(&[message])?;
    }
    let (inputs, outputs) = (
        parts(message, INPUTS.number)?,
        parts(message, OUTPUTS.number)?,
    );
    OF_INPUT.check(&inputs)?;
    OF_OUTPUT.check(&outputs)?;
    for input in inputs {
        let shape: usize = parts(input, SHAPE)?.iter().map(|part| part.len()).sum();
        if shape > MAX_SHAPE_BYTES {
            let message = format!("inputs.shape: the input has the shape [1], not {shape} bytes");
            return Err(Status::invalid_argument(message));
        }
        // A field that comes twice is merged of both.
        let contents = parts(input, CONTENTS)?;
        ELEMENTS.check(&contents)?;
        for number in NUMBERS {
            let numbers = list("inputs.contents: numbers are not read", number, 0);
            numbers.check(&contents)?;
        }
    }
    Ok(())
}

impl List {
    /// Refuses messages that have more of it together than one may have.
    fn check(&self, messages: &[&[u8]]) -> Result<(), Status> {
        let mut count = 0;
        for message in messages {
            each_field(message, self.number, |_| count += 1).ok_or_else(bad)?;
        }
        if count <= self.most {
            return Ok(());
        }
        let Self { name, most, .. } = self;
        let message = format!("{name}: {count} elements, over the limit of {most}");
        Err(Status::invalid_argument(message))
    }
}

/// The values of a field in the order in which they come.
fn parts(message: &[u8], number: u64) -> Result<Vec<&[u8]>, Status> {
    let mut parts = Vec::new();
    each_field(message, number, |part| parts.push(part)).ok_or_else(bad)?;
    Ok(parts)
}

fn bad() -> Status {
    Status::invalid_argument("the message cannot be decoded")
}
