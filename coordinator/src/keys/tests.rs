//! Keys of a text, of a file that changes, and under a clock that jumps.

use std::sync::Mutex;
use std::time::Duration;

use super::*;

/// sha256("secret")
const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
/// sha256("other")
const OTHER: &str = "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa";

fn name(found: Result<Arc<Tenant>, Denied>) -> Result<String, Denied> {
    found.map(|tenant| tenant.name().to_string())
}

#[test]
fn keys_are_known_by_their_digest() {
    let keys = ApiKeys::parse(&format!("# ours\n\nresearch:{SECRET}\n")).unwrap();
    for good in ["Bearer secret", "bearer  secret"] {
        assert_eq!(name(keys.bearer(Some(good))), Ok("research".to_owned()));
    }
    for bad in [
        None,
        Some("secret"),
        Some("Basic secret"),
        Some("Bearer"),
        Some("Bearer Secret"),
        Some(SECRET),
    ] {
        assert_eq!(name(keys.bearer(bad)), Err(Denied::Unknown), "{bad:?}");
    }
    assert!(!format!("{keys:?}").contains("2bb8"));
}

#[test]
fn a_line_that_is_no_key_is_named() {
    for bad in [
        "secret",
        "a:secret",
        &format!("a:{SECRET}0"),
        &format!("a: {SECRET}"),
        &format!("a:{}", "zz".repeat(32)),
        &format!("a:{}", "+0".repeat(32)),
    ] {
        assert_eq!(
            ApiKeys::parse(&format!("# one\n{bad}")).unwrap_err(),
            BadLine {
                line: 2,
                fault: LineFault::NoKey
            },
            "{bad}"
        );
    }
    for (bad, word) in [
        (format!("a:{SECRET} max-request=4"), "max-request=4"),
        (format!("a:{SECRET} expires=never"), "YYYY-MM-DD"),
        (format!("{}:{SECRET}", "a".repeat(129)), "128 bytes"),
        (format!("a\u{7}:{SECRET}"), "control"),
        (format!("a:{OTHER}\nb:{OTHER}"), "line 2"),
    ] {
        let said = ApiKeys::parse(&format!("# one\n{bad}")).unwrap_err();
        let last = 1 + bad.lines().count();
        assert_eq!(said.line, last, "{said}");
        assert!(said.to_string().contains(word), "{said}");
    }
}

#[test]
fn a_line_says_what_its_key_may_ask_for() {
    let text = format!("a b:{SECRET}\tmax-requests=2  max-priority=1\nc:{OTHER}");
    let keys = ApiKeys::parse(&text).unwrap();
    let tenant = keys.tenant("secret").unwrap();
    assert_eq!(&**tenant.name(), "a b");
    assert_eq!(tenant.options().max_requests, Some(2));
    assert_eq!(tenant.options().max_priority, Some(1));
    let other = keys.tenant("other").unwrap();
    assert_eq!(other.options(), &KeyOptions::default());
}

/// The wall clock may be set to anything while the service runs: what it says now counts, and
/// nothing that it said before.
#[test]
fn a_key_expires_by_the_wall_clock_even_when_that_jumps() {
    let day = |days: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(days * 24 * 60 * 60);
    let now = Arc::new(Mutex::new(day(0)));
    let clock = now.clone();
    let keys = ApiKeys {
        clock: Box::new(move || *clock.lock().unwrap()),
        ..ApiKeys::parse(&format!("a:{SECRET} expires=1970-01-10")).unwrap()
    };
    let second = Duration::from_secs(1);
    let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
    for (time, expected) in [
        (day(10) - second, Ok("a".to_owned())),
        (day(10), Err(Denied::Expired)),
        (day(1_000_000), Err(Denied::Expired)),
        (before, Ok("a".to_owned())),
        (day(9), Ok("a".to_owned())),
    ] {
        *now.lock().unwrap() = time;
        assert_eq!(
            name(keys.bearer(Some("Bearer secret"))),
            expected,
            "{time:?}"
        );
    }
    assert_eq!(name(keys.tenant("unknown")), Err(Denied::Unknown));
}

/// A file on a disk of which a test says what it holds, or how reading fails.
struct Disk {
    path: tempfile::TempPath,
    content: Arc<Mutex<io::Result<String>>>,
    changes: u64,
}

impl Disk {
    fn new(text: &str) -> Self {
        Self {
            path: tempfile::NamedTempFile::new().unwrap().into_temp_path(),
            content: Arc::new(Mutex::new(Ok(text.to_owned()))),
            changes: 0,
        }
    }

    /// Keys that look at the file whenever they are asked.
    fn keys(&self) -> ApiKeys {
        let content = self.content.clone();
        let read = move || match &*content.lock().unwrap() {
            Ok(text) => Ok(text.clone()),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        let file = reloading(&self.path, read).unwrap();
        ApiKeys::of(Source::File(file.looking_every(Duration::ZERO)))
    }

    /// Another content, and a file that shows that it changed.
    fn holds(&mut self, content: io::Result<String>) {
        *self.content.lock().unwrap() = content;
        self.changes += 1;
        let file = File::options().write(true).open(&self.path).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(self.changes);
        file.set_modified(time).unwrap();
    }
}

#[test]
fn a_changed_file_is_read_again() {
    let mut disk = Disk::new(&format!("a:{SECRET}"));
    let keys = disk.keys();
    assert_eq!(name(keys.tenant("secret")), Ok("a".to_owned()));
    disk.holds(Ok(format!("b:{OTHER}")));
    assert_eq!(name(keys.tenant("secret")), Err(Denied::Unknown), "revoked");
    assert_eq!(name(keys.tenant("other")), Ok("b".to_owned()), "given");
}

/// A disk that fills up leaves a file without content, or cut in the middle of a line; the last
/// good keys stay until there are others.
#[test]
fn a_file_that_cannot_be_used_keeps_the_keys_that_were_there() {
    let mut disk = Disk::new(&format!("a:{SECRET}"));
    let keys = disk.keys();
    let full = io::Error::from(io::ErrorKind::StorageFull);
    for broken in [
        Err(full),
        Ok(String::new()),
        Ok("# nobody yet\n".to_owned()),
        Ok(format!("a:{SECRET}\nb:{}", &OTHER[..20])),
    ] {
        let what = format!("{broken:?}");
        disk.holds(broken);
        for _ in 0..2 {
            assert_eq!(name(keys.tenant("secret")), Ok("a".to_owned()), "{what}");
        }
    }
    disk.holds(Ok(format!("b:{OTHER}")));
    assert_eq!(name(keys.tenant("other")), Ok("b".to_owned()));
}

/// Reading may fail for a moment, of too many open files or over a network: the file does not
/// change again for that.
#[test]
fn a_file_that_could_not_be_read_is_tried_again_without_another_change() {
    let mut disk = Disk::new(&format!("a:{SECRET}"));
    let keys = disk.keys();
    disk.holds(Err(io::Error::from(io::ErrorKind::TimedOut)));
    assert_eq!(name(keys.tenant("other")), Err(Denied::Unknown));
    *disk.content.lock().unwrap() = Ok(format!("b:{OTHER}"));
    assert_eq!(name(keys.tenant("other")), Ok("b".to_owned()));
}

#[test]
fn what_is_under_way_stays_counted_when_the_file_is_read_again() {
    let mut disk = Disk::new(&format!("a:{SECRET} max-requests=1"));
    let keys = disk.keys();
    let permit = keys.tenant("secret").unwrap().begin(0).unwrap();
    disk.holds(Ok(format!("a:{SECRET} max-requests=1 max-tokens=9")));
    let tenant = keys.tenant("secret").unwrap();
    assert_eq!(tenant.options().max_tokens, Some(9), "the new line");
    tenant.begin(0).expect_err("one is under way");
    drop(permit);
    tenant.begin(0).expect("it has ended");
}

#[test]
fn a_file_that_cannot_be_used_at_the_start_is_an_error_that_names_it() {
    let missing = ApiKeys::open(Path::new("/nope/keys")).unwrap_err();
    assert!(missing.to_string().contains("/nope/keys"), "{missing}");
    let file = tempfile::NamedTempFile::new().unwrap();
    let empty = ApiKeys::open(file.path()).unwrap_err();
    assert!(matches!(empty, KeysError::Empty { .. }), "{empty}");
    std::fs::write(file.path(), "#\nnobody").unwrap();
    let bad = ApiKeys::open(file.path()).unwrap_err();
    assert!(bad.to_string().contains("line 2"), "{bad}");
    std::fs::write(file.path(), format!("a:{SECRET}")).unwrap();
    ApiKeys::open(file.path()).expect("a key");
}
