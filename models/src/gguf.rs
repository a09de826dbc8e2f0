//! GGUF (versions 2 and 3, little-endian): the header of a model file, read from bytes that nobody
//! vouches for.
//!
//! Layout (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>): magic, version, counts,
//! metadata, tensor table, padding, tensor data. Nothing is allocated because a count in the header
//! says so: arrays stay in the file and are walked, tables grow entry by entry as bytes are found
//! for them.

use std::collections::HashMap;
use std::ops::Range;

use crate::gguf_types::{Scalar, TensorType};

/// Array nesting that is followed; llama.cpp writes no nested arrays at all.
const MAX_NESTING: u32 = 4;
/// Dimensions of one tensor.
const MAX_DIMS: u32 = 4;
/// Bytes of a metadata key or tensor name.
const MAX_NAME: usize = 65_535;

/// Why a file is not a GGUF file that can be read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GgufError {
    /// The first four bytes are something else.
    #[error("not a GGUF file: it starts with {0:02x?} instead of \"GGUF\"")]
    Magic([u8; 4]),
    /// A version that is not read.
    #[error("GGUF version {0} is not supported (2 and 3 are)")]
    Version(u32),
    /// Written for big-endian machines.
    #[error("the GGUF file is big-endian; convert it with gguf-convert-endian")]
    BigEndian,
    /// The file ends inside something.
    #[error(
        "the GGUF file ends at byte {len} inside {what} (byte {at} on); it is truncated or damaged"
    )]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where it started.
        at: usize,
        /// Bytes of the file.
        len: usize,
    },
    /// Text that is not UTF-8.
    #[error("{what} at byte {at} is not UTF-8")]
    Utf8 {
        /// What was being read.
        what: &'static str,
        /// Where.
        at: usize,
    },
    /// A value type number that the format does not define.
    #[error("metadata \"{key}\" has unknown value type {kind}")]
    ValueType {
        /// Metadata key.
        key: String,
        /// Number found.
        kind: u32,
    },
    /// Arrays nested too deeply.
    #[error("metadata \"{key}\" nests arrays more than {MAX_NESTING} deep")]
    Nesting {
        /// Metadata key.
        key: String,
    },
    /// Two metadata entries or tensors of one name.
    #[error("{what} \"{name}\" appears twice")]
    Duplicate {
        /// Metadata key or tensor.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A metadata key that must be there.
    #[error("metadata \"{0}\" is missing")]
    MissingKey(String),
    /// A metadata value of the wrong type or out of range.
    #[error("metadata \"{key}\" is {found}, expected {expected}")]
    WrongValue {
        /// Metadata key.
        key: String,
        /// What the file holds.
        found: String,
        /// What was needed.
        expected: &'static str,
    },
    /// An alignment that is zero or no multiple of eight.
    #[error("general.alignment is {0}, it must be a multiple of 8")]
    Alignment(u64),
    /// A tensor with an impossible shape.
    #[error("tensor \"{name}\" has an impossible shape {dims:?} for type {dtype}")]
    Shape {
        /// Tensor.
        name: String,
        /// Dimensions as stored, innermost first.
        dims: Vec<u64>,
        /// Element type.
        dtype: TensorType,
    },
    /// A tensor outside the file or off the alignment.
    #[error(
        "tensor \"{name}\" lies at data offset {offset}, outside the file of {len} bytes or \
         misaligned"
    )]
    Offset {
        /// Tensor.
        name: String,
        /// Offset into the data section.
        offset: u64,
        /// Bytes of the file.
        len: usize,
    },
}

/// Tensor of the file.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufTensor {
    /// Name.
    pub name: String,
    /// Element type.
    pub dtype: TensorType,
    /// Dimensions, outermost first (the file stores them innermost first).
    pub shape: Vec<usize>,
    /// Bytes of the file; `None` for types whose size is not known here.
    pub range: Option<Range<usize>>,
    /// Which of a model's files, where there are several: from 0.
    pub file: usize,
}

/// Metadata value. Arrays are checked and left in the file.
#[derive(Debug, Clone, PartialEq)]
pub enum GgufValue {
    /// Unsigned integer of any width.
    Unsigned(u64),
    /// Signed integer of any width.
    Signed(i64),
    /// Float of any width.
    Float(f64),
    /// Boolean.
    Bool(bool),
    /// Text.
    Text(String),
    /// Array: type of the elements, number, and the elements' bytes in the file.
    Array {
        /// Element type number.
        kind: u32,
        /// Number of elements.
        len: usize,
        /// Bytes of the elements.
        range: Range<usize>,
    },
}

impl GgufValue {
    /// The value for an error message or a listing; long text is cut.
    pub fn summary(&self) -> String {
        match self {
            Self::Unsigned(value) => value.to_string(),
            Self::Signed(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Bool(value) => value.to_string(),
            Self::Text(text) if text.chars().count() > 120 => {
                format!("{:?}…", text.chars().take(120).collect::<String>())
            }
            Self::Text(text) => format!("{text:?}"),
            Self::Array { kind, len, .. } => format!("[{}; {len}]", Scalar::name(*kind)),
        }
    }
}

/// Parsed header of a GGUF file.
#[derive(Debug, Clone)]
pub struct Gguf {
    /// Format version.
    pub version: u32,
    /// Metadata in file order.
    pub metadata: Vec<(String, GgufValue)>,
    /// Tensors in file order.
    pub tensors: Vec<GgufTensor>,
    keys: HashMap<String, usize>,
}

impl Gguf {
    /// Reads the header of `file`, all bytes of a GGUF file. Every tensor of a known type is
    /// checked to lie inside it.
    pub fn parse(file: &[u8]) -> Result<Self, GgufError> {
        let mut reader = Reader { file, at: 0 };
        let magic = reader.take(4, "the magic")?;
        if magic != b"GGUF" {
            return Err(GgufError::Magic([magic[0], magic[1], magic[2], magic[3]]));
        }
        let version = reader.u32("the version")?;
        match version {
            2 | 3 => {}
            _ if matches!(version.swap_bytes(), 1..=3) => return Err(GgufError::BigEndian),
            _ => return Err(GgufError::Version(version)),
        }
        let num_tensors = reader.u64("the tensor count")?;
        let num_metadata = reader.u64("the metadata count")?;
        let mut gguf = Self {
            version,
            metadata: Vec::new(),
            tensors: Vec::new(),
            keys: HashMap::new(),
        };
        for index in 0..num_metadata {
            let key = reader.text("a metadata key")?;
            let value = reader.value(&key)?;
            if gguf.keys.insert(key.clone(), index as usize).is_some() {
                return Err(GgufError::Duplicate {
                    what: "metadata",
                    name: key,
                });
            }
            gguf.metadata.push((key, value));
        }
        gguf.read_tensors(&mut reader, num_tensors)?;
        Ok(gguf)
    }

    fn read_tensors(&mut self, reader: &mut Reader<'_>, count: u64) -> Result<(), GgufError> {
        let mut names = HashMap::new();
        let mut offsets = Vec::new();
        for _ in 0..count {
            let TensorEntry { tensor, offset } = reader.tensor()?;
            if names.insert(tensor.name.clone(), ()).is_some() {
                return Err(GgufError::Duplicate {
                    what: "tensor",
                    name: tensor.name,
                });
            }
            self.tensors.push(tensor);
            offsets.push(offset);
        }
        let alignment = self.unsigned("general.alignment")?.unwrap_or(32);
        if alignment == 0 || !alignment.is_multiple_of(8) {
            return Err(GgufError::Alignment(alignment));
        }
        let len = reader.file.len();
        let start = (reader.at as u64)
            .checked_next_multiple_of(alignment)
            .ok_or(GgufError::Alignment(alignment))?;
        for (tensor, offset) in self.tensors.iter_mut().zip(offsets) {
            // Cannot overflow: `Reader::tensor` checked it.
            let elements: usize = tensor.shape.iter().product();
            if let TensorType::Unknown(_) = tensor.dtype {
                continue;
            }
            let begin = start
                .checked_add(offset)
                .filter(|_| offset.is_multiple_of(alignment));
            let range = begin.and_then(|begin| {
                let begin = usize::try_from(begin).ok()?;
                let end = begin.checked_add(tensor.dtype.bytes(elements)?)?;
                (end <= len).then_some(begin..end)
            });
            let Some(range) = range else {
                return Err(GgufError::Offset {
                    name: tensor.name.clone(),
                    offset,
                    len,
                });
            };
            tensor.range = Some(range);
        }
        Ok(())
    }

    /// Metadata value of `key`.
    pub fn get(&self, key: &str) -> Option<&GgufValue> {
        self.keys.get(key).map(|&index| &self.metadata[index].1)
    }

    /// Non-negative integer of `key`, if the key is there.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::Unsigned(value)) => Ok(Some(*value)),
            Some(GgufValue::Signed(value)) if *value >= 0 => Ok(Some(*value as u64)),
            Some(other) => Err(wrong(key, other, "a non-negative integer")),
        }
    }

    /// Number of `key`, if the key is there.
    pub fn float(&self, key: &str) -> Result<Option<f64>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::Float(value)) => Ok(Some(*value)),
            Some(other) => Err(wrong(key, other, "a float")),
        }
    }

    /// Boolean of `key`, if the key is there.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(wrong(key, other, "a boolean")),
        }
    }

    /// Text of `key`, if the key is there.
    pub fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::Text(value)) => Ok(Some(value)),
            Some(other) => Err(wrong(key, other, "text")),
        }
    }

    /// Strings of array `key`, if the key is there. `file`: the bytes that were parsed.
    pub fn texts<'a>(&self, file: &'a [u8], key: &str) -> Result<Option<Vec<&'a str>>, GgufError> {
        let Some((kind, len, range)) = self.array(key)? else {
            return Ok(None);
        };
        if kind != Scalar::TEXT {
            return Err(wrong(
                key,
                &self.metadata[self.keys[key]].1,
                "an array of strings",
            ));
        }
        let mut reader = Reader {
            file: file.get(..range.end).unwrap_or(&[]),
            at: range.start,
        };
        let mut texts = Vec::new();
        for _ in 0..len {
            texts.push(reader.text_ref("an array of strings")?);
        }
        Ok(Some(texts))
    }

    /// Numbers (integers, floats or booleans) of array `key`, if the key is there. `file`: the
    /// bytes that were parsed.
    pub fn numbers(&self, file: &[u8], key: &str) -> Result<Option<Vec<f64>>, GgufError> {
        let Some((kind, len, range)) = self.array(key)? else {
            return Ok(None);
        };
        let mut reader = Reader {
            file: file.get(..range.end).unwrap_or(&[]),
            at: range.start,
        };
        let mut numbers = Vec::new();
        for _ in 0..len {
            numbers.push(match reader.scalar(kind, key)? {
                GgufValue::Unsigned(value) => value as f64,
                GgufValue::Signed(value) => value as f64,
                GgufValue::Float(value) => value,
                GgufValue::Bool(value) => f64::from(u8::from(value)),
                other => return Err(wrong(key, &other, "an array of numbers")),
            });
        }
        Ok(Some(numbers))
    }

    /// Adds a metadata value or replaces it.
    #[cfg(test)]
    pub(crate) fn set(&mut self, key: &str, value: GgufValue) {
        let index = self.keys.get(key).copied().unwrap_or(self.metadata.len());
        self.keys.insert(key.to_owned(), index);
        match self.metadata.get_mut(index) {
            Some(entry) => entry.1 = value,
            None => self.metadata.push((key.to_owned(), value)),
        }
    }

    fn array(&self, key: &str) -> Result<Option<(u32, usize, Range<usize>)>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::Array { kind, len, range }) => Ok(Some((*kind, *len, range.clone()))),
            Some(other) => Err(wrong(key, other, "an array")),
        }
    }
}

pub(crate) fn wrong(key: &str, found: &GgufValue, expected: &'static str) -> GgufError {
    GgufError::WrongValue {
        key: key.to_owned(),
        found: found.summary(),
        expected,
    }
}

/// Kind of the elements of an array, and how many there are.
struct ArrayHeader {
    kind: u32,
    len: usize,
}

/// An entry of the tensor table.
struct TensorEntry {
    tensor: GgufTensor,
    /// In the data section.
    offset: u64,
}

/// Where the reading of a file has come to.
struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], GgufError> {
        let bytes = self
            .at
            .checked_add(len)
            .and_then(|end| self.file.get(self.at..end));
        let bytes = bytes.ok_or(GgufError::Truncated {
            what,
            at: self.at,
            len: self.file.len(),
        })?;
        self.at += len;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        Ok(self
            .take(N, what)?
            .try_into()
            .expect("take returns as many bytes as asked for"))
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn text_ref(&mut self, what: &'static str) -> Result<&'a str, GgufError> {
        let at = self.at;
        let len = usize::try_from(self.u64(what)?).unwrap_or(usize::MAX);
        std::str::from_utf8(self.take(len, what)?).map_err(|_| GgufError::Utf8 { what, at })
    }

    /// A key or name.
    fn text(&mut self, what: &'static str) -> Result<String, GgufError> {
        let at = self.at;
        let text = self.text_ref(what)?;
        if text.len() > MAX_NAME {
            return Err(GgufError::Truncated {
                what,
                at,
                len: self.file.len(),
            });
        }
        Ok(text.to_owned())
    }

    fn value(&mut self, key: &str) -> Result<GgufValue, GgufError> {
        let kind = self.u32("a metadata value")?;
        if kind != Scalar::ARRAY {
            return self.scalar(kind, key);
        }
        let ArrayHeader { kind, len } = self.array_header()?;
        let start = self.at;
        self.skip_array(kind, len, key, 1)?;
        Ok(GgufValue::Array {
            kind,
            len,
            range: start..self.at,
        })
    }

    fn array_header(&mut self) -> Result<ArrayHeader, GgufError> {
        let kind = self.u32("an array")?;
        let len = usize::try_from(self.u64("an array")?).unwrap_or(usize::MAX);
        Ok(ArrayHeader { kind, len })
    }

    fn skip_array(
        &mut self,
        kind: u32,
        len: usize,
        key: &str,
        depth: u32,
    ) -> Result<(), GgufError> {
        if depth > MAX_NESTING {
            return Err(GgufError::Nesting {
                key: key.to_owned(),
            });
        }
        if let Some(size) = Scalar::size(kind) {
            let bytes = len.saturating_mul(size);
            return self.take(bytes, "an array").map(|_| ());
        }
        // Each element of the other kinds takes at least eight bytes, so the loop ends with the
        // file at the latest.
        for _ in 0..len {
            match kind {
                Scalar::TEXT => self.text_ref("an array of strings").map(|_| ())?,
                Scalar::ARRAY => {
                    let ArrayHeader { kind, len } = self.array_header()?;
                    self.skip_array(kind, len, key, depth + 1)?;
                }
                _ => {
                    return Err(GgufError::ValueType {
                        key: key.to_owned(),
                        kind,
                    });
                }
            }
        }
        Ok(())
    }

    fn scalar(&mut self, kind: u32, key: &str) -> Result<GgufValue, GgufError> {
        const WHAT: &str = "a metadata value";
        Ok(match kind {
            0 => GgufValue::Unsigned(u8::from_le_bytes(self.array(WHAT)?).into()),
            1 => GgufValue::Signed(i8::from_le_bytes(self.array(WHAT)?).into()),
            2 => GgufValue::Unsigned(u16::from_le_bytes(self.array(WHAT)?).into()),
            3 => GgufValue::Signed(i16::from_le_bytes(self.array(WHAT)?).into()),
            4 => GgufValue::Unsigned(self.u32(WHAT)?.into()),
            5 => GgufValue::Signed(i32::from_le_bytes(self.array(WHAT)?).into()),
            6 => GgufValue::Float(f32::from_le_bytes(self.array(WHAT)?).into()),
            7 => GgufValue::Bool(self.array::<1>(WHAT)?[0] != 0),
            Scalar::TEXT => GgufValue::Text(self.text_ref(WHAT)?.to_owned()),
            10 => GgufValue::Unsigned(self.u64(WHAT)?),
            11 => GgufValue::Signed(i64::from_le_bytes(self.array(WHAT)?)),
            12 => GgufValue::Float(f64::from_le_bytes(self.array(WHAT)?)),
            _ => {
                return Err(GgufError::ValueType {
                    key: key.to_owned(),
                    kind,
                });
            }
        })
    }

    /// One entry of the tensor table.
    fn tensor(&mut self) -> Result<TensorEntry, GgufError> {
        let name = self.text("a tensor name")?;
        let num_dims = self.u32("a tensor shape")?;
        let mut dims = Vec::new();
        for _ in 0..num_dims.min(MAX_DIMS + 1) {
            dims.push(self.u64("a tensor shape")?);
        }
        let dtype = TensorType::from_ggml(self.u32("a tensor type")?);
        let offset = self.u64("a tensor offset")?;
        let shape: Option<Vec<usize>> = dims
            .iter()
            .rev()
            .map(|&dim| usize::try_from(dim).ok())
            .collect();
        let fits = |shape: &Vec<usize>| {
            let elements = shape
                .iter()
                .try_fold(1usize, |product, &dim| product.checked_mul(dim));
            let rows_are_whole_blocks =
                shape.last().is_some_and(|&inner| dtype.fills_blocks(inner));
            num_dims <= MAX_DIMS
                && !shape.contains(&0)
                && elements.is_some()
                && rows_are_whole_blocks
        };
        match shape.filter(fits) {
            Some(shape) => Ok(TensorEntry {
                tensor: GgufTensor {
                    name,
                    dtype,
                    shape,
                    range: None,
                    file: 0,
                },
                offset,
            }),
            None => Err(GgufError::Shape { name, dims, dtype }),
        }
    }
}
