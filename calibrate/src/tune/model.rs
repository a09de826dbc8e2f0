//! The model whose scorers are tuned: a second implementation of the decoder, in f32 by candle.
//!
//! The engine's decoder is the one that serves. It has no backward pass, and should have none:
//! tuning needs the slope of a loss at every layer's input, which takes all operations in a library
//! that differentiates them. The model's own weights get no gradients here, and no cache, policy or
//! quantised product of the engine is repeated: weights are dequantised once, and [`super::pass`]
//! does what the cache would.
//!
//! Two tests hold the two decoders together. Both compare logits with the same golden values of
//! Hugging Face transformers, for every architecture and file format:
//! `the_model_is_that_of_transformers_when_nothing_goes` in `tune/tests.rs` this one, and
//! all of `tests/tests/parity.rs` the engine's.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Device, Layout, Result, Shape, Tensor};
use palimpsest_kernels::Backend;
use palimpsest_kernels::cpu::{SimdLevel, sigmoids};
use palimpsest_models::config::{ModelConfig, Rotary};
use palimpsest_models::part::Part;
use palimpsest_models::weight_data::WeightData;
use palimpsest_models::weights::{FeedForwardWeights, LayerWeights, Weights};
use rayon::prelude::*;

/// A matrix `[N, M]` that no gradient is taken of, and its bias `[N]`.
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// `x Wᵀ + b`: `[n, M]` to `[n, N]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.apply_op1(Product(self.weight.clone()))?;
        self.bias
            .as_ref()
            .map_or(Ok(y.clone()), |bias| y.broadcast_add(bias))
    }
}

/// candle's own product takes gradients of both sides, which for fixed weights is half the work of
/// the backward pass for nothing.
struct Product(Tensor);

impl CustomOp1 for Product {
    fn name(&self) -> &'static str {
        "product with fixed weights"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = Tensor::from_slice(contiguous(storage, layout)?, layout.shape(), &Device::Cpu)?;
        let y = x.matmul(&self.0.t()?)?;
        Ok((CpuStorage::F32(values(&y)?), y.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, slope: &Tensor) -> Result<Option<Tensor>> {
        slope.matmul(&self.0).map(Some)
    }
}

/// `silu(gate) * up`: candle's own `silu` runs on one thread, value by value.
struct SiluMul;

impl SiluMul {
    /// Values that a thread takes at a time.
    const PART: usize = 1 << 14;

    fn sigmoids(gate: &[f32]) -> Vec<f32> {
        let (level, mut values) = (SimdLevel::detect(), gate.to_vec());
        values
            .par_chunks_mut(Self::PART)
            .for_each(|values| sigmoids(level, values));
        values
    }
}

impl CustomOp2 for SiluMul {
    fn name(&self) -> &'static str {
        "silu times"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        of_gate: &Layout,
        up: &CpuStorage,
        of_up: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (contiguous(gate, of_gate)?, contiguous(up, of_up)?);
        let mut out = Self::sigmoids(gate);
        let parts = out
            .par_chunks_mut(Self::PART)
            .zip(gate.par_chunks(Self::PART))
            .zip(up.par_chunks(Self::PART));
        parts.for_each(|((out, gate), up)| {
            out.iter_mut()
                .zip(gate)
                .zip(up)
                .for_each(|((out, gate), up)| *out *= gate * up);
        });
        Ok((CpuStorage::F32(out), of_gate.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        slope: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (gates, mut of_gate, mut of_up) = (values(gate)?, values(up)?, values(slope)?);
        let shares = Self::sigmoids(&gates);
        let parts = of_gate
            .par_chunks_mut(Self::PART)
            .zip(of_up.par_chunks_mut(Self::PART));
        let fixed = shares
            .par_chunks(Self::PART)
            .zip(gates.par_chunks(Self::PART));
        parts
            .zip(fixed)
            .for_each(|((of_gate, of_up), (shares, gates))| {
                let slopes = of_gate.iter_mut().zip(of_up).zip(shares.iter().zip(gates));
                slopes.for_each(|((up, slope), (share, gate))| {
                    let silu = share * gate;
                    (*up, *slope) = (*slope * *up * (share + silu * (1.0 - share)), *slope * silu);
                });
            });
        let tensor = |values| Tensor::from_vec(values, gate.shape(), &Device::Cpu).map(Some);
        Ok((tensor(of_gate)?, tensor(of_up)?))
    }
}

/// All values of a tensor, row by row.
pub(super) fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

/// The values of a tensor that lies in one piece.
pub(super) fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let values = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => candle_core::bail!(
            "a tensor of shape {:?} does not lie in one piece",
            layout.shape()
        ),
    }
}

/// One decoder layer.
pub struct LayerModel {
    attn_norm: Tensor,
    q: Linear,
    k: Linear,
    v: Linear,
    q_norm: Option<Tensor>,
    k_norm: Option<Tensor>,
    o: Linear,
    ffn_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// A model with fixed weights.
pub struct Model {
    /// Its shape.
    pub config: ModelConfig,
    /// Its layers.
    pub layers: Vec<LayerModel>,
    embedding: Tensor,
    final_norm: Tensor,
    /// `None`: tied to the embedding.
    head: Option<Linear>,
    rotary: Rotary,
}

/// Rotary angles of some positions.
pub struct Angles {
    /// Cosines `[n, 1, D/2]`.
    cos: Tensor,
    /// Sines `[n, 1, D/2]`.
    sin: Tensor,
}

/// What a layer's attention works with: the normalised hidden states `[n, E]`, queries `[K, g, n,
/// D]` and keys and values `[2, K, n, D]`, queries and keys rotated.
pub struct Projected {
    /// What scorers see.
    pub hidden: Tensor,
    /// Queries by KV head.
    pub queries: Tensor,
    /// Keys and values.
    pub entries: Tensor,
}

impl Model {
    /// Dequantises all weights: 4 bytes for each.
    ///
    /// # Errors
    /// Those of the weights and of the kernels, and of [`check`].
    pub fn load<B: Backend>(backend: &B, weights: &Weights) -> crate::Result<Self> {
        let config = weights.config().clone();
        check(&config)?;
        let whole = Part::whole(&config);
        let matrix = |data: WeightData<'_>| dequantised(backend, &data);
        let layer = |index| {
            let layer = weights.layer(index, &whole).map_err(worker)?;
            LayerModel::load(&matrix, layer)
        };
        let head = weights.output(&whole).map_err(worker)?;
        Ok(Self {
            layers: (0..config.layers)
                .map(layer)
                .collect::<crate::Result<_>>()?,
            embedding: matrix(weights.embedding(&whole).map_err(worker)?)?,
            final_norm: vector(weights.final_norm().map_err(worker)?)?,
            head: head
                .map(|data| {
                    Ok::<_, crate::Error>(Linear {
                        weight: matrix(data)?,
                        bias: None,
                    })
                })
                .transpose()?,
            rotary: config.rope.rotary(),
            config,
        })
    }

    /// Embeddings `[n, E]`.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        self.embedding
            .index_select(&Tensor::new(ids, &Device::Cpu)?, 0)
    }

    /// Rotary angles of positions.
    pub fn angles(&self, positions: std::ops::Range<usize>) -> Result<Angles> {
        let mut angles = palimpsest_engine::rope::Angles::default();
        let shape = (positions.len(), 1, self.rotary.inv_freq.len());
        angles.fill(positions.map(|p| p as u64), &self.rotary);
        Ok(Angles {
            cos: Tensor::from_vec(angles.cos, shape, &Device::Cpu)?,
            sin: Tensor::from_vec(angles.sin, shape, &Device::Cpu)?,
        })
    }

    /// Logits `[n, V]` after the last layer's output `[n, E]`.
    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        let hidden = self.norm(x, &self.final_norm)?;
        match &self.head {
            Some(head) => head.forward(&hidden),
            None => hidden.apply_op1(Product(self.embedding.clone())),
        }
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let variance = x.sqr()?.mean_keepdim(candle_core::D::Minus1)?;
        let inverse = (variance + f64::from(self.config.rms_eps))?
            .sqrt()?
            .recip()?;
        x.broadcast_mul(&inverse)?.broadcast_mul(weight)
    }

    /// Normalised hidden states that enter a layer's attention. `x`: `[n, E]`.
    pub fn attention_input(&self, layer: &LayerModel, x: &Tensor) -> Result<Tensor> {
        self.norm(x, &layer.attn_norm)
    }

    /// What comes before a layer's attention. `x`: `[n, E]`.
    pub fn project(&self, layer: &LayerModel, x: &Tensor, angles: &Angles) -> Result<Projected> {
        let (rows, config) = (x.dim(0)?, &self.config);
        let heads = |linear: &Linear, hidden: &Tensor, heads: usize, norm: &Option<Tensor>| {
            let y = linear
                .forward(hidden)?
                .reshape((rows, heads, config.head_dim))?;
            norm.as_ref()
                .map_or(Ok(y.clone()), |norm| self.norm(&y, norm))
        };
        let hidden = self.attention_input(layer, x)?;
        let q = rotated(
            &heads(&layer.q, &hidden, config.heads, &layer.q_norm)?,
            angles,
        )?;
        let k = rotated(
            &heads(&layer.k, &hidden, config.kv_heads, &layer.k_norm)?,
            angles,
        )?;
        let v = heads(&layer.v, &hidden, config.kv_heads, &None)?;
        let group = config.heads / config.kv_heads;
        let queries = q.transpose(0, 1)?.contiguous()?.reshape((
            config.kv_heads,
            group,
            rows,
            config.head_dim,
        ))?;
        let entries = Tensor::stack(
            &[
                k.transpose(0, 1)?.contiguous()?,
                v.transpose(0, 1)?.contiguous()?,
            ],
            0,
        )?;
        Ok(Projected {
            hidden,
            queries,
            entries,
        })
    }

    /// What comes after it. `read`: `[n, H * D]`.
    pub fn finish(&self, layer: &LayerModel, x: &Tensor, read: &Tensor) -> Result<Tensor> {
        let x = (x + layer.o.forward(read)?)?;
        let hidden = self.norm(&x, &layer.ffn_norm)?;
        let act = layer
            .gate
            .forward(&hidden)?
            .apply_op2(&layer.up.forward(&hidden)?, SiluMul)?;
        x + layer.down.forward(&act)?
    }
}

impl LayerModel {
    fn load(
        matrix: &dyn Fn(WeightData<'_>) -> crate::Result<Tensor>,
        layer: LayerWeights<'_>,
    ) -> crate::Result<Self> {
        let linear = |data, bias: Option<Vec<f32>>| -> crate::Result<Linear> {
            Ok(Linear {
                weight: matrix(data)?,
                bias: bias.map(vector).transpose()?,
            })
        };
        let FeedForwardWeights::Dense(feed_forward) = layer.feed_forward else {
            return Err(crate::Error::Family("routed experts"));
        };
        Ok(Self {
            attn_norm: vector(layer.attn_norm)?,
            q: linear(layer.q, layer.q_bias)?,
            k: linear(layer.k, layer.k_bias)?,
            v: linear(layer.v, layer.v_bias)?,
            q_norm: layer.q_norm.map(vector).transpose()?,
            k_norm: layer.k_norm.map(vector).transpose()?,
            o: linear(layer.o, None)?,
            ffn_norm: vector(layer.ffn_norm)?,
            gate: linear(feed_forward.gate, None)?,
            up: linear(feed_forward.up, None)?,
            down: linear(feed_forward.down, None)?,
        })
    }
}

/// Checks that this decoder knows all that the model has.
///
/// # Errors
/// [`crate::Error::Family`] with what it does not know.
pub fn check(config: &ModelConfig) -> crate::Result<()> {
    match config.differences.beyond_plain() {
        Some(lack) => Err(crate::Error::Family(lack)),
        None => Ok(()),
    }
}

/// Rotates pairs `(i, i + D/2)` of `[n, heads, D]`.
fn rotated(x: &Tensor, angles: &Angles) -> Result<Tensor> {
    let Angles { cos, sin } = angles;
    let half = x.dim(2)? / 2;
    let (first, second) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
    let (first, second) = (first.contiguous()?, second.contiguous()?);
    let turned = [
        (first.broadcast_mul(cos)? - second.broadcast_mul(sin)?)?,
        (second.broadcast_mul(cos)? + first.broadcast_mul(sin)?)?,
    ];
    Tensor::cat(&turned, 2)
}

fn vector(values: Vec<f32>) -> crate::Result<Tensor> {
    let len = values.len();
    Ok(Tensor::from_vec(values, len, &Device::Cpu)?)
}

/// The engine knows all types of weights: its embedding lookup gives any rows of a matrix as they
/// are.
fn dequantised<B: Backend>(backend: &B, data: &WeightData<'_>) -> crate::Result<Tensor> {
    let (rows, cols) = (data.rows, data.cols);
    let read = || {
        let matrix = backend.load_matrix(&[data.view()])?;
        let mut buffer = backend.alloc(rows * cols)?;
        let ids: Vec<u32> = (0..rows as u32).collect();
        backend.embed(&matrix, &ids, &mut buffer)?;
        let mut values = vec![0.0; rows * cols];
        backend.download(&buffer, 0, &mut values)?;
        Ok(values)
    };
    let values = read().map_err(|error: palimpsest_kernels::Error| worker(error))?;
    Ok(Tensor::from_vec(values, (rows, cols), &Device::Cpu)?)
}

fn worker(error: impl Into<palimpsest_engine::Error>) -> crate::Error {
    crate::Error::Engine(error.into())
}
