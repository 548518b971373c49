//! What processes asked of the kernel, in one order, as strace saw it: what they heard and said on sockets, what they
//! wrote to files, and which files a completed fsync or fdatasync covered. An injected success is no success.

use std::{
    collections::HashMap,
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use super::{eventually, needs, signal};

/// One thing that happened. The order in the log is the order in which they happened: a write counts when it is
/// begun, everything else when it is complete.
#[derive(Debug, Clone, PartialEq)]
pub enum Happened {
    Heard { socket: String, text: String },
    Said { socket: String, text: String },
    Wrote { file: String },
    Synced { file: String },
}

/// A strace that watches running processes.
pub struct Strace {
    child: Child,
    log: PathBuf,
    _folder: TempDir,
}

const CALLS: &str =
    "fsync,fdatasync,sync_file_range,recvfrom,recvmsg,read,sendto,sendmsg,write,writev,pwrite64,pwritev";

impl Strace {
    /// Watches these processes, all their threads and children. `more`: options such as `inject=…`.
    pub async fn watch(pids: &[u32], more: &[&str]) -> Option<Strace> {
        let Some(strace) = needs::program("strace") else { return needs::missing("strace") };
        let folder = tempfile::Builder::new().prefix("gatepost-strace-").tempdir().expect("folder");
        let (log, said) = (folder.path().join("log"), folder.path().join("said"));
        let child = Command::new(strace)
            .args(["-f", "-yy", "-s", "256", "-e", &format!("trace={CALLS}"), "-o"])
            .arg(&log)
            .args(more.iter().flat_map(|option| ["-e", option]))
            .args(pids.iter().flat_map(|pid| ["-p".to_owned(), pid.to_string()]))
            .stdin(Stdio::null())
            .stderr(fs::File::create(&said).expect("log"))
            .spawn()
            .expect("strace");
        let mut strace = Strace { child, log, _folder: folder };
        let attached = eventually("strace is attached", async || {
            let text = fs::read_to_string(&said).unwrap_or_default();
            let all = pids.iter().all(|pid| text.contains(&format!("rocess {pid} attached")));
            match strace.child.try_wait() {
                Ok(Some(_)) => Some(Err(text)),
                _ => all.then_some(Ok(())),
            }
        })
        .await;
        match attached {
            Ok(()) => Some(strace),
            Err(text) => needs::missing(&format!("permission to trace processes ({})", text.trim())),
        }
    }

    /// Lets the processes go and gives what was seen.
    pub async fn end(mut self) -> Vec<Happened> {
        signal(self.child.id(), "INT");
        eventually("strace ends", async || self.child.try_wait().expect("wait")).await;
        parse(&String::from_utf8_lossy(&fs::read(&self.log).expect("log")))
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `PID call(FD<what>, "bytes"..., N) = N`, or in two lines: `… <unfinished ...>` and `<... call resumed>…`.
pub fn parse(log: &str) -> Vec<Happened> {
    let mut begun: HashMap<&str, String> = HashMap::new();
    let mut all = Vec::new();
    for line in log.lines() {
        let Some((pid, rest)) = line.trim_start().split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(start) = rest.strip_suffix("<unfinished ...>").map(str::trim_end) {
            all.extend(at_begin(start));
            begun.insert(pid, start.to_owned());
        } else if let Some(resumed) = rest.strip_prefix("<... ") {
            let start = begun.remove(pid).unwrap_or_default();
            let end = resumed.split_once(" resumed>").map_or("", |(_, end)| end);
            all.extend(at_end(&format!("{start}{end}")));
        } else {
            all.extend(at_begin(rest));
            all.extend(at_end(rest));
        }
    }
    all
}

fn at_begin(call: &str) -> Option<Happened> {
    let (name, what, text) = parts(call)?;
    match name {
        "sendto" | "sendmsg" | "write" | "writev" if what.starts_with("TCP") => {
            Some(Happened::Said { socket: what.to_owned(), text })
        }
        "write" | "writev" | "pwrite64" | "pwritev" if what.starts_with('/') => {
            Some(Happened::Wrote { file: what.to_owned() })
        }
        _ => None,
    }
}

fn at_end(call: &str) -> Option<Happened> {
    let (name, what, text) = parts(call)?;
    let (_, result) = call.rsplit_once(" = ")?;
    match name {
        "fsync" | "fdatasync" if result.trim() == "0" => Some(Happened::Synced { file: what.to_owned() }),
        "recvfrom" | "recvmsg" | "read" if what.starts_with("TCP") && !result.starts_with(['0', '-']) => {
            Some(Happened::Heard { socket: what.to_owned(), text })
        }
        _ => None,
    }
}

/// The name of the call, what its descriptor stands for, and the first string in it.
fn parts(call: &str) -> Option<(&str, &str, String)> {
    let (name, rest) = call.split_once('(')?;
    let (_, rest) = rest.split_once('<')?;
    // `TCP:[127.0.0.1:1->127.0.0.1:2]` and `/path/name` both end at the first `>` that a comma or bracket follows.
    let end = rest.find(">,").or_else(|| rest.find(">)")).or_else(|| rest.strip_suffix('>').map(str::len))?;
    let what = rest.get(..end)?;
    let text = rest.get(end..).and_then(|r| r.split_once('"')).map_or("", |(_, text)| text);
    Some((name, what, text.to_owned()))
}
