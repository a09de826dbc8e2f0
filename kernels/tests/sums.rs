//! Sums over ranks on the emulated device have the bits of those on the host.
#![cfg(feature = "emulate")]

use std::sync::{Arc, Mutex};
use std::time::Instant;

use palimpsest_kernels::cuda::emulated::Emulated;
use palimpsest_kernels::cuda::{Arg, CudaBackend, Device, Launch, Precision};
use palimpsest_kernels::parts::*;
use palimpsest_kernels::sums::{DeviceSums, Place, SumElement, Summand};
use palimpsest_kernels::{Error, Result, WeightType, WeightView, fixed};

/// Runs one of the kernels of `fixed.cu`.
fn converted<T: bytemuck::Pod, U: bytemuck::Pod>(kernel: &'static str, values: &[T]) -> Vec<U> {
    let (device, len, mut out) = (
        Emulated::new(3),
        values.len(),
        vec![U::zeroed(); values.len()],
    );
    let from = device.alloc("values", size_of_val(values)).expect("memory");
    let to = device.alloc("out", size_of_val(&out[..])).expect("memory");
    device
        .upload(bytemuck::cast_slice(values), &from, 0)
        .expect("a copy");
    let [from_arg, to_arg] = [&from, &to].map(|memory| Arg::Pointer(Emulated::address(memory)));
    let args = vec![from_arg, Arg::U64(len as u64), to_arg];
    let grid = [len.div_ceil(256) as u32, 1, 1];
    // SAFETY: both arrays hold `len` values of the kernel's types.
    unsafe {
        device.launch(&Launch {
            kernel,
            grid,
            threads: 256,
            shared: 0,
            args,
        })
    }
    .expect("a kernel");
    device
        .download(&to, 0, bytemuck::cast_slice_mut(&mut out))
        .expect("a copy");
    out
}

/// Values between which, and at which, something changes.
fn edges() -> Vec<f32> {
    let half = 2f32.powi(-28);
    let mut values = vec![
        0.0,
        -0.0,
        half,
        3.0 * half,
        half * 1.01,
        1.0,
        f32::MIN_POSITIVE,
        f32::INFINITY,
        f32::NAN,
    ];
    values.extend([
        fixed::LIMIT,
        fixed::LIMIT.next_up(),
        fixed::LIMIT.next_down(),
        f32::MAX,
    ]);
    values.extend((0..2000u32).map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761))));
    values.extend(values.clone().iter().map(|value| -value));
    values
}

#[test]
fn values_become_fixed_point_as_on_the_host() {
    let values = edges();
    for (value, got) in values
        .iter()
        .zip(converted::<f32, i64>("to_fixed", &values))
    {
        assert_eq!(got, fixed::from_f32(*value), "{value:e}");
    }
}

#[test]
fn sums_become_floats_as_on_the_host() {
    let mut sums: Vec<i64> = edges().into_iter().map(fixed::from_f32).collect();
    sums.extend([
        1 << 55,
        (1 << 55) - 1,
        -(1 << 55),
        1 - (1 << 55),
        i64::MIN,
        i64::MAX,
        (1 << 53) + 1,
        (1 << 54) + 3,
    ]);
    sums.extend((1..=255).map(|units| fixed::POISON.wrapping_mul(units).wrapping_sub(units * 7)));
    for (sum, got) in sums.iter().zip(converted::<i64, f32>("from_fixed", &sums)) {
        assert_eq!(got.to_bits(), fixed::to_f32(*sum).to_bits(), "{sum}");
    }
}

/// Another rank, with its part of the one sum that it is asked for.
#[derive(Default)]
struct Other {
    words: Mutex<Vec<i64>>,
    floats: Mutex<Vec<f32>>,
}

impl DeviceSums for Other {
    fn set_deadline(&self, _: Instant) {}

    fn all_reduce(&self, mut summand: Summand<'_>) -> Result<()> {
        let element = summand.element();
        let Place::Host(bytes) = summand.place() else {
            panic!("an emulated device is on the host")
        };
        match element {
            SumElement::U64 => {
                let (own, other): (&mut [i64], _) = (
                    bytemuck::cast_slice_mut(bytes),
                    self.words.lock().expect("held"),
                );
                assert_eq!(own.len(), other.len());
                own.iter_mut()
                    .zip(&*other)
                    .for_each(|(own, other)| *own = own.wrapping_add(*other));
            }
            SumElement::F32 => {
                let (own, other): (&mut [f32], _) = (
                    bytemuck::cast_slice_mut(bytes),
                    self.floats.lock().expect("held"),
                );
                assert_eq!(own.len(), other.len());
                own.iter_mut()
                    .zip(&*other)
                    .for_each(|(own, other)| *own += other);
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn gather(&self, word: u64) -> Result<Vec<u64>> {
        Ok(vec![word, word])
    }
}

fn value(i: usize) -> f32 {
    (i as f32 * 0.37).sin() * 3.0
}

#[test]
fn a_product_and_its_sum_have_the_bits_of_the_host() {
    const COLS: usize = 40;
    const OUTPUTS: usize = 70;
    let weights: Vec<f32> = (0..OUTPUTS * COLS).map(|i| value(i + 5)).collect();
    let bytes = bytemuck::cast_slice(&weights);
    let view = WeightView::new(WeightType::F32, OUTPUTS, COLS, bytes);
    for (precision, rows) in [
        (Precision::F32, 1),
        (Precision::Bf16, 3),
        (Precision::Bf16, 11),
    ] {
        let backend = CudaBackend::new(Emulated::new(1), precision);
        let matrix = backend.load_matrix(&[view]).expect("a matrix");
        let (mut x, mut out) = (
            backend.alloc(rows * COLS).expect("x"),
            backend.alloc(rows * OUTPUTS).expect("out"),
        );
        let mut values: Vec<f32> = (0..rows * COLS).map(value).collect();
        // What is no number on one rank is none in the sum.
        values[COLS / 2] = f32::NAN;
        backend.upload(&values, &mut x, 0).expect("a copy");
        let other = Arc::new(Other::default());
        let words = (0..rows * OUTPUTS)
            .map(|i| fixed::from_f32(value(i * 3)))
            .collect();
        *other.words.lock().expect("held") = words;
        assert!(backend.join_sums(Some(other.clone())), "a CUDA device can");
        backend
            .matmul_sum(&matrix, &x, rows, &[COLS], &mut out)
            .expect("a sum");
        let mut got = vec![0.0; rows * OUTPUTS];
        backend.download(&out, 0, &mut got).expect("a copy");
        let mut shares = vec![0; rows * OUTPUTS];
        backend
            .matmul_share(&matrix, &x, rows, &[COLS], &mut shares)
            .expect("a share");
        let sum = |(own, other): (&i64, &i64)| fixed::to_f32(own.wrapping_add(*other)).to_bits();
        let want: Vec<u32> = shares
            .iter()
            .zip(&*other.words.lock().expect("held"))
            .map(sum)
            .collect();
        assert_eq!(
            got.iter().map(|got| got.to_bits()).collect::<Vec<_>>(),
            want,
            "{precision:?}, {rows} rows"
        );
        assert!(got[0].is_nan(), "and so are all of its row");
    }
}

#[test]
fn an_embedding_comes_from_the_rank_that_has_it() {
    let table = [1.5f32, -0.0, 3.0, 4.0, 0.0, -6.0];
    let view = WeightView::new(WeightType::F32, 3, 2, bytemuck::cast_slice(&table));
    let backend = CudaBackend::new(Emulated::new(1), Precision::F32);
    let matrix = backend.load_matrix(&[view]).expect("a table");
    let mut out = backend.alloc(6).expect("out");
    let other = Arc::new(Other::default());
    *other.floats.lock().expect("held") = vec![-0.0, -0.0, 7.0, -0.0, -0.0, -0.0];
    backend.join_sums(Some(other));
    backend
        .embed_sum(&matrix, &[Some(0), None, Some(2)], &mut out)
        .expect("a sum");
    let mut got = [1.0; 6];
    backend.download(&out, 0, &mut got).expect("a copy");
    assert_eq!(
        got.map(f32::to_bits),
        [1.5f32, -0.0, 7.0, -0.0, 0.0, -6.0].map(f32::to_bits)
    );
    let refused = backend
        .embed_sum(&matrix, &[Some(3)], &mut out)
        .expect_err("there are three rows");
    assert!(
        matches!(
            refused,
            Error::Index {
                index: 3,
                len: 3,
                ..
            }
        ),
        "{refused}"
    );
}

/// A sum for which nobody was joined says so.
#[test]
fn who_sums_alone_is_told() {
    let backend = CudaBackend::new(Emulated::new(1), Precision::F32);
    let one = 1f32.to_le_bytes();
    let view = WeightView::new(WeightType::F32, 1, 1, &one);
    let matrix = backend.load_matrix(&[view]).expect("a table");
    let mut out = backend.alloc(1).expect("out");
    let refused = backend
        .embed_sum(&matrix, &[Some(0)], &mut out)
        .expect_err("nobody was joined");
    assert!(
        refused.to_string().contains("no ranks were joined"),
        "{refused}"
    );
}
