//! Rotary position embeddings: how fast each pair of a head turns, and how contexts beyond the
//! pre-trained one stretch that.
//!
//! What a position does to a key never depends on how long the sequence is: keys stay in the cache
//! while it grows, so a rule that changed with the present length would make the state another
//! function of the same tokens. Two published rules do change with it. [`RopeScaling::LongRope`]
//! takes the factors of the declared context. Dynamic NTK stretches beyond the trained length
//! alone, where positions are compacted; within it its frequencies are those of
//! [`RopeScaling::None`].

use std::f64::consts::PI;

use super::checks::{ConfigError, positive, within};

/// How rotary frequencies are stretched for contexts beyond the pre-trained one.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, the middle interpolated.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length of pre-training, in tokens.
        original_context: f64,
    },
    /// A divisor per frequency, `[R/2]` (GGUF's `rope_freqs.weight`).
    Factors(Vec<f32>),
    /// See [`Yarn`].
    Yarn(Yarn),
    /// See [`LongRope`].
    LongRope(LongRope),
}

/// YaRN (Peng et al., arXiv 2309.00071): pairs that turn often within the pre-trained context keep
/// their frequency, those that turn less than once have it divided, a ramp lies between.
#[derive(Debug, Clone, PartialEq)]
pub struct Yarn {
    /// Divisor of low frequencies.
    pub factor: f64,
    /// Context length of pre-training, in tokens.
    pub original_context: f64,
    /// Turns within the pre-trained context from which on a pair keeps its frequency.
    pub beta_fast: f64,
    /// Turns up to which its frequency is divided.
    pub beta_slow: f64,
    /// Whether the ends of the ramp are rounded to whole pairs.
    pub truncate: bool,
    /// What rotated queries and keys are multiplied with.
    pub attention_factor: f64,
}

impl Yarn {
    /// The paper's attention factor for a context stretched `factor` times: `0.1 ln(factor) + 1`.
    pub fn paper_attention(factor: f64) -> f64 {
        Self::attention(factor, 1.0)
    }

    /// `0.1 mscale ln(factor) + 1`, as DeepSeek weighs it.
    pub fn attention(factor: f64, mscale: f64) -> f64 {
        if factor <= 1.0 {
            1.0
        } else {
            0.1 * mscale * factor.ln() + 1.0
        }
    }

    /// Frequency of pair `index` of `pairs`, whose unstretched one is `frequency`.
    fn scaled(&self, index: usize, rope: &Rope, frequency: f64) -> f64 {
        let dims = rope.rotary_dim as f64;
        // The pair, as a fraction, that turns so often within the pre-trained context.
        let pair = |turns: f64| {
            dims * (self.original_context / (turns * 2.0 * PI)).ln() / (2.0 * rope.theta.ln())
        };
        let (low, high) = (pair(self.beta_fast), pair(self.beta_slow));
        let (low, high) = if self.truncate {
            (low.floor(), high.ceil())
        } else {
            (low, high)
        };
        let (low, mut high) = (low.max(0.0), high.min(dims - 1.0));
        if low == high {
            high += 0.001;
        }
        let divided = ((index as f64 - low) / (high - low)).clamp(0.0, 1.0);
        frequency / self.factor * divided + frequency * (1.0 - divided)
    }
}

/// LongRoPE (Ding et al., arXiv 2402.13753), as Phi has it: a divisor for each frequency, found by
/// search.
///
/// A model has two lists of them, for contexts up to the pre-trained one and for longer ones. Which
/// one counts is decided once, by the context that the model declares: a key that was turned by one
/// list cannot be read by queries turned by the other.
#[derive(Debug, Clone, PartialEq)]
pub struct LongRope {
    /// Divisors `[R/2]`.
    pub factors: Vec<f32>,
    /// What rotated queries and keys are multiplied with.
    pub attention_factor: f64,
}

impl LongRope {
    /// The attention factor for a context of `context` tokens after pre-training on
    /// `original_context`: `sqrt(1 + ln(context / original) / ln(original))`.
    pub fn paper_attention(context: f64, original_context: f64) -> f64 {
        let stretched = context / original_context;
        if stretched <= 1.0 {
            1.0
        } else {
            (1.0 + stretched.ln() / original_context.ln()).sqrt()
        }
    }
}

/// Rotary position embedding, GPT-NeoX halves: value `i` of a head pairs with `i + D/2`. Where only
/// `R` of its `D` values are rotated, weights are ordered such that the pairs below `R/2` turn and
/// the others stand still.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Their stretching.
    pub scaling: RopeScaling,
    /// `D`.
    pub head_dim: usize,
    /// `R`: values of a head that are rotated.
    pub rotary_dim: usize,
}

/// What rows are turned by: angles per token and lengths of the pairs of a head.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Angle per token of each pair, `[D/2]`; 0 where a pair stands still.
    pub inv_freq: Vec<f32>,
    /// What each pair is multiplied with, `[D/2]`.
    pub scale: Vec<f32>,
}

impl Rotary {
    /// No pair turns: a layer without positions.
    pub fn still(head_dim: usize) -> Self {
        Self {
            inv_freq: vec![0.0; head_dim / 2],
            scale: vec![1.0; head_dim / 2],
        }
    }
}

impl Rope {
    /// Angle per token of each pair, `[D/2]`: `theta^(-2i/R)`, then scaled as transformers 4.57
    /// does (`modeling_rope_utils.py`), 0 where a pair stands still. Computed in f64 and rounded
    /// once.
    pub fn inv_freq(&self) -> Vec<f32> {
        self.rotary().inv_freq
    }

    /// Angles and lengths of all pairs.
    pub fn rotary(&self) -> Rotary {
        let mut rotary = Rotary::still(self.head_dim);
        for i in 0..self.rotary_dim / 2 {
            let frequency = self.theta.powf(-2.0 * i as f64 / self.rotary_dim as f64);
            rotary.inv_freq[i] = self.scaled(i, frequency) as f32;
            rotary.scale[i] = self.attention_factor() as f32;
        }
        rotary
    }

    fn attention_factor(&self) -> f64 {
        match &self.scaling {
            RopeScaling::Yarn(yarn) => yarn.attention_factor,
            RopeScaling::LongRope(long) => long.attention_factor,
            _ => 1.0,
        }
    }

    fn scaled(&self, index: usize, frequency: f64) -> f64 {
        match &self.scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Factors(factors) => frequency / f64::from(factors[index]),
            RopeScaling::LongRope(long) => frequency / f64::from(long.factors[index]),
            RopeScaling::Yarn(yarn) => yarn.scaled(index, self, frequency),
            &RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => {
                let wavelength = 2.0 * PI / frequency;
                if wavelength > original_context / low_freq_factor {
                    frequency / factor
                } else if wavelength < original_context / high_freq_factor {
                    frequency
                } else {
                    let smooth = (original_context / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }

    /// Checks every number, and that angles are numbers.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        self.check_numbers()?;
        let angles = self.rotary().inv_freq.into_iter();
        for angle in angles.take(self.rotary_dim / 2) {
            let is_number = angle.is_finite() && angle >= 0.0;
            positive(
                "the angle of a token",
                if is_number { 1.0 } else { angle.into() },
                1e12,
            )?;
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<(), ConfigError> {
        positive("the rope base", self.theta, 1e12)?;
        within(
            "the rotated part of a head",
            self.rotary_dim,
            2,
            self.head_dim,
        )?;
        super::multiple("the rotated part of a head", self.rotary_dim, "two", 2)?;
        match &self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => positive("the rope scaling factor", *factor, 1e6),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => {
                positive("the rope scaling factor", *factor, 1e6)?;
                positive("low_freq_factor", *low_freq_factor, 1e6)?;
                let difference = high_freq_factor - low_freq_factor;
                positive("high_freq_factor - low_freq_factor", difference, 1e6)?;
                positive("original_max_position_embeddings", *original_context, 1e9)
            }
            RopeScaling::Factors(factors) => self.check_factors(factors),
            RopeScaling::LongRope(long) => {
                positive("the rope attention factor", long.attention_factor, 1e3)?;
                self.check_factors(&long.factors)
            }
            RopeScaling::Yarn(yarn) => {
                positive("the rope scaling factor", yarn.factor, 1e6)?;
                positive(
                    "original_max_position_embeddings",
                    yarn.original_context,
                    1e9,
                )?;
                positive("beta_fast", yarn.beta_fast, 1e6)?;
                positive("beta_slow", yarn.beta_slow, 1e6)?;
                positive("the rope base less 1", self.theta - 1.0, 1e12)?;
                positive("the rope attention factor", yarn.attention_factor, 1e3)
            }
        }
    }

    fn check_factors(&self, factors: &[f32]) -> Result<(), ConfigError> {
        let pairs = self.rotary_dim / 2;
        within("the number of rope factors", factors.len(), pairs, pairs)?;
        for &factor in factors {
            positive("a rope factor", f64::from(factor), 1e9)?;
        }
        Ok(())
    }
}
