//! Plain Rust: the definition of every operation.

use super::ops::{Kernel, Simd};

/// The instruction set that every processor has.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn zip<T: Copy, U: Copy + Default, const N: usize>(
    a: [T; N],
    b: [T; N],
    f: impl Fn(T, T) -> U,
) -> [U; N] {
    let mut out = [U::default(); N];
    for i in 0..N {
        out[i] = f(a[i], b[i]);
    }
    out
}

#[inline(always)]
fn halves(a: [i32; 8]) -> [i16; 16] {
    bytemuck::cast(a)
}

/// A function of its own, see [`Simd::call`].
#[inline(never)]
fn call<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Portable)
}

impl Simd for Portable {
    type F = [f32; 8];
    type I = [i32; 8];

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 8] {
        [x; 8]
    }
    #[inline(always)]
    fn load(self, x: &[f32; 8]) -> [f32; 8] {
        *x
    }
    #[inline(always)]
    fn store(self, x: [f32; 8], out: &mut [f32; 8]) {
        *out = x;
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 16]) -> [f32; 8] {
        std::array::from_fn(|i| half::f16::from_le_bytes([x[2 * i], x[2 * i + 1]]).to_f32())
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8; 16]) -> [f32; 8] {
        std::array::from_fn(|i| f32::from_bits(u32::from_le_bytes([0, 0, x[2 * i], x[2 * i + 1]])))
    }
    #[inline(always)]
    fn add(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn fma(self, a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        call(kernel)
    }
    #[inline(always)]
    fn load_i32(self, x: &[i32; 8]) -> [i32; 8] {
        *x
    }
    #[inline(always)]
    fn load_i(self, x: &[u8; 32]) -> [i32; 8] {
        std::array::from_fn(|i| {
            i32::from_le_bytes([x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]])
        })
    }
    #[inline(always)]
    fn store_i(self, x: [i32; 8], out: &mut [i32; 8]) {
        *out = x;
    }
    #[inline(always)]
    fn splat_bytes(self, x: &[u8; 4]) -> [i32; 8] {
        [i32::from_le_bytes(*x); 8]
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> [i32; 8] {
        [x; 8]
    }
    #[inline(always)]
    fn and(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        zip(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn or(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        zip(a, b, |a, b| a | b)
    }
    #[inline(always)]
    fn shl<const N: i32>(self, a: [i32; 8]) -> [i32; 8] {
        a.map(|a| a << N)
    }
    #[inline(always)]
    fn splat_table(self, x: &[u8; 16]) -> [i32; 8] {
        bytemuck::cast([*x; 2])
    }
    #[inline(always)]
    fn look_up(self, table: [i32; 8], indices: [i32; 8]) -> [i32; 8] {
        let (table, indices): ([u8; 32], [u8; 32]) =
            (bytemuck::cast(table), bytemuck::cast(indices));
        bytemuck::cast(indices.map(|index| table[usize::from(index & 15)]))
    }
    #[inline(always)]
    fn widen_i8(self, x: &[u8; 16]) -> [i32; 8] {
        bytemuck::cast(x.map(|x| i16::from(x as i8)))
    }
    #[inline(always)]
    fn shr<const N: i32>(self, a: [i32; 8]) -> [i32; 8] {
        a.map(|a| (a as u32 >> N) as i32)
    }
    #[inline(always)]
    fn add_i32(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        zip(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    fn sub_i32(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        zip(a, b, i32::wrapping_sub)
    }
    #[inline(always)]
    fn max_i32(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        zip(a, b, |a: i32, b| a.max(b))
    }
    #[inline(always)]
    fn add_i16(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        bytemuck::cast(zip(halves(a), halves(b), i16::wrapping_add))
    }
    #[inline(always)]
    fn dot_u8_i8(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        let (a, b): ([u8; 32], [i8; 32]) = (bytemuck::cast(a), bytemuck::cast(b));
        let product = |i: usize| i32::from(a[i]) * i32::from(b[i]);
        let sums: [i16; 16] = std::array::from_fn(|i| {
            (product(2 * i) + product(2 * i + 1)).clamp(i32::from(i16::MIN), i32::from(i16::MAX))
                as i16
        });
        bytemuck::cast(sums)
    }
    #[inline(always)]
    fn dot_i16(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        let (a, b) = (halves(a), halves(b));
        let product = |i: usize| i32::from(a[i]) * i32::from(b[i]);
        std::array::from_fn(|i| product(2 * i).wrapping_add(product(2 * i + 1)))
    }
    #[inline(always)]
    fn splat_i16(self, x: i16) -> [i32; 8] {
        bytemuck::cast([x; 16])
    }
    #[inline(always)]
    fn to_f32(self, a: [i32; 8]) -> [f32; 8] {
        a.map(|a| a as f32)
    }
    #[inline(always)]
    fn round(self, a: [f32; 8]) -> [i32; 8] {
        a.map(|a| a.round_ties_even() as i32)
    }
    #[inline(always)]
    fn bits(self, a: [f32; 8]) -> [i32; 8] {
        a.map(|a| a.to_bits() as i32)
    }
    #[inline(always)]
    fn weigh(self, a: [i32; 8], p: f64, b: [i32; 8], q: f64) -> [f32; 8] {
        std::array::from_fn(|i| (f64::from(a[i]) * p + f64::from(b[i]) * q) as f32)
    }
    #[inline(always)]
    fn choose(self, a: [i32; 8], b: [i32; 8], x: [f32; 8], y: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| if a[i] > b[i] { x[i] } else { y[i] })
    }
}
