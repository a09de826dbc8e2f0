//! What is sent and when: decided before the first request, from a seed, so that a run can be
//! repeated.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution as _, Exp, LogNormal};

/// No request has more tokens than this, whatever a distribution's tail says.
const MAX_TOKENS: u32 = 1 << 22;
/// A schedule is held in memory.
const MAX_REQUESTS: usize = 10_000_000;

/// Why a distribution or a schedule cannot be.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum Error {
    /// No such distribution.
    #[error("`{0}` is not a distribution: give fixed:N, uniform:A-B or lognormal:MEDIAN,SIGMA")]
    Unknown(String),
    /// A distribution with a part that cannot be read.
    #[error("`{0}` has a part that is not a number")]
    NotANumber(String),
    /// The lower end lies above the upper one.
    #[error("uniform:{0}-{1} has its ends the wrong way round")]
    Reversed(u32, u32),
    /// Too few tokens, or too many.
    #[error("a request has between 1 and {MAX_TOKENS} tokens, not {0}")]
    OutOfRange(f64),
    /// No deviation of a logarithm.
    #[error("sigma must be a number from 0 to 10, not {0}")]
    Sigma(f64),
    /// No rate.
    #[error("the rate must be a positive number of requests per second, not {0}")]
    Rate(f64),
    /// Nothing bounds the run.
    #[error("give --requests or --duration, so that the run ends")]
    Endless,
    /// Nothing to send.
    #[error("no request arrives within the duration; raise --rate or --duration")]
    Empty,
    /// More than the generator holds in memory.
    #[error("more than {MAX_REQUESTS} requests; lower --rate, --requests or --duration")]
    TooMany,
}

/// How many tokens a request has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Tokens {
    /// Always as many.
    Fixed(u32),
    /// Both ends included, all equally likely.
    Uniform(u32, u32),
    /// `median * exp(sigma * N(0, 1))`, which has the long tail of real traffic.
    LogNormal {
        /// Half of all requests have fewer.
        median: f64,
        /// Standard deviation of the logarithm.
        sigma: f64,
    },
}

impl Tokens {
    /// One draw, from 1 to `MAX_TOKENS`.
    pub fn sample(self, rng: &mut impl Rng) -> u32 {
        match self {
            Self::Fixed(n) => n,
            Self::Uniform(low, high) => rng.random_range(low..=high),
            Self::LogNormal { median, sigma } => {
                let log_normal =
                    LogNormal::new(median.ln(), sigma).expect("parsing checked median and sigma");
                log_normal
                    .sample(rng)
                    .round()
                    .clamp(1.0, f64::from(MAX_TOKENS)) as u32
            }
        }
    }
}

impl FromStr for Tokens {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let unknown = || Error::Unknown(text.to_string());
        let number = |part: &str| {
            part.trim()
                .parse::<f64>()
                .map_err(|_| Error::NotANumber(text.to_string()))
        };
        let count = |part: &str| -> Result<u32, Error> {
            let n = part
                .trim()
                .parse::<u32>()
                .map_err(|_| Error::NotANumber(text.to_string()))?;
            if (1..=MAX_TOKENS).contains(&n) {
                Ok(n)
            } else {
                Err(Error::OutOfRange(f64::from(n)))
            }
        };
        // A bare number is what most people try first.
        let (kind, rest) = text.split_once(':').unwrap_or(("fixed", text));
        match kind {
            "fixed" => Ok(Self::Fixed(count(rest)?)),
            "uniform" => {
                let (low, high) = rest.split_once('-').ok_or_else(unknown)?;
                let (low, high) = (count(low)?, count(high)?);
                if low <= high {
                    Ok(Self::Uniform(low, high))
                } else {
                    Err(Error::Reversed(low, high))
                }
            }
            "lognormal" => {
                let (median, sigma) = rest.split_once(',').ok_or_else(unknown)?;
                let (median, sigma) = (number(median)?, number(sigma)?);
                if !(1.0..=f64::from(MAX_TOKENS)).contains(&median) {
                    return Err(Error::OutOfRange(median));
                }
                if (0.0..=10.0).contains(&sigma) {
                    Ok(Self::LogNormal { median, sigma })
                } else {
                    Err(Error::Sigma(sigma))
                }
            }
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(n) => write!(f, "fixed:{n}"),
            Self::Uniform(low, high) => write!(f, "uniform:{low}-{high}"),
            Self::LogNormal { median, sigma } => write!(f, "lognormal:{median},{sigma}"),
        }
    }
}

/// One request to come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrival {
    /// Since the start of the run.
    pub at: Duration,
    /// Tokens the prompt should have.
    pub prompt_tokens: u32,
    /// Tokens to ask for.
    pub output_tokens: u32,
    /// Where in the text the prompt begins; random, so that no server answers from a cache of
    /// prefixes.
    pub text_offset: u64,
}

/// What a schedule is drawn from.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Mean arrivals per second.
    pub rate: f64,
    /// Requests at most.
    pub requests: Option<usize>,
    /// No request arrives after this.
    pub duration: Option<Duration>,
    /// Of prompts.
    pub prompt_tokens: Tokens,
    /// Of answers.
    pub output_tokens: Tokens,
    /// Same seed, same schedule.
    pub seed: u64,
}

impl Plan {
    /// All arrivals, in order. Times and sizes come from generators of their own, so that two rates
    /// send the same requests.
    ///
    /// # Errors
    /// When the rate is not positive or nothing bounds the run.
    pub fn arrivals(&self) -> Result<Vec<Arrival>, Error> {
        if !(self.rate.is_finite() && self.rate > 0.0) {
            return Err(Error::Rate(self.rate));
        }
        if self.requests.is_none() && self.duration.is_none() {
            return Err(Error::Endless);
        }
        let gaps = Exp::new(self.rate).map_err(|_| Error::Rate(self.rate))?;
        let mut times = StdRng::seed_from_u64(self.seed);
        let mut sizes = StdRng::seed_from_u64(self.seed ^ 0x9e37_79b9_7f4a_7c15);
        let mut arrivals = Vec::new();
        let mut at = 0.0;
        while self.requests.is_none_or(|n| arrivals.len() < n) {
            at += gaps.sample(&mut times);
            let after = Duration::try_from_secs_f64(at).map_err(|_| Error::Rate(self.rate))?;
            if self.duration.is_some_and(|end| after > end) {
                break;
            }
            if arrivals.len() == MAX_REQUESTS {
                return Err(Error::TooMany);
            }
            arrivals.push(Arrival {
                at: after,
                prompt_tokens: self.prompt_tokens.sample(&mut sizes),
                output_tokens: self.output_tokens.sample(&mut sizes),
                text_offset: sizes.random(),
            });
        }
        if arrivals.is_empty() {
            Err(Error::Empty)
        } else {
            Ok(arrivals)
        }
    }
}

#[cfg(test)]
mod tests;
