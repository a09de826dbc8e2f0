//! A backend under test, and what all cases need: values, comparisons, names.

use super::report::{Failure, Failures, Outcome, Tolerance};
use crate::backend::{Buffers, KvType, PageShape};
use crate::error::Error;

/// Result of a case.
pub(super) type Check<T = ()> = Result<T, Failure>;

/// A backend under test.
pub struct Suite<'a, B> {
    pub(super) backend: &'a B,
    pub(super) kv: KvType,
    pub(super) tolerance: Tolerance,
    pub(super) random: Random,
    outcomes: Vec<Outcome>,
    failures: Vec<Failure>,
}

impl<'a, B> Suite<'a, B> {
    /// A suite over `backend`, whose pages hold `kv`; `seed` chooses the values.
    pub fn new(backend: &'a B, kv: KvType, tolerance: Tolerance, seed: u64) -> Self {
        Self {
            backend,
            kv,
            tolerance,
            random: Random(seed),
            outcomes: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Geometry of the pages of heads of `dim` elements.
    pub(super) fn shape(&self, head_dim: usize) -> PageShape {
        PageShape {
            head_dim,
            dtype: self.kv,
        }
    }

    /// Runs one part. A failure that ends it is kept beside the values that differ, and the suite
    /// goes on: what a first run on a new device finds wrong is all that it finds.
    pub fn part(&mut self, part: impl FnOnce(&mut Self) -> Result<(), Failure>) {
        if let Err(failure) = part(self) {
            self.failures.push(failure);
        }
    }

    /// The differences that were measured.
    ///
    /// # Errors
    /// Whatever failed.
    pub fn finish(self) -> Result<Vec<Outcome>, Failures> {
        if self.failures.is_empty() {
            Ok(self.outcomes)
        } else {
            Err(Failures(self.failures))
        }
    }
}

impl<B: Buffers> Suite<'_, B> {
    /// An array on the device.
    pub(super) fn upload(&self, values: &[f32]) -> Check<B::Buffer> {
        let refused = |error| Failure::Refused {
            case: format!("upload of {}", values.len()),
            error,
        };
        let mut buffer = self.backend.alloc(values.len()).map_err(refused)?;
        self.backend
            .upload(values, &mut buffer, 0)
            .map_err(refused)?;
        Ok(buffer)
    }

    /// The first `len` values of an array on the device.
    pub(super) fn download(&self, buffer: &B::Buffer, len: usize) -> Check<Vec<f32>> {
        let mut values = vec![f32::NAN; len];
        let refused = |error| Failure::Refused {
            case: format!("download of {len}"),
            error,
        };
        self.backend
            .download(buffer, 0, &mut values)
            .map_err(refused)?;
        Ok(values)
    }
}

impl<B> Suite<'_, B> {
    /// Compares arrays; differences are divided by the larger of 1 and the largest reference value.
    /// The first value that differs is kept for [`Suite::finish`], and the case goes on.
    pub(super) fn compare(&mut self, case: &str, got: &[f32], want: &[f32], allowed: f32) -> Check {
        let scale = want.iter().fold(1.0, |max: f32, x| max.max(x.abs()));
        self.compare_scaled(case, got, want, allowed, scale)
    }

    /// Compares arrays; differences are divided by `scale`.
    pub(super) fn compare_scaled(
        &mut self,
        case: &str,
        got: &[f32],
        want: &[f32],
        allowed: f32,
        scale: f32,
    ) -> Check {
        if got.len() != want.len() {
            return Err(Failure::Length {
                case: case.to_owned(),
                got: got.len(),
                want: want.len(),
            });
        }
        let mut worst = 0.0f32;
        for (index, (&got, &want)) in got.iter().zip(want).enumerate() {
            let difference = if got.to_bits() == want.to_bits() {
                0.0
            } else {
                (got - want).abs() / scale
            };
            let fits = difference <= allowed;
            if !fits {
                self.failures.push(Failure::Differs {
                    case: case.to_owned(),
                    index,
                    got,
                    want,
                    difference,
                    allowed,
                });
                return Ok(());
            }
            worst = worst.max(difference);
        }
        self.outcomes.push(Outcome {
            case: case.to_owned(),
            difference: worst,
        });
        Ok(())
    }
}

/// Names the case of a refused call.
pub(super) trait Named<T> {
    fn named(self, case: &str) -> Check<T>;
}

impl<T> Named<T> for Result<T, Error> {
    fn named(self, case: &str) -> Check<T> {
        self.map_err(|error| Failure::Refused {
            case: case.to_owned(),
            error,
        })
    }
}

/// The call has to fail.
pub(super) fn refused<T>(case: &str, result: Result<T, Error>) -> Check {
    match result {
        Err(_) => Ok(()),
        Ok(_) => Err(Failure::Accepted {
            case: case.to_owned(),
        }),
    }
}

/// Splitmix64 (Steele, Lea, Flood 2014): the suite needs the same values everywhere, not good ones.
#[derive(Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// An integer in `0 .. end`.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// Nearly normal, mean 0, variance 1: the sum of four uniforms.
    pub(super) fn value(&mut self) -> f32 {
        let sum: f32 = (0..4)
            .map(|_| (self.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5)
            .sum();
        sum * 3.0f32.sqrt()
    }

    pub(super) fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.value()).collect()
    }

    /// `0 .. len` in random order.
    pub(super) fn shuffled(&mut self, len: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..len as u32).collect();
        for i in (1..len).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}
