//! A real Postfix, on an address of its own, with its own configuration, queue and mailboxes. It finds its peers by
//! MX look-up in the test's DNS server: it runs in a mount namespace in which /etc/resolv.conf names that server, so
//! it needs root and `unshare`. It speaks STARTTLS both ways, and insists on it when it sends.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
};

use tempfile::TempDir;

use super::{dns::Dns, eventually, needs, own_address, root, server::tail, smtp::Smtp};

pub struct Postfix {
    pub address: SocketAddr,
    dir: PathBuf,
    leash: Mutex<Option<Child>>,
    _folder: TempDir,
}

/// The port on which a Postfix takes mail, and at which Gatepost dials it (`relay.port`).
pub const PORT: u16 = 2526;

const SERVICES: &str = "\
pickup    unix n - n 60 1 pickup
cleanup   unix n - n - 0 cleanup
qmgr      unix n - n 300 1 qmgr
tlsmgr    unix - - n 1000? 1 tlsmgr
rewrite   unix - - n - - trivial-rewrite
bounce    unix - - n - 0 bounce
defer     unix - - n - 0 bounce
trace     unix - - n - 0 bounce
verify    unix - - n - 1 verify
proxymap  unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp      unix - - n - - smtp
relay     unix - - n - - smtp
error     unix - - n - - error
retry     unix - - n - - error
discard   unix - - n - - discard
virtual   unix - n n - - virtual
anvil     unix - - n - 1 anvil
scache    unix - - n - 1 scache
postlog   unix-dgram n - n - 1 postlogd
";

impl Postfix {
    /// The mail server of `domain` with these mailboxes. `gatepost_port` is where the MX hosts of agents.example listen.
    pub async fn start(domain: &str, mailboxes: &[&str], dns: &Dns, gatepost_port: u16) -> Option<Postfix> {
        Postfix::start_with(domain, mailboxes, dns, gatepost_port, "").await
    }

    /// With further lines of main.cf. Mail to `late@` its domain is taken and forwarded to Gatepost,
    /// which refuses it, so that it comes back.
    pub async fn start_with(
        domain: &str,
        mailboxes: &[&str],
        dns: &Dns,
        gatepost_port: u16,
        more: &str,
    ) -> Option<Postfix> {
        if !root() {
            return needs::missing("root, which Postfix needs");
        }
        let (Some(postfix), Some(_)) = (needs::program("postfix"), needs::program("unshare")) else {
            return needs::missing("Postfix (or unshare)");
        };
        let folder = tempfile::Builder::new().prefix("gatepost-postfix-").tempdir().expect("folder");
        let dir = folder.path().to_owned();
        let address = SocketAddr::new(own_address(), PORT);
        let etc = dir.join("etc");
        for name in ["etc", "queue", "data", "mail"] {
            fs::create_dir(dir.join(name)).expect("folder");
        }
        // Its parts run as different users and must be able to walk in.
        super::run(Command::new("chmod").args(["755"]).args([&dir, &etc]));
        super::run(Command::new("chown").arg("postfix").arg(dir.join("data")));
        super::run(Command::new("chown").arg("65534:65534").arg(dir.join("mail")));
        certificate(&etc);
        let maps =
            mailboxes.iter().map(|name| format!(" {{ {name}@{domain} = {name}/ }}")).collect::<String>();
        let main = format!(
            "compatibility_level = 3.6\nqueue_directory = {d}/queue\ndata_directory = {d}/data\n\
             mail_owner = postfix\nsetgid_group = postdrop\nmaillog_file = {d}/maillog\n\
             maillog_file_prefixes = /var, /tmp, {d}\nmyhostname = mx.{domain}\nmydestination =\n\
             inet_interfaces = 127.0.0.1\ninet_protocols = ipv4\nmynetworks = 127.0.0.0/8\n\
             smtp_bind_address = {ip}\n\
             virtual_mailbox_domains = {domain}\nvirtual_mailbox_maps = inline:{{{maps} }}\n\
             virtual_mailbox_base = {d}/mail\nvirtual_uid_maps = static:65534\nvirtual_gid_maps = static:65534\n\
             virtual_transport = virtual\n\
             transport_maps = inline:{{ {{ agents.example = smtp:agents.example:{gatepost_port} }} \
             {{ late@{domain} = smtp:agents.example:{gatepost_port} }} }}\n\
             smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination\n\
             smtpd_tls_cert_file = {d}/etc/cert.pem\nsmtpd_tls_key_file = {d}/etc/key.pem\n\
             smtpd_tls_security_level = may\nsmtpd_tls_received_header = yes\n\
             smtp_tls_security_level = encrypt\nsmtp_tls_loglevel = 1\nsmtp_host_lookup = dns\n\
             minimal_backoff_time = 2s\nmaximal_backoff_time = 4s\nqueue_run_delay = 2s\nalias_maps =\n\
             local_transport = error\n{more}",
            d = dir.display(),
            ip = address.ip(),
        );
        fs::write(etc.join("main.cf"), main).expect("main.cf");
        fs::write(etc.join("master.cf"), format!("{address} inet n - n - - smtpd\n{SERVICES}"))
            .expect("master.cf");
        fs::write(dir.join("resolv.conf"), format!("nameserver {}\n", dns.address.ip()))
            .expect("resolv.conf");
        assert_eq!(dns.address.port(), 53, "resolv.conf knows no ports");
        let script = format!(
            "unshare -m --propagation private sh -c 'mount --bind {d}/resolv.conf /etc/resolv.conf && \
             exec {postfix} -c {d}/etc start'; read x; {postfix} -c {d}/etc stop",
            d = dir.display(),
            postfix = postfix.display(),
        );
        let log = fs::File::create(dir.join("stdout")).expect("log");
        let leash = Command::new("setsid")
            .args(["sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .expect("sh");
        let postfix = Postfix { address, dir, leash: Mutex::new(Some(leash)), _folder: folder };
        eventually("Postfix greets", async || Smtp::connect(address).await.ok()).await;
        Some(postfix)
    }

    /// The records that make it the mail server of its domain.
    pub fn zone(domain: &str, address: IpAddr) -> String {
        format!(
            "{domain} MX 10 mx.{domain}\nmx.{domain} A {address}\n{domain} TXT v=spf1 a:mx.{domain} -all\n"
        )
    }

    /// Hands it a message to send on, as a mail client would.
    pub async fn submit(&self, from: &str, to: &str, message: &[u8]) {
        let mut smtp = Smtp::connect(self.address).await.expect("Postfix");
        let reply = smtp.deliver(from, &[to], message).await.expect("Postfix");
        assert_eq!(reply.code, 250, "{}", smtp.transcript);
    }

    /// The messages in a mailbox, once there are that many.
    pub async fn mailbox(&self, name: &str, count: usize) -> Vec<Vec<u8>> {
        let new = self.dir.join("mail").join(name).join("new");
        eventually(&format!("{count} messages in Postfix's mailbox {name}"), async || {
            let mut files = fs::read_dir(&new).ok()?.flatten().map(|e| e.path()).collect::<Vec<_>>();
            files.sort();
            (files.len() >= count).then(|| files.iter().map(|f| fs::read(f).expect("mail")).collect())
        })
        .await
    }

    pub fn maillog(&self) -> String {
        fs::read_to_string(self.dir.join("maillog")).unwrap_or_default()
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "--- Postfix:\n{}{}---",
                tail(&self.dir.join("stdout"), 20),
                tail(&self.dir.join("maillog"), 40)
            );
        }
        if let Some(mut leash) = self.leash.lock().unwrap_or_else(|e| e.into_inner()).take() {
            drop(leash.stdin.take());
            let _ = leash.wait();
        }
    }
}

fn certificate(etc: &Path) {
    let made = rcgen::generate_simple_self_signed(vec!["mx.remote.example".to_owned()]).expect("certificate");
    fs::write(etc.join("cert.pem"), made.cert.pem()).expect("certificate");
    fs::write(etc.join("key.pem"), made.signing_key.serialize_pem()).expect("certificate");
}
