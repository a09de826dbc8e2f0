//! IQ types with blocks of 256 weights. A group `j` is one of eight; its weights come from a grid
//! in eights or fours, or one by one from a table.

use super::blocks_of_32::IQ4_VALUES;
use super::grids::{IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS};
use super::group::{Group, Scale, half_at, long_at, nibble, nibbles, word_at};
use crate::backend::GROUP;

/// Magnitudes of the digits of IQ2 grids.
const TWO_BITS: [i8; 4] = [8, 25, 43, 0];
/// Magnitudes of the digits of the IQ3_XXS grid.
const THREE_BITS_XXS: [i8; 8] = [4, 12, 20, 28, 36, 44, 52, 62];
/// Magnitudes of the digits of the IQ3_S grid.
const THREE_BITS_S: [i8; 8] = [1, 3, 5, 7, 9, 11, 13, 15];

/// Eight signs of seven bits: the last one makes the number of minus signs even.
const fn signs(seven: u32) -> u8 {
    let seven = seven as u8 & 127;
    seven | ((seven.count_ones() & 1) as u8) << 7
}

/// A magnitude with the sign that bit `i` says.
const fn signed(magnitude: i8, signs: u8, i: usize) -> i8 {
    if signs >> i & 1 == 1 {
        -magnitude
    } else {
        magnitude
    }
}

/// Four eights of an IQ2 type: entries of its grid, and their signs.
fn eights(entries: [u16; 4], signs: [u8; 4]) -> [i8; GROUP] {
    std::array::from_fn(|i| {
        let digit = entries[i / 8] >> (2 * (i % 8)) & 3;
        signed(TWO_BITS[usize::from(digit)], signs[i / 8], i % 8)
    })
}

/// Eight fours of an IQ3 type: entries of its grid, signs of two each, magnitudes of digits.
fn fours(entries: [u16; 8], signs: [u8; 4], magnitudes: &[i8; 8]) -> [i8; GROUP] {
    std::array::from_fn(|i| {
        let digit = entries[i / 4] >> (4 * (i % 4)) & 7;
        signed(magnitudes[usize::from(digit)], signs[i / 8], i % 8)
    })
}

/// `d (1/2 + bits) / 4`, of each half of a group, as IQ2 types have it.
fn quarter(d: f32, bits: [u8; 2]) -> Scale {
    Scale {
        unit: d,
        by: bits.map(|bits| (0.5 + f32::from(bits)) * 0.25),
    }
}

/// f16 d; for each group four indices of a byte, and a word of four times seven signs and four
/// bits of scale.
pub(super) fn iq2_xxs(block: &[u8], j: usize) -> Group {
    let (indices, word) = (&block[2 + 8 * j..][..4], long_at(block, 6 + 8 * j));
    let codes = eights(
        std::array::from_fn(|l| IQ2_XXS[usize::from(indices[l])]),
        std::array::from_fn(|l| signs(word >> (7 * l))),
    );
    Group::scaled(codes, quarter(half_at(block, 0), [(word >> 28) as u8; 2]))
}

/// f16 d; 32 words of nine bits of index and seven signs; 8 bytes of two scales.
pub(super) fn iq2_xs(block: &[u8], j: usize) -> Group {
    let words: [u16; 4] = std::array::from_fn(|l| word_at(block, 2 + 8 * j + 2 * l));
    let codes = eights(
        words.map(|word| IQ2_XS[usize::from(word & 511)]),
        words.map(|word| signs(u32::from(word >> 9))),
    );
    let scales = block[66 + j];
    Group::scaled(
        codes,
        quarter(half_at(block, 0), [scales & 15, scales >> 4]),
    )
}

/// f16 d; 32 bytes of low bits of indices; 32 bytes of signs; 8 bytes of high bits; 8 bytes of two
/// scales.
pub(super) fn iq2_s(block: &[u8], j: usize) -> Group {
    let (low, signs, high) = (
        &block[2 + 4 * j..][..4],
        &block[34 + 4 * j..][..4],
        block[66 + j],
    );
    let index = |l: usize| usize::from(low[l]) | usize::from(high >> (2 * l) & 3) << 8;
    let codes = eights(
        std::array::from_fn(|l| IQ2_S[index(l)]),
        std::array::from_fn(|l| signs[l]),
    );
    let scales = block[74 + j];
    Group::scaled(
        codes,
        quarter(half_at(block, 0), [scales & 15, scales >> 4]),
    )
}

/// f16 d; 64 bytes of indices; for each group a word of four times seven signs and four bits of
/// scale.
pub(super) fn iq3_xxs(block: &[u8], j: usize) -> Group {
    let (indices, word) = (&block[2 + 8 * j..][..8], long_at(block, 66 + 4 * j));
    let codes = fours(
        std::array::from_fn(|l| IQ3_XXS[usize::from(indices[l])]),
        std::array::from_fn(|l| signs(word >> (7 * l))),
        &THREE_BITS_XXS,
    );
    let scale = (0.5 + (word >> 28) as f32) * 0.5;
    Group::scaled(codes, Scale::same(half_at(block, 0), scale))
}

/// f16 d; 64 bytes of low bits of indices; 8 bytes of high bits; 32 bytes of signs; 4 bytes of two
/// scales.
pub(super) fn iq3_s(block: &[u8], j: usize) -> Group {
    let (low, high, signs) = (
        &block[2 + 8 * j..][..8],
        block[66 + j],
        &block[74 + 4 * j..][..4],
    );
    let index = |l: usize| usize::from(low[l]) | usize::from(high >> l & 1) << 8;
    let codes = fours(
        std::array::from_fn(|l| IQ3_S[index(l)]),
        std::array::from_fn(|l| signs[l]),
        &THREE_BITS_S,
    );
    let scale = 1.0 + 2.0 * f32::from(nibble(block[106 + j / 2], j));
    Group::scaled(codes, Scale::same(half_at(block, 0), scale))
}

/// Four eights of an IQ1 type, in eighths: entries of its grid, and whether each is moved down.
fn shifted(entries: [u16; 4], down: [bool; 4]) -> [i8; GROUP] {
    std::array::from_fn(|i| {
        let digit = (entries[i / 8] >> (2 * (i % 8)) & 3) as i8 - 1;
        8 * digit + if down[i / 8] { -1 } else { 1 }
    })
}

/// The factor of codes in eighths that three bits say.
fn eighths(bits: u16) -> f32 {
    f32::from(2 * (bits & 7) + 1) / 8.0
}

/// f16 d; 32 bytes of low bits of indices; for each group a word of four times three high bits,
/// three bits of scale and the shift.
pub(super) fn iq1_s(block: &[u8], j: usize) -> Group {
    let (low, word) = (&block[2 + 4 * j..][..4], word_at(block, 34 + 2 * j));
    let index = |l: usize| usize::from(low[l]) | usize::from(word >> (3 * l) & 7) << 8;
    let codes = shifted(
        std::array::from_fn(|l| IQ1_S[index(l)]),
        [word & 0x8000 != 0; 4],
    );
    Group::scaled(codes, Scale::same(half_at(block, 0), eighths(word >> 12)))
}

/// 32 bytes of low bits of indices; 16 bytes of two nibbles, each three high bits and the shift;
/// four words, each four scales of three bits and, on top, four bits of d.
pub(super) fn iq1_m(block: &[u8], j: usize) -> Group {
    let (low, high) = (&block[4 * j..][..4], &block[32 + 2 * j..][..2]);
    let words: [u16; 4] = std::array::from_fn(|k| word_at(block, 48 + 2 * k));
    let d = (0..4).fold(0, |d, k| d | words[k] >> 12 << (4 * k));
    let nibble = |l: usize| nibble(high[l / 2], l);
    let index = |l: usize| usize::from(low[l]) | usize::from(nibble(l) & 7) << 8;
    let codes = shifted(
        std::array::from_fn(|l| IQ1_S[index(l)]),
        std::array::from_fn(|l| nibble(l) & 8 != 0),
    );
    let scale = |index: usize| eighths(words[index / 4] >> (3 * (index % 4)));
    let scale = Scale {
        unit: half::f16::from_bits(d).to_f32(),
        by: [scale(2 * j), scale(2 * j + 1)],
    };
    Group::scaled(codes, scale)
}

/// f16 d; a word of high bits and 4 bytes of low bits of scales; for each group 16 bytes of
/// nibbles.
pub(super) fn iq4_xs(block: &[u8], j: usize) -> Group {
    let high = (word_at(block, 2) >> (2 * j) & 3) as u8;
    let scale = (nibble(block[4 + j / 2], j) | high << 4) as i8 - 32;
    let codes = nibbles(&block[8 + 16 * j..]).map(|code| IQ4_VALUES[usize::from(code)]);
    Group::scaled(codes, Scale::same(half_at(block, 0), f32::from(scale)))
}
