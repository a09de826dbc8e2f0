//! The backend, its buffers, and the parts that it takes as they are.

use crate::backend::{Buffers, Steps};
use crate::error::{Result, at_least};

/// The backend. It keeps no state.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReferenceBackend;

impl Buffers for ReferenceBackend {
    type Buffer = Vec<f32>;

    fn name(&self) -> String {
        "reference".to_owned()
    }

    fn alloc(&self, len: usize) -> Result<Vec<f32>> {
        Ok(vec![0.0; len])
    }

    fn upload(&self, src: &[f32], dst: &mut Vec<f32>, offset: usize) -> Result<()> {
        at_least("upload", "dst", dst.len(), offset.saturating_add(src.len()))?;
        dst[offset..offset + src.len()].copy_from_slice(src);
        Ok(())
    }

    fn download(&self, src: &Vec<f32>, offset: usize, dst: &mut [f32]) -> Result<()> {
        at_least(
            "download",
            "src",
            src.len(),
            offset.saturating_add(dst.len()),
        )?;
        dst.copy_from_slice(&src[offset..offset + dst.len()]);
        Ok(())
    }
}

impl Steps for ReferenceBackend {}
