//! Files that lie about their sizes, or end too early.

use super::*;

#[test]
fn lying_sizes_are_refused() {
    let good = with_tensors(llama(), 0, 4096).bytes();
    let patched = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        Gguf::parse(&file).unwrap_err()
    };
    let huge = (1u64 << 60).to_le_bytes();
    assert!(matches!(patched(0, b"GGML"), GgufError::Magic(_)));
    assert_eq!(patched(4, &1u32.to_le_bytes()), GgufError::Version(1));
    assert_eq!(patched(4, &3u32.to_be_bytes()), GgufError::BigEndian);
    assert!(matches!(
        patched(8, &huge),
        GgufError::Truncated { .. } | GgufError::Utf8 { .. } | GgufError::Shape { .. }
    ));
    patched(16, &huge);
    assert!(matches!(
        patched(24, &huge),
        GgufError::Truncated {
            what: "a metadata key",
            ..
        }
    ));
    let array = |kind: u32, len: u64| {
        let value = [&kind.to_le_bytes()[..], &len.to_le_bytes(), &[0; 16]].concat();
        Gguf::parse(&Writer::new().raw("key", 9, &value).bytes()).map(|_| ())
    };
    for kind in [0, 4, 8, 9, 12] {
        assert!(
            matches!(array(kind, u64::MAX), Err(GgufError::Truncated { .. })),
            "{kind}"
        );
        assert!(
            matches!(array(kind, 1 << 40), Err(GgufError::Truncated { .. })),
            "{kind}"
        );
    }
    assert!(matches!(
        array(77, 3),
        Err(GgufError::ValueType { kind: 77, .. })
    ));
    for dims in [
        &[1u64 << 33, 1 << 33][..],
        &[0, 4],
        &[u64::MAX, 32],
        &[1, 1, 1, 1, 1],
        &[],
    ] {
        let file = Writer::new().tensor("t", dims, 0, 64).bytes();
        assert!(
            matches!(Gguf::parse(&file), Err(GgufError::Shape { .. })),
            "{dims:?}"
        );
    }
    let beyond = Writer::new().tensor("t", &[1 << 40], 0, 64).bytes();
    assert!(matches!(
        Gguf::parse(&beyond),
        Err(GgufError::Offset { .. })
    ));
}

#[test]
fn nested_arrays_are_walked_to_a_depth() {
    let nested = |depth: usize| {
        let mut value = Vec::new();
        for _ in 0..depth {
            value.extend([&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat());
        }
        value.extend([&0u32.to_le_bytes()[..], &2u64.to_le_bytes(), &[5, 6]].concat());
        Gguf::parse(&Writer::new().raw("key", 9, &value).bytes())
    };
    assert!(matches!(
        nested(1).unwrap().get("key"),
        Some(GgufValue::Array {
            kind: 9,
            len: 1,
            ..
        })
    ));
    assert!(matches!(nested(3_000), Err(GgufError::Nesting { .. })));
}

#[test]
fn truncated_files_are_refused_at_every_length() {
    let gguf = with_tensors(llama(), 0, 4096).bytes();
    for len in 0..gguf.len() {
        assert!(
            Gguf::parse(&gguf[..len]).is_err(),
            "{len} of {}",
            gguf.len()
        );
    }
    let file = std::fs::read(fixture("llama-tied").join("model.safetensors")).unwrap();
    for len in (0..6_000).chain(file.len() - 100..file.len()) {
        assert!(safetensors::read_header(&file[..len], 0).is_err(), "{len}");
    }
    assert!(safetensors::read_header(&file, 0).is_ok());
}
