//! Exponentials with the same bits on every lane type: polynomials after Cephes (`exp2f.c`,
//! `expf.c`, S. L. Moshier), relative error below 3e-7.

use super::lanes::{Kernel, Lanes, WIDTH, dispatch};
use super::simd::SimdLevel;

/// `1.5 * 2^23`: adding it rounds to an integer and leaves that integer in the low bits.
const ROUND: f32 = 12_582_912.0;

/// `2^x` for `x <= 127`; `0` for `x < -126` and for NaN.
#[inline(always)]
pub(crate) fn exp2<L: Lanes>(x: L) -> L {
    let round = L::splat(ROUND);
    let t = x.add(round);
    let r = x.sub(t.sub(round));
    let mut p = L::splat(1.535_336_2e-4);
    for c in [
        1.339_887_4e-3,
        9.618_437e-3,
        5.550_332_6e-2,
        2.402_264_8e-1,
        std::f32::consts::LN_2,
        1.0,
    ] {
        p = p.fma(r, L::splat(c));
    }
    // At -126 the polynomial is 1 and the result the smallest normal number; nothing is ever
    // subnormal.
    p.shift_exponent(t).zero_below(x, -126.0)
}

/// `e^x`; `x` above 88 gives `e^88`, below -87 gives `0`.
#[inline(always)]
pub(crate) fn exp<L: Lanes>(x: L) -> L {
    let x = x.min(L::splat(88.0));
    let round = L::splat(ROUND);
    let t = x.fma(L::splat(std::f32::consts::LOG2_E), round);
    let n = t.sub(round);
    // ln 2 in two parts, the first with few enough bits that its product with `n` is exact.
    let r = n.fma(L::splat(-0.693_359_4), x);
    let r = n.fma(L::splat(2.121_944_4e-4), r);
    let mut p = L::splat(1.987_569_1e-4);
    for c in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
        1.0,
        1.0,
    ] {
        p = p.fma(r, L::splat(c));
    }
    p.shift_exponent(t).zero_below(x, -87.0)
}

struct ExpMinus<'a>(&'a mut [f32], f32);

impl Kernel for ExpMinus<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<L: Lanes>(self) -> f32 {
        let Self(values, most) = self;
        let (most, mut sum) = (L::splat(most), L::splat(0.0));
        for values in values.chunks_mut(WIDTH) {
            // Lanes beyond the end add nothing.
            let e = exp(L::from_slice(values, f32::NEG_INFINITY).sub(most));
            sum = sum.add(e);
            e.write(values);
        }
        sum.sum()
    }
}

/// `e^(x - most)` in place; returns their sum. No `x` is above `most`, which is finite.
pub fn exp_minus(level: SimdLevel, values: &mut [f32], most: f32) -> f32 {
    dispatch(level, ExpMinus(values, most))
}

struct ExpSum<'a>(&'a [f32], f32);

impl Kernel for ExpSum<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<L: Lanes>(self) -> f32 {
        let Self(values, most) = self;
        let (most, mut sum) = (L::splat(most), L::splat(0.0));
        for values in values.chunks(WIDTH) {
            // Lanes beyond the end add nothing.
            let x = L::from_slice(values, f32::NEG_INFINITY);
            sum = sum.add(exp(x.sub(most)));
        }
        sum.sum()
    }
}

/// The sum of `e^(x - most)`, with the bits of [`exp_minus`]. No `x` is above `most`, which is
/// finite.
pub fn exp_sum(level: SimdLevel, values: &[f32], most: f32) -> f32 {
    dispatch(level, ExpSum(values, most))
}

struct Sigmoids<'a>(&'a mut [f32]);

impl Kernel for Sigmoids<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        for values in self.0.chunks_mut(WIDTH) {
            let x = L::from_slice(values, 0.0);
            L::splat(1.0)
                .div(L::splat(1.0).add(exp(L::splat(0.0).sub(x))))
                .write(values);
        }
    }
}

/// `1 / (1 + e^-x)` in place.
pub fn sigmoids(level: SimdLevel, values: &mut [f32]) {
    dispatch(level, Sigmoids(values));
}

/// Sine and cosine of an angle of at most a few million radians: reduction in f64, Taylor
/// polynomials on `[-pi/4, pi/4]`, absolute error below 1e-7. Plain arithmetic without branches, so
/// that loops over it vectorise.
#[inline(always)]
pub(crate) fn sin_cos(angle: f64) -> (f32, f32) {
    /// `1.5 * 2^52`, as [`ROUND`] for f64.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    let t = angle * std::f64::consts::FRAC_2_PI + ROUND;
    let r = angle - (t - ROUND) * std::f64::consts::FRAC_PI_2;
    let r2 = r * r;
    let sin = r
        * (1.0
            + r2 * (-1.0 / 6.0
                + r2 * (1.0 / 120.0 + r2 * (-1.0 / 5040.0 + r2 * (1.0 / 362_880.0)))));
    let cos = 1.0 + r2 * (-0.5 + r2 * (1.0 / 24.0 + r2 * (-1.0 / 720.0 + r2 * (1.0 / 40_320.0))));
    let quadrant = t.to_bits();
    let (s, c) = if quadrant & 1 == 0 {
        (sin, cos)
    } else {
        (cos, sin)
    };
    let s = if quadrant & 2 == 0 { s } else { -s };
    let c = if (quadrant + 1) & 2 == 0 { c } else { -c };
    (s as f32, c as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Both([f32; WIDTH]);

    impl Kernel for Both {
        type Output = ([f32; WIDTH], [f32; WIDTH]);
        #[inline(always)]
        fn run<L: Lanes>(self) -> Self::Output {
            let x = L::from_slice(&self.0, 0.0);
            (exp2(x).to_array(), exp(x).to_array())
        }
    }

    #[test]
    fn exponentials_are_close_and_equal_on_all_lanes() {
        let mut worst = (0.0f64, 0.0f64);
        for step in 0..200_000 {
            let base = -140.0 + step as f32 * 0.001_1;
            let x: [f32; WIDTH] = std::array::from_fn(|i| base + i as f32 * 0.000_13);
            let plain = dispatch(SimdLevel::Portable, Both(x));
            assert_eq!(plain, dispatch(SimdLevel::detect(), Both(x)));
            for (i, &x) in x.iter().enumerate() {
                let exact = f64::from(x);
                if exact >= -126.0 {
                    worst.0 = worst
                        .0
                        .max((f64::from(plain.0[i]) / exact.exp2() - 1.0).abs());
                }
                if (-87.0..=88.0).contains(&exact) {
                    worst.1 = worst
                        .1
                        .max((f64::from(plain.1[i]) / exact.exp() - 1.0).abs());
                }
            }
        }
        assert!(
            worst.0 < 3e-7 && worst.1 < 3e-7,
            "relative errors {worst:?}"
        );
        let edge = dispatch(
            SimdLevel::detect(),
            Both([
                0.0,
                -0.0,
                f32::NEG_INFINITY,
                f32::NAN,
                -1e30,
                -126.0,
                -127.0,
                1.0,
            ]),
        );
        assert_eq!(
            edge.0,
            [1.0, 1.0, 0.0, 0.0, 0.0, f32::MIN_POSITIVE, 0.0, 2.0]
        );
    }

    #[test]
    fn exponentials_and_sigmoids_of_slices_are_those_of_the_standard_library() {
        for len in [1, 7, 8, 9, 203] {
            let x: Vec<f32> = (0..len)
                .map(|i| ((i * 37) % 101) as f32 * 0.4 - 40.0)
                .collect();
            let (mut e, mut s) = (x.clone(), x.clone());
            let sum = exp_minus(SimdLevel::detect(), &mut e, 0.5);
            assert_eq!(exp_sum(SimdLevel::detect(), &x, 0.5), sum);
            assert_eq!(exp_sum(SimdLevel::Portable, &x, 0.5), sum);
            sigmoids(SimdLevel::detect(), &mut s);
            let want: Vec<f64> = x.iter().map(|&x| (f64::from(x) - 0.5).exp()).collect();
            assert!(
                (f64::from(sum) / want.iter().sum::<f64>() - 1.0).abs() < 1e-5,
                "{len}: {sum}"
            );
            for (i, want) in want.iter().enumerate() {
                assert!(
                    (f64::from(e[i]) / want - 1.0).abs() < 1e-5,
                    "{}: {} is not {want}",
                    x[i],
                    e[i]
                );
                let want = 1.0 / (1.0 + (-f64::from(x[i])).exp());
                assert!(
                    (f64::from(s[i]) / want - 1.0).abs() < 1e-5,
                    "{}: {} is not {want}",
                    x[i],
                    s[i]
                );
            }
        }
        let mut hidden = [f32::NEG_INFINITY, 1.0];
        assert_eq!(exp_minus(SimdLevel::detect(), &mut hidden, 1.0), 1.0);
        assert_eq!(hidden, [0.0, 1.0]);
    }

    #[test]
    fn sine_and_cosine_are_close() {
        for step in -400_000..400_000 {
            let angle = f64::from(step) * 7.310_1;
            let (s, c) = sin_cos(angle);
            assert!((f64::from(s) - angle.sin()).abs() < 1e-7, "sin {angle}");
            assert!((f64::from(c) - angle.cos()).abs() < 1e-7, "cos {angle}");
        }
    }
}
