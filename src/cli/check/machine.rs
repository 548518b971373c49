//! Probes of this machine: the data folder, the disk under it, the certificate.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::ServerName;

use super::Findings;
use crate::config::Config;
use crate::disk;
use crate::tls::Tls;

pub(super) fn data(config: &Config, findings: &mut Findings) {
    let folder = &config.data_dir;
    match std::fs::metadata(folder) {
        Ok(data) if !data.is_dir() => findings.bad(format!("{} is not a folder", folder.display())),
        Ok(data) => {
            findings.ok(format!("{} is there", folder.display()));
            if data.mode() & 0o077 != 0 {
                findings.advice(format!("{} can be read by others: chmod 700", folder.display()));
            }
            private_file(&config.secrets.master_key_file, findings);
            private_file(&folder.join("admin.key"), findings);
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            findings.ok(format!("{} will be made at the first start", folder.display()));
        }
        Err(error) => findings.bad(format!("{}: {error}", folder.display())),
    }
    for place in disk::places(config) {
        room(config, &place, findings);
    }
}

fn room(config: &Config, place: &Path, findings: &mut Findings) {
    let there = place.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    let space = match disk::space(there) {
        Ok(space) => space,
        Err(error) => return findings.advice(format!("unknown: free space of {}: {error}", place.display())),
    };
    let (mib, floor) = (space.free >> 20, config.smtp.guard.min_free_disk.of(space.size));
    let words = format!("{mib} MiB free on the disk of {}", place.display());
    let floor_words = format!("mail is deferred below {} MiB (smtp.min_free_disk)", floor >> 20);
    match space.free {
        free if free < floor => findings.bad(format!("{words}: {floor_words}")),
        free if free < floor * 2 => findings.advice(format!("{words}: {floor_words}")),
        _ => findings.ok(words),
    }
}

fn private_file(path: &Path, findings: &mut Findings) {
    if let Ok(data) = std::fs::metadata(path)
        && data.mode() & 0o077 != 0
    {
        findings.bad(format!("{} can be read by others: chmod 600", path.display()));
    }
}

pub(super) fn tls(config: &Config, findings: &mut Findings) {
    let Some(files) = &config.tls.files else {
        findings.ok("a self-signed certificate is used: other mail servers encrypt to it without verifying");
        return;
    };
    let tls = match Tls::open(&config.hostname, &config.data_dir, Some(files)) {
        Ok(tls) => tls,
        Err(error) => return findings.bad(error.to_string()),
    };
    match handshake(&tls, &config.hostname) {
        Ok(()) => findings.ok(format!("the certificate is good for {}", config.hostname)),
        Err(error) => findings.advice(format!(
            "a sender that verifies would refuse the certificate for {}: {error}",
            config.hostname
        )),
    }
}

/// A handshake in memory between our own server side and a client that verifies as MTA-STS senders do.
fn handshake(tls: &Tls, hostname: &str) -> Result<(), String> {
    let name = ServerName::try_from(hostname.to_owned()).map_err(|error| error.to_string())?;
    let words = |error: rustls::Error| error.to_string();
    let mut client = rustls::ClientConnection::new(tls.verifying(), name).map_err(words)?;
    let mut server = rustls::ServerConnection::new(Arc::clone(&tls.server())).map_err(words)?;
    // Four flights are enough for TLS 1.2 and 1.3.
    for _ in 0..8 {
        let mut flight = vec![];
        while client.wants_write() {
            client.write_tls(&mut flight).map_err(|error| error.to_string())?;
        }
        feed(&flight, |rest| server.read_tls(rest))?;
        server.process_new_packets().map_err(words)?;
        let mut flight = vec![];
        while server.wants_write() {
            server.write_tls(&mut flight).map_err(|error| error.to_string())?;
        }
        feed(&flight, |rest| client.read_tls(rest))?;
        client.process_new_packets().map_err(words)?;
    }
    match client.is_handshaking() {
        true => Err("the handshake did not end".into()),
        false => Ok(()),
    }
}

fn feed(mut flight: &[u8], mut read: impl FnMut(&mut &[u8]) -> std::io::Result<usize>) -> Result<(), String> {
    while !flight.is_empty() {
        read(&mut flight).map_err(|error| error.to_string())?;
    }
    Ok(())
}
