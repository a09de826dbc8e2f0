//! Writes to slots, wherever their pages lie in the arena.

use super::element::{Element, scale};
use super::exp::sin_cos;
use super::lanes::{Lanes, Shared, WIDTH};
use super::page_layout::{SLOTS, key_offset, page_len, read_slot, scale_offset, value_offset};
use crate::backend::PageId;

/// [`Writer`] of any element type.
pub(crate) enum PageWriter<'a> {
    Q8(Writer<'a, i8>),
    F16(Writer<'a, u16>),
    F32(Writer<'a, f32>),
}

/// Evaluates an expression for the writer's element type.
macro_rules! with_writer {
    ($writer:expr, $name:ident => $body:expr) => {
        match $writer {
            $crate::cpu::page_writer::PageWriter::Q8($name) => $body,
            $crate::cpu::page_writer::PageWriter::F16($name) => $body,
            $crate::cpu::page_writer::PageWriter::F32($name) => $body,
        }
    };
}
pub(crate) use with_writer;

/// Where the scales of a slot lie, in halves.
struct Scales {
    key: *mut u16,
    value: *mut u16,
}

/// Scattered writes to the pages of heads. All methods are unsafe in the same way: page tables were
/// checked with `CpuPages::check` for the slots used, and no other thread touches the pages
/// meanwhile.
pub(crate) struct Writer<'a, T> {
    /// All pages.
    pub(crate) arena: Shared<'a, T>,
    /// `D`.
    pub(crate) dim: usize,
}

impl<'a, T: Element> Writer<'a, T> {
    /// All elements of page `page`.
    ///
    /// # Safety
    /// See [`Writer`].
    pub(crate) unsafe fn page(&self, page: usize) -> &'a mut [T] {
        let len = page_len::<T>(self.dim);
        // SAFETY: no other thread touches the page, by the contract of the type.
        unsafe { self.arena.part(page * len, len) }
    }

    unsafe fn key(&self, pages: &[PageId], slot: usize) -> *mut T {
        // SAFETY: the page exists by the contract of the type.
        unsafe {
            self.arena
                .start()
                .add(key_offset::<T>(self.dim, pages, slot))
        }
    }

    unsafe fn value(&self, pages: &[PageId], slot: usize) -> *mut T {
        // SAFETY: the page exists by the contract of the type.
        unsafe {
            self.arena
                .start()
                .add(value_offset::<T>(self.dim, pages, slot))
        }
    }

    /// The scales of key and value; only scaled elements have them.
    unsafe fn scales(&self, pages: &[PageId], slot: usize) -> Scales {
        // SAFETY: the page exists by the contract of the type, and of scaled elements it ends with
        // two halves a slot.
        unsafe {
            let key = self
                .arena
                .start()
                .add(scale_offset::<T>(self.dim, pages, slot))
                .cast::<u16>();
            Scales {
                key,
                value: key.add(SLOTS),
            }
        }
    }

    /// Writes one slot from f32, `D` values each.
    ///
    /// # Safety
    /// See [`Writer`].
    #[inline(always)]
    pub(crate) unsafe fn write<L: Lanes>(
        &self,
        pages: &[PageId],
        slot: usize,
        key: &[f32],
        value: &[f32],
    ) {
        assert!(value.len() == self.dim, "a slot holds D values");
        let scale = if T::SCALED {
            scale::<L>(value)
        } else {
            half::f16::ONE
        };
        // SAFETY: the slot's page exists and is ours; `D` is a multiple of eight, so all vectors
        // lie inside.
        unsafe {
            if T::SCALED {
                *self.scales(pages, slot).value = scale.to_bits();
            }
            let values = self.value(pages, slot);
            for d in (0..self.dim).step_by(WIDTH) {
                T::store(
                    L::load(value.as_ptr().add(d)),
                    scale.to_f32(),
                    values.add(d),
                );
            }
            self.write_key::<L>(pages, slot, key);
        }
    }

    /// Writes the key of one slot from f32, `D` values.
    ///
    /// # Safety
    /// See [`Writer`].
    #[inline(always)]
    unsafe fn write_key<L: Lanes>(&self, pages: &[PageId], slot: usize, key: &[f32]) {
        assert!(key.len() == self.dim, "a slot holds a key of D elements");
        let scale = if T::SCALED {
            scale::<L>(key)
        } else {
            half::f16::ONE
        };
        // SAFETY: as in `write`.
        unsafe {
            if T::SCALED {
                *self.scales(pages, slot).key = scale.to_bits();
            }
            let keys = self.key(pages, slot);
            for d in (0..self.dim).step_by(WIDTH) {
                let mut lanes = [T::default(); WIDTH];
                T::store(
                    L::load(key.as_ptr().add(d)),
                    scale.to_f32(),
                    lanes.as_mut_ptr(),
                );
                for (i, &x) in lanes.iter().enumerate() {
                    *keys.add((d + i) * SLOTS) = x;
                }
            }
        }
    }

    /// Moves slots `keep` to the front. In place is safe in ascending order: kept slot `i` comes
    /// from `keep[i] >= i`.
    ///
    /// # Safety
    /// See [`Writer`].
    pub(crate) unsafe fn compact(&self, pages: &[PageId], keep: &[u32]) {
        let still = keep
            .iter()
            .enumerate()
            .take_while(|&(i, &slot)| i == slot as usize)
            .count();
        let mut first = still;
        while first < keep.len() {
            let end = keep.len().min((first / SLOTS + 1) * SLOTS);
            let moved = &keep[first..end];
            // SAFETY: by the contract of the type; source and destination of a value row may be the
            // same row.
            unsafe {
                let to = self.key(pages, first);
                let mut from = [to.cast_const(); SLOTS];
                for (from, &slot) in from.iter_mut().zip(moved) {
                    *from = self.key(pages, slot as usize);
                }
                for d in 0..self.dim {
                    for (i, from) in from[..moved.len()].iter().enumerate() {
                        *to.add(d * SLOTS + i) = *from.add(d * SLOTS);
                    }
                }
                for (i, &slot) in moved.iter().enumerate() {
                    self.value(pages, slot as usize)
                        .copy_to(self.value(pages, first + i), self.dim);
                    if T::SCALED {
                        let (from, to) = (
                            self.scales(pages, slot as usize),
                            self.scales(pages, first + i),
                        );
                        *to.key = *from.key;
                        *to.value = *from.value;
                    }
                }
            }
            first = end;
        }
    }

    /// Rotates the keys of slots `0 .. delta.len()`, slot by slot: a scale is known only when all
    /// of a key is.
    #[inline(always)]
    unsafe fn rotate_scaled<L: Lanes>(&self, pages: &[PageId], delta: &[f32], inv_freq: &[f32]) {
        let half = self.dim / 2;
        let (mut key, mut value) = (vec![0.0; self.dim], vec![0.0; self.dim]);
        for (slot, &tokens) in delta
            .iter()
            .enumerate()
            .filter(|(_, tokens)| **tokens != 0.0)
        {
            // SAFETY: by the contract of the type.
            unsafe {
                read_slot::<T, L>(
                    self.arena.start(),
                    self.dim,
                    pages,
                    slot,
                    &mut key,
                    &mut value,
                )
            };
            for (i, &frequency) in inv_freq[..half].iter().enumerate() {
                let (sin, cos) = sin_cos(f64::from(tokens) * f64::from(frequency));
                let (x, y) = (key[i], key[i + half]);
                (key[i], key[i + half]) = (x * cos - y * sin, y * cos + x * sin);
            }
            // SAFETY: by the contract of the type.
            unsafe { self.write_key::<L>(pages, slot, &key) };
        }
    }

    /// Rotates the keys of slots `0 .. delta.len()`.
    ///
    /// # Safety
    /// See [`Writer`].
    #[inline(always)]
    pub(crate) unsafe fn rotate<L: Lanes>(
        &self,
        pages: &[PageId],
        delta: &[f32],
        inv_freq: &[f32],
    ) {
        let half = self.dim / 2;
        if T::SCALED {
            // SAFETY: by the contract of the type.
            return unsafe { self.rotate_scaled::<L>(pages, delta, inv_freq) };
        }
        for (page, delta) in delta.chunks(SLOTS).enumerate() {
            if delta.iter().all(|&tokens| tokens == 0.0) {
                continue;
            }
            // Lanes without an entry turn by nothing, which leaves their bits.
            let mut tokens = [0.0; SLOTS];
            tokens[..delta.len()].copy_from_slice(delta);
            for (i, &frequency) in inv_freq[..half].iter().enumerate() {
                let (mut sin, mut cos) = ([0.0f32; SLOTS], [0.0f32; SLOTS]);
                for lane in 0..SLOTS {
                    (sin[lane], cos[lane]) =
                        sin_cos(f64::from(tokens[lane]) * f64::from(frequency));
                }
                // SAFETY: by the contract of the type; both rows of 32 lie in the page's keys.
                unsafe {
                    let low = self.key(pages, page * SLOTS).add(i * SLOTS);
                    let high = low.add(half * SLOTS);
                    for lane in (0..SLOTS).step_by(WIDTH) {
                        let (s, c) = (
                            L::load(sin.as_ptr().add(lane)),
                            L::load(cos.as_ptr().add(lane)),
                        );
                        let (x, y) = (T::load::<L>(low.add(lane)), T::load::<L>(high.add(lane)));
                        T::store(x.mul(c).sub(y.mul(s)), 1.0, low.add(lane));
                        T::store(y.mul(c).add(x.mul(s)), 1.0, high.add(lane));
                    }
                }
            }
        }
    }
}
