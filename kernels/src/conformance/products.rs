//! Cases of weight matrices and products with them.

use super::report::Failure;
use super::suite::{Check, Named, Suite, refused};
use crate::backend::{Products, WeightType, WeightView};
use crate::fixed;
use crate::quant::{GROUP, random_blocks};
use crate::reference::{ReferenceBackend, ReferenceMatrix};

impl<B: Products> Suite<'_, B> {
    /// Cases of [`Products`]: every weight type, alone and stacked.
    ///
    /// # Errors
    /// The [`Failure`] that ended the part; values that differ are told by [`Suite::finish`].
    pub fn products(&mut self) -> Result<(), Failure> {
        for (number, dtype) in WeightType::ALL.into_iter().enumerate() {
            let block = dtype.block().weights;
            let larger = [(37, 256), (48, 576usize.next_multiple_of(block))];
            // One of these is enough for each type: some devices are slow.
            for (rows, cols) in [(1, block), (5, 3 * block), larger[number % 2]] {
                check(self, &[Part { dtype, rows }], cols, 0)?;
            }
            // A shard that begins and ends within blocks.
            if block > GROUP {
                check(
                    self,
                    &[Part { dtype, rows: 11 }],
                    block + 3 * GROUP,
                    2 * GROUP,
                )?;
            }
        }
        let part = |dtype, rows| Part { dtype, rows };
        let three = [
            part(WeightType::Q8_0, 24),
            part(WeightType::F16, 7),
            part(WeightType::Q4_1, 9),
        ];
        check(self, &three, 64, 0)?;
        let two = [part(WeightType::Q4K, 33), part(WeightType::Q6K, 16)];
        check(self, &two, 512, 0)?;
        refusals(self)
    }
}

/// One of the matrices that are stacked.
#[derive(Clone, Copy)]
struct Part {
    dtype: WeightType,
    rows: usize,
}

/// Prints as its type and its rows do, so that cases keep their names.
impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (self.dtype, self.rows).fmt(f)
    }
}

/// One matrix on both backends.
struct Twins<B: Products> {
    name: String,
    matrix: B::Matrix,
    reference: ReferenceMatrix,
    /// Rows of the matrix.
    outputs: usize,
    cols: usize,
    /// Largest difference of a product.
    allowed: f32,
}

/// Loads a random matrix, whose rows begin with `skip` weights that are not its own, and runs all
/// cases of it.
fn check<B: Products>(suite: &mut Suite<'_, B>, parts: &[Part], cols: usize, skip: usize) -> Check {
    let twins = load(suite, parts, cols, skip)?;
    embed(suite, &twins)?;
    matmul(suite, &twins)?;
    units(suite, &twins)
}

/// `load_matrix`.
fn load<B: Products>(
    suite: &mut Suite<'_, B>,
    parts: &[Part],
    cols: usize,
    skip: usize,
) -> Check<Twins<B>> {
    let bytes: Vec<Vec<u8>> = parts
        .iter()
        .map(|part| {
            let stored = (skip + cols).next_multiple_of(part.dtype.block().weights);
            random_blocks(part.dtype, part.rows * stored, || suite.random.next())
        })
        .collect();
    let views: Vec<WeightView<'_>> = parts
        .iter()
        .zip(&bytes)
        .map(|(part, bytes)| WeightView {
            skip,
            ..WeightView::new(part.dtype, part.rows, cols, bytes)
        })
        .collect();
    let name = match skip {
        0 => format!("{parts:?} x {cols}"),
        _ => format!("{parts:?} x {cols} from {skip}"),
    };
    let case = format!("load_matrix {name}");
    let quantised = parts.iter().any(|part| part.dtype.block().weights > 1);
    Ok(Twins {
        name,
        matrix: suite.backend.load_matrix(&views).named(&case)?,
        reference: ReferenceBackend.load_matrix(&views).named(&case)?,
        outputs: parts.iter().map(|part| part.rows).sum(),
        cols,
        allowed: if quantised {
            suite.tolerance.matmul_quantised
        } else {
            suite.tolerance.matmul
        },
    })
}

/// `embed`.
fn embed<B: Products>(suite: &mut Suite<'_, B>, twins: &Twins<B>) -> Check {
    let case = format!("embed {}", twins.name);
    let ids: Vec<u32> = (0..twins.outputs.min(9))
        .map(|_| suite.random.below(twins.outputs) as u32)
        .collect();
    let mut want = vec![0.0; ids.len() * twins.cols];
    let mut out = suite.backend.alloc(want.len()).named(&case)?;
    ReferenceBackend
        .embed(&twins.reference, &ids, &mut want)
        .named(&case)?;
    suite
        .backend
        .embed(&twins.matrix, &ids, &mut out)
        .named(&case)?;
    let got = suite.download(&out, want.len())?;
    suite.compare(&case, &got, &want, suite.tolerance.embed)?;
    let missing = [twins.outputs as u32];
    refused(
        &format!("{case}, id out of range"),
        suite.backend.embed(&twins.matrix, &missing, &mut out),
    )
}

/// `matmul`.
fn matmul<B: Products>(suite: &mut Suite<'_, B>, twins: &Twins<B>) -> Check {
    let (outputs, cols) = (twins.outputs, twins.cols);
    for (rows, with_bias) in [(1, false), (2, true), (7, false), (33, true)] {
        let case = format!("matmul {rows} x {}, bias {with_bias}", twins.name);
        let x = suite.random.values(rows * cols);
        let bias = with_bias.then(|| suite.random.values(outputs));
        let mut want = vec![0.0; rows * outputs];
        ReferenceBackend
            .matmul(&twins.reference, &x, rows, bias.as_ref(), &mut want)
            .named(&case)?;
        let x = suite.upload(&x)?;
        let bias = bias.map(|bias| suite.upload(&bias)).transpose()?;
        let mut out = suite.backend.alloc(rows * outputs).named(&case)?;
        suite
            .backend
            .matmul(&twins.matrix, &x, rows, bias.as_ref(), &mut out)
            .named(&case)?;
        let got = suite.download(&out, want.len())?;
        suite.compare_scaled(&case, &got, &want, twins.allowed, scale(&want, cols))?;
    }
    Ok(())
}

/// What differences of a product are divided by: the root mean square. Of a single output that says
/// little: then what random values of this length give.
fn scale(product: &[f32], cols: usize) -> f32 {
    let squares = product.iter().map(|x| x * x).sum::<f32>();
    (squares / product.len().max(1) as f32)
        .sqrt()
        .max((cols as f32).sqrt())
}

/// `matmul_units`, and `matmul_share` of a rank that is alone.
fn units<B: Products>(suite: &mut Suite<'_, B>, twins: &Twins<B>) -> Check {
    let (outputs, cols) = (twins.outputs, twins.cols);
    for rows in [0, 1, 6] {
        let case = format!("matmul_units {rows} x {}", twins.name);
        // Ragged units, one of them cut through a block.
        let mut ends = vec![cols / 3, cols / 2, cols];
        ends.dedup();
        ends.retain(|&end| end > 0);
        let x = suite.random.values(rows * cols);
        let mut want = vec![0.0; rows * outputs];
        ReferenceBackend
            .matmul_units(&twins.reference, &x, rows, &ends, &mut want)
            .named(&case)?;
        let x = suite.upload(&x)?;
        let mut out = suite.backend.alloc(rows * outputs).named(&case)?;
        suite
            .backend
            .matmul_units(&twins.matrix, &x, rows, &ends, &mut out)
            .named(&case)?;
        let got = suite.download(&out, want.len())?;
        let rms = scale(&want, cols);
        suite.compare_scaled(&case, &got, &want, twins.allowed, rms)?;

        let mut share = vec![-1; rows * outputs];
        suite
            .backend
            .matmul_share(&twins.matrix, &x, rows, &ends, &mut share)
            .named(&case)?;
        let share: Vec<f32> = share.into_iter().map(fixed::to_f32).collect();
        let as_share = format!("{case}, as a share");
        suite.compare_scaled(&as_share, &share, &got, fixed::STEP as f32, 1.0)?;

        let mut refuse = |mistake: &str, ends: &[usize]| {
            let product = suite
                .backend
                .matmul_units(&twins.matrix, &x, rows, ends, &mut out);
            refused(&format!("{case}, {mistake}"), product)
        };
        refuse("units of too few columns", &ends[..ends.len() - 1])?;
        refuse("units out of order", &[cols, 0, cols])?;
    }
    Ok(())
}

/// Shapes that do not fit are refused.
fn refusals<B: Products>(suite: &mut Suite<'_, B>) -> Check {
    let backend = suite.backend;
    let bytes = vec![0; 4 * 34];
    let view = |rows, cols, bytes| WeightView::new(WeightType::Q8_0, rows, cols, bytes);
    refused(
        "matrix of too few bytes",
        backend.load_matrix(&[view(4, 32, &bytes[1..])]),
    )?;
    refused(
        "matrix of half blocks",
        backend.load_matrix(&[view(8, 16, &bytes)]),
    )?;
    let half_a_group = WeightView {
        skip: 16,
        ..view(4, 32, &bytes)
    };
    refused(
        "matrix that begins within a group",
        backend.load_matrix(&[half_a_group]),
    )?;
    refused(
        "stack of different widths",
        backend.load_matrix(&[view(4, 32, &bytes), view(2, 64, &bytes)]),
    )?;
    let matrix = backend
        .load_matrix(&[view(4, 32, &bytes)])
        .named("load_matrix")?;
    let (ten, mut out) = (suite.upload(&[0.0; 10])?, suite.upload(&[0.0; 10])?);
    refused(
        "matmul of too few inputs",
        backend.matmul(&matrix, &ten, 1, None, &mut out),
    )
}
