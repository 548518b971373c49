//! What the operator meets: the first conversation, the first key, refusals in words.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::world::{PATIENCE, own_address, signal};

fn gatepost() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatepost"));
    command.env_remove("GATEPOST_ADMIN_KEY").stdin(Stdio::null());
    command
}

/// `gatepost dev` in a folder of its own, and what it printed until the conversation was complete.
pub struct Dev {
    child: Child,
    printed: String,
}

impl Dev {
    pub fn start(folder: &Path) -> Dev {
        let address = own_address();
        let mut child = gatepost()
            .args([
                "dev",
                "--data",
                "data",
                "--smtp",
                &format!("{address}:2525"),
                "--http",
                &format!("{address}:8025"),
            ])
            .current_dir(folder)
            .stdout(Stdio::piped())
            .stderr(std::fs::File::options().create(true).append(true).open(folder.join("log")).unwrap())
            .spawn()
            .unwrap();
        let (line_of, lines) = mpsc::sync_channel(64);
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| line_of.send(line))
        });
        let mut printed = String::new();
        while !printed.contains("/v1/dev/captured") {
            match lines.recv_timeout(PATIENCE) {
                Ok(line) => printed += &format!("{line}\n"),
                Err(_) => panic!("{printed}\n{}", std::fs::read_to_string(folder.join("log")).unwrap()),
            }
        }
        Dev { child, printed }
    }

    /// Address and port of the API, from the `ready` line.
    pub fn http(&self) -> &str {
        let ready = self.printed.lines().find(|line| line.starts_with("ready ")).expect("ready");
        ready.split_once(" http=").expect("http").1.trim()
    }

    /// What is to be pasted.
    fn commands(&self) -> &str {
        &self.printed[self.printed.find("ada='").expect("commands")..]
    }

    fn stop(mut self) -> String {
        signal(self.child.id(), "TERM");
        assert!(self.child.wait().unwrap().success(), "SIGTERM must end in exit 0");
        std::mem::take(&mut self.printed)
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn the_conversation_that_dev_prints_works_when_it_is_pasted_and_again_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let dev = Dev::start(folder.path());
    for _ in 0..2 {
        let output =
            Command::new("sh").arg("-c").arg(dev.commands()).current_dir(folder.path()).output().unwrap();
        let said = text(&output);
        assert!(output.status.success() && output.stderr.is_empty(), "{said}");
        assert!(said.contains("work_item_id") && said.contains("Are you open on Monday?"), "{said}");
        assert!(said.contains("Yes, from nine to five.") && said.contains("sam@stranger.example"), "{said}");
    }
    let captured = std::fs::read_dir(folder.path().join("data/captured")).unwrap().count();
    assert_eq!(captured, 2, "one .eml for each answer");
    let keys = |printed: &str| -> Vec<String> {
        printed.lines().filter(|line| line.contains("Bearer")).map(str::to_owned).collect()
    };
    let before = keys(&dev.stop());
    let again = Dev::start(folder.path());
    assert_eq!(keys(&again.printed), before, "the keys are the same at the next start");
    let output =
        Command::new("sh").arg("-c").arg(again.commands()).current_dir(folder.path()).output().unwrap();
    assert!(text(&output).contains("Yes, from nine to five."), "{}", text(&output));
}

#[test]
fn a_configuration_that_cannot_work_ends_with_78_and_names_file_line_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gatepost.toml");
    std::fs::write(
        &file,
        "hostname = \"mx.agents.example\"\ndomains = [\"agents.example\"]\n[smtp]\nlisten = 25\n",
    )
    .unwrap();
    for command in ["serve", "check"] {
        let output = gatepost().args([command, "--config"]).arg(&file).output().unwrap();
        assert_eq!(output.status.code(), Some(78));
        let line = format!("{}:4: smtp.listen: `25` is no address with a port", file.display());
        assert!(text(&output).contains(&line), "{}", text(&output));
    }
}

/// A server of our own making: what `init` wrote, on loopback ports.
struct Served {
    child: Child,
}

impl Served {
    fn command(folder: &Path) -> Command {
        let address = own_address();
        let mut command = gatepost();
        command
            .args(["serve", "--config", "gatepost.toml"])
            .current_dir(folder)
            .env("GATEPOST_SMTP__LISTEN", format!("{address}:2525"))
            .env("GATEPOST_HTTP__LISTEN", format!("{address}:8025"));
        command
    }

    /// Started, and its address.
    fn start(folder: &Path) -> (Served, String) {
        let mut child = Served::command(folder).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("submission=- imap=-"), "{line:?}");
        let http = line.trim().rsplit_once("http=").expect("http").1.to_owned();
        (Served { child }, http)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn init(folder: &Path) -> String {
    let output =
        gatepost().args(["init", "agents.example", "--data", "data"]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

/// `gatepost inbox list` with a key.
fn list(http: &str, key: &str) -> Output {
    gatepost().args(["inbox", "list", "--url", &format!("http://{http}"), "--key", key]).output().unwrap()
}

#[test]
fn init_prints_every_record_and_what_it_made_serves() {
    let folder = tempfile::tempdir().unwrap();
    let printed = init(folder.path());
    for record in [
        "agents.example. MX 10 mx.agents.example.",
        "agents.example. TXT \"v=spf1 mx -all\"",
        "_dmarc.agents.example. TXT",
        "PTR mx.agents.example.",
        "k=rsa; p=",
        "k=ed25519; p=",
    ] {
        assert!(printed.contains(record), "{record} is not in\n{printed}");
    }
    let key_file = folder.path().join("data/admin.key");
    assert_eq!(std::fs::metadata(&key_file).unwrap().permissions().mode() & 0o777, 0o600);
    let first = std::fs::read_to_string(&key_file).unwrap().trim().to_owned();

    let (server, http) = Served::start(folder.path());
    assert!(list(&http, &first).status.success(), "the key of init opens the server");
    let refused = list(&http, "gp_wrong");
    assert!(!refused.status.success() && text(&refused).contains("401"), "{}", text(&refused));

    let made = gatepost()
        .args(["key", "create", "--config", "gatepost.toml", "--name", "second"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(list(&http, text(&made).trim()).status.success(), "a key made beside the server is good at once");
    drop(server);

    let again = gatepost().args(["init", "agents.example"]).current_dir(folder.path()).output().unwrap();
    assert!(text(&again).contains("gatepost.toml exists already"), "{}", text(&again));
}

#[test]
fn sealed_rows_without_their_master_key_keep_the_server_from_starting() {
    let folder = tempfile::tempdir().unwrap();
    init(folder.path());
    let key = folder.path().join("data/master.key");
    let kept = std::fs::read_to_string(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    let output = Served::command(folder.path()).output().unwrap();
    assert!(!output.status.success() && text(&output).contains("no master key at"), "{}", text(&output));
    assert!(!key.exists(), "no new key may be made over sealed rows");

    std::fs::write(&key, kept.chars().rev().collect::<String>()).unwrap();
    let output = Served::command(folder.path()).output().unwrap();
    assert!(!output.status.success(), "another key opens nothing: {}", text(&output));

    std::fs::write(&key, kept).unwrap();
    Served::start(folder.path());
}

#[test]
fn a_second_process_on_the_same_data_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    init(folder.path());
    let _first = Served::start(folder.path());
    let output = Served::command(folder.path()).output().unwrap();
    assert!(
        !output.status.success() && text(&output).contains("in use by another Gatepost"),
        "{}",
        text(&output)
    );
}

#[test]
fn sighup_with_a_broken_configuration_leaves_the_server_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    init(folder.path());
    let (mut server, http) = Served::start(folder.path());
    std::fs::write(folder.path().join("gatepost.toml"), "hostname = 5").unwrap();
    signal(server.child.id(), "HUP");
    std::thread::sleep(Duration::from_millis(200));
    assert!(server.child.try_wait().unwrap().is_none(), "a broken file must not stop a running server");
    assert!(!list(&http, "gp_wrong").status.success());
    signal(server.child.id(), "TERM");
    assert!(server.child.wait().unwrap().success());
}
