//! Golden files: safetensors written by the scripts in `tests/oracle/`.

use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;

/// A golden file in memory.
pub struct Golden(Vec<u8>);

/// Reads a golden file.
///
/// # Panics
/// When it is not there.
pub fn read(path: &Path) -> Golden {
    Golden(std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
}

impl Golden {
    /// Names of the tensors.
    ///
    /// # Panics
    /// When the file is damaged.
    pub fn names(&self) -> Vec<String> {
        let file = SafeTensors::deserialize(&self.0).expect("a golden file");
        file.names().into_iter().map(str::to_string).collect()
    }

    /// An i32 tensor of token ids.
    ///
    /// # Panics
    /// When it is missing or of another type.
    pub fn ids(&self, name: &str) -> Vec<u32> {
        let file = SafeTensors::deserialize(&self.0).expect("a golden file");
        let view = file
            .tensor(name)
            .unwrap_or_else(|_| panic!("tensor {name}"));
        assert_eq!(view.dtype(), Dtype::I32, "{name}");
        view.data()
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect()
    }

    /// An f32 or f16 tensor.
    ///
    /// # Panics
    /// When it is missing or of another type.
    pub fn floats(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.0).expect("a golden file");
        let view = file
            .tensor(name)
            .unwrap_or_else(|_| panic!("tensor {name}"));
        match view.dtype() {
            Dtype::F32 => view
                .data()
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
            Dtype::F16 => view
                .data()
                .chunks_exact(2)
                .map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
            other => panic!("{name} is {other:?}"),
        }
    }
}
