//! The table of kernels against the sources, as the compiler's preprocessor shows them.

use std::collections::BTreeMap;

use super::super::pointer::Element;
use super::*;

/// `cu/emulated/device.cpp` with all macros expanded, written by the build script.
const SOURCES: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.expanded.cpp"));

/// Functions that share their parameters.
pub(super) struct Signature {
    pub(super) functions: Vec<&'static str>,
    /// Names and types as C++ spells them, without spaces. `T` is the element's type.
    pub(super) parameters: Vec<(&'static str, String)>,
}

/// How the sources spell a type, without spaces.
pub(super) trait CType {
    fn c_type() -> String;
}

macro_rules! c_types {
    ($($type:ty => $text:literal),+ $(,)?) => {
        $(impl CType for $type {
            fn c_type() -> String {
                $text.into()
            }
        })+
    };
}

c_types! {
    f32 => "float", u32 => "uint32_t", bool => "uint32_t", u64 => "uint64_t", i64 => "int64_t",
    u8 => "unsignedchar", [u32; 2] => "uint2", [u32; 4] => "uint4", [f32; 2] => "float2",
    Bf16 => "bf16_t", Void => "void", Element => "T", Item => "Item", Sample => "Sample",
    LogitEdit => "Edit", Cut => "Cut", Floor => "Floor", Reduction => "Reduction",
    Slots => "constT*", SlotsMut => "T*",
}

impl<T: CType> CType for Ptr<T> {
    fn c_type() -> String {
        let of = T::c_type();
        if of.ends_with('*') {
            format!("{of}const*")
        } else {
            format!("const{of}*")
        }
    }
}

impl<T: CType> CType for PtrMut<T> {
    fn c_type() -> String {
        format!("{}*", T::c_type())
    }
}

/// Kernels of the sources by name: names and types of their parameters, without spaces.
fn kernels_of(sources: &str) -> BTreeMap<String, Vec<(String, String)>> {
    let mut kernels = BTreeMap::new();
    for text in sources.split(r#"extern "C""#).skip(1) {
        let Some((head, rest)) = text.split_once('(') else {
            continue;
        };
        let mut words = head.split_whitespace();
        let (Some((list, after)), Some("void"), Some(name)) =
            (rest.split_once(')'), words.next(), words.last())
        else {
            continue;
        };
        // Without a body it is a declaration and no kernel.
        if !after.trim_start().starts_with('{') || name.starts_with("faulty_") {
            continue;
        }
        let parameter = |text: &str| {
            let text = text.trim();
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let begin = text.len() - text.chars().rev().take_while(|&c| is_name(c)).count();
            let kind = text[..begin].split_whitespace().collect::<String>();
            (text[begin..].to_owned(), kind)
        };
        kernels.insert(name.to_owned(), list.split(',').map(parameter).collect());
    }
    kernels
}

/// What `T` is in a function of this name.
fn element_of(function: &str) -> &'static str {
    match function {
        name if name.ends_with("_q8") => "eight_t",
        name if name.ends_with("_f32") => "float",
        _ => "half_t",
    }
}

#[test]
fn the_table_is_that_of_the_sources() {
    let mut sources = kernels_of(SOURCES);
    assert!(sources.len() > 60, "the sources were not read: {sources:?}");
    for signature in all_signatures() {
        for function in signature.functions {
            let found = sources.remove(function);
            let found = found.unwrap_or_else(|| panic!("no kernel `{function}` in kernels/cu"));
            let wanted = signature.parameters.iter().map(|(name, kind)| {
                let kind = match (function, kind.as_str()) {
                    // One parameter list for all types: the kernel names its type itself.
                    (name, "constT*") if name.starts_with("attention_prefill_") => "constvoid*",
                    (name, "constT*") if name.starts_with("attention_decode_") => "constvoid*",
                    (_, kind) => kind,
                };
                ((*name).to_owned(), kind.replace('T', element_of(function)))
            });
            assert_eq!(
                found,
                wanted.collect::<Vec<_>>(),
                "parameters of `{function}`"
            );
        }
    }
    assert!(
        sources.is_empty(),
        "kernels that the table lacks: {sources:?}"
    );
}

#[test]
fn arguments_choose_the_function() {
    let pages = |dtype| Slots {
        pages: Ptr::at(64),
        dtype,
    };
    let exact = |dtype| {
        ScoreKeys {
            pages: pages(dtype),
            items: Ptr::NULL,
            tables: Ptr::NULL,
            dim: 64,
            scores: PtrMut::at(0),
        }
        .function()
    };
    assert_eq!(
        [KvType::Q8, KvType::F16, KvType::F32].map(exact),
        ["score_keys_q8", "score_keys_f16", "score_keys_f32"]
    );
    let names = [
        (8, KvType::F16),
        (64, KvType::Q8),
        (72, KvType::F16),
        (128, KvType::Q8),
    ];
    let functions = names.map(|(dim, dtype)| {
        AttentionPrefill {
            items: Ptr::NULL,
            tables: Ptr::NULL,
            first_visible: Ptr::NULL,
            centroids: Ptr::NULL,
            pages: pages(dtype),
            q: Ptr::NULL,
            out: PtrMut::at(0),
            heads: 2,
            kv_heads: 1,
            dim,
            scale: 1.0,
            tiles: Ptr::NULL,
        }
        .function()
    });
    assert_eq!(
        functions,
        [
            "attention_prefill_16",
            "attention_prefill_64_q8",
            "attention_prefill_96",
            "attention_prefill_128_q8"
        ]
    );
}

#[test]
fn a_signature_is_read_as_it_is_written() {
    let source = r#"
        extern "C" void note(const float *values, uint32_t width, float *const *states) { }
        extern "C" void declared(void **save);
        extern "C" int other(const char *name) { }
    "#;
    let kernels = kernels_of(source);
    let parameters = [
        ("values", "constfloat*"),
        ("width", "uint32_t"),
        ("states", "float*const*"),
    ];
    let want = parameters.map(|(name, kind)| (name.to_owned(), kind.to_owned()));
    assert_eq!(kernels.keys().collect::<Vec<_>>(), ["note"]);
    assert_eq!(kernels["note"], want);
}
