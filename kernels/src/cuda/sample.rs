//! Sampling on the device: logits stay there, and four bytes of each row come back.

use bytemuck::{Pod, Zeroable};

use super::items::NONE;
use super::{Arg, Buffer, CudaBackend, Device, Launch, Pack};
use crate::error::{Error, Result};
use crate::sample::{self, SampleItem};

/// See `kernels/cu/sample.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Sample {
    row: u32,
    first_edit: u32,
    edits: u32,
    top_k: u32,
    temperature: f32,
    top_p: f32,
    least_mass: u64,
    uniform: u64,
}

impl<D: Device> CudaBackend<D> {
    pub(super) fn sample_tokens(
        &self,
        logits: &Buffer<D>,
        vocabulary: usize,
        items: &[SampleItem<'_>],
    ) -> Result<Vec<Option<u32>>> {
        sample::check(items, logits.len / vocabulary.max(1), vocabulary)?;
        if items.is_empty() {
            return Ok(Vec::new());
        }
        let (mut samples, mut edits) = (Vec::with_capacity(items.len()), Vec::new());
        for item in items {
            samples.push(Sample {
                row: item.row as u32,
                first_edit: edits.len() as u32,
                edits: item.edits.len() as u32,
                top_k: u32::try_from(item.top_k).unwrap_or(u32::MAX),
                temperature: item.temperature,
                top_p: item.top_p,
                least_mass: sample::least_mass(item.min_p),
                uniform: item.uniform,
            });
            edits.extend_from_slice(item.edits);
        }
        let mut work = self.work();
        let mut pack = Pack::of_step(&self.device);
        let (edits, first_edit) = pack.push_any(&edits);
        samples
            .iter_mut()
            .for_each(|sample| sample.first_edit += first_edit as u32);
        let rows = pack
            .shape
            .map_or(items.len(), |shape| items.len().max(shape.rows));
        let samples = pack.push_padded(
            &samples,
            rows,
            Sample {
                row: NONE,
                ..Sample::zeroed()
            },
        );
        let arg = pack.upload(&self.device, &mut work.stage)?;
        let to = work
            .scratch
            .address(&self.device, "sampled tokens", 4 * rows)?;
        self.run(Launch {
            kernel: "sample",
            grid: [rows as u32, 1, 1],
            threads: 512,
            shared: 0,
            args: &[
                logits.arg(),
                Arg::U32(vocabulary as u32),
                arg(samples),
                arg(edits),
                Arg::Pointer(to),
            ],
        })?;
        let mut tokens = vec![0u32; items.len()];
        self.device.download(
            work.scratch.memory()?,
            0,
            bytemuck::cast_slice_mut(&mut tokens),
        )?;
        drop(work);
        let found = |token: u32| match token {
            NONE => Ok(None),
            token if (token as usize) < vocabulary => Ok(Some(token)),
            other => Err(Error::Index {
                op: "sample",
                what: "token",
                index: other as usize,
                len: vocabulary,
            }),
        };
        tokens.into_iter().map(found).collect()
    }
}
