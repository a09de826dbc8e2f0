use super::*;

fn function(num_lines: usize) -> String {
    format!("fn f() {{\n{}}}\n", "    g();\n".repeat(num_lines - 2))
}

fn found(files: &[(&str, String)]) -> Vec<(Rule, usize)> {
    let mut report = Report::default();
    files
        .iter()
        .for_each(|(path, source)| report.add(path, source));
    report.measure_usual_length();
    let counts = report.findings.iter();
    counts.map(|(rule, places)| (*rule, places.len())).collect()
}

#[test]
fn a_file_has_600_lines_at_most_and_nine_of_ten_have_400() {
    let short = |name: &'static str| (name, "\n".to_owned());
    let files = |lines: usize| {
        let mut files: Vec<_> = ["b.rs", "c.rs", "d.rs", "e.rs", "f.rs"].map(short).into();
        files.extend(["g.rs", "h.rs", "i.rs", "j.rs", "k.rs"].map(short));
        files.push(("a.py", "\n".repeat(lines)));
        files
    };
    assert_eq!(found(&files(600)), []);
    assert_eq!(found(&files(601)), [(Rule::LongFile, 1)]);
    assert_eq!(found(&[("a.rs", "\n".repeat(400))]), []);
    assert_eq!(
        found(&[("a.rs", "\n".repeat(401))]),
        [(Rule::UsualLength, 1)]
    );
}

#[test]
fn a_function_has_70_lines_and_6_arguments_at_most() {
    assert_eq!(found(&[("a.rs", function(70))]), []);
    assert_eq!(found(&[("a.rs", function(71))]), [(Rule::LongFunction, 1)]);
    let arguments = |count: usize| format!("fn f({}) {{}}\n", "a: u8, ".repeat(count));
    assert_eq!(found(&[("a.rs", arguments(6))]), []);
    assert_eq!(found(&[("a.rs", arguments(7))]), [(Rule::ManyArguments, 1)]);
    let tuple = "fn f(a: (u8, u8), b: &[(u8, u8, u8)]) {}\n".to_owned();
    assert_eq!(found(&[("a.rs", tuple)]), [(Rule::LongTuple, 1)]);
}

#[test]
fn a_module_has_one_spelling() {
    for name in ["a/src/kv/mod.rs", "a/src/kv/cache_tests.rs"] {
        assert_eq!(found(&[(name, String::new())]), [(Rule::FileName, 1)]);
    }
    let good = ["a/src/kv.rs", "a/src/kv/tests.rs", "tests/cluster/main.rs"];
    assert_eq!(found(&good.map(|name| (name, String::new()))), []);
}

#[test]
fn unsafe_stays_where_it_is_allowed() {
    let source = || "#![forbid(unsafe_code)] // unsafe\nfn f() { unsafe { g() } }\n".to_owned();
    assert_eq!(found(&[("kernels/src/cpu/pool.rs", source())]), []);
    let mut report = Report::default();
    report.add("coordinator/src/lib.rs", &source());
    let broken = report.broken_rules();
    assert_eq!(broken.len(), 1);
    assert!(broken[0].contains("coordinator/src/lib.rs:2"), "{broken:?}");
}
