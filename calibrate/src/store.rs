//! Samples on disk: a document is read once, and a calibration that was interrupted goes on where
//! it stopped.
//!
//! One safetensors file per document. Hidden states, queries, keys and values are stored in half
//! precision, targets in single. Layers are read one at a time, since all documents of one layer
//! are what a fit needs.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use safetensors::tensor::{Dtype, Metadata, TensorView};

use crate::collect::{LayerSample, Sample};
use crate::{Error, Result};

/// Key of the metadata entry that says what a sample was made from.
const SOURCE: &str = "source";

/// A directory of samples.
pub struct Store {
    directory: PathBuf,
}

/// The sample of one document, on disk.
pub struct Stored {
    file: File,
    path: PathBuf,
    tensors: Metadata,
    /// Bytes before the first tensor.
    start: u64,
}

impl Store {
    /// Creates the directory where it is missing.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(directory: &Path) -> Result<Self> {
        std::fs::create_dir_all(directory).map_err(|source| Error::Io {
            path: directory.to_owned(),
            source,
        })?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    fn path(&self, index: usize) -> PathBuf {
        self.directory
            .join(format!("document-{index:04}.safetensors"))
    }

    /// The sample of document `index`, if it is there, whole, and was made from `source`.
    pub fn find(&self, index: usize, source: &str) -> Option<Stored> {
        let stored = Stored::open(self.path(index)).ok()?;
        let made_from = stored.tensors.metadata().as_ref()?.get(SOURCE)?;
        (made_from == source).then_some(stored)
    }

    /// Writes the sample of document `index`. A crash leaves no half of it under its name.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Sample`] when the file format cannot hold it.
    pub fn save(&self, index: usize, source: &str, sample: &Sample) -> Result<Stored> {
        let path = self.path(index);
        let io = |source| Error::Io {
            path: path.clone(),
            source,
        };
        let bad = |e: safetensors::SafeTensorError| Error::Sample {
            path: path.clone(),
            reason: e.to_string(),
        };
        let mut tensors = Vec::new();
        for (l, layer) in sample.layers.iter().enumerate() {
            tensors.push((
                format!("targets.{l}"),
                Dtype::F32,
                bytemuck::cast_slice(&layer.targets).to_vec(),
            ));
            let halves = [("hidden", &layer.hidden), ("queries", &layer.queries)];
            for (name, values) in halves
                .into_iter()
                .chain([("keys", &layer.keys), ("values", &layer.values)])
            {
                let half: Vec<u8> = values
                    .iter()
                    .flat_map(|v| f16::from_f32(*v).to_le_bytes())
                    .collect();
                tensors.push((format!("{name}.{l}"), Dtype::F16, half));
            }
        }
        let views: std::result::Result<Vec<_>, _> = tensors
            .iter()
            .map(|(name, dtype, bytes)| {
                let width = if *dtype == Dtype::F32 { 4 } else { 2 };
                TensorView::new(*dtype, vec![bytes.len() / width], bytes)
                    .map(|view| (name.as_str(), view))
            })
            .collect();
        let metadata = HashMap::from([(SOURCE.to_string(), source.to_string())]);
        let bytes = safetensors::serialize(views.map_err(bad)?, Some(metadata)).map_err(bad)?;
        let partial = path.with_extension("partial");
        std::fs::write(&partial, bytes).map_err(io)?;
        std::fs::rename(&partial, &path).map_err(io)?;
        Stored::open(path)
    }

    /// Deletes the directory.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(self) -> Result<()> {
        std::fs::remove_dir_all(&self.directory).map_err(|source| Error::Io {
            path: self.directory,
            source,
        })
    }
}

impl Stored {
    fn open(path: PathBuf) -> Result<Self> {
        let io = |source| Error::Io {
            path: path.clone(),
            source,
        };
        let bad = |reason: String| Error::Sample {
            path: path.clone(),
            reason,
        };
        let file = File::open(&path).map_err(io)?;
        let mut len = [0; 8];
        file.read_exact_at(&mut len, 0).map_err(io)?;
        let header = u64::from_le_bytes(len);
        let size = file.metadata().map_err(io)?.len();
        if header > size.saturating_sub(8) {
            return Err(bad("it is cut short".into()));
        }
        let mut bytes = vec![0; header as usize];
        file.read_exact_at(&mut bytes, 8).map_err(io)?;
        let tensors: Metadata = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        let start = 8 + header;
        let end = tensors
            .tensors()
            .values()
            .map(|info| info.data_offsets.1 as u64)
            .max()
            .unwrap_or(0);
        if start + end != size {
            return Err(bad("it is cut short".into()));
        }
        Ok(Self {
            file,
            path,
            tensors,
            start,
        })
    }

    /// One layer.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Sample`] when a part is missing.
    pub fn layer(&self, layer: usize) -> Result<LayerSample> {
        let read = |name: &str| self.tensor(&format!("{name}.{layer}"));
        Ok(LayerSample {
            hidden: read("hidden")?,
            targets: read("targets")?,
            queries: read("queries")?,
            keys: read("keys")?,
            values: read("values")?,
        })
    }

    fn tensor(&self, name: &str) -> Result<Vec<f32>> {
        let bad = |reason: String| Error::Sample {
            path: self.path.clone(),
            reason,
        };
        let info = self
            .tensors
            .info(name)
            .ok_or_else(|| bad(format!("it has no tensor {name}")))?;
        let (from, to) = info.data_offsets;
        let mut bytes = vec![0u8; to - from];
        let io = |source| Error::Io {
            path: self.path.clone(),
            source,
        };
        self.file
            .read_exact_at(&mut bytes, self.start + from as u64)
            .map_err(io)?;
        match info.dtype {
            Dtype::F32 => Ok(bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect()),
            Dtype::F16 => {
                let bits: Vec<u16> = bytes
                    .chunks_exact(2)
                    .map(|b| u16::from_le_bytes([b[0], b[1]]))
                    .collect();
                let mut values = vec![0.0; bits.len()];
                bits.reinterpret_cast::<f16>()
                    .convert_to_f32_slice(&mut values);
                Ok(values)
            }
            other => Err(bad(format!("tensor {name} is of type {other:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Sample {
        let layer = |x: f32| LayerSample {
            hidden: vec![x, 0.5, -2.0],
            targets: vec![x * 1e-5],
            queries: vec![],
            keys: vec![x; 4],
            values: vec![-x; 4],
        };
        Sample {
            len: 1,
            layers: vec![layer(1.0), layer(3.0)],
        }
    }

    #[test]
    fn samples_come_back_layer_by_layer() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("created");
        let stored = store.save(3, "a", &sample()).expect("written");
        assert_eq!(stored.layer(1).expect("stored"), sample().layers[1]);
        assert_eq!(
            store.find(3, "a").expect("there").layer(0).expect("stored"),
            sample().layers[0]
        );
        assert!(store.find(3, "b").is_none(), "made from something else");
        assert!(store.find(2, "a").is_none(), "never written");
        assert!(stored.layer(2).is_err());
    }

    #[test]
    fn a_damaged_sample_is_made_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("created");
        store.save(0, "a", &sample()).expect("written");
        let path = directory.path().join("document-0000.safetensors");
        let bytes = std::fs::read(&path).expect("written");
        for cut in 0..bytes.len() {
            std::fs::write(&path, &bytes[..cut]).expect("writable");
            assert!(store.find(0, "a").is_none(), "cut at {cut}");
        }
    }
}
