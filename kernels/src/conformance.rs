//! One suite for all backends: random shapes (empty, one, odd, ragged, across pages and tiles)
//! against [`ReferenceBackend`].
//!
//! ```no_run
//! use palimpsest_kernels::{KvType, conformance, cpu::{CpuBackend, CpuOptions}};
//! let backend = CpuBackend::new(CpuOptions::default());
//! for outcome in conformance::run(&backend, KvType::F16, conformance::Tolerance::default(), 1).expect("agrees") {
//!     println!("{outcome}");
//! }
//! ```

mod cache;
mod dense;
mod latent;
mod score;
mod select;
mod tokens;

use crate::backend::{Backend, HeadPages, KvType, PageId, PageShape};
use crate::error::Error;
use crate::latent::{LatentHead, LatentId, LatentKind, LatentState};
use crate::reference::{ReferenceBackend, ReferencePages};

/// Largest accepted differences. A difference is divided by the larger of 1 and the largest
/// reference value of its array, for `matmul` by the root mean square of the reference values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Norms, activations, rotations.
    pub elementwise: f32,
    /// Rows of an embedding table, which a backend may keep in a narrower type.
    pub embed: f32,
    /// Attention outputs and probabilities.
    pub attention: f32,
    /// Matrix products of float weights, and of quantised weights with f32 activations.
    pub matmul: f32,
    /// Matrix products of quantised weights, where the backend may round activations to 8 bits.
    pub matmul_quantised: f32,
}

impl Default for Tolerance {
    fn default() -> Self {
        Self {
            elementwise: 2e-6,
            embed: 2e-6,
            attention: 4e-6,
            matmul: 1e-5,
            matmul_quantised: 1e-5,
        }
    }
}

/// What a case measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Operation and shape.
    pub case: String,
    /// Largest difference, as [`Tolerance`] counts it.
    pub difference: f32,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:>9.2e}  {}", self.difference, self.case)
    }
}

/// Why a backend does not conform.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A value is too far off.
    #[error(
        "{case}: value {index} is {got}, the reference says {want}; difference {difference:.2e} > \
         {allowed:.2e}"
    )]
    Differs {
        /// Operation and shape.
        case: String,
        /// Position in the array.
        index: usize,
        /// The backend's value.
        got: f32,
        /// The reference's value.
        want: f32,
        /// As [`Tolerance`] counts it.
        difference: f32,
        /// What the tolerance allows.
        allowed: f32,
    },
    /// Arrays have different lengths.
    #[error("{case}: {got} values, the reference has {want}")]
    Length {
        /// Operation and shape.
        case: String,
        /// The backend's.
        got: usize,
        /// The reference's.
        want: usize,
    },
    /// A note is another.
    #[error("{case}: note {slot} is {got:#010x}, the reference has {want:#010x}")]
    Note {
        /// Operation and shape.
        case: String,
        /// Slot of the head.
        slot: usize,
        /// The backend's.
        got: u32,
        /// The reference's.
        want: u32,
    },
    /// A bad argument was accepted.
    #[error("{case}: accepted, but it has to be refused")]
    Accepted {
        /// Operation and mistake.
        case: String,
    },
    /// A valid call was refused.
    #[error("{case}: {error}")]
    Refused {
        /// Operation and shape.
        case: String,
        /// The backend's answer.
        error: Error,
    },
}

type Check<T = ()> = Result<T, Failure>;

/// Runs every case on `backend`; `seed` chooses the values. Returns the differences measured.
pub fn run<B: Backend>(
    backend: &B,
    kv: KvType,
    tolerance: Tolerance,
    seed: u64,
) -> Result<Vec<Outcome>, Failure> {
    let mut suite = Suite {
        backend,
        kv,
        tolerance,
        random: Random(seed),
        outcomes: Vec::new(),
    };
    dense::buffers(&mut suite)?;
    dense::norms(&mut suite)?;
    dense::elementwise(&mut suite)?;
    dense::weights(&mut suite)?;
    dense::refusals(&mut suite)?;
    cache::slots(&mut suite)?;
    cache::split(&mut suite)?;
    cache::attention(&mut suite)?;
    cache::boundary(&mut suite)?;
    cache::refusals(&mut suite)?;
    score::notes(&mut suite)?;
    score::scores(&mut suite)?;
    select::select(&mut suite)?;
    tokens::sample(&mut suite)?;
    latent::memorise(&mut suite)?;
    latent::readout(&mut suite)?;
    latent::index(&mut suite)?;
    Ok(suite.outcomes)
}

/// A backend under test.
struct Suite<'a, B: Backend> {
    backend: &'a B,
    kv: KvType,
    tolerance: Tolerance,
    random: Random,
    outcomes: Vec<Outcome>,
}

impl<B: Backend> Suite<'_, B> {
    /// An array on the device.
    fn upload(&self, values: &[f32]) -> Check<B::Buffer> {
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
    fn download(&self, buffer: &B::Buffer, len: usize) -> Check<Vec<f32>> {
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

    /// Compares arrays; differences are divided by the larger of 1 and the largest reference value.
    fn compare(&mut self, case: &str, got: &[f32], want: &[f32], allowed: f32) -> Check {
        let scale = want.iter().fold(1.0, |max: f32, x| max.max(x.abs()));
        self.compare_scaled(case, got, want, allowed, scale)
    }

    /// Compares arrays; differences are divided by `scale`.
    fn compare_scaled(
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
                return Err(Failure::Differs {
                    case: case.to_owned(),
                    index,
                    got,
                    want,
                    difference,
                    allowed,
                });
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
trait Named<T> {
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
fn refused<T>(case: &str, result: Result<T, Error>) -> Check {
    match result {
        Err(_) => Ok(()),
        Ok(_) => Err(Failure::Accepted {
            case: case.to_owned(),
        }),
    }
}

/// Splitmix64 (Steele, Lea, Flood 2014): the suite needs the same values everywhere, not good ones.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// An integer in `0 .. end`.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// Nearly normal, mean 0, variance 1: the sum of four uniforms.
    fn value(&mut self) -> f32 {
        let sum: f32 = (0..4)
            .map(|_| (self.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5)
            .sum();
        sum * 3.0f32.sqrt()
    }

    fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.value()).collect()
    }

    /// `0 .. len` in random order.
    fn shuffled(&mut self, len: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..len as u32).collect();
        for i in (1..len).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

/// Twin arenas with the same contents: some heads, each with a page table in random order.
struct Arenas<B: Backend> {
    dim: usize,
    pages: B::Pages,
    reference: ReferencePages,
    tables: Vec<Vec<PageId>>,
}

impl<B: Backend> Arenas<B> {
    /// One table per entry of `slots`, for that many slots.
    fn new(suite: &mut Suite<'_, B>, dim: usize, slots: &[usize]) -> Check<Self> {
        let shape = PageShape {
            head_dim: dim,
            dtype: suite.kv,
        };
        let counts: Vec<usize> = slots
            .iter()
            .map(|slots| slots.div_ceil(PageShape::SLOTS))
            .collect();
        let mut order = suite
            .random
            .shuffled(counts.iter().sum::<usize>() + 1)
            .into_iter()
            .map(PageId);
        let tables: Vec<Vec<PageId>> = counts
            .iter()
            .map(|&count| order.by_ref().take(count).collect())
            .collect();
        let count = counts.iter().sum::<usize>() + 1;
        Ok(Self {
            dim,
            pages: suite
                .backend
                .alloc_pages(shape, count)
                .named("alloc_pages")?,
            reference: ReferenceBackend
                .alloc_pages(shape, count)
                .named("alloc_pages")?,
            tables,
        })
    }

    /// Head `index` with `len` slots.
    fn head(&self, index: usize, len: usize) -> HeadPages<'_> {
        HeadPages {
            pages: &self.tables[index],
            len,
        }
    }

    /// Writes random entries to the first `len` slots of head `index`.
    fn fill(&mut self, suite: &mut Suite<'_, B>, index: usize, len: usize) -> Check {
        let (keys, values) = (
            suite.random.values(len * self.dim),
            suite.random.values(len * self.dim),
        );
        let head = HeadPages {
            pages: &self.tables[index],
            len,
        };
        suite
            .backend
            .write_slots(&mut self.pages, head, 0, &keys, &values)
            .named("write_slots")?;
        ReferenceBackend
            .write_slots(&mut self.reference, head, 0, &keys, &values)
            .named("write_slots")
    }

    /// An empty latent memory in both arenas, which give it one id.
    fn latent(&mut self, suite: &Suite<'_, B>, kind: LatentKind, heads: usize) -> Check<LatentId> {
        let id = suite
            .backend
            .alloc_latent(&mut self.pages, kind, heads)
            .named("alloc_latent")?;
        let twin = ReferenceBackend
            .alloc_latent(&mut self.reference, kind, heads)
            .named("alloc_latent")?;
        if id == twin {
            Ok(id)
        } else {
            Err(Failure::Length {
                case: "id".into(),
                got: id.0 as usize,
                want: twin.0 as usize,
            })
        }
    }

    /// Writes one state to both.
    fn write_state(
        &mut self,
        suite: &Suite<'_, B>,
        head: LatentHead,
        state: &LatentState,
    ) -> Check {
        suite
            .backend
            .write_latent(&mut self.pages, head, state)
            .named("write_latent")?;
        ReferenceBackend
            .write_latent(&mut self.reference, head, state)
            .named("write_latent")
    }

    /// Compares the first `len` slots of head `index`.
    fn compare(
        &self,
        suite: &mut Suite<'_, B>,
        case: &str,
        index: usize,
        len: usize,
        allowed: f32,
    ) -> Check {
        let slots: Vec<u32> = (0..len as u32).collect();
        let zeros = vec![0.0; len * self.dim];
        let (mut keys, mut values) = (zeros.clone(), zeros.clone());
        suite
            .backend
            .read_slots(
                &self.pages,
                self.head(index, len),
                &slots,
                &mut keys,
                &mut values,
            )
            .named("read_slots")?;
        let (mut want_keys, mut want_values) = (zeros.clone(), zeros);
        ReferenceBackend
            .read_slots(
                &self.reference,
                self.head(index, len),
                &slots,
                &mut want_keys,
                &mut want_values,
            )
            .named("read_slots")?;
        suite.compare(&format!("{case}, keys"), &keys, &want_keys, allowed)?;
        suite.compare(&format!("{case}, values"), &values, &want_values, 0.0)
    }
}
