//! Sampling on the device: logits stay there, and four bytes of each row come back.

use bytemuck::Zeroable;

use super::backend::{Buffer, CudaBackend};
use super::checks::within;
use super::descriptors::Descriptors;
use super::device::Device;
use super::launch::kernels::SampleTokens;
use super::launch::{Kernel, NONE, PtrMut, Sample};
use crate::backend::Sampling;
use crate::error::Result;
use crate::sample::{self, LogitEdit, SampleItem};

impl<D: Device> Sampling for CudaBackend<D> {
    fn sample(
        &self,
        logits: &mut Buffer<D>,
        vocabulary: usize,
        items: &[SampleItem<'_>],
    ) -> Result<Vec<Option<u32>>> {
        sample::check(items, logits.len / vocabulary.max(1), vocabulary)?;
        if items.is_empty() {
            return Ok(Vec::new());
        }

        let mut work = self.workspaces();
        let mut descriptors = Descriptors::of_step(&self.stream);
        let edits: Vec<LogitEdit> = items.iter().flat_map(|item| item.edits).copied().collect();
        let edits = descriptors.push_tail(&edits);
        let masks: Vec<u32> = items
            .iter()
            .filter_map(|item| item.mask)
            .flatten()
            .copied()
            .collect();
        let masks = descriptors.push_tail(&masks);
        let rows = descriptors.rows(items.len());
        let no_row = Sample {
            row: NONE,
            ..Sample::zeroed()
        };
        let first = First {
            edit: edits.first,
            mask: masks.first,
        };
        let samples = descriptors.push_padded(&samples(items, first), rows, no_row);
        descriptors.send(&self.stream, &mut work.descriptors)?;
        let tokens = self
            .stream
            .reserve(&mut work.scratch, "sampled tokens", 4 * rows)?;
        let kernel = SampleTokens {
            all: logits.ptr_mut(),
            vocabulary: vocabulary as u32,
            samples,
            edits: edits.array,
            masks: masks.array,
            tokens: PtrMut::at(tokens),
        };
        self.launch(kernel.blocks(rows))?;

        let mut tokens = vec![0u32; items.len()];
        let bytes = bytemuck::cast_slice_mut(&mut tokens);
        self.stream.download(work.scratch.memory()?, 0, bytes)?;
        drop(work);
        tokens
            .into_iter()
            .map(|token| {
                if token == NONE {
                    return Ok(None);
                }
                within("sample", "token", token as usize, vocabulary)?;
                Ok(Some(token))
            })
            .collect()
    }
}

/// Where the edits and the masks of a call begin in their arrays.
struct First {
    edit: u32,
    mask: u32,
}

/// What the kernel reads of the items, whose edits and masks begin at `first`.
fn samples(items: &[SampleItem<'_>], mut first: First) -> Vec<Sample> {
    items
        .iter()
        .map(|item| {
            let sample = Sample {
                row: item.row as u32,
                first_edit: first.edit,
                edits: item.edits.len() as u32,
                top_k: u32::try_from(item.top_k).unwrap_or(u32::MAX),
                temperature: item.temperature,
                top_p: item.top_p,
                least_mass: sample::least_mass(item.min_p),
                uniform: item.uniform,
                mask: item.mask.map_or(NONE, |_| first.mask),
                unused: 0,
            };
            first.edit += sample.edits;
            first.mask += item.mask.map_or(0, <[u32]>::len) as u32;
            sample
        })
        .collect()
}
