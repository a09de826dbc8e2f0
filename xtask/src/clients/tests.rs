use super::*;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

#[test]
fn every_client_has_a_script_and_every_script_a_client() {
    let scripts = root().join(SCRIPTS);
    for client in CLIENTS {
        let path = scripts.join(client.script);
        assert!(path.is_file(), "{} is not there", path.display());
        if let Kind::Python(purpose) | Kind::Shell(Some(purpose)) = client.kind {
            let packages = root().join(format!("xtask/requirements/{purpose}.txt"));
            assert!(packages.is_file(), "{} is not there", packages.display());
        }
    }
    let mut found = 0;
    for kind in ["python", "node", "shell"] {
        for entry in fs::read_dir(scripts.join(kind)).expect("scripts") {
            let name = entry.expect("an entry").file_name();
            let name = format!("{kind}/{}", name.to_string_lossy());
            if name.contains("_client.") {
                assert!(CLIENTS.iter().any(|client| client.script == name), "{name}");
                found += 1;
            }
        }
    }
    assert_eq!(found, CLIENTS.len());
}

#[test]
fn clients_are_found_by_name_and_kept_in_order() {
    let names = |args: &[&str]| -> Vec<&str> {
        let clients = Asked::parse(args).expect("arguments").clients();
        clients
            .expect("clients")
            .iter()
            .map(|client| client.name)
            .collect()
    };
    assert_eq!(names(&["curl", "openai"]), ["openai", "curl"]);
    assert_eq!(names(&[]).len(), CLIENTS.len());
    let quick = names(&["--quick"]);
    assert!(
        quick.contains(&"openai") && !quick.contains(&"aiperf"),
        "{quick:?}"
    );
    Asked::parse(&["nothing"])
        .expect("arguments")
        .clients()
        .unwrap_err();
    for wrong in [vec!["--fast"], vec!["--server"], vec!["--grpc", "a:1"]] {
        Asked::parse(&wrong).unwrap_err();
    }
}

#[test]
fn scripts_ask_the_server_that_was_started() {
    let addresses = Addresses {
        http: "http://127.0.0.1:41".to_owned(),
        grpc: "127.0.0.1:42".to_owned(),
    };
    let script = "a http://127.0.0.1:8000/v1 b 127.0.0.1:8000 c 127.0.0.1:50051";
    let here = "a http://127.0.0.1:41/v1 b 127.0.0.1:41 c 127.0.0.1:42";
    assert_eq!(addresses.put_into(script), here);
    assert_eq!(Addresses::default().put_into(script), script);
}

#[test]
fn the_last_error_is_the_reason() {
    let python = "x\nTraceback (most recent call last):\n  File \"a\"\nAssertionError: 3\n";
    assert_eq!(reason(python), "AssertionError: 3");
    let node = "AssertionError [ERR_ASSERTION]: 1 == 2\n    at file.mjs:3\n\nNode.js v24.19.0\n";
    assert_eq!(reason(node), "AssertionError [ERR_ASSERTION]: 1 == 2");
    assert_eq!(reason("no x in: y\n"), "no x in: y");
}
