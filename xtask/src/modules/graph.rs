//! Which file of a crate takes names from which, and the circles in that.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::tree::{Place, Tree};

/// Files, and the names that each takes from others.
#[derive(Debug, Default)]
pub struct Graph {
    files: Vec<PathBuf>,
    /// For each file, from which others it takes what.
    takes: Vec<BTreeMap<usize, BTreeSet<String>>>,
}

/// Files of which each takes from the next, directly or not, and so from itself.
pub type Circle = Vec<usize>;

impl Graph {
    /// The graph of a crate. A file that names a module takes nothing yet; a re-export takes
    /// nothing unless the file uses the name itself.
    pub fn of(tree: &Tree) -> Self {
        let mut graph = Self {
            files: tree.modules.iter().map(|it| it.file.clone()).collect(),
            takes: vec![BTreeMap::new(); tree.modules.len()],
        };
        for (module, it) in tree.modules.iter().enumerate() {
            let words = &it.names.words;
            for import in &it.names.imports {
                let place = tree.resolve(module, &import.path);
                match place {
                    // A glob: what is used of it.
                    Place::Module(source) if import.name == "*" => words
                        .iter()
                        .for_each(|word| graph.add(module, tree.offers(source, word))),
                    _ if import.is_public && !words.contains(&import.name) => {}
                    place => graph.add(module, place),
                }
            }
            for path in &it.names.paths {
                graph.add(module, tree.resolve(module, path));
            }
        }
        graph
    }

    fn add(&mut self, from: usize, place: Place) {
        if let Place::Item(to, name) = place
            && to != from
        {
            self.takes[from].entry(to).or_default().insert(name);
        }
    }

    /// All circles: the strongly connected components of two files and more.
    pub fn circles(&self) -> Vec<Circle> {
        let reach: Vec<BTreeSet<usize>> = (0..self.files.len()).map(|it| self.reach(it)).collect();
        let mut circles = Vec::new();
        let mut seen = BTreeSet::new();
        for file in 0..self.files.len() {
            if seen.contains(&file) || !reach[file].contains(&file) {
                continue;
            }
            let is_in_circle = |other: &&usize| reach[**other].contains(&file);
            let circle: Circle = reach[file].iter().filter(is_in_circle).copied().collect();
            seen.extend(circle.iter().copied());
            circles.push(circle);
        }
        circles
    }

    /// Files that `from` takes from, directly or not.
    fn reach(&self, from: usize) -> BTreeSet<usize> {
        let (mut reached, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(file) = next.pop() {
            let new = self.takes[file].keys().filter(|to| !reached.contains(*to));
            let new: Vec<usize> = new.copied().collect();
            reached.extend(new.iter().copied());
            next.extend(new);
        }
        reached
    }

    /// A circle as text: each file, from whom in the circle it takes, and what.
    pub fn show(&self, circle: &Circle) -> String {
        let mut text = String::new();
        for &from in circle {
            for (to, names) in self.takes[from]
                .iter()
                .filter(|(to, _)| circle.contains(to))
            {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                text += &format!(
                    "          {} -> {}: {}\n",
                    self.files[from].display(),
                    self.files[*to].display(),
                    names.join(", ")
                );
            }
        }
        text + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circles(files: &[(&str, &str)]) -> Vec<String> {
        let sources = files
            .iter()
            .map(|(path, source)| (PathBuf::from(path), (*source).to_owned()))
            .collect();
        let graph = Graph::of(&Tree::read("lib.rs", &sources));
        let circles = graph.circles();
        circles.iter().map(|circle| graph.show(circle)).collect()
    }

    #[test]
    fn a_circle_is_shown_with_the_names_that_tie_it() {
        let found = circles(&[
            ("lib.rs", "mod a; mod b; mod c; mod d;"),
            ("a.rs", "use crate::b::{B, make};"),
            ("b.rs", "fn f() { crate::c::C::new() }"),
            ("c.rs", "use super::a; fn f(x: a::A) {}"),
            ("d.rs", "use super::a::A;"),
        ]);
        assert_eq!(
            found,
            [
                "          a.rs -> b.rs: B, make\n          b.rs -> c.rs: C\n          \
              c.rs -> a.rs: A\n\n"
            ]
        );
    }

    #[test]
    fn a_parent_that_uses_its_child_is_not_used_by_it() {
        let parent = "mod child; pub use child::Child; pub struct Shared;";
        let child = "use super::Shared; pub struct Child;";
        let files = |parent: &'static str| {
            [
                ("lib.rs", "mod kv;"),
                ("kv.rs", parent),
                ("kv/child.rs", child),
            ]
        };
        // The re-export alone makes no circle.
        assert!(circles(&files(parent)).is_empty());
        let using = "mod child; pub use child::Child; pub struct Shared; fn f(x: Child) {}";
        assert_eq!(circles(&files(using)).len(), 1);
    }

    #[test]
    fn a_name_that_the_parent_passes_on_ties_to_where_it_is_defined() {
        let found = circles(&[
            ("lib.rs", "mod kv; mod error; pub use error::Error;"),
            (
                "kv.rs",
                "mod cache; mod pages; use cache::Cache; use pages::Page; fn f(x: Cache) {}",
            ),
            (
                "kv/cache.rs",
                "use super::Page; use crate::Error; pub struct Cache;",
            ),
            ("kv/pages.rs", "pub struct Page;"),
            ("error.rs", "pub struct Error;"),
        ]);
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn tests_tie_nothing() {
        let found = circles(&[
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "use crate::b::B; pub struct A;"),
            (
                "b.rs",
                "pub struct B; #[cfg(test)] mod tests { use crate::a::A; }",
            ),
        ]);
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn a_glob_takes_what_is_used_of_it() {
        let files = |user: &'static str| {
            [
                ("lib.rs", "mod a; mod b;"),
                ("a.rs", user),
                ("b.rs", "use crate::a::A; pub struct B;"),
            ]
        };
        assert_eq!(
            circles(&files("use crate::b::*; pub struct A(B);")).len(),
            1
        );
        assert!(circles(&files("use crate::b::*; pub struct A;")).is_empty());
    }
}
