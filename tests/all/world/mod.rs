//! What stands around Gatepost in the tests: the server as a child process, its peers, and patience.

pub mod api;
pub mod dns;
pub mod mail;
pub mod needs;
pub mod postfix;
pub mod postgres;
pub mod scripted;
pub mod server;
pub mod signed;
pub mod sink;
pub mod smtp;
pub mod strace;
pub mod trusted;

use std::{
    net::{IpAddr, Ipv4Addr},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// What a loaded two-core machine may take for anything at all.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A loopback address that nothing else in this test run uses. The kernel answers for all of 127/8, so servers need
/// no free ports: each has an address of its own, and a restart finds the same ports again.
pub fn own_address() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(n < 3 * 250, "more servers than addresses: widen own_address");
    let process = std::process::id();
    let block = 48 + 64 * (n / 250) + ((process >> 8) & 63);
    IpAddr::V4(Ipv4Addr::new(127, block as u8, (process & 255) as u8, (1 + n % 250) as u8))
}

/// Asks again until there is an answer. Waiting for a state, never for a time.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
}

/// Sends a signal by the shell's own `kill`, which is there even where procps is not.
pub fn signal(pid: u32, name: &str) {
    let done = Command::new("sh").arg("-c").arg(format!("kill -{name} {pid}")).status().expect("sh");
    assert!(done.success(), "kill -{name} {pid}");
}

/// Are we root? Some peers (Postfix, port 53, mount namespaces) can only be had as root.
pub fn root() -> bool {
    let id = Command::new("id").arg("-u").output().expect("id");
    id.stdout.trim_ascii() == b"0"
}

/// Runs a program to its end and gives what it printed; its failure is ours.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} failed ({}):\n{text}", output.status);
    text
}

/// A number below `n`, another one at every call.
pub fn dice(n: u64) -> u64 {
    u64::from_le_bytes(gatepost::ids::random_bytes::<8>()) % n
}
