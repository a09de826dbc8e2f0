//! The modules of a crate, one a file, and where a path leads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::paths::{self, Import, Names};
use crate::rust_source::code_only;

/// One file of a crate.
#[derive(Debug)]
pub struct Module {
    /// From the folder of the crate's sources.
    pub file: PathBuf,
    /// What stands in it.
    pub names: Names,
    parent: Option<usize>,
    children: BTreeMap<String, usize>,
}

/// All files of a crate but tests. The first is its root.
#[derive(Debug, Default)]
pub struct Tree {
    /// Modules; others name them by their index.
    pub modules: Vec<Module>,
}

/// Where a path leads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Place {
    /// To a module as such.
    Module(usize),
    /// To what a module defines: its first name.
    Item(usize, String),
    /// Out of the crate, or to a name that is local.
    Outside,
}

/// Imports of imports that are followed; a longer chain is a circle of names.
const MAX_STEPS: usize = 16;

impl Tree {
    /// The crate whose root is `entry`; `sources` holds each file's text by its path.
    pub fn read(entry: &str, sources: &BTreeMap<PathBuf, String>) -> Self {
        let mut tree = Self::default();
        tree.add(Path::new(entry), Path::new(""), None, sources);
        tree
    }

    /// Adds a file and what it declares; `folder` holds its children.
    fn add(
        &mut self,
        file: &Path,
        folder: &Path,
        parent: Option<usize>,
        sources: &BTreeMap<PathBuf, String>,
    ) -> Option<usize> {
        let names = paths::read(&code_only(sources.get(file)?));
        let declared: Vec<String> = names
            .children
            .iter()
            .filter(|child| !child.is_test)
            .map(|child| child.name.clone())
            .collect();
        let index = self.modules.len();
        self.modules.push(Module {
            file: file.to_owned(),
            names,
            parent,
            children: BTreeMap::new(),
        });
        for name in declared {
            let (file, folder) = (folder.join(format!("{name}.rs")), folder.join(&name));
            if let Some(child) = self.add(&file, &folder, Some(index), sources) {
                self.modules[index].children.insert(name, child);
            }
        }
        Some(index)
    }

    /// Where `path`, written in `module`, leads.
    pub fn resolve(&self, module: usize, path: &[String]) -> Place {
        self.walk(module, path, MAX_STEPS)
    }

    /// What `module` offers under `name`, imports included.
    pub fn offers(&self, module: usize, name: &str) -> Place {
        let offered = self.find(module, name, MAX_STEPS);
        match offered {
            Place::Outside if self.modules[module].names.items.contains(name) => {
                Place::Item(module, name.to_owned())
            }
            place => place,
        }
    }

    fn walk(&self, module: usize, path: &[String], steps: usize) -> Place {
        let mut place = Place::Module(module);
        for (index, name) in path.iter().enumerate() {
            let Place::Module(here) = place else {
                break;
            };
            place = match (name.as_str(), index) {
                ("crate", 0) => Place::Module(0),
                ("self", 0) => Place::Module(here),
                ("super", _) => match self.modules[here].parent {
                    Some(parent) => Place::Module(parent),
                    None => Place::Outside,
                },
                ("*", _) => place,
                (_, 0) => self.find(here, name, steps),
                // Behind a module of this crate every name is that module's.
                _ => match self.find(here, name, steps) {
                    Place::Outside if !self.imports(here, name) => {
                        Place::Item(here, name.to_owned())
                    }
                    found => found,
                },
            };
        }
        place
    }

    fn imports(&self, module: usize, name: &str) -> bool {
        let imports = &self.modules[module].names.imports;
        imports.iter().any(|import| import.name == name)
    }

    /// A child or an import of `module` called `name`.
    fn find(&self, module: usize, name: &str, steps: usize) -> Place {
        self.find_among(module, name, steps, |_| true)
    }

    /// The same, when only the imports that are `seen` count.
    fn find_among(
        &self,
        module: usize,
        name: &str,
        steps: usize,
        seen: fn(&Import) -> bool,
    ) -> Place {
        if let Some(&child) = self.modules[module].children.get(name) {
            return Place::Module(child);
        }
        let Some(steps) = steps.checked_sub(1) else {
            return Place::Outside;
        };
        let imports = || {
            self.modules[module]
                .names
                .imports
                .iter()
                .filter(|it| seen(it))
        };
        // `use name::…` names a crate outside, unless `name` is a child.
        let is_itself = |import: &Import| import.path.first().is_some_and(|first| first == name);
        let named = imports().find(|import| import.name == name && !is_itself(import));
        if let Some(import) = named {
            return self.walk(module, &import.path, steps);
        }
        let globs = imports().filter(|import| import.name == "*");
        for glob in globs {
            let found = self.find_in_glob(module, &glob.path, name, steps);
            if found != Place::Outside {
                return found;
            }
        }
        Place::Outside
    }

    /// What a glob brings in under `name`: what its source defines or passes on.
    fn find_in_glob(&self, module: usize, glob: &[String], name: &str, steps: usize) -> Place {
        match self.walk(module, glob, steps) {
            Place::Module(source) if source != module => {
                if self.modules[source].names.items.contains(name) {
                    return Place::Item(source, name.to_owned());
                }
                self.find_among(source, name, steps, |import| import.is_public)
            }
            _ => Place::Outside,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> Tree {
        let sources = files
            .iter()
            .map(|(path, source)| (PathBuf::from(path), (*source).to_owned()))
            .collect();
        Tree::read("lib.rs", &sources)
    }

    fn lead(tree: &Tree, from: usize, path: &str) -> String {
        let path: Vec<String> = path.split("::").map(str::to_owned).collect();
        match tree.resolve(from, &path) {
            Place::Module(module) => tree.modules[module].file.display().to_string(),
            Place::Item(module, name) => {
                format!("{name} of {}", tree.modules[module].file.display())
            }
            Place::Outside => "outside".to_owned(),
        }
    }

    #[test]
    fn paths_lead_to_the_file_that_defines_the_name() {
        let tree = tree(&[
            (
                "lib.rs",
                "mod kv; mod error; pub use error::Error; struct Own;",
            ),
            (
                "kv.rs",
                "mod cache; mod pages; pub use cache::*; use pages::Page as P;",
            ),
            ("kv/cache.rs", "pub struct Cache; use crate::Error;"),
            ("kv/pages.rs", "pub struct Page;"),
            ("error.rs", "pub struct Error;"),
        ]);
        let cache = 2;
        assert_eq!(tree.modules[cache].file, Path::new("kv/cache.rs"));
        for (path, expected) in [
            ("crate::Error", "Error of error.rs"),
            ("crate::Own", "Own of lib.rs"),
            ("crate::kv::Cache::new", "Cache of kv/cache.rs"),
            ("super::P", "Page of kv/pages.rs"),
            ("super::pages::Page", "Page of kv/pages.rs"),
            ("super::super::error", "error.rs"),
            ("Error::Full", "Error of error.rs"),
            ("serde::Serialize", "outside"),
            ("Cache::new", "outside"),
        ] {
            assert_eq!(lead(&tree, cache, path), expected, "{path}");
        }
    }

    #[test]
    fn a_glob_passes_on_what_is_public() {
        let tree = tree(&[
            ("lib.rs", "mod args;"),
            (
                "args.rs",
                "mod bench; mod model; pub use bench::*; pub use model::*;",
            ),
            (
                "args/bench.rs",
                "use super::ModelArgs; pub struct BenchArgs;",
            ),
            ("args/model.rs", "pub struct ModelArgs;"),
        ]);
        let model = "ModelArgs of args/model.rs";
        assert_eq!(lead(&tree, 2, "super::ModelArgs"), model);
        assert_eq!(lead(&tree, 0, "crate::args::ModelArgs"), model);
    }

    #[test]
    fn test_modules_are_no_part_of_the_tree() {
        let tree = tree(&[
            ("lib.rs", "mod a; #[cfg(test)] mod tests;"),
            ("a.rs", ""),
            ("tests.rs", "use super::a::A;"),
        ]);
        assert_eq!(tree.modules.len(), 2);
    }
}
