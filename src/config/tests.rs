//! Every file in `tests/data/bad-config` must be refused, in words that name file, line and key. What is
//! expected stands in its own first line: `# expect LINE KEY: words`.

use std::path::Path;

use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("gatepost.toml"), text, std::iter::empty())
}

const SMALL: &str = "hostname = \"mx.agents.example\"\ndomains = [\"agents.example\"]\n";

fn with_environment(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let variables: Vec<_> = variables.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
    Config::parse(Path::new("gatepost.toml"), SMALL, variables.into_iter())
}

#[test]
fn every_bad_configuration_is_refused_by_file_line_and_key() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bad-config");
    let mut seen = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let expected = text.lines().next().and_then(|l| l.strip_prefix("# expect ")).expect("a first line");
        let (line, rest) = expected.split_once(' ').unwrap();
        let (key, words) = rest.split_once(": ").unwrap();
        let place = match line {
            "-" => format!("{}: {key}: ", path.display()),
            line => format!("{}:{line}: {key}: ", path.display()),
        };
        let error = match Config::parse(&path, &text, std::iter::empty()) {
            Ok(_) => panic!("{} was accepted", path.display()),
            Err(error) => error.to_string(),
        };
        assert!(
            error.lines().any(|l| l.starts_with(&place) && l.contains(words)),
            "{} wanted {place}…{words}, got:\n{error}",
            path.display()
        );
        seen += 1;
    }
    assert!(seen >= 30, "only {seen} bad configurations were found");
}

#[test]
fn all_problems_are_named_at_once_in_the_order_of_the_file() {
    let error =
        parse("hostname = 1\ndomains = []\n[smtp]\nlisten = \"25\"\n[relay]\nprot = 25\n").unwrap_err();
    let keys: Vec<&str> = error.problems.iter().map(|p| p.key.as_str()).collect();
    assert_eq!(keys, ["hostname", "domains", "smtp.listen", "relay.prot"]);
}

#[test]
fn two_keys_are_enough() {
    let config = parse(SMALL).unwrap();
    assert_eq!(config.smtp.listen, ["[::]:25".parse().unwrap()]);
    assert_eq!(config.smtp.max_message_size, 25 << 20);
    assert_eq!(config.database.url, DatabaseUrl::Sqlite("/var/lib/gatepost/gatepost.db".into()));
    assert_eq!(config.http.public_url, "https://mx.agents.example");
    assert_eq!(config.relay.retry.len(), 7);
    assert_eq!(config.relay.expire, Duration::from_secs(432_000));
}

#[test]
fn the_environment_wins_over_the_file() {
    let config = with_environment(&[
        ("GATEPOST_DOMAINS", "one.example, two.example"),
        ("GATEPOST_DATABASE__URL", "postgres:///gatepost?host=/run/postgresql&user=mail"),
        ("GATEPOST_SMTP__LISTEN", "127.0.0.1:0,[::1]:0"),
        ("GATEPOST_RELAY__ALLOW_PRIVATE_ADDRESSES", "true"),
        ("GATEPOST_RELAY__PORT", "2500"),
        ("GATEPOST_RELAY__RETRY", "1s,1h30m"),
        // Not ours: what Kubernetes sets for a service of that name, and what has no section.
        ("GATEPOST_PORT", "tcp://10.0.0.1:8025"),
        ("GATEPOST_ADMIN_KEY", "k"),
    ])
    .unwrap();
    assert_eq!(config.domains, ["one.example", "two.example"]);
    assert!(matches!(config.database.url, DatabaseUrl::Postgres(_)));
    assert_eq!(config.smtp.listen.len(), 2);
    assert!(config.relay.allow_private_addresses);
    assert_eq!(config.relay.port, 2500);
    assert_eq!(config.relay.retry, [Duration::from_secs(1), Duration::from_secs(5400)]);
}

#[test]
fn a_bad_variable_is_refused_by_its_name() {
    let error = with_environment(&[("GATEPOST_SMTP__LISTEN", "25"), ("GATEPOST_SMPT__LISTEN", "[::]:25")]);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("environment variable GATEPOST_SMTP__LISTEN: smtp.listen: `25` is no address"));
    assert!(
        error.contains("GATEPOST_SMPT__LISTEN: smpt.listen: is not a known key; did you mean smtp.listen?")
    );
}

#[test]
fn the_commented_example_parses_and_names_every_key() {
    let text = include_str!("../../config/gatepost.toml");
    let path = Path::new("config/gatepost.toml");
    Config::parse(path, text, std::iter::empty()).unwrap_or_else(|error| panic!("{error}"));
    let example = Settings::from_file(path, &uncommented(text));
    for key in Config::keys() {
        assert!(example.is_set(key), "config/gatepost.toml does not show {key}");
    }
}

/// The example with the keys that are commented out put in: `#key = …` (prose has a space after the #).
fn uncommented(text: &str) -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => rest.to_owned(),
        _ => line.to_owned(),
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn networks_contain_what_they_say() {
    let config = parse(&format!("{SMALL}[http]\ntrusted_proxies = [\"10.0.0.0/8\", \"::1\", \"0.0.0.0/0\"]"));
    let networks = config.unwrap().http.trusted_proxies;
    let [ten, loopback, all] = networks.as_slice() else { panic!("three networks") };
    assert!(ten.contains("10.200.0.1".parse().unwrap()));
    assert!(ten.contains("::ffff:10.1.2.3".parse().unwrap()));
    assert!(!ten.contains("11.0.0.1".parse().unwrap()));
    assert!(loopback.contains("::1".parse().unwrap()) && !loopback.contains("::2".parse().unwrap()));
    assert!(all.contains("198.51.100.7".parse().unwrap()));
}

#[test]
fn dev_needs_nothing_and_takes_flags() {
    let flags = [("--smtp", "smtp.listen", "127.0.0.1:0".to_owned())];
    let config = Config::dev(Path::new("gatepost-dev"), &flags, std::iter::empty()).unwrap();
    assert_eq!(config.database.url, DatabaseUrl::Sqlite("gatepost-dev/gatepost.db".into()));
    assert_eq!(config.smtp.listen, ["127.0.0.1:0".parse().unwrap()]);
    let flags = [("--http", "http.listen", "8025".to_owned())];
    let error = Config::dev(Path::new("d"), &flags, std::iter::empty()).unwrap_err();
    assert!(error.to_string().starts_with("--http: http.listen: `8025` is no address"));
}
