//! A tuning on disk, so that one which was interrupted goes on where it stopped.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use super::scorers::Scorers;
use crate::{Error, Result};

/// Names of the arrays of each kind of parameter.
const KINDS: [&str; 3] = ["change", "shift", "fade"];

/// Parameters of one kind, as the file has them.
struct Saved {
    values: Vec<f32>,
    mean: Vec<f32>,
    /// Moments of the optimizer.
    first: Vec<f32>,
    second: Vec<f32>,
}

/// A file with parameters and what the optimizer remembers.
pub struct State {
    path: PathBuf,
    source: String,
}

impl State {
    /// At `path`; `source`: digest of what is tuned, and how.
    pub fn new(path: &Path, source: u64) -> Self {
        Self {
            path: path.to_owned(),
            source: format!("{source:016x}"),
        }
    }

    /// Puts the state's values into `scorers`; returns the steps they have behind them. `None`, and
    /// nothing changed, where there is no state or not of this tuning.
    pub fn load(&self, scorers: &mut Scorers) -> Option<usize> {
        let bytes = std::fs::read(&self.path).ok()?;
        let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
        let metadata = header.metadata().as_ref()?;
        let steps = metadata.get("steps")?.parse().ok()?;
        let file = SafeTensors::deserialize(&bytes).ok()?;
        let read = |name: String, len: usize| -> Option<Vec<f32>> {
            let tensor = file.tensor(&name).ok()?;
            let values: Vec<f32> = tensor
                .data()
                .chunks_exact(4)
                .map(bytemuck::pod_read_unaligned)
                .collect();
            (values.len() == len).then_some(values)
        };
        if metadata.get("source") != Some(&self.source) {
            return None;
        }
        let found: Option<Vec<Saved>> = KINDS
            .iter()
            .zip(&scorers.parameters)
            .map(|(kind, parameters)| {
                let part = |part: &str| read(format!("{kind}.{part}"), parameters.values.len());
                Some(Saved {
                    values: part("values")?,
                    mean: part("mean")?,
                    first: part("first")?,
                    second: part("second")?,
                })
            })
            .collect();
        for (parameters, saved) in scorers.parameters.iter_mut().zip(found?) {
            (parameters.values, parameters.mean) = (saved.values, saved.mean);
            parameters.adam.resume(saved.first, saved.second, steps);
        }
        Some(steps)
    }

    /// Writes the state. A crash leaves the last one.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::State`] when the file format cannot hold it.
    pub fn save(&self, scorers: &Scorers, steps: usize) -> Result<()> {
        let mut arrays: Vec<(String, &[f32])> = Vec::new();
        for (kind, parameters) in KINDS.iter().zip(&scorers.parameters) {
            let (first, second) = parameters.adam.moments();
            let parts = [
                ("values", &parameters.values[..]),
                ("mean", &parameters.mean),
                ("first", first),
                ("second", second),
            ];
            arrays.extend(parts.map(|(part, values)| (format!("{kind}.{part}"), values)));
        }
        let bad = |error: safetensors::SafeTensorError| Error::State {
            path: self.path.clone(),
            reason: error.to_string(),
        };
        let mut views = Vec::new();
        for (name, values) in &arrays {
            let view =
                TensorView::new(Dtype::F32, vec![values.len()], bytemuck::cast_slice(values));
            views.push((name, view.map_err(bad)?));
        }
        let metadata = HashMap::from([
            ("source".into(), self.source.clone()),
            ("steps".into(), steps.to_string()),
        ]);
        let bytes = safetensors::serialize(views, Some(metadata)).map_err(bad)?;
        let io = |source| Error::Io {
            path: self.path.clone(),
            source,
        };
        let partial = self.path.with_extension("partial");
        std::fs::write(&partial, bytes).map_err(io)?;
        std::fs::rename(&partial, &self.path).map_err(io)
    }

    /// Deletes it.
    pub fn remove(&self) {
        // One that is left behind is not gone on with.
        let _ = std::fs::remove_file(&self.path);
    }
}
