//! The slot arena: pages in one array, with their notes and latent memories beside them.
//!
//! The array is zeroed by the operating system, so a page costs memory only once it is written.

use super::element::Element;
use super::lanes::{Shared, WIDTH};
use super::notes::Notes;
use super::page_layout::{SLOTS, page_len};
use super::page_writer::{PageWriter, Writer};
use crate::backend::{HeadPages, KvType, PageId, PageShape};
use crate::error::{Error, Result};
use crate::latent::{HostLatent, Latents};

/// Zeroed memory whose first element lies on a cache line.
pub(crate) struct Arena<T> {
    values: Vec<T>,
    first: usize,
}

impl<T: Element> Arena<T> {
    fn zeroed(len: usize) -> Result<Self> {
        let spare = 64 / size_of::<T>();
        let too_large = || Error::OutOfMemory {
            what: "pages",
            bytes: len.saturating_mul(size_of::<T>()),
        };
        let total = len.checked_add(spare).ok_or_else(too_large)?;
        let layout = std::alloc::Layout::array::<T>(total).map_err(|_| too_large())?;
        // SAFETY: the layout is not empty, `spare` elements at least.
        let start = unsafe { std::alloc::alloc_zeroed(layout) }.cast::<T>();
        if start.is_null() {
            return Err(too_large());
        }
        // SAFETY: allocated by the global allocator with the layout of `total` elements, and
        // all-zero bits are a valid value of every element type.
        let values = unsafe { Vec::from_raw_parts(start, total, total) };
        let first = values.as_ptr().align_offset(64);
        Ok(Self {
            values,
            first: if first < spare { first } else { 0 },
        })
    }

    /// The elements of a page.
    pub(crate) fn page(&self, page: PageId, dim: usize) -> &[T] {
        let len = page_len::<T>(dim);
        &self.values[self.first..][page.0 as usize * len..][..len]
    }

    /// First element of the first page.
    pub(crate) fn start(&self) -> *const T {
        self.values[self.first..].as_ptr()
    }

    fn shared(&mut self) -> Shared<'_, T> {
        Shared::new(&mut self.values[self.first..])
    }
}

/// Pages of any element type.
pub(crate) enum PageData {
    Q8(Arena<i8>),
    F16(Arena<u16>),
    F32(Arena<f32>),
}

/// The arena of the CPU backend.
pub struct CpuPages {
    shape: PageShape,
    count: usize,
    data: PageData,
    notes: Notes,
    latents: Latents<HostLatent>,
}

/// Evaluates an expression for the arena's element type.
macro_rules! with_arena {
    ($data:expr, $arena:ident => $body:expr) => {
        match $data {
            $crate::cpu::pages::PageData::Q8($arena) => $body,
            $crate::cpu::pages::PageData::F16($arena) => $body,
            $crate::cpu::pages::PageData::F32($arena) => $body,
        }
    };
}
pub(crate) use with_arena;

impl CpuPages {
    /// A zeroed arena of `count` pages; `D` is a multiple of 8.
    pub(crate) fn alloc(shape: PageShape, count: usize) -> Result<Self> {
        let op = "alloc_pages";
        if shape.head_dim == 0 || !shape.head_dim.is_multiple_of(WIDTH) {
            return Err(Error::Multiple {
                op,
                what: "head_dim",
                got: shape.head_dim,
                multiple: WIDTH,
            });
        }
        let too_large = Error::OutOfMemory {
            what: "pages",
            bytes: usize::MAX,
        };
        let page = shape
            .head_dim
            .checked_mul(4 * SLOTS)
            .map(|_| shape.bytes() / shape.dtype.bytes());
        let Some(len) = page.and_then(|page| page.checked_mul(count)) else {
            return Err(too_large);
        };
        let data = match shape.dtype {
            KvType::Q8 => PageData::Q8(Arena::zeroed(len)?),
            KvType::F16 => PageData::F16(Arena::zeroed(len)?),
            KvType::F32 => PageData::F32(Arena::zeroed(len)?),
        };
        Ok(Self {
            shape,
            count,
            data,
            notes: Notes::zeroed(count),
            latents: Latents::default(),
        })
    }

    /// Geometry.
    pub(crate) fn shape(&self) -> PageShape {
        self.shape
    }

    /// `D`.
    pub(crate) fn head_dim(&self) -> usize {
        self.shape.head_dim
    }

    /// The arena.
    pub(crate) fn data(&self) -> &PageData {
        &self.data
    }

    /// Notes beside the pages.
    pub(crate) fn notes(&self) -> &Notes {
        &self.notes
    }

    /// The same, to be changed.
    pub(crate) fn notes_mut(&mut self) -> &mut Notes {
        &mut self.notes
    }

    /// Latent memories beside the pages.
    pub(crate) fn latents(&self) -> &Latents<HostLatent> {
        &self.latents
    }

    /// The same, to be changed.
    pub(crate) fn latents_mut(&mut self) -> &mut Latents<HostLatent> {
        &mut self.latents
    }

    /// Checks that the page table of `head` covers `len` slots with pages of this arena.
    pub(crate) fn check(&self, op: &'static str, head: &HeadPages<'_>, len: usize) -> Result<()> {
        let want = len.div_ceil(SLOTS);
        if head.pages.len() < want {
            return Err(Error::Shape {
                op,
                what: "page table",
                got: head.pages.len(),
                want,
            });
        }
        match head.pages[..want]
            .iter()
            .find(|page| page.0 as usize >= self.count)
        {
            Some(page) => Err(Error::Index {
                op,
                what: "page",
                index: page.0 as usize,
                len: self.count,
            }),
            None => Ok(()),
        }
    }

    /// The arena for writing, as one writer per element type.
    pub(crate) fn writer(&mut self) -> PageWriter<'_> {
        let dim = self.shape.head_dim;
        match &mut self.data {
            PageData::Q8(arena) => PageWriter::Q8(Writer {
                arena: arena.shared(),
                dim,
            }),
            PageData::F16(arena) => PageWriter::F16(Writer {
                arena: arena.shared(),
                dim,
            }),
            PageData::F32(arena) => PageWriter::F32(Writer {
                arena: arena.shared(),
                dim,
            }),
        }
    }
}
