//! Value and tensor types of the GGUF format.

use std::fmt;

use palimpsest_kernels::WeightType;

/// Numbers of metadata value types.
pub(crate) struct Scalar;

impl Scalar {
    pub(crate) const TEXT: u32 = 8;
    pub(crate) const ARRAY: u32 = 9;

    /// Bytes of one element; `None` for text, arrays and unknown types.
    pub(crate) const fn size(kind: u32) -> Option<usize> {
        match kind {
            0 | 1 | 7 => Some(1),
            2 | 3 => Some(2),
            4..=6 => Some(4),
            10..=12 => Some(8),
            _ => None,
        }
    }

    /// Name for messages.
    pub(crate) const fn name(kind: u32) -> &'static str {
        match kind {
            0 => "u8",
            1 => "i8",
            2 => "u16",
            3 => "i16",
            4 => "u32",
            5 => "i32",
            6 => "f32",
            7 => "bool",
            Self::TEXT => "text",
            Self::ARRAY => "array",
            10 => "u64",
            11 => "i64",
            12 => "f64",
            _ => "unknown",
        }
    }
}

/// Element type of a stored tensor: one that the kernels read, another one of a known name, or an
/// unknown number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TensorType {
    /// Listed in `GGML_TYPES`: an index into it.
    Known(u8),
    /// A number, or a name of a safetensors type, that is not listed.
    Unknown(u32),
}

/// Number, name, weights per block, bytes per block (ggml's `type_traits`).
const GGML_TYPES: [(u32, &str, usize, usize); 34] = [
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 40),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
];

impl TensorType {
    /// Names of the types that the kernels read, for messages.
    pub(crate) const SUPPORTED: &str = "F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, \
        Q5_K, Q6_K, IQ2_XXS, IQ2_XS, IQ3_XXS, IQ1_S, IQ4_NL, IQ3_S, IQ2_S, IQ4_XS, IQ1_M, BF16, \
        TQ1_0, TQ2_0, MXFP4";

    /// Type of a GGUF type number.
    pub fn from_ggml(number: u32) -> Self {
        match GGML_TYPES.iter().position(|entry| entry.0 == number) {
            Some(index) => Self::Known(index as u8),
            None => Self::Unknown(number),
        }
    }

    /// Type of a name as in [`fmt::Display`].
    pub fn from_name(name: &str) -> Option<Self> {
        GGML_TYPES
            .iter()
            .position(|entry| entry.1 == name)
            .map(|index| Self::Known(index as u8))
    }

    /// The type as the kernels know it, if they do.
    pub fn weight_type(self) -> Option<WeightType> {
        let Self::Known(index) = self else {
            return None;
        };
        Some(match GGML_TYPES[index as usize].1 {
            "F32" => WeightType::F32,
            "F16" => WeightType::F16,
            "BF16" => WeightType::BF16,
            "Q8_0" => WeightType::Q8_0,
            "Q4_0" => WeightType::Q4_0,
            "Q4_1" => WeightType::Q4_1,
            "Q5_0" => WeightType::Q5_0,
            "Q5_1" => WeightType::Q5_1,
            "Q2_K" => WeightType::Q2K,
            "Q3_K" => WeightType::Q3K,
            "Q4_K" => WeightType::Q4K,
            "Q5_K" => WeightType::Q5K,
            "Q6_K" => WeightType::Q6K,
            "IQ1_S" => WeightType::Iq1S,
            "IQ1_M" => WeightType::Iq1M,
            "IQ2_XXS" => WeightType::Iq2Xxs,
            "IQ2_XS" => WeightType::Iq2Xs,
            "IQ2_S" => WeightType::Iq2S,
            "IQ3_XXS" => WeightType::Iq3Xxs,
            "IQ3_S" => WeightType::Iq3S,
            "IQ4_NL" => WeightType::Iq4Nl,
            "IQ4_XS" => WeightType::Iq4Xs,
            "TQ1_0" => WeightType::Tq1_0,
            "TQ2_0" => WeightType::Tq2_0,
            "MXFP4" => WeightType::Mxfp4,
            _ => return None,
        })
    }

    /// Whether a row of `len` weights ends with a block. True for unknown types.
    pub fn fills_blocks(self, len: usize) -> bool {
        match self {
            Self::Known(index) => len.is_multiple_of(GGML_TYPES[index as usize].2),
            Self::Unknown(_) => true,
        }
    }

    /// Bytes of `len` weights; `None` for unknown types, partial blocks and sizes that overflow.
    pub fn bytes(self, len: usize) -> Option<usize> {
        let Self::Known(index) = self else {
            return None;
        };
        let (_, _, weights, bytes) = GGML_TYPES[index as usize];
        if len.is_multiple_of(weights) {
            (len / weights).checked_mul(bytes)
        } else {
            None
        }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(index) => f.write_str(GGML_TYPES[*index as usize].1),
            Self::Unknown(number) => write!(f, "ggml type {number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_agree_with_the_kernels() {
        let mut supported = Vec::new();
        for (number, name, weights, bytes) in GGML_TYPES {
            let dtype = TensorType::from_ggml(number);
            assert_eq!(dtype.to_string(), name);
            if let Some(weight) = dtype.weight_type() {
                let block = weight.block();
                assert_eq!((block.weights, block.bytes), (weights, bytes), "{name}");
                supported.push(name);
            }
        }
        assert_eq!(supported.len(), WeightType::ALL.len());
        assert_eq!(supported.join(", "), TensorType::SUPPORTED);
    }
}
