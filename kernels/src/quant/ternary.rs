//! Ternary types: blocks of 256 weights -1, 0, 1 times one scale. A group `j` is one of eight.

use super::group::{Group, Scale, half_at};
use crate::backend::GROUP;

/// 48 bytes of five digits to base three, 4 bytes of four, f16 d. A byte is a fraction: its digit
/// `n` is the integer part of three times what `3^n` leaves of it.
pub(super) fn tq1_0(block: &[u8], j: usize) -> Group {
    let digit = |byte: u8, n: usize| {
        let rest = byte.wrapping_mul([1, 3, 9, 27, 81][n]);
        ((u16::from(rest) * 3) >> 8) as i8 - 1
    };
    // The first 32 bytes hold weight `i + 32 n`, the next 16 weight `160 + i + 16 n`, the last four
    // weight `240 + i + 4 n` in byte `i`.
    let code = |index: usize| match index {
        0..160 => digit(block[index % 32], index / 32),
        160..240 => digit(block[32 + index % 16], (index - 160) / 16),
        _ => digit(block[48 + index % 4], (index - 240) / 4),
    };
    let codes = std::array::from_fn(|i| code(GROUP * j + i));
    Group::scaled(codes, Scale::one(half_at(block, 52)))
}

/// 64 bytes of codes as in Q2_K, less one; f16 d. Files hold no code 3, which would stand for 2.
pub(super) fn tq2_0(block: &[u8], j: usize) -> Group {
    let bytes = &block[j / 4 * 32..][..32];
    let codes = std::array::from_fn(|i| (bytes[i] >> (2 * (j % 4)) & 3) as i8 - 1);
    Group::scaled(codes, Scale::one(half_at(block, 64)))
}
