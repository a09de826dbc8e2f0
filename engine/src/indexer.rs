//! A file of trained weights: named tensors of a model's layers, and numbers beside them.
//!
//! What the tensors mean is known to the policy or the memory that they were trained for
//! ([`Trained`]); here is how they are stored. The file is safetensors, with f32 values, or f16
//! where a part is large. Shapes stand in the metadata, too, so that a file for another model is
//! refused by name.

use std::collections::{BTreeMap, HashMap};

use half::f16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use xxhash_rust::xxh3::Xxh3;

use crate::error::{Error, Result};

/// `format` entry of an indexer file's metadata.
pub const FORMAT: &str = "palimpsest-indexer-1";
/// Most entries that a shape in the metadata may have, far above any model.
const MOST: usize = 1 << 24;

/// Weights of one policy or memory, as an indexer file holds them.
pub trait Trained: Sized {
    /// Reads all its tensors, if the file has them.
    ///
    /// # Errors
    /// [`Error::Indexer`] names what is missing or misshapen, or a value that cannot be.
    fn read(reader: &mut Reader<'_>) -> Result<Option<Self>>;

    /// Puts all its tensors, and the numbers that [`Self::read`] asks for.
    fn write(&self, indexer: &mut Indexer);
}

/// Shape of the model that something was trained for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelShape {
    /// Decoder layers.
    pub layers: usize,
    /// KV heads per layer, `K`.
    pub kv_heads: usize,
    /// Hidden size, `E`.
    pub hidden: usize,
}

/// How a tensor's values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits.
    Single,
    /// 16 bits.
    Half,
}

/// A named array of an indexer.
#[derive(Debug, Clone, PartialEq)]
struct Tensor {
    shape: Vec<usize>,
    values: Vec<f32>,
    stored: Precision,
}

/// What was trained for one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Indexer {
    /// The model's shape.
    pub shape: ModelShape,
    /// How it was trained, for `inspect`, and the numbers of its parts.
    pub metadata: HashMap<String, String>,
    tensors: BTreeMap<String, Tensor>,
}

impl Indexer {
    /// An indexer for a model of this shape, with no part yet.
    pub fn new(shape: ModelShape) -> Self {
        Self {
            shape,
            metadata: HashMap::new(),
            tensors: BTreeMap::new(),
        }
    }

    /// Reads the tensors of an indexer file. What they mean is checked by [`Self::get`].
    ///
    /// # Errors
    /// [`Error::Indexer`] when the bytes are not such a file, or hold a value that is not finite.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let bad = |what: String| Error::Indexer(what);
        let (_, header) = SafeTensors::read_metadata(bytes)
            .map_err(|e| bad(format!("not an indexer file: {e}")))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        if metadata.get("format").map(String::as_str) != Some(FORMAT) {
            return Err(bad(format!(
                "metadata `format` is not {FORMAT}; train one with `palimpsest calibrate`"
            )));
        }
        let file = SafeTensors::deserialize(bytes)
            .map_err(|e| bad(format!("damaged indexer file: {e}")))?;
        let shape = ModelShape {
            layers: number(&metadata, "layers")?,
            kv_heads: number(&metadata, "kv_heads")?,
            hidden: number(&metadata, "hidden")?,
        };
        let tensors = file
            .tensors()
            .into_iter()
            .map(|(name, view)| Ok((name.clone(), tensor(&name, &view)?)))
            .collect::<Result<_>>()?;
        Ok(Self {
            shape,
            metadata,
            tensors,
        })
    }

    /// Bytes of an indexer file. The shape entries of the metadata are written from the indexer
    /// itself.
    ///
    /// # Errors
    /// [`Error::Indexer`] when the file format cannot hold it.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut metadata = self.metadata.clone();
        for (key, value) in [
            ("layers", self.shape.layers),
            ("kv_heads", self.shape.kv_heads),
            ("hidden", self.shape.hidden),
        ] {
            metadata.insert(key.into(), value.to_string());
        }
        metadata.insert("format".into(), FORMAT.into());
        let stored: Vec<_> = self
            .tensors
            .iter()
            .map(|(name, tensor)| (name, tensor, tensor.bytes()))
            .collect();
        let views = stored.iter().map(|(name, tensor, bytes)| {
            let view = TensorView::new(tensor.dtype(), tensor.shape.clone(), bytes);
            view.map(|v| (name.as_str(), v))
                .map_err(|e| Error::Indexer(e.to_string()))
        });
        safetensors::serialize(views.collect::<Result<Vec<_>>>()?, Some(metadata))
            .map_err(|e| Error::Indexer(e.to_string()))
    }

    /// A part of it, if it is there.
    ///
    /// # Errors
    /// Those of [`Trained::read`].
    pub fn get<T: Trained>(&self) -> Result<Option<T>> {
        T::read(&mut self.reader())
    }

    /// Puts a part into it, in place of what was there of its tensors.
    pub fn set<T: Trained>(&mut self, part: &T) {
        part.write(self);
    }

    /// Begins to read its parts.
    pub fn reader(&self) -> Reader<'_> {
        Reader {
            indexer: self,
            read: 0,
        }
    }

    /// Puts a tensor, whose `values` fill its `shape`.
    pub fn put(&mut self, name: String, shape: &[usize], values: &[f32], stored: Precision) {
        debug_assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}");
        let tensor = Tensor {
            shape: shape.to_vec(),
            values: values.to_vec(),
            stored,
        };
        self.tensors.insert(name, tensor);
    }

    /// Puts a number, which stands in the metadata.
    pub fn put_number(&mut self, key: &str, value: usize) {
        self.metadata.insert(key.into(), value.to_string());
    }

    /// Feeds what it computes with to a digest: every weight, under its name and in its shape. How
    /// it was trained changes no score.
    pub fn digest(&self, hash: &mut Xxh3) {
        for (name, tensor) in &self.tensors {
            hash.update(format!("{name:?} {:?} ", tensor.shape).as_bytes());
            hash.update(bytemuck::cast_slice(&tensor.values));
        }
    }

    /// Checks that it was made for a model of this shape.
    ///
    /// # Errors
    /// [`Error::Indexer`] with both shapes.
    pub fn check(&self, model: ModelShape) -> Result<()> {
        if self.shape == model {
            return Ok(());
        }
        let own = self.shape;
        Err(Error::Indexer(format!(
            "made for a model with {} layers, {} KV heads, hidden size {}; this one has {}, {}, {}",
            own.layers, own.kv_heads, own.hidden, model.layers, model.kv_heads, model.hidden
        )))
    }
}

impl Tensor {
    fn dtype(&self) -> Dtype {
        match self.stored {
            Precision::Single => Dtype::F32,
            Precision::Half => Dtype::F16,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let values = self.values.iter();
        match self.stored {
            Precision::Single => values.flat_map(|v| v.to_le_bytes()).collect(),
            Precision::Half => values
                .flat_map(|v| f16::from_f32(*v).to_le_bytes())
                .collect(),
        }
    }
}

/// An indexer whose parts are being read.
pub struct Reader<'a> {
    indexer: &'a Indexer,
    read: usize,
}

impl Reader<'_> {
    /// Shape of the model that it was made for.
    pub fn shape(&self) -> ModelShape {
        self.indexer.shape
    }

    /// Whether the metadata has an entry.
    pub fn has(&self, key: &str) -> bool {
        self.indexer.metadata.contains_key(key)
    }

    /// A number of the metadata.
    ///
    /// # Errors
    /// [`Error::Indexer`] when it is missing, no number, or more than any model has.
    pub fn number(&self, key: &str) -> Result<usize> {
        number(&self.indexer.metadata, key)
    }

    /// The values of a tensor of this shape.
    ///
    /// # Errors
    /// [`Error::Indexer`] when it is missing or has another shape.
    pub fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let bad = |what: String| Error::Indexer(what);
        let tensor = self
            .indexer
            .tensors
            .get(name)
            .ok_or_else(|| bad(format!("tensor {name} is missing")))?;
        let len = shape.iter().copied().fold(1, usize::saturating_mul);
        if tensor.values.len() != len {
            return Err(bad(format!(
                "tensor {name} has shape {:?}, {shape:?} expected",
                tensor.shape
            )));
        }
        self.read += 1;
        Ok(tensor.values.clone())
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`Error::Indexer`] when there are tensors that nobody has read.
    pub fn finish(self) -> Result<()> {
        let found = self.indexer.tensors.len();
        if found == self.read {
            return Ok(());
        }
        Err(Error::Indexer(format!(
            "{found} tensors, {} expected from the metadata",
            self.read
        )))
    }
}

fn number(metadata: &HashMap<String, String>, key: &str) -> Result<usize> {
    let bad = |what: String| Error::Indexer(what);
    let text = metadata
        .get(key)
        .ok_or_else(|| bad(format!("metadata has no `{key}`")))?;
    let number = text
        .parse()
        .map_err(|_| bad(format!("metadata `{key}` is `{text}`, not a number")))?;
    if number > MOST {
        Err(bad(format!(
            "metadata `{key}` is {number}, more than any model has"
        )))
    } else {
        Ok(number)
    }
}

/// A tensor of a file.
fn tensor(name: &str, view: &TensorView<'_>) -> Result<Tensor> {
    let bytes = view.data();
    let (stored, values): (_, Vec<f32>) = match view.dtype() {
        Dtype::F32 => {
            let value = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            (
                Precision::Single,
                bytes.chunks_exact(4).map(value).collect(),
            )
        }
        Dtype::F16 => {
            let value = |b: &[u8]| f16::from_le_bytes([b[0], b[1]]).to_f32();
            (Precision::Half, bytes.chunks_exact(2).map(value).collect())
        }
        other => {
            return Err(Error::Indexer(format!(
                "tensor {name} is of type {other:?}, F32 or F16 expected"
            )));
        }
    };
    if values.iter().any(|v| !v.is_finite()) {
        return Err(Error::Indexer(format!(
            "tensor {name} holds a value that is not finite"
        )));
    }
    Ok(Tensor {
        shape: view.shape().to_vec(),
        values,
        stored,
    })
}

#[cfg(test)]
mod tests;
