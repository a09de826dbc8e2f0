//! Every quantised type of GGUF against the weights that llama.cpp's authors read in it, bit for
//! bit. `tests/oracle/make_dequantized.py` wrote the files.

use std::path::Path;

use palimpsest_kernels::parts::*;
use palimpsest_kernels::reference::ReferenceBackend;
use palimpsest_kernels::{BlockSize, WeightType, WeightView, dequantize};

/// Blocks of a type, and their weights.
struct Known {
    blocks: Vec<u8>,
    weights: Vec<f32>,
}

/// The file of a type; `None` for types in floating point.
fn known(dtype: WeightType) -> Option<Known> {
    let name = match dtype {
        WeightType::F32 | WeightType::F16 | WeightType::BF16 => return None,
        WeightType::Q8_0 => "Q8_0",
        WeightType::Q4_0 => "Q4_0",
        WeightType::Q4_1 => "Q4_1",
        WeightType::Q5_0 => "Q5_0",
        WeightType::Q5_1 => "Q5_1",
        WeightType::Q2K => "Q2_K",
        WeightType::Q3K => "Q3_K",
        WeightType::Q4K => "Q4_K",
        WeightType::Q5K => "Q5_K",
        WeightType::Q6K => "Q6_K",
        WeightType::Iq1S => "IQ1_S",
        WeightType::Iq1M => "IQ1_M",
        WeightType::Iq2Xxs => "IQ2_XXS",
        WeightType::Iq2Xs => "IQ2_XS",
        WeightType::Iq2S => "IQ2_S",
        WeightType::Iq3Xxs => "IQ3_XXS",
        WeightType::Iq3S => "IQ3_S",
        WeightType::Iq4Nl => "IQ4_NL",
        WeightType::Iq4Xs => "IQ4_XS",
        WeightType::Tq1_0 => "TQ1_0",
        WeightType::Tq2_0 => "TQ2_0",
        WeightType::Mxfp4 => "MXFP4",
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/dequantized");
    let bytes = std::fs::read(folder.join(format!("{name}.bin"))).expect("a file for each type");
    let BlockSize {
        weights,
        bytes: size,
    } = dtype.block();
    let count = bytes.len() / (size + 4 * weights);
    assert_eq!(count * (size + 4 * weights), bytes.len(), "{name}");
    let (blocks, floats) = bytes.split_at(count * size);
    let float = |b: &[u8; 4]| f32::from_le_bytes(*b);
    Some(Known {
        blocks: blocks.to_vec(),
        weights: floats.as_chunks::<4>().0.iter().map(float).collect(),
    })
}

#[test]
fn weights_have_the_bits_of_llama_cpp() {
    let mut types = 0;
    for dtype in WeightType::ALL {
        let Some(Known { blocks, weights }) = known(dtype) else {
            continue;
        };
        let mut out = vec![f32::NAN; weights.len()];
        dequantize(dtype, &blocks, &mut out).expect("whole blocks");
        for (i, (got, want)) in out.iter().zip(&weights).enumerate() {
            assert_eq!(got.to_bits(), want.to_bits(), "{dtype:?} {i}: {got} {want}");
        }
        types += 1;
    }
    assert_eq!(types, WeightType::ALL.len() - 3);
}

/// The reference multiplies with the same weights, from whichever group of a row on.
#[test]
fn the_reference_has_these_weights_too() {
    for dtype in WeightType::ALL {
        let Some(Known { blocks, weights }) = known(dtype) else {
            continue;
        };
        let len = weights.len();
        for (skip, cols) in [(0, len), (len.min(dtype.block().weights) - 32, 32)] {
            let block = dtype.block();
            let stored = (skip + cols).div_ceil(block.weights) * block.bytes;
            let view = WeightView {
                skip,
                ..WeightView::new(dtype, 1, cols, &blocks[..stored])
            };
            let matrix = ReferenceBackend.load_matrix(&[view]).expect("a matrix");
            let mut row = vec![f32::NAN; cols];
            ReferenceBackend
                .embed(&matrix, &[0], &mut row)
                .expect("its only row");
            let want = &weights[skip..][..cols];
            let same = |(a, b): (&f32, &f32)| a == b || a.is_nan() && b.is_nan();
            assert!(row.iter().zip(want).all(same), "{dtype:?} from {skip}");
        }
    }
}
