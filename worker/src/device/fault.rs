//! Faults that tests ask for.

use std::fmt;
use std::str::FromStr;

/// A fault for tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// What goes wrong.
    pub kind: FaultKind,
    /// In which of the thread's steps, counted from 1.
    pub step: u64,
}

/// What goes wrong in a [`Fault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The thread panics.
    Panic,
    /// The device fails: the step is answered with an error, and no other can follow.
    Loss,
    /// The step takes for ever, unless it is abandoned.
    Stall,
    /// The thread never comes out of the step.
    Hang,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            FaultKind::Panic => "panic",
            FaultKind::Loss => "loss",
            FaultKind::Stall => "stall",
            FaultKind::Hang => "hang",
        };
        write!(f, "{kind}@{}", self.step)
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown =
            || format!("`{text}` is no fault: give panic@STEP, loss@STEP, stall@STEP or hang@STEP");
        let (kind, step) = text.split_once('@').ok_or_else(unknown)?;
        let kind = match kind {
            "panic" => FaultKind::Panic,
            "loss" => FaultKind::Loss,
            "stall" => FaultKind::Stall,
            "hang" => FaultKind::Hang,
            _ => return Err(unknown()),
        };
        let step = step.parse().map_err(|_| unknown())?;
        Ok(Self { kind, step })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_reads_what_it_writes() {
        for text in ["panic@3", "loss@1", "stall@2", "hang@9"] {
            assert_eq!(
                text.parse::<Fault>().map(|it| it.to_string()),
                Ok(text.into())
            );
        }
        for text in ["", "panic", "loss@", "loss@x", "fire@2"] {
            assert!(text.parse::<Fault>().is_err(), "{text}");
        }
    }
}
