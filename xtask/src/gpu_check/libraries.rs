//! Where the vendor's libraries lie on a machine: what the loader knows, and what pip or a toolkit
//! put elsewhere.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Libraries that the programs of the bundle load when they are asked for.
const WANTED: [&str; 4] = [
    "libcuda.so.1",
    "libcublas.so.13",
    "libcublasLt.so.13",
    "libnccl.so.2",
];
/// Prints the folders that pip's packages of CUDA keep libraries in.
const ASK_PYTHON: &str = "
import glob, sys
for place in sys.path:
    for folder in sorted(glob.glob(place + '/nvidia/*/lib')):
        print(folder)
";

/// Folders with libraries, beside those of the loader, and which library comes from where.
#[derive(Debug, Clone, Default)]
pub struct Libraries {
    folders: Vec<PathBuf>,
    /// Each wanted library and its place, for the report.
    pub found: Vec<String>,
}

impl Libraries {
    /// Looks in what the environment names, then where Python has packages, then where toolkits
    /// are.
    pub fn find() -> Self {
        let named = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let mut folders: Vec<PathBuf> = std::env::split_paths(&named).collect();
        folders.extend(lines(Command::new("python3").args(["-c", ASK_PYTHON])).map(PathBuf::from));
        folders.extend(toolkits(Path::new("/usr/local")));
        folders.retain(|folder| WANTED.iter().any(|name| folder.join(name).exists()));
        Self::among(
            folders,
            &lines(Command::new("ldconfig").arg("-p")).collect::<Vec<_>>(),
        )
    }

    /// Of these folders and of what the loader knows.
    fn among(folders: Vec<PathBuf>, loader: &[String]) -> Self {
        let place = |name: &str| {
            let folder = folders.iter().find(|folder| folder.join(name).exists());
            let known = || {
                loader
                    .iter()
                    .find(|line| line.trim_start().starts_with(name))
            };
            folder
                .map(|folder| folder.join(name).display().to_string())
                .or_else(|| known().map(|line| line.trim().to_owned()))
                .unwrap_or_else(|| format!("{name}: NOT FOUND"))
        };
        let found = WANTED.iter().map(|name| place(name)).collect();
        Self { folders, found }
    }

    /// For `LD_LIBRARY_PATH` of what is started; `None` where the loader finds everything.
    pub fn path(&self) -> Option<OsString> {
        let path = std::env::join_paths(&self.folders).ok()?;
        (!self.folders.is_empty()).then_some(path)
    }
}

/// `cuda*/lib64` of a folder, the newest name first.
fn toolkits(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let is_cuda = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("cuda")
    };
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_cuda).collect();
    found.sort();
    found.iter().rev().map(|path| path.join("lib64")).collect()
}

/// What a tool prints; nothing where there is no such tool.
fn lines(command: &mut Command) -> impl Iterator<Item = String> + use<> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output();
    let printed = output.map_or_else(|_| Vec::new(), |output| output.stdout);
    let text = String::from_utf8_lossy(&printed).into_owned();
    text.lines()
        .map(str::to_owned)
        .collect::<Vec<_>>()
        .into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_of_a_folder_goes_before_the_loaders() {
        let folder = std::env::temp_dir().join(format!("libraries-{}", std::process::id()));
        let lib = folder.join("cuda-13.0/lib64");
        std::fs::create_dir_all(&lib).unwrap();
        std::fs::write(lib.join("libnccl.so.2"), []).unwrap();
        let loader = [
            "\tlibnccl.so.2 => /lib/libnccl.so.2",
            "\tlibcuda.so.1 => /lib/x",
        ];
        let loader = loader.map(str::to_owned);
        let found = Libraries::among(toolkits(&folder), &loader);
        assert_eq!(found.path(), Some(lib.clone().into_os_string()));
        assert_eq!(
            found.found,
            [
                "libcuda.so.1 => /lib/x".to_owned(),
                "libcublas.so.13: NOT FOUND".into(),
                "libcublasLt.so.13: NOT FOUND".into(),
                lib.join("libnccl.so.2").display().to_string(),
            ]
        );
        std::fs::remove_dir_all(folder).ok();
        assert_eq!(Libraries::among(Vec::new(), &loader).path(), None);
    }
}
