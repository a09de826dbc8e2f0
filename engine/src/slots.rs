//! Slots of one KV head: what the cache, the policy and its hook know of them.

use palimpsest_kernels::{HeadPages, PageList};

/// Slots of one KV head of one layer, in position order.
#[derive(Debug, Clone, Default)]
pub struct HeadSlots {
    /// Page table.
    pub pages: PageList,
    /// Absolute position of every slot, strictly increasing.
    pub positions: Vec<u32>,
    /// Rotary position of every slot; empty while it equals the absolute one.
    pub rotary: Vec<u32>,
    /// What the policy's hook stored with every slot, as many values each as the policy needs.
    pub terms: Vec<f32>,
    /// Numbers that go on from step to step, one per slot: what each query head gave, for policies
    /// that observe attention; a single line of them for policies whose hook keeps them; else
    /// none.
    pub mass: Vec<Vec<f32>>,
    /// Sums that the policy's hook keeps over all tokens so far. They belong to no slot, so
    /// eviction leaves them as they are.
    pub sums: Vec<f64>,
}

impl HeadSlots {
    /// Number of slots.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether there is no slot.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// The slots as kernels see them, the first `len` only.
    pub fn view(&self, len: usize) -> HeadPages<'_> {
        self.pages.view(len)
    }

    /// Keeps the slots listed in `keep` (strictly increasing), of which each has `terms` values.
    /// Pages are not moved here.
    pub(crate) fn retain(&mut self, keep: &[u32], terms: usize) {
        fn gather<T: Copy>(values: &mut Vec<T>, keep: &[u32], width: usize) {
            if values.is_empty() || width == 0 {
                return;
            }
            for (to, &from) in keep.iter().enumerate() {
                let from = from as usize * width;
                values.copy_within(from..from + width, to * width);
            }
            values.truncate(keep.len() * width);
        }
        gather(&mut self.positions, keep, 1);
        gather(&mut self.rotary, keep, 1);
        gather(&mut self.terms, keep, terms);
        self.mass.iter_mut().for_each(|mass| gather(mass, keep, 1));
    }
}
