//! What a test needs from the machine, and what happens where it is not there: skipped aloud, or failed when
//! `GATEPOST_REQUIRE=all` says that everything must have run.

use std::path::{Path, PathBuf};

/// `None` with a line on stderr, or a failure under `GATEPOST_REQUIRE=all`.
pub fn missing<T>(what: &str) -> Option<T> {
    assert!(
        std::env::var("GATEPOST_REQUIRE").as_deref() != Ok("all"),
        "GATEPOST_REQUIRE=all, and there is no {what}"
    );
    eprintln!("SKIPPED: no {what} on this machine");
    None
}

/// The first place at which `name` is a file, along PATH and the places where daemons hide.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|dir| dir.join(name))
        .find(|p| p.is_file())
}

/// The folder of other people's mail (DESIGN §7): beside the project, or where `GATEPOST_CORPORA` says.
pub fn corpora() -> Option<PathBuf> {
    let place = match std::env::var_os("GATEPOST_CORPORA") {
        Some(place) => PathBuf::from(place),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpora"),
    };
    if place.is_dir() { Some(place) } else { missing(&format!("corpora at {}", place.display())) }
}

/// The Python of the virtual environment that `.ci/run` makes, with agentmail and dkimpy in it.
pub fn python() -> Option<PathBuf> {
    let places = [
        std::env::var_os("GATEPOST_CI_VENV").map(PathBuf::from),
        Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("target/ci-venv")),
    ];
    let found = places.into_iter().flatten().map(|place| place.join("bin/python")).find(|p| p.is_file());
    found.or_else(|| missing("Python with agentmail and dkimpy (target/ci-venv, made by .ci/run)"))
}
