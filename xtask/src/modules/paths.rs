//! The names in a file: what it declares, what it imports, and which paths it walks. Read from text
//! that [`crate::rust_source::code_only`] has cleaned.

use std::collections::BTreeSet;

/// A path as written, `a::b::C`; a glob ends in `*`.
pub type Path = Vec<String>;

/// What a `use` brings into a module.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Import {
    /// The name it has here; `*` of a glob, `_` of a trait that is not named.
    pub name: String,
    /// What was written.
    pub path: Path,
    /// Whether it is a re-export, `pub use` or `pub(crate) use`.
    pub is_public: bool,
}

/// A `mod name;` of a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Declaration {
    /// Name of the child.
    pub name: String,
    /// Whether it is under `#[cfg(test)]`.
    pub is_test: bool,
}

/// The names in one file.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Names {
    /// Its children.
    pub children: Vec<Declaration>,
    /// Its imports.
    pub imports: Vec<Import>,
    /// Paths of two names and more outside of imports, one for each time they stand there.
    pub paths: Vec<Path>,
    /// All words outside of imports that begin a path or stand alone.
    pub words: BTreeSet<String>,
    /// What it defines: types, traits, functions, constants, macros.
    pub items: BTreeSet<String>,
}

/// Reads a file, its inline test modules left out. `super` in another inline module counts as
/// written in the file itself.
pub fn read(code: &str) -> Names {
    let tokens = tokens(code);
    let mut reader = Reader {
        tokens: &tokens,
        at: 0,
        names: Names::default(),
    };
    while reader.at < tokens.len() {
        reader.step();
    }
    reader.names
}

/// Words, `::`, and single characters of anything else.
fn tokens(code: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let length = if rest.starts_with("::") {
            2
        } else if is_word(first) {
            rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        tokens.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    tokens
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

struct Reader<'a> {
    tokens: &'a [&'a str],
    at: usize,
    names: Names,
}

impl Reader<'_> {
    fn token(&self, offset: usize) -> &str {
        self.tokens.get(self.at + offset).copied().unwrap_or("")
    }

    /// Takes one item, path or token.
    fn step(&mut self) {
        if self.token(0) == "#" && self.token(1) == "[" && self.is_for_tests() {
            self.skip_attributes();
            if let Some(name) = self.declaration() {
                self.declare(name, true);
            }
            self.skip_item();
        } else if let Some(name) = self.declaration() {
            self.declare(name, false);
            self.at += 3;
        } else if self.token(0) == "use" && is_start_of_path(self.token(1)) {
            self.import();
        } else if is_name(self.token(0)) {
            self.path();
        } else {
            self.at += 1;
        }
    }

    /// Whether the attribute here is `cfg(test)` or `cfg(all(test, …))`.
    fn is_for_tests(&self) -> bool {
        let from = |offset: usize| (0..2).map(move |i| self.token(offset + i));
        let is_test = |offset: usize| {
            self.token(offset) == "test" && [")", ","].contains(&self.token(offset + 1))
        };
        from(2).eq(["cfg", "("]) && (is_test(4) || from(4).eq(["all", "("]) && is_test(6))
    }

    /// Name of the `mod name;` here.
    fn declaration(&self) -> Option<String> {
        let is_one = self.token(0) == "mod" && is_name(self.token(1)) && self.token(2) == ";";
        is_one.then(|| self.token(1).to_owned())
    }

    fn declare(&mut self, name: String, is_test: bool) {
        self.names.children.push(Declaration { name, is_test });
    }

    /// Passes all attributes and the item's visibility.
    fn skip_attributes(&mut self) {
        while self.token(0) == "#" {
            self.at += 1;
            self.skip_brackets();
        }
        if self.token(0) == "pub" {
            self.at += 1;
            if self.token(0) == "(" {
                self.skip_brackets();
            }
        }
    }

    /// Passes an item: up to its `;`, or its braces.
    fn skip_item(&mut self) {
        while self.at < self.tokens.len() {
            match self.token(0) {
                ";" => return self.at += 1,
                "{" => return self.skip_brackets(),
                "(" | "[" => self.skip_brackets(),
                _ => self.at += 1,
            }
        }
    }

    /// Passes the brackets that open here, with all in them.
    fn skip_brackets(&mut self) {
        let mut depth = 0usize;
        while self.at < self.tokens.len() {
            match self.token(0) {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth = depth.saturating_sub(1),
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return;
            }
        }
    }

    /// A `use` declaration, all of its tree.
    fn import(&mut self) {
        let before = &self.tokens[..self.at];
        let is_public = before.last().is_some_and(|last| *last == "pub")
            || before.last().is_some_and(|last| *last == ")")
                && before
                    .iter()
                    .rposition(|token| *token == "(")
                    .is_some_and(|open| open > 0 && before[open - 1] == "pub");
        self.at += 1;
        self.import_tree(&Vec::new(), is_public);
    }

    /// One branch of a `use` tree below `prefix`, up to its `,`, `}` or `;`.
    fn import_tree(&mut self, prefix: &Path, is_public: bool) {
        let mut path = prefix.clone();
        let mut name = None;
        loop {
            match self.token(0) {
                "{" => {
                    self.at += 1;
                    while !["}", ""].contains(&self.token(0)) {
                        self.import_tree(&path, is_public);
                        if self.token(0) == "," {
                            self.at += 1;
                        }
                    }
                    self.at += 1;
                    return;
                }
                "as" => {
                    name = Some(self.token(1).to_owned());
                    self.at += 2;
                }
                "::" => self.at += 1,
                "*" => {
                    path.push("*".to_owned());
                    self.at += 1;
                }
                "," | "}" | ";" | "" => break,
                token => {
                    let token = token.to_owned();
                    path.push(token);
                    self.at += 1;
                }
            }
        }
        // `use a::b::{self}` names `a::b`.
        if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        if let Some(last) = path.last().cloned() {
            self.names.imports.push(Import {
                name: name.unwrap_or(last),
                path,
                is_public,
            });
        }
    }

    /// A word, and the path that begins with it.
    fn path(&mut self) {
        let mut path = vec![self.token(0).to_owned()];
        self.at += 1;
        while self.token(0) == "::" && is_name(self.token(1)) {
            path.push(self.token(1).to_owned());
            self.at += 2;
        }
        const DEFINES: [&str; 8] = [
            "struct", "enum", "union", "trait", "type", "fn", "const", "static",
        ];
        let begin = self.at - (2 * path.len() - 1);
        let before = |offset: usize| begin.checked_sub(offset).map_or("", |at| self.tokens[at]);
        if DEFINES.contains(&before(1)) || (before(1) == "!" && before(2) == "macro_rules") {
            self.names.items.insert(path[0].clone());
        }
        self.names.words.insert(path[0].clone());
        if path.len() > 1 {
            self.names.paths.push(path);
        }
    }
}

/// `use` also stands in `impl Trait + use<'a>`, which begins no path.
fn is_start_of_path(token: &str) -> bool {
    is_name(token) || token == "::" || token == "{"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imports(code: &str) -> Vec<String> {
        let show = |import: Import| {
            let public = if import.is_public { "pub " } else { "" };
            format!("{public}{} = {}", import.name, import.path.join("::"))
        };
        read(code).imports.into_iter().map(show).collect()
    }

    #[test]
    fn a_use_tree_is_read_branch_by_branch() {
        assert_eq!(
            imports("use super::a::{self, b::{C, D as E}, F as _};\npub use self::g::*;"),
            [
                "a = super::a",
                "C = super::a::b::C",
                "E = super::a::b::D",
                "_ = super::a::F",
                "pub * = self::g::*",
            ]
        );
        assert_eq!(imports("pub(crate) use crate::a;"), ["pub a = crate::a"]);
        assert_eq!(imports("f(x); use crate::a;"), ["a = crate::a"]);
    }

    #[test]
    fn paths_are_read_outside_of_imports() {
        let names = read("use a::b; fn f(x: super::C) -> $crate::d::E { kv::<u8>::g(crate::h) }");
        let paths: Vec<String> = names.paths.iter().map(|path| path.join("::")).collect();
        assert_eq!(paths, ["super::C", "crate::d::E", "crate::h"]);
        assert!(names.words.contains("x"));
        assert!(!names.words.contains("b"));
        assert!(names.items.iter().eq(["f"]));
    }

    #[test]
    fn tests_are_left_out() {
        let code = "
            pub mod a;
            #[cfg(test)] mod tests;
            #[cfg(all(test, unix))] #[path = ] pub mod more;
            #[cfg(test)]
            mod inline { use super::x::Y; fn f() { super::z::g() } }
            #[cfg(test)] impl Foo { fn f(a: [u8; 2]) { super::w::g() } }
            #[cfg(any(test, feature = ))] mod shared;
            mod inner { use super::v::U; }
        ";
        let names = read(code);
        let children: Vec<_> = names
            .children
            .iter()
            .map(|child| (child.name.as_str(), child.is_test))
            .collect();
        assert_eq!(
            children,
            [
                ("a", false),
                ("tests", true),
                ("more", true),
                ("shared", false)
            ]
        );
        assert_eq!(imports(code), ["U = super::v::U"]);
        assert_eq!(names.paths, Vec::<Path>::new());
    }
}
