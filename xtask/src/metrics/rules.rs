//! The house rules that are numbers.

use super::columns::MAX_COLUMNS;

/// A file longer than this is refused.
pub const MAX_FILE_LINES: usize = 600;
/// Nine files of ten are no longer than this.
pub const MAX_USUAL_FILE_LINES: usize = 400;
/// A function longer than this is refused.
pub const MAX_FUNCTION_LINES: usize = 70;
/// Arguments of a function, `self` among them.
pub const MAX_ARGUMENTS: usize = 6;
/// Functions whose arguments another crate's trait decides, by file.
pub const FOREIGN_SIGNATURES: &[&str] = &["calibrate/src/tune/attention.rs"];
/// A longer tuple is a record: it gets a struct whose fields have names.
pub const MAX_TUPLE: usize = 2;
/// Where `unsafe` may stand: SIMD, the thread pool and kernel launches; the memory map of the
/// weights; foreign libraries.
pub const UNSAFE_ALLOWED: &[&str] = &[
    "kernels/",
    "models/src/weights_file.rs",
    "collective/src/gloo.rs",
    "collective/src/nccl/library.rs",
];

/// A rule that a place in the tree keeps or breaks.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Rule {
    /// [`MAX_FILE_LINES`].
    LongFile,
    /// [`MAX_USUAL_FILE_LINES`].
    UsualLength,
    /// [`MAX_FUNCTION_LINES`].
    LongFunction,
    /// [`MAX_ARGUMENTS`].
    ManyArguments,
    /// [`MAX_TUPLE`].
    LongTuple,
    /// [`MAX_COLUMNS`], in Rust.
    WideLine,
    /// [`MAX_COLUMNS`], in other languages.
    WideForeignLine,
    /// [`MAX_COLUMNS`], in Markdown.
    WideText,
    /// One spelling for the files of a module.
    FileName,
    /// [`UNSAFE_ALLOWED`].
    StrayUnsafe,
}

impl Rule {
    /// All of them, in the order in which they are printed.
    pub const ALL: [Self; 10] = [
        Self::LongFile,
        Self::UsualLength,
        Self::LongFunction,
        Self::ManyArguments,
        Self::LongTuple,
        Self::WideLine,
        Self::WideForeignLine,
        Self::WideText,
        Self::FileName,
        Self::StrayUnsafe,
    ];

    /// What is counted: the places that break it.
    pub fn counts(self) -> String {
        match self {
            Self::LongFile => format!("files over {MAX_FILE_LINES} lines"),
            Self::UsualLength => {
                format!("90th percentiles of file length over {MAX_USUAL_FILE_LINES} lines")
            }
            Self::LongFunction => format!("functions over {MAX_FUNCTION_LINES} lines"),
            Self::ManyArguments => format!("functions with more than {MAX_ARGUMENTS} arguments"),
            Self::LongTuple => format!("arguments with a tuple of more than {MAX_TUPLE}"),
            Self::WideLine => format!("lines of Rust over {MAX_COLUMNS} columns"),
            Self::WideForeignLine => format!("lines of other code over {MAX_COLUMNS} columns"),
            Self::WideText => format!("lines of Markdown over {MAX_COLUMNS} columns"),
            Self::FileName => "files with another spelling than `foo.rs`, `foo/tests.rs`".into(),
            Self::StrayUnsafe => "uses of `unsafe` outside of its places".into(),
        }
    }

    /// What to do at a place that breaks it.
    pub fn says(self) -> String {
        match self {
            Self::LongFile => format!("{MAX_FILE_LINES} lines at most: split it by concern"),
            Self::UsualLength => {
                format!("nine files of ten have {MAX_USUAL_FILE_LINES} lines at most")
            }
            Self::LongFunction => format!("{MAX_FUNCTION_LINES} lines at most"),
            Self::ManyArguments => format!("{MAX_ARGUMENTS} arguments at most"),
            Self::LongTuple => "a tuple of three or more is a record: name its fields".into(),
            Self::WideLine | Self::WideForeignLine | Self::WideText => {
                format!("{MAX_COLUMNS} columns at most")
            }
            Self::FileName => {
                "a module is `foo.rs` beside its folder `foo/`, its tests are `foo/tests.rs`".into()
            }
            Self::StrayUnsafe => format!("`unsafe` outside of {}", UNSAFE_ALLOWED.join(", ")),
        }
    }
}
