//! What files call the tensors of a model, and their shapes.

use crate::config::{Architecture, ModelConfig};

/// Convention of a file's tensor names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naming {
    Gguf,
    HuggingFace,
}

/// Roles of the tensors of a decoder layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    AttnNorm,
    Query,
    Key,
    Value,
    /// Query, key and value projections, one under the other.
    QueryKeyValue,
    QueryBias,
    KeyBias,
    ValueBias,
    QueryNorm,
    KeyNorm,
    Output,
    OutputBias,
    /// Logits of attention sinks.
    Sinks,
    PostAttnNorm,
    FfnNorm,
    Gate,
    Up,
    /// Gate and up projections, one under the other.
    GateUp,
    Down,
    PostFfnNorm,
    /// Logits of the experts.
    Router,
    RouterBias,
    /// Gates of all experts.
    Gates,
    /// Up projections of all experts.
    Ups,
    /// Down projections of all experts.
    Downs,
    /// Biases of these three.
    GatesBias,
    UpsBias,
    DownsBias,
}

/// A tensor that a model has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedShape {
    pub(crate) name: String,
    /// Outermost first.
    pub(crate) shape: Vec<usize>,
}

/// What a file of a family calls its tensors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names {
    pub(crate) naming: Naming,
    pub(crate) architecture: Architecture,
}

impl Names {
    /// The tensor of a layer. Those of all experts have one name in GGUF files; in others each
    /// expert has its own ([`Self::expert`]).
    pub(crate) fn layer(self, layer: usize, role: Role) -> String {
        match self.naming {
            Naming::Gguf => format!("blk.{layer}.{}", gguf(role, self.architecture)),
            Naming::HuggingFace => {
                format!(
                    "model.layers.{layer}.{}",
                    hugging_face(role, self.architecture)
                )
            }
        }
    }

    /// A projection of one expert in files other than GGUF.
    pub(crate) fn expert(self, layer: usize, expert: usize, role: Role) -> String {
        let (part, [gate, up, down]) = match self.architecture {
            Architecture::Mixtral => ("block_sparse_moe", ["w1", "w3", "w2"]),
            _ => ("mlp", ["gate_proj", "up_proj", "down_proj"]),
        };
        let projection = match role {
            Role::Gates => gate,
            Role::Ups => up,
            _ => down,
        };
        format!("model.layers.{layer}.{part}.experts.{expert}.{projection}.weight")
    }

    pub(crate) const fn embedding(self) -> &'static str {
        match self.naming {
            Naming::Gguf => "token_embd.weight",
            Naming::HuggingFace => "model.embed_tokens.weight",
        }
    }

    pub(crate) const fn final_norm(self) -> &'static str {
        match self.naming {
            Naming::Gguf => "output_norm.weight",
            Naming::HuggingFace => "model.norm.weight",
        }
    }

    pub(crate) const fn head(self) -> &'static str {
        match self.naming {
            Naming::Gguf => "output.weight",
            Naming::HuggingFace => "lm_head.weight",
        }
    }

    /// Tensors that some files carry and no forward pass needs: the tied head a second time, rotary
    /// tables.
    pub(crate) fn is_redundant(self, name: &str) -> bool {
        match self.naming {
            Naming::Gguf => {
                let stem = name.strip_suffix(".weight").unwrap_or(name);
                let last = stem.rsplit_once('.').map_or(stem, |(_, last)| last);
                ["rope_freqs", "rope_factors_long", "rope_factors_short"].contains(&last)
            }
            Naming::HuggingFace => name == self.head() || name.ends_with(".rotary_emb.inv_freq"),
        }
    }

    /// Whether norms are stored less one: Gemma's are, and llama.cpp's converter adds it.
    pub(crate) fn norms_lack_one(self) -> bool {
        self.naming == Naming::HuggingFace && self.architecture == Architecture::Gemma3
    }
}

fn gguf(role: Role, architecture: Architecture) -> &'static str {
    match role {
        Role::AttnNorm => "attn_norm.weight",
        Role::Query => "attn_q.weight",
        Role::Key => "attn_k.weight",
        Role::Value => "attn_v.weight",
        Role::QueryKeyValue => "attn_qkv.weight",
        Role::QueryBias => "attn_q.bias",
        Role::KeyBias => "attn_k.bias",
        Role::ValueBias => "attn_v.bias",
        Role::QueryNorm => "attn_q_norm.weight",
        Role::KeyNorm => "attn_k_norm.weight",
        Role::Output => "attn_output.weight",
        Role::OutputBias => "attn_output.bias",
        Role::Sinks => "attn_sinks.weight",
        Role::FfnNorm if architecture == Architecture::GptOss => "post_attention_norm.weight",
        Role::PostAttnNorm => "post_attention_norm.weight",
        Role::FfnNorm => "ffn_norm.weight",
        Role::Gate => "ffn_gate.weight",
        Role::Up | Role::GateUp => "ffn_up.weight",
        Role::Down => "ffn_down.weight",
        Role::PostFfnNorm => "post_ffw_norm.weight",
        Role::Router => "ffn_gate_inp.weight",
        Role::RouterBias => "ffn_gate_inp.bias",
        Role::GatesBias => "ffn_gate_exps.bias",
        Role::UpsBias => "ffn_up_exps.bias",
        Role::DownsBias => "ffn_down_exps.bias",
        Role::Gates => "ffn_gate_exps.weight",
        Role::Ups => "ffn_up_exps.weight",
        Role::Downs => "ffn_down_exps.weight",
    }
}

fn hugging_face(role: Role, architecture: Architecture) -> &'static str {
    let is_gemma = architecture == Architecture::Gemma3;
    match role {
        Role::AttnNorm => "input_layernorm.weight",
        Role::Query => "self_attn.q_proj.weight",
        Role::Key => "self_attn.k_proj.weight",
        Role::Value => "self_attn.v_proj.weight",
        Role::QueryKeyValue => "self_attn.qkv_proj.weight",
        Role::QueryBias => "self_attn.q_proj.bias",
        Role::KeyBias => "self_attn.k_proj.bias",
        Role::ValueBias => "self_attn.v_proj.bias",
        Role::QueryNorm => "self_attn.q_norm.weight",
        Role::KeyNorm => "self_attn.k_norm.weight",
        Role::Output => "self_attn.o_proj.weight",
        Role::OutputBias => "self_attn.o_proj.bias",
        Role::Sinks => "self_attn.sinks",
        Role::FfnNorm if is_gemma => "pre_feedforward_layernorm.weight",
        // What others call so stands before their feed-forward part.
        Role::PostAttnNorm | Role::FfnNorm => "post_attention_layernorm.weight",
        Role::Gate | Role::Gates => "mlp.gate_proj.weight",
        Role::Up | Role::Ups => "mlp.up_proj.weight",
        Role::GateUp => "mlp.gate_up_proj.weight",
        Role::Down | Role::Downs => "mlp.down_proj.weight",
        Role::PostFfnNorm => "post_feedforward_layernorm.weight",
        Role::Router if architecture == Architecture::Mixtral => "block_sparse_moe.gate.weight",
        Role::Router => "mlp.gate.weight",
        // No family with such biases is read from files other than GGUF.
        Role::RouterBias => "mlp.gate.bias",
        Role::GatesBias => "mlp.gate_proj.bias",
        Role::UpsBias => "mlp.up_proj.bias",
        Role::DownsBias => "mlp.down_proj.bias",
    }
}

impl ModelConfig {
    /// Whether files of the family hold the projections of attention as one, and gate and up
    /// projections as one.
    pub(crate) fn is_fused(&self) -> bool {
        self.architecture == Architecture::Phi3
    }

    /// Names and shapes of all tensors.
    pub(crate) fn tensors(&self, naming: Naming) -> Vec<NamedShape> {
        let names = Names {
            naming,
            architecture: self.architecture,
        };
        let (hidden, vocabulary) = (self.hidden, self.vocabulary);
        let named = |name: &str, shape: Vec<usize>| NamedShape {
            name: name.to_owned(),
            shape,
        };
        let mut tensors = vec![
            named(names.embedding(), vec![vocabulary, hidden]),
            named(names.final_norm(), vec![hidden]),
        ];
        if !self.tied_embeddings {
            tensors.push(named(names.head(), vec![vocabulary, hidden]));
        }
        for layer in 0..self.layers {
            let mut add = |role, shape| tensors.push(named(&names.layer(layer, role), shape));
            self.attention_shapes()
                .into_iter()
                .for_each(|it| add(it.role, it.shape));
            self.norm_shapes()
                .into_iter()
                .for_each(|it| add(it.role, it.shape));
            self.feed_forward_shapes(names, layer, &mut tensors);
        }
        tensors
    }

    fn attention_shapes(&self) -> Vec<RoleShape> {
        let (hidden, head_dim) = (self.hidden, self.head_dim);
        let (queries, keys) = (self.heads * head_dim, self.kv_heads * head_dim);
        let mut shapes = vec![of(Role::Output, &[hidden, queries])];
        if self.is_fused() {
            shapes.push(of(Role::QueryKeyValue, &[queries + 2 * keys, hidden]));
        } else {
            shapes.extend([
                of(Role::Query, &[queries, hidden]),
                of(Role::Key, &[keys, hidden]),
                of(Role::Value, &[keys, hidden]),
            ]);
        }
        if self.differences.qkv_bias {
            shapes.extend([
                of(Role::QueryBias, &[queries]),
                of(Role::KeyBias, &[keys]),
                of(Role::ValueBias, &[keys]),
            ]);
        }
        if self.differences.all_biases {
            shapes.push(of(Role::OutputBias, &[hidden]));
        }
        if self.differences.sinks {
            shapes.push(of(Role::Sinks, &[self.heads]));
        }
        shapes
    }

    fn norm_shapes(&self) -> Vec<RoleShape> {
        let (hidden, head_dim) = (self.hidden, self.head_dim);
        let mut shapes = vec![of(Role::AttnNorm, &[hidden]), of(Role::FfnNorm, &[hidden])];
        if self.differences.qk_norm {
            shapes.extend([
                of(Role::QueryNorm, &[head_dim]),
                of(Role::KeyNorm, &[head_dim]),
            ]);
        }
        if self.differences.post_norms {
            shapes.extend([
                of(Role::PostAttnNorm, &[hidden]),
                of(Role::PostFfnNorm, &[hidden]),
            ]);
        }
        shapes
    }

    fn feed_forward_shapes(&self, names: Names, layer: usize, tensors: &mut Vec<NamedShape>) {
        let (hidden, ffn) = (self.hidden, self.ffn);
        let mut add = |name: String, shape: &[usize]| {
            tensors.push(NamedShape {
                name,
                shape: shape.to_vec(),
            });
        };
        let Some(experts) = self.differences.experts else {
            add(names.layer(layer, Role::Down), &[hidden, ffn]);
            if self.is_fused() {
                return add(names.layer(layer, Role::GateUp), &[2 * ffn, hidden]);
            }
            add(names.layer(layer, Role::Gate), &[ffn, hidden]);
            return add(names.layer(layer, Role::Up), &[ffn, hidden]);
        };
        let count = experts.count;
        add(names.layer(layer, Role::Router), &[count, hidden]);
        if self.differences.all_biases {
            add(names.layer(layer, Role::RouterBias), &[count]);
            add(names.layer(layer, Role::GatesBias), &[count, ffn]);
            add(names.layer(layer, Role::UpsBias), &[count, ffn]);
            add(names.layer(layer, Role::DownsBias), &[count, hidden]);
        }
        let projections = [
            (Role::Gates, [ffn, hidden]),
            (Role::Ups, [ffn, hidden]),
            (Role::Downs, [hidden, ffn]),
        ];
        for (role, [rows, cols]) in projections {
            match names.naming {
                Naming::Gguf => add(names.layer(layer, role), &[count, rows, cols]),
                Naming::HuggingFace => (0..count)
                    .for_each(|expert| add(names.expert(layer, expert, role), &[rows, cols])),
            }
        }
    }
}

/// A tensor of each layer.
struct RoleShape {
    role: Role,
    shape: Vec<usize>,
}

fn of(role: Role, shape: &[usize]) -> RoleShape {
    RoleShape {
        role,
        shape: shape.to_vec(),
    }
}
