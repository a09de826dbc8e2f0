//! A group of weights, and the numbers of a block's bytes.

use half::f16;

use crate::backend::GROUP;

/// 32 consecutive weights of one row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Group {
    /// What scales multiply, as the type defines it: signed where the type subtracts an offset or
    /// looks values up.
    pub codes: [i8; GROUP],
    /// Multiplies each code.
    pub scale: Scale,
    /// Added to every weight.
    pub min: Scale,
}

impl Group {
    /// Weights that are all zero.
    pub const ZERO: Self = Self {
        codes: [0; GROUP],
        scale: Scale::same(0.0, 0.0),
        min: Scale::NO_MIN,
    };

    /// A group without minima.
    pub(super) const fn scaled(codes: [i8; GROUP], scale: Scale) -> Self {
        Self {
            codes,
            scale,
            min: Scale::NO_MIN,
        }
    }

    pub(super) fn weight(&self, i: usize) -> f32 {
        f32::from(self.codes[i]) * self.scale.of(i / 16) + self.min.of(i / 16)
    }
}

/// A number for the first and one for the last 16 weights of a group, each a multiple of one unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scale {
    pub unit: f32,
    pub by: [f32; 2],
}

impl Scale {
    /// Adding it changes nothing, not even the sign of a zero.
    pub(super) const NO_MIN: Self = Self::one(-0.0);

    /// The same number for all weights.
    pub(super) const fn one(unit: f32) -> Self {
        Self::same(unit, 1.0)
    }

    /// `unit * by` for all weights.
    pub(super) const fn same(unit: f32, by: f32) -> Self {
        Self { unit, by: [by, by] }
    }

    /// For the first (0) or the last (1) 16 weights.
    pub fn of(&self, half: usize) -> f32 {
        self.unit * self.by[half]
    }
}

/// The half at byte `at`.
pub(super) fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The 16-bit word at byte `at`.
pub(super) fn word_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// The 32-bit word at byte `at`.
pub(super) fn long_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The low (even `which`) or the high nibble of a byte.
pub(super) const fn nibble(byte: u8, which: usize) -> u8 {
    if which.is_multiple_of(2) {
        byte & 15
    } else {
        byte >> 4
    }
}

/// Codes of 16 bytes: low nibbles first, then high nibbles.
pub(super) fn nibbles(bytes: &[u8]) -> [u8; GROUP] {
    std::array::from_fn(|i| nibble(bytes[i % 16], i / 16))
}
