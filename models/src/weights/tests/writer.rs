//! GGUF files made by hand.

/// A GGUF file made by hand: metadata entries and tensors (name, dims innermost first, type,
/// bytes).
pub(super) struct Writer {
    metadata: Vec<u8>,
    num_metadata: u64,
    tensors: Vec<u8>,
    num_tensors: u64,
    data: Vec<u8>,
}

pub(super) fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Writer {
    pub(super) fn new() -> Self {
        Self {
            metadata: Vec::new(),
            num_metadata: 0,
            tensors: Vec::new(),
            num_tensors: 0,
            data: Vec::new(),
        }
    }

    pub(super) fn raw(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.metadata
            .extend([&text(key)[..], &kind.to_le_bytes(), value].concat());
        self.num_metadata += 1;
        self
    }

    pub(super) fn size(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub(super) fn float(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    /// A vector of ones in F32.
    pub(super) fn ones(self, name: &str, len: usize) -> Self {
        let mut file = self.tensor(name, &[len as u64], 0, 4 * len);
        let start = file.data.len() - (4 * len).next_multiple_of(32);
        for one in file.data[start..start + 4 * len].chunks_exact_mut(4) {
            one.copy_from_slice(&1f32.to_le_bytes());
        }
        file
    }

    pub(super) fn tensor(mut self, name: &str, dims: &[u64], kind: u32, bytes: usize) -> Self {
        self.tensors.extend(text(name));
        self.tensors.extend((dims.len() as u32).to_le_bytes());
        dims.iter()
            .for_each(|dim| self.tensors.extend(dim.to_le_bytes()));
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend((self.data.len() as u64).to_le_bytes());
        self.data
            .resize((self.data.len() + bytes).next_multiple_of(32), 0);
        self.num_tensors += 1;
        self
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let header = [b"GGUF", &3u32.to_le_bytes()[..]].concat();
        let counts = [
            self.num_tensors.to_le_bytes(),
            self.num_metadata.to_le_bytes(),
        ]
        .concat();
        let mut file = [header, counts, self.metadata.clone(), self.tensors.clone()].concat();
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(&self.data);
        file
    }
}

/// The metadata of a small Llama.
pub(super) fn llama() -> Writer {
    Writer::new()
        .raw("general.architecture", 8, &text("llama"))
        .size("llama.block_count", 1)
        .size("llama.context_length", 64)
        .size("llama.embedding_length", 32)
        .size("llama.feed_forward_length", 64)
        .size("llama.attention.head_count", 4)
        .size("llama.attention.head_count_kv", 2)
        .float("llama.attention.layer_norm_rms_epsilon", 1e-5)
}

pub(super) fn with_tensors(mut writer: Writer, query_type: u32, query_bytes: usize) -> Writer {
    writer = writer
        .tensor("token_embd.weight", &[32, 10], 0, 1280)
        .tensor("output_norm.weight", &[32], 0, 128);
    writer = writer.tensor("blk.0.attn_q.weight", &[32, 32], query_type, query_bytes);
    for (name, dims) in [
        ("attn_norm", &[32][..]),
        ("attn_k", &[32, 16]),
        ("attn_v", &[32, 16]),
        ("attn_output", &[32, 32]),
        ("ffn_norm", &[32]),
        ("ffn_gate", &[32, 64]),
        ("ffn_up", &[32, 64]),
        ("ffn_down", &[64, 32]),
    ] {
        let bytes = dims.iter().product::<u64>() as usize * 4;
        writer = writer.tensor(&format!("blk.0.{name}.weight"), dims, 0, bytes);
    }
    writer
}
