//! Safetensors: one file or several with an index, mapped into memory. Header checks are the
//! `safetensors` crate's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use palimpsest_kernels::WeightType;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::error::{Error, Result, SAFETENSORS_INDEX as INDEX, SafetensorsError};
use crate::weights_file::{FileMap, StoredTensor, TensorTable};

const SINGLE: &str = "model.safetensors";

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Maps the weights in directory `dir`: `model.safetensors`, or the files that its index lists.
pub(crate) fn open(dir: &Path) -> Result<TensorTable> {
    let mut table = TensorTable::default();
    let index_path = dir.join(INDEX);
    if dir.join(SINGLE).is_file() {
        add_file(&mut table, &dir.join(SINGLE))?;
    } else if index_path.is_file() {
        let text = std::fs::read(&index_path).map_err(|source| Error::io(&index_path, source))?;
        let fail = |source| Error::Safetensors {
            path: index_path.clone(),
            source,
        };
        let index: Index =
            serde_json::from_slice(&text).map_err(|error| fail(SafetensorsError::Index(error)))?;
        for name in index.weight_map.values().collect::<BTreeSet<_>>() {
            let mut parts = Path::new(name).components();
            if !matches!(
                (parts.next(), parts.next()),
                (Some(Component::Normal(_)), None)
            ) {
                return Err(fail(SafetensorsError::Name(name.clone())));
            }
            let first = table.files.len();
            add_file(&mut table, &dir.join(name))?;
            let listed = index.weight_map.iter().filter(|(_, file)| *file == name);
            for (tensor, file) in listed {
                if table
                    .tensors
                    .get(tensor)
                    .is_none_or(|stored| stored.file != first)
                {
                    return Err(fail(SafetensorsError::NotInFile {
                        tensor: tensor.clone(),
                        file: file.clone(),
                    }));
                }
            }
        }
    } else {
        return Err(Error::MissingFile {
            dir: dir.to_owned(),
            what: "model.safetensors or model.safetensors.index.json",
        });
    }
    Ok(table)
}

fn add_file(table: &mut TensorTable, path: &Path) -> Result<()> {
    let map = FileMap::open(path).map_err(|source| Error::io(path, source))?;
    let file = table.files.len();
    for (name, tensor) in read_header(&map, file).map_err(|source| Error::Safetensors {
        path: path.to_owned(),
        source,
    })? {
        if table.tensors.contains_key(&name) {
            return Err(Error::Safetensors {
                path: path.to_owned(),
                source: SafetensorsError::Duplicate(name),
            });
        }
        table.tensors.insert(name, tensor);
    }
    table.files.push(map);
    Ok(())
}

/// Tensors of a safetensors file, all within `bytes`.
pub(crate) fn read_header(
    bytes: &[u8],
    file: usize,
) -> std::result::Result<Vec<(String, StoredTensor)>, SafetensorsError> {
    let tensors = SafeTensors::deserialize(bytes)?;
    let base = bytes.as_ptr() as usize;
    Ok(tensors
        .iter()
        .map(|(name, view)| {
            let start = view.data().as_ptr() as usize - base;
            let tensor = StoredTensor {
                dtype: weight_type(view.dtype()),
                type_name: format!("{:?}", view.dtype()),
                shape: view.shape().to_vec(),
                file,
                range: start..start + view.data().len(),
            };
            (name.to_owned(), tensor)
        })
        .collect())
}

fn weight_type(dtype: Dtype) -> Option<WeightType> {
    match dtype {
        Dtype::F32 => Some(WeightType::F32),
        Dtype::F16 => Some(WeightType::F16),
        Dtype::BF16 => Some(WeightType::BF16),
        _ => None,
    }
}
