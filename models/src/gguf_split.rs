//! A model in several GGUF files, as llama.cpp's `gguf-split` writes them:
//! `NAME-00001-of-00003.gguf` and so on. Each part has a header of its own; the first one has the
//! model's metadata.

use std::collections::HashSet;
use std::path::Path;

use crate::error::{Error, Result, SplitError};
use crate::gguf::{Gguf, GgufError, GgufTensor};
use crate::weights_file::FileMap;

/// The files of a model, and the header that they make together.
pub(crate) struct GgufFiles {
    /// All of them, in order.
    pub(crate) maps: Vec<FileMap>,
    /// Metadata of the first one, tensors of all.
    pub(crate) gguf: Gguf,
    /// Name of the model's files, without what tells them apart.
    pub(crate) name: String,
}

/// Which part of a model a file is.
struct Place {
    /// From 1.
    number: u64,
    count: u64,
}

impl Place {
    /// What the metadata says; `None` for a file that is all of a model.
    fn of(gguf: &Gguf) -> std::result::Result<Option<Self>, GgufError> {
        let count = gguf.unsigned("split.count")?.unwrap_or(1);
        let number = gguf.unsigned("split.no")?.unwrap_or(0).saturating_add(1);
        Ok((count > 1).then_some(Self { number, count }))
    }

    /// The end of the names of such parts.
    fn ending(&self, number: u64) -> String {
        format!("-{number:05}-of-{:05}.gguf", self.count)
    }
}

/// Maps and parses the GGUF file at `path`, and all other parts where it is one of several.
///
/// # Errors
/// Those of a single file, and [`Error::Split`].
pub(crate) fn open(path: &Path) -> Result<GgufFiles> {
    let (map, gguf) = map_gguf(path)?;
    let place = Place::of(&gguf).map_err(|source| Error::gguf(path, source))?;
    let Some(place) = place else {
        let stem = path.file_stem().unwrap_or_default();
        return Ok(GgufFiles {
            maps: vec![map],
            gguf,
            name: stem.to_string_lossy().into_owned(),
        });
    };
    drop(map);

    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(name) = file.strip_suffix(&place.ending(place.number)) else {
        return Err(fail(
            path,
            SplitError::Name {
                number: place.number,
                count: place.count,
            },
        ));
    };
    let mut files: Option<GgufFiles> = None;
    for number in 1..=place.count {
        let part = path.with_file_name(format!("{name}{}", place.ending(number)));
        let (map, gguf) = open_part(&part, number, &place)?;
        match &mut files {
            Some(files) => files.add(&part, map, gguf)?,
            None => {
                files = Some(GgufFiles {
                    maps: vec![map],
                    gguf,
                    name: name.to_owned(),
                });
            }
        }
    }
    let files = files.expect("there are two parts or more");
    files.check(path, place.count)?;
    Ok(files)
}

fn fail(path: &Path, source: SplitError) -> Error {
    Error::Split {
        path: path.to_owned(),
        source,
    }
}

/// Maps and parses part `number` of the parts that `given` is one of.
fn open_part(path: &Path, number: u64, given: &Place) -> Result<(FileMap, Gguf)> {
    let count = given.count;
    if !path.is_file() {
        return Err(fail(path, SplitError::Missing { number, count }));
    }
    let (map, gguf) = map_gguf(path)?;
    let place = Place::of(&gguf).map_err(|source| Error::gguf(path, source))?;
    let place = place.unwrap_or(Place {
        number: 1,
        count: 1,
    });
    if (place.number, place.count) != (number, count) {
        return Err(fail(
            path,
            SplitError::Other {
                number,
                count,
                found: place.number,
                of: place.count,
            },
        ));
    }
    Ok((map, gguf))
}

impl GgufFiles {
    /// Adds the next part, which lies at `path`.
    fn add(&mut self, path: &Path, map: FileMap, part: Gguf) -> Result<()> {
        let names: HashSet<&str> = self.gguf.tensors.iter().map(|t| t.name.as_str()).collect();
        let twice = part.tensors.iter().find(|t| names.contains(&*t.name));
        if let Some(tensor) = twice {
            let (what, name) = ("tensor", tensor.name.clone());
            return Err(Error::gguf(path, GgufError::Duplicate { what, name }));
        }
        let file = self.maps.len();
        let tensors = part.tensors.into_iter();
        self.gguf
            .tensors
            .extend(tensors.map(|tensor| GgufTensor { file, ..tensor }));
        self.maps.push(map);
        Ok(())
    }

    /// Checks that the parts hold as many tensors as the first one says; `path` is the one that was
    /// given.
    fn check(&self, path: &Path, count: u64) -> Result<()> {
        let expected = self.gguf.unsigned("split.tensors.count");
        let expected = expected.map_err(|source| Error::gguf(path, source))?;
        let found = self.gguf.tensors.len() as u64;
        match expected.filter(|&expected| expected != found) {
            None => Ok(()),
            Some(expected) => Err(fail(
                path,
                SplitError::Tensors {
                    count,
                    found,
                    expected,
                },
            )),
        }
    }
}

/// Maps and parses a GGUF file.
fn map_gguf(path: &Path) -> Result<(FileMap, Gguf)> {
    let map = FileMap::open(path).map_err(|source| Error::io(path, source))?;
    match Gguf::parse(&map) {
        Ok(gguf) => Ok((map, gguf)),
        Err(GgufError::Magic(_))
            if path.extension().is_none_or(|extension| extension != "gguf") =>
        {
            Err(Error::NotAModel {
                path: path.to_owned(),
            })
        }
        Err(source) => Err(Error::gguf(path, source)),
    }
}
