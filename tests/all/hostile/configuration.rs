//! A configuration that cannot work is refused in words that name file, line and key, with exit code 78 (EX_CONFIG).

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
fn a_bad_configuration_names_file_line_and_key() {
    for (more, line, key) in [
        ("nonsense = 1\n", 4, "nonsense"),
        ("[smtp]\nlisten = \"nowhere\"\n", 5, "smtp.listen"),
        ("[smtp]\nmax_message_size = \"many\"\n", 5, "smtp.max_message_size"),
        ("[relay]\nretry = [\"soon\"]\n", 5, "relay.retry"),
        ("[database]\nurl = \"mysql://x/y\"\n", 5, "database.url"),
        ("[dns]\nservers = [\"one.one.one.one\"]\n", 5, "dns.servers"),
    ] {
        let (code, said) = serve(&format!("{GOOD}{more}"));
        assert_eq!(code, Some(78), "{more}: {said}");
        assert!(said.contains(&format!("gatepost.toml:{line}")), "no file and line: {said}");
        let last = key.rsplit('.').next().unwrap();
        assert!(said.contains(last), "no key {key}: {said}");
    }
}

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
