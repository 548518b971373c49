//! Probes beyond the machine: our own doors, DNS, the way out on port 25, the clock.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::Findings;
use crate::clock::Clock;
use crate::config::Config;
use crate::dns::Resolver;
use crate::domains::look::{self, State};
use crate::domains::records::{self, Subject};
use crate::smtp::dnsbl;
use crate::store::domain::Features;

/// Patience with one remote host.
const DIAL: Duration = Duration::from_secs(5);
/// A host that answers on port 25 to everyone: many cloud providers block that port on the way out.
const SOMEBODY: &str = "gmail.com";
/// The public pool of time servers (RFC 4330 asks for a name of one's own in products; this is a hand-run
/// diagnosis).
const TIME: &str = "pool.ntp.org";
/// DKIM signatures and leases stand a small error; more confuses people who read logs side by side.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(5);

pub(super) async fn listeners(config: &Config, findings: &mut Findings) {
    for (key, address) in
        config.smtp.listen.iter().map(|a| ("smtp", a)).chain(config.http.listen.iter().map(|a| ("http", a)))
    {
        match TcpListener::bind(address).await {
            Ok(_) => findings.ok(format!("{key} {address} is free")),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                findings.ok(format!("{key} {address} is in use: by a running Gatepost, it is to be hoped"));
            }
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => findings.advice(format!(
                "{key} {address} is not for this user: run as deploy/gatepost.service does (CAP_NET_BIND_SERVICE)"
            )),
            Err(error) => findings.bad(format!("{key} {address}: {error}")),
        }
    }
}

pub(super) async fn dns(config: &Config, findings: &mut Findings) {
    let dns = match Resolver::new(&config.dns.servers) {
        Ok(dns) => dns,
        Err(error) => return findings.bad(error.to_string()),
    };
    for zone in &config.smtp.guard.dnsbl {
        match dnsbl::test(&dns, zone).await {
            Ok(()) => findings.ok(format!("block list {zone} answers")),
            Err(why) => findings.advice(format!("block list {zone} {why}")),
        }
    }
    for name in &config.domains {
        // DKIM keys are in the database, which may be in use: `gatepost dns` looks at those.
        let wanted = records::wanted(config, Subject { name, features: Features::default() }, &[]);
        let lines: Vec<String> = wanted.iter().map(records::Wanted::line).collect();
        for (line, finding) in lines.into_iter().zip(look::look(&dns, config, wanted).await) {
            let fix = finding.fix.clone().unwrap_or_default();
            match finding.state {
                State::Ok => findings.ok(line),
                State::Missing if finding.optional => {}
                State::Missing => findings.bad(format!("missing: {line}  ({})", finding.why)),
                State::Wrong => findings.advice(format!("wrong: {line}  ({fix})")),
                State::Unknown => findings.advice(format!("unknown: {line}  ({fix})")),
            }
        }
    }
}

pub(super) async fn port25(config: &Config, findings: &mut Findings) {
    if let Some(relay) = &config.relay.smarthost {
        return match dial(config, &relay.host, relay.port).await {
            Ok(()) => findings.ok(format!("{relay} answers")),
            Err(why) => findings.bad(format!("{relay}: {why}")),
        };
    }
    let Ok(dns) = Resolver::new(&config.dns.servers) else { return };
    let host = match dns.mx(SOMEBODY).await.ok().and_then(|all| all.into_iter().next()) {
        Some(mx) => mx.exchange,
        None => return findings.advice(format!("unknown: no MX of {SOMEBODY} to try")),
    };
    match dial(config, &host, 25).await {
        Ok(()) => findings.ok(format!("mail can leave: {host} answers on port 25")),
        Err(why) => findings.bad(format!(
            "mail cannot leave: {host} on port 25: {why}. Many providers open the port on request; else set relay.smarthost"
        )),
    }
}

async fn dial(config: &Config, host: &str, port: u16) -> Result<(), String> {
    let dns = Resolver::new(&config.dns.servers).map_err(|error| error.to_string())?;
    let mut addresses = match host.parse::<IpAddr>() {
        Ok(ip) => vec![ip],
        Err(_) => dns.addresses(host).await.map_err(|error| error.to_string())?,
    };
    // IPv4 first: a machine without IPv6 is no fault.
    addresses.sort_by_key(IpAddr::is_ipv6);
    let mut last = "no address".to_owned();
    for ip in addresses.into_iter().take(2) {
        match timeout(DIAL, TcpStream::connect(SocketAddr::new(ip, port))).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => last = "no answer".to_owned(),
        }
    }
    Err(last)
}

pub(super) async fn clock(config: &Config, findings: &mut Findings) {
    match timeout(DIAL, clock_error_ms(config)).await {
        Ok(Some(error)) if error.unsigned_abs() > CLOCK_TOLERANCE.as_millis() as u64 => findings.bad(format!(
            "the clock is off by {error} ms: signatures and leases depend on it; run chrony or systemd-timesyncd"
        )),
        Ok(Some(error)) => findings.ok(format!("the clock is off by {error} ms")),
        _ => findings.advice(format!("unknown: no time from {TIME}")),
    }
}

/// Our clock minus a time server's: SNTP, RFC 4330 §4, to about half a round trip.
async fn clock_error_ms(config: &Config) -> Option<i64> {
    let dns = Resolver::new(&config.dns.servers).ok()?;
    let server = dns.addresses(TIME).await.ok()?.into_iter().find(IpAddr::is_ipv4)?;
    let socket = UdpSocket::bind("0.0.0.0:0").await.ok()?;
    socket.connect((server, 123)).await.ok()?;
    let mut packet = [0u8; 48];
    // Leap indicator 0, version 4, mode 3 (client).
    packet[0] = 0x23;
    socket.send(&packet).await.ok()?;
    (socket.recv(&mut packet).await.ok()? == packet.len()).then_some(())?;
    let now = Clock::system().now();
    // Seconds since 1900 at octet 40, then their fraction.
    let stamp = u64::from_be_bytes(packet.get(40..48)?.try_into().ok()?);
    let seconds = i64::try_from(stamp >> 32).ok()? - 2_208_988_800;
    let millis = i64::try_from(((stamp & 0xffff_ffff) * 1000) >> 32).ok()?;
    (stamp != 0).then_some(now - (seconds * 1000 + millis))
}
