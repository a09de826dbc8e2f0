//! When requests are sent, and how long they are: drawn before the first one is sent, so that nothing the server does moves
//! them.

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution as _, Exp, LogNormal, Uniform};
use std::str::FromStr;
use std::time::Duration;

/// A length in tokens, drawn for each request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Lengths {
    /// Always the same.
    Fixed(u32),
    /// Any of a range, ends included.
    Uniform(u32, u32),
    /// Most are near the median, some are very long. `sigma` is of the logarithm.
    LogNormal {
        /// Median.
        median: u32,
        /// Standard deviation of the logarithm.
        sigma: f64,
    },
}

impl FromStr for Lengths {
    type Err = String;

    /// `512`, `100-2000` or `lognormal:512,0.8`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no length: write 512, 100-2000 or lognormal:512,0.8");
        let number = |text: &str| text.trim().parse::<u32>().ok().filter(|&n| n > 0).ok_or_else(wrong);
        if let Some(rest) = text.strip_prefix("lognormal:") {
            let (median, sigma) = rest.split_once(',').ok_or_else(wrong)?;
            let sigma = sigma.trim().parse::<f64>().ok().filter(|s| (0.0..=5.0).contains(s)).ok_or_else(wrong)?;
            return Ok(Self::LogNormal { median: number(median)?, sigma });
        }
        match text.split_once('-') {
            Some((low, high)) => {
                let (low, high) = (number(low)?, number(high)?);
                if low <= high { Ok(Self::Uniform(low, high)) } else { Err(wrong()) }
            }
            None => Ok(Self::Fixed(number(text)?)),
        }
    }
}

impl Lengths {
    fn draw(self, random: &mut StdRng) -> u32 {
        match self {
            Self::Fixed(length) => length,
            Self::Uniform(low, high) => Uniform::new_inclusive(low, high).map_or(low, |range| range.sample(random)),
            Self::LogNormal { median, sigma } => {
                let drawn =
                    LogNormal::new(f64::from(median).ln(), sigma).map_or(f64::from(median), |d| d.sample(random));
                drawn.round().clamp(1.0, f64::from(u32::MAX)) as u32
            }
        }
    }
}

/// One request to come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrival {
    /// From the start of the run.
    pub at: Duration,
    /// Tokens of its prompt, about.
    pub prompt_tokens: u32,
    /// Tokens of its answer.
    pub output_tokens: u32,
}

/// Arrivals of a Poisson process of `rate` per second.
pub fn poisson(rate: f64, count: usize, lengths: (Lengths, Lengths), seed: u64) -> Vec<Arrival> {
    let mut random = StdRng::seed_from_u64(seed);
    let gaps = Exp::new(rate).ok();
    let mut at = 0.0;
    let mut next = || {
        at += gaps.map_or(0.0, |gaps| gaps.sample(&mut random));
        Arrival {
            at: Duration::from_secs_f64(at),
            prompt_tokens: lengths.0.draw(&mut random),
            output_tokens: lengths.1.draw(&mut random),
        }
    };
    (0..count).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_and_drawn_within_their_range() {
        assert_eq!("512".parse(), Ok(Lengths::Fixed(512)));
        assert_eq!("10-20".parse(), Ok(Lengths::Uniform(10, 20)));
        assert_eq!("lognormal:512,0.8".parse(), Ok(Lengths::LogNormal { median: 512, sigma: 0.8 }));
        for bad in ["", "0", "20-10", "x", "lognormal:5", "lognormal:5,-1", "lognormal:0,1"] {
            assert!(bad.parse::<Lengths>().is_err(), "{bad}");
        }
        let mut random = StdRng::seed_from_u64(1);
        let drawn: Vec<u32> = (0..1000).map(|_| Lengths::Uniform(10, 20).draw(&mut random)).collect();
        assert_eq!((drawn.iter().min(), drawn.iter().max()), (Some(&10), Some(&20)));
        let mut drawn: Vec<u32> =
            (0..1001).map(|_| Lengths::LogNormal { median: 512, sigma: 0.8 }.draw(&mut random)).collect();
        drawn.sort_unstable();
        assert!((460..570).contains(&drawn[500]), "{}", drawn[500]);
    }

    #[test]
    fn arrivals_are_poisson_and_the_same_for_a_seed() {
        let lengths = (Lengths::Fixed(5), Lengths::Fixed(6));
        let arrivals = poisson(50.0, 5000, lengths, 7);
        assert_eq!(arrivals, poisson(50.0, 5000, lengths, 7));
        assert_ne!(arrivals[0], poisson(50.0, 1, lengths, 8)[0]);
        assert!(arrivals.windows(2).all(|pair| pair[0].at <= pair[1].at));
        let total = arrivals[4999].at.as_secs_f64();
        assert!((95.0..105.0).contains(&total), "5000 arrivals at 50 per second took {total} s");
        // Of exponential gaps a share of 1/e is longer than the mean.
        let long = arrivals.windows(2).filter(|p| (p[1].at - p[0].at).as_secs_f64() > 1.0 / 50.0).count();
        assert!((1700..1980).contains(&long), "{long}");
    }
}
