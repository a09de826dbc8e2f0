//! Model files: where they come from and what they hold, checked.
//!
//! Nothing in a file is trusted: every size is checked against the bytes that are there before it
//! is used.
//!
//! | module | what it holds |
//! |---|---|
//! | [`fetch`] | brings a known model into the cache directory |
//! | `model` | [`Model`]: opens a file or a directory, or makes a random model |
//! | `error` | [`Error`], and the errors of its parts |
//! | [`config`] | [`config::ModelConfig`], and its checks |
//! | `config_json`, `gguf_config` | the configuration in a `config.json`, in GGUF metadata |
//! | [`gguf`], `gguf_types`, `gguf_split` | the GGUF reader, its element types, split models |
//! | [`safetensors`] | the safetensors reader, of one file or of many |
//! | `weights_file` | memory maps, and the table of tensors in them |
//! | `file_digest` | [`DigestCache`]: digests of whole files, kept until they change |
//! | `no_follow` | files of the cache directory, opened without following links |
//! | [`weights`], `tensor_names` | weights by role, whatever a file calls them |
//! | [`weight_data`], [`part`] | a matrix, and which part of it is asked for |
//! | [`tokenizer`], `tokenizer_gguf` | the tokenizer of a directory, and in GGUF metadata |
//! | [`random`] | models of real shapes with random weights |
//! | `weights_inspect` | [`inspect`]: what a file holds, for people |
//!
//! Which uses which, from the top: `weights_inspect` ▸ `model` ▸ `weights` ▸ `gguf` · `safetensors`
//! ▸ `config` · `tokenizer`.
#![deny(unsafe_code)]

pub mod config;
mod config_json;
mod error;
pub mod fetch;
mod file_digest;
pub mod gguf;
mod gguf_config;
mod gguf_split;
mod gguf_types;
mod model;
mod no_follow;
pub mod part;
pub mod random;
pub mod safetensors;
mod tensor_names;
pub mod tokenizer;
mod tokenizer_gguf;
pub mod weight_data;
pub mod weights;
mod weights_file;
mod weights_id;
mod weights_inspect;

pub use error::{Error, Result, SafetensorsError, SplitError};
pub use file_digest::DigestCache;
pub use gguf_types::TensorType;
pub use model::Model;
pub use weights_id::{BadWeightsId, WeightsId};
pub use weights_inspect::{Description, TensorDescription, TypeTotal, inspect};
