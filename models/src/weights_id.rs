//! A name of weights that is made of their bytes.

use std::fmt;
use std::str::FromStr;

/// What tells weights from all others: a digest of the files that hold them. It is written as 32
/// hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WeightsId(pub u128);

/// A text that names no weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the 32 hexadecimal digits that name weights")]
pub struct BadWeightsId;

impl fmt::Display for WeightsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for WeightsId {
    type Err = BadWeightsId;

    fn from_str(text: &str) -> Result<Self, BadWeightsId> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 32 || !text.bytes().all(is_digit) {
            return Err(BadWeightsId);
        }
        let number = u128::from_str_radix(text, 16).map_err(|_| BadWeightsId)?;
        Ok(Self(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written() {
        for number in [0, 7, u128::MAX] {
            let id = WeightsId(number);
            assert_eq!(id.to_string().len(), 32);
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        for bad in [
            "",
            "7",
            "+0000000000000000000000000000007",
            &"A".repeat(32),
            &"0".repeat(33),
        ] {
            assert_eq!(bad.parse::<WeightsId>(), Err(BadWeightsId), "{bad}");
        }
    }
}
