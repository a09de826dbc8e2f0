//! Cells times rounded activations: exact integers of each group, then one or two fused additions.
//!
//! A dot product of u8 x i8 adds two products in 16 bits, so codes of so many bits allow so many of
//! them to be added up there. What is subtracted from unsigned codes is subtracted from the sums.

use super::super::super::cell::{
    Cell, HalfScales, I8, LookUp, Quads, S5, Scales, Table, U2, U3, U4, U5, U6, Values,
};
use super::super::super::simd::Simd;
use super::super::tile::Tile;

/// A cell that multiplies rounded activations.
pub(crate) trait IntCell: Cell {
    /// Adds the products of one group to the accumulators of 8 rows for each of `T` token rows.
    fn accumulate<S: Simd, const T: usize>(&self, s: S, x: &Tile<T>, acc: &mut [S::F; T]);
}

/// Adds `dot * scale`, of token row `t`.
#[inline(always)]
fn add_scaled<S: Simd, const T: usize>(
    s: S,
    x: &Tile<T>,
    t: usize,
    dot: S::I,
    scale: S::F,
    acc: &mut [S::F; T],
) {
    acc[t] = s.fma(s.to_f32(dot), s.mul(scale, s.splat(x.scale[t])), acc[t]);
}

/// Sums of all quads, in 16 bits, less 16 times the activations: of codes below 32.
struct Centred<'a, S: Simd, const T: usize> {
    x: &'a Tile<T>,
    dots: [S::I; T],
}

impl<'a, S: Simd, const T: usize> Centred<'a, S, T> {
    #[inline(always)]
    fn new(s: S, x: &'a Tile<T>) -> Self {
        Self {
            x,
            dots: std::array::from_fn(|t| s.splat_i32(x.centre[t])),
        }
    }

    /// The dot product of `code - 16`.
    #[inline(always)]
    fn dot(&self, s: S, t: usize) -> S::I {
        s.dot_i16(self.dots[t], s.splat_i16(1))
    }
}

impl<S: Simd, const T: usize> Quads<S> for Centred<'_, S, T> {
    #[inline(always)]
    fn take(&mut self, s: S, quad: usize, codes: S::I) {
        for (t, dot) in self.dots.iter_mut().enumerate() {
            let x = s.splat_bytes(&self.x.quads[quad][t]);
            *dot = s.add_i16(*dot, s.dot_u8_i8(codes, x));
        }
    }
}

/// Sums of the first and of the last four quads, in 16 bits: of codes below 32, since 4 * 2 * 31 *
/// 127 = 31496 fits.
struct Halves<'a, S: Simd, const T: usize> {
    x: &'a Tile<T>,
    dots: [[S::I; T]; 2],
}

impl<'a, S: Simd, const T: usize> Halves<'a, S, T> {
    #[inline(always)]
    fn new(s: S, x: &'a Tile<T>) -> Self {
        Self {
            x,
            dots: [[s.splat_i32(0); T]; 2],
        }
    }
}

impl<S: Simd, const T: usize> Quads<S> for Halves<'_, S, T> {
    #[inline(always)]
    fn take(&mut self, s: S, quad: usize, codes: S::I) {
        for (t, dot) in self.dots[quad / 4].iter_mut().enumerate() {
            let x = s.splat_bytes(&self.x.quads[quad][t]);
            *dot = s.add_i16(*dot, s.dot_u8_i8(codes, x));
        }
    }
}

/// Picks the sum of a half's activations out of [`Tile::sums`], `by` times.
#[inline(always)]
fn sum_of_half<S: Simd, const T: usize>(s: S, x: &Tile<T>, t: usize, half: usize, by: i32) -> S::I {
    let by = if half == 0 { by } else { by << 16 };
    s.dot_i16(s.splat_i32(x.sums[t]), s.splat_i32(by))
}

impl<W: Scales> IntCell for U4<W> {
    #[inline(always)]
    fn accumulate<S: Simd, const T: usize>(&self, s: S, x: &Tile<T>, acc: &mut [S::F; T]) {
        let mask = s.splat_bytes(&[15; 4]);
        let mut dots = [s.splat_i32(0); T];
        for i in 0..4 {
            let codes = s.load_i(&self.codes[i]);
            let (low, high) = (s.and(codes, mask), s.and(s.shr::<4>(codes), mask));
            // 8 sums of 2 products: 8 * 2 * 15 * 127 = 30480 fits i16.
            for (t, dot) in dots.iter_mut().enumerate() {
                *dot = s.add_i16(*dot, s.dot_u8_i8(low, s.splat_bytes(&x.quads[2 * i][t])));
                *dot = s.add_i16(
                    *dot,
                    s.dot_u8_i8(high, s.splat_bytes(&x.quads[2 * i + 1][t])),
                );
            }
        }
        let (scale, min) = (self.scale.load(s), self.min.load(s));
        for t in 0..T {
            add_scaled(s, x, t, s.dot_i16(dots[t], s.splat_i16(1)), scale, acc);
            acc[t] = s.fma(min, s.splat(x.sum[t]), acc[t]);
        }
    }
}

impl IntCell for S5 {
    #[inline(always)]
    fn accumulate<S: Simd, const T: usize>(&self, s: S, x: &Tile<T>, acc: &mut [S::F; T]) {
        let mut sums = Centred::new(s, x);
        self.codes.quads(s, &mut sums);
        let scale = Scales::load(&self.scale, s);
        for t in 0..T {
            add_scaled(s, x, t, sums.dot(s, t), scale, acc);
        }
    }
}

/// `(code - 16) * scale + (min + 16 scale)`: the second sum is rounded once more than elsewhere.
impl<W: Scales> IntCell for U5<W> {
    #[inline(always)]
    fn accumulate<S: Simd, const T: usize>(&self, s: S, x: &Tile<T>, acc: &mut [S::F; T]) {
        let mut sums = Centred::new(s, x);
        self.codes.quads(s, &mut sums);
        let scale = self.scale.load(s);
        let middle = s.fma(scale, s.splat(16.0), self.min.load(s));
        for t in 0..T {
            add_scaled(s, x, t, sums.dot(s, t), scale, acc);
            acc[t] = s.fma(middle, s.splat(x.sum[t]), acc[t]);
        }
    }
}

/// Scales and minima are integers, so both sums over halves are exact.
impl IntCell for U2 {
    #[inline(always)]
    fn accumulate<S: Simd, const T: usize>(&self, s: S, x: &Tile<T>, acc: &mut [S::F; T]) {
        let mut sums = Halves::new(s, x);
        self.quads(s, &mut sums);
        let (scales, minima) = (self.scales(s), self.minima(s).0);
        let [low, high] = [0, 1].map(|half| scales.both(s, half));
        let [unit, min_unit] = [&self.unit, &self.min_unit].map(|unit| Scales::load(unit, s));
        for t in 0..T {
            let [first, last] = [sums.dots[0][t], sums.dots[1][t]];
            let dot = s.add_i32(s.dot_i16(first, low), s.dot_i16(last, high));
            add_scaled(s, x, t, dot, unit, acc);
            let least = s.dot_i16(s.splat_i32(x.sums[t]), minima);
            add_scaled(s, x, t, least, min_unit, acc);
        }
    }
}

/// Scales are integers, so the sum over halves is exact.
impl IntCell for U3 {
    #[inline(always)]
    fn accumulate<S: Simd, const T: usize>(&self, s: S, x: &Tile<T>, acc: &mut [S::F; T]) {
        let mut sums = Halves::new(s, x);
        self.quads(s, &mut sums);
        let scales = self.scales(s);
        let [low, high] = [0, 1].map(|half| scales.both(s, half));
        let unit = Scales::load(&self.unit, s);
        for t in 0..T {
            let [first, last] = [sums.dots[0][t], sums.dots[1][t]];
            let dot = s.add_i32(s.dot_i16(first, low), s.dot_i16(last, high));
            let offset = s.shl::<2>(s.dot_i16(s.splat_i32(x.sums[t]), scales.0));
            add_scaled(s, x, t, s.sub_i32(dot, offset), unit, acc);
        }
    }
}

/// Sums of codes of a byte, nibble by nibble: a u8 x i8 product of full bytes would not fit i16.
/// Of all quads, or, where `IN_HALVES`, of the first and the last four.
struct Nibbles<'a, S: Simd, const T: usize, const IN_HALVES: bool> {
    x: &'a Tile<T>,
    lows: [[S::I; T]; 2],
    highs: [[S::I; T]; 2],
}

impl<'a, S: Simd, const T: usize, const IN_HALVES: bool> Nibbles<'a, S, T, IN_HALVES> {
    #[inline(always)]
    fn new(s: S, x: &'a Tile<T>) -> Self {
        let zero = [[s.splat_i32(0); T]; 2];
        Self {
            x,
            lows: zero,
            highs: zero,
        }
    }

    /// Adds two nibbles' products. 8 sums of 2 products: 8 * 2 * 15 * 127 = 30480 fits i16.
    #[inline(always)]
    fn add(&mut self, s: S, quad: usize, low: S::I, high: S::I) {
        let half = if IN_HALVES { quad / 4 } else { 0 };
        let (lows, highs) = (&mut self.lows[half], &mut self.highs[half]);
        for t in 0..T {
            let x = s.splat_bytes(&self.x.quads[quad][t]);
            lows[t] = s.add_i16(lows[t], s.dot_u8_i8(low, x));
            highs[t] = s.add_i16(highs[t], s.dot_u8_i8(high, x));
        }
    }

    /// The dot product of `code - 128`, of all quads or of a half of them.
    #[inline(always)]
    fn dot(&self, s: S, t: usize, half: usize) -> S::I {
        let dot = s.add_i32(
            s.dot_i16(self.lows[half][t], s.splat_i16(1)),
            s.dot_i16(self.highs[half][t], s.splat_i16(16)),
        );
        let offset = if IN_HALVES {
            sum_of_half(s, self.x, t, half, 128)
        } else {
            s.dot_i16(s.splat_i32(self.x.sums[t]), s.splat_i16(128))
        };
        s.sub_i32(dot, offset)
    }
}

impl<S: Simd, const T: usize, const IN_HALVES: bool> Quads<S> for Nibbles<'_, S, T, IN_HALVES> {
    #[inline(always)]
    fn take(&mut self, s: S, quad: usize, codes: S::I) {
        let mask = s.splat_bytes(&[15; 4]);
        self.add(s, quad, s.and(codes, mask), s.and(s.shr::<4>(codes), mask));
    }
}

/// [`Nibbles`] of what codes of four bits stand for.
struct LookUpNibbles<'a, S: Simd, const T: usize, const IN_HALVES: bool> {
    low: S::I,
    high: S::I,
    sums: Nibbles<'a, S, T, IN_HALVES>,
}

impl<'a, S: Simd, const T: usize, const IN_HALVES: bool> LookUpNibbles<'a, S, T, IN_HALVES> {
    #[inline(always)]
    fn new(s: S, values: &[u8; 16], x: &'a Tile<T>) -> Self {
        let (values, mask) = (s.splat_table(values), s.splat_bytes(&[15; 4]));
        Self {
            low: s.and(values, mask),
            high: s.and(s.shr::<4>(values), mask),
            sums: Nibbles::new(s, x),
        }
    }
}

impl<S: Simd, const T: usize, const IN_HALVES: bool> Quads<S>
    for LookUpNibbles<'_, S, T, IN_HALVES>
{
    #[inline(always)]
    fn take(&mut self, s: S, quad: usize, codes: S::I) {
        let [low, high] = [self.low, self.high].map(|table| s.look_up(table, codes));
        self.sums.add(s, quad, low, high);
    }
}

impl<W: HalfScales, V: Values> Table<W, V> {
    /// Values from -16 to 15: one dot product each.
    #[inline(always)]
    fn narrow<S: Simd, const T: usize>(&self, s: S, x: &Tile<T>, acc: &mut [S::F; T]) {
        let values = s.splat_table(&V::UNSIGNED);
        if W::IS_PAIR {
            let to = Halves::new(s, x);
            let mut sums = LookUp { values, to };
            self.quads(s, &mut sums);
            for half in 0..2 {
                let scale = self.scale.half(s, half);
                for t in 0..T {
                    let dot = s.dot_i16(sums.to.dots[half][t], s.splat_i16(1));
                    let dot = s.sub_i32(dot, sum_of_half(s, x, t, half, 16));
                    add_scaled(s, x, t, dot, scale, acc);
                }
            }
        } else {
            let to = Centred::new(s, x);
            let mut sums = LookUp { values, to };
            self.quads(s, &mut sums);
            let scale = self.scale.half(s, 0);
            for t in 0..T {
                add_scaled(s, x, t, sums.to.dot(s, t), scale, acc);
            }
        }
    }

    /// Other values: nibble by nibble.
    #[inline(always)]
    fn wide<S: Simd, const T: usize>(&self, s: S, x: &Tile<T>, acc: &mut [S::F; T]) {
        if W::IS_PAIR {
            let mut sums = LookUpNibbles::<_, T, true>::new(s, &V::UNSIGNED, x);
            self.quads(s, &mut sums);
            for half in 0..2 {
                let scale = self.scale.half(s, half);
                for t in 0..T {
                    add_scaled(s, x, t, sums.sums.dot(s, t, half), scale, acc);
                }
            }
        } else {
            let mut sums = LookUpNibbles::<_, T, false>::new(s, &V::UNSIGNED, x);
            self.quads(s, &mut sums);
            let scale = self.scale.half(s, 0);
            for t in 0..T {
                add_scaled(s, x, t, sums.sums.dot(s, t, 0), scale, acc);
            }
        }
    }
}

impl<W: HalfScales, V: Values> IntCell for Table<W, V> {
    #[inline(always)]
    fn accumulate<S: Simd, const T: usize>(&self, s: S, x: &Tile<T>, acc: &mut [S::F; T]) {
        if V::IS_NARROW {
            self.narrow(s, x, acc);
        } else {
            self.wide(s, x, acc);
        }
    }
}

impl IntCell for I8 {
    #[inline(always)]
    fn accumulate<S: Simd, const T: usize>(&self, s: S, x: &Tile<T>, acc: &mut [S::F; T]) {
        let mut sums = Nibbles::<_, T, false>::new(s, x);
        for (quad, codes) in self.codes.iter().enumerate() {
            sums.take(s, quad, s.load_i(codes));
        }
        let scale = Scales::load(&self.scale, s);
        for t in 0..T {
            add_scaled(s, x, t, sums.dot(s, t, 0), scale, acc);
        }
    }
}

impl IntCell for U6 {
    #[inline(always)]
    fn accumulate<S: Simd, const T: usize>(&self, s: S, x: &Tile<T>, acc: &mut [S::F; T]) {
        for half in 0..2 {
            let mut dots = [s.splat_i32(0); T];
            for i in [4 * half, 4 * half + 2] {
                // 2 sums of 2 products: 2 * 2 * 63 * 127 = 32004 fits i16.
                let codes = [s.load_i(&self.codes[i]), s.load_i(&self.codes[i + 1])];
                for (t, dot) in dots.iter_mut().enumerate() {
                    let pair = s.add_i16(
                        s.dot_u8_i8(codes[0], s.splat_bytes(&x.quads[i][t])),
                        s.dot_u8_i8(codes[1], s.splat_bytes(&x.quads[i + 1][t])),
                    );
                    *dot = s.add_i32(*dot, s.dot_i16(pair, s.splat_i16(1)));
                }
            }
            let scale = s.load(&self.scale[half]);
            for (t, dot) in dots.into_iter().enumerate() {
                let dot = s.sub_i32(dot, sum_of_half(s, x, t, half, 32));
                add_scaled(s, x, t, dot, scale, acc);
            }
        }
    }
}
