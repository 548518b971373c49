//! A database URL that leads nowhere. (What a configuration file can have wrong is in `house.rs`.)

use std::process::Command;

/// What `serve` says about this configuration, and its exit code.
fn serve(config: &str) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gatepost.toml");
    std::fs::write(&file, config.replace("DIR", &folder.path().display().to_string())).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatepost"));
    let output = command.args(["serve", "--config"]).arg(&file).output().expect("gatepost");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

const GOOD: &str =
    "hostname = \"mx.agents.example\"\ndomains = [\"agents.example\"]\ndata_dir = \"DIR/data\"\n";

#[test]
fn a_database_that_does_not_answer_is_said_in_a_sentence() {
    let listen = "[smtp]\nlisten = \"127.0.0.1:0\"\n[submission]\nlisten = []\nlisten_tls = []\n[imap]\nlisten = []\n\
                  listen_tls = []\n[http]\nlisten = \"127.0.0.1:0\"\n";
    for url in ["postgres://nobody:secret-word@127.0.0.1:1/none", "sqlite:/proc/nowhere/gatepost.db"] {
        let (code, said) = serve(&format!("{GOOD}{listen}[database]\nurl = \"{url}\"\n"));
        assert!(code.is_some_and(|code| code != 0 && code != 101), "{url}: {code:?} {said}");
        assert!(said.to_lowercase().contains("database"), "{url}: {said}");
        assert!(!said.contains("secret-word"), "a password was printed: {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}
