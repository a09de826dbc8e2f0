//! What requests that run beside each other owe each other.

use clap::Args;
use palimpsest_coordinator::scheduler::Company;

/// What requests that run beside each other owe each other.
#[derive(Debug, Args)]
pub struct PaceArgs {
    /// While a prompt is read, at least two of three gaps between tokens of other answers are at
    /// most this many times as long as where nothing is read.
    #[arg(
        long,
        env = "PALIMPSEST_GAP_FACTOR",
        value_name = "TIMES",
        default_value_t = Company::default().gap,
        value_parser = factor,
        help_heading = "Limits"
    )]
    pub gap_factor: f64,
    /// Beside other answers a prompt is read in at most this many times what it takes alone, as
    /// far as five sixths of the time suffice. Less reads faster and lengthens gaps.
    #[arg(
        long,
        env = "PALIMPSEST_READING_FACTOR",
        value_name = "TIMES",
        default_value_t = Company::default().reading,
        value_parser = factor,
        help_heading = "Limits"
    )]
    pub reading_factor: f64,
}

impl PaceArgs {
    /// What was typed, as the rest of the program takes it.
    pub const fn company(&self) -> Company {
        Company {
            gap: self.gap_factor,
            reading: self.reading_factor,
        }
    }
}

/// A factor over what something takes alone.
fn factor(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if number.is_finite() && number > 1.0 {
        return Ok(number);
    }
    Err("it must be more than 1, which is the time alone".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        pace: PaceArgs,
    }

    #[test]
    fn factors_are_more_than_one() {
        let parse = |flags: &[&str]| Flags::try_parse_from([&["test"], flags].concat());
        let defaults = parse(&[]).unwrap().pace.company();
        assert_eq!(defaults, palimpsest_coordinator::Config::default().company);
        let asked = parse(&["--gap-factor", "2", "--reading-factor", "1.25"]).unwrap();
        let expected = Company {
            gap: 2.0,
            reading: 1.25,
        };
        assert_eq!(asked.pace.company(), expected);
        for flag in ["--gap-factor", "--reading-factor"] {
            for bad in ["1", "0", "-3", "inf", "NaN", "fast"] {
                let error = parse(&[&format!("{flag}={bad}")]).unwrap_err();
                assert!(error.to_string().contains(flag), "{error}");
            }
        }
    }
}
