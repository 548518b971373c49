//! Writes what the fuzzers begin with: `seeds DIALOGUES FOLDER` takes the written dialogues of the tests apart, into one
//! session each, the command lines in it, and the messages.

use std::fs;
use std::path::Path;

/// As in src/smtp/fuzzing.rs: here the client waits for the server.
const DIVIDER: u8 = 0xfe;

fn main() {
    let args = std::env::args().skip(1).collect::<Vec<_>>();
    let [dialogues, folder] = &args[..] else { panic!("seeds DIALOGUES FOLDER") };
    let folder = Path::new(folder);
    for kind in ["session", "command", "data", "header"] {
        fs::create_dir_all(folder.join(kind)).expect("a folder");
    }
    for entry in fs::read_dir(dialogues).expect("the dialogues") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let script = fs::read_to_string(&path).expect("a dialogue");
        let pieces = script.lines().filter_map(piece).collect::<Vec<_>>();
        let write = |kind: &str, n: usize, octets: &[u8]| {
            fs::write(folder.join(kind).join(format!("{name}-{n}")), octets).expect("a seed");
        };
        write("session", 0, &pieces.join(&DIVIDER));
        let octets = pieces.concat();
        write("data", 0, &[b"\x07\x01\x1f\x03", &octets[..]].concat());
        write("header", 0, &octets);
        for (n, line) in octets.split(|octet| *octet == b'\n').enumerate().take(40) {
            write("command", n, line.strip_suffix(b"\r").unwrap_or(line));
        }
    }
}

/// What a line of a dialogue sends, if it sends anything that is not endless.
fn piece(line: &str) -> Option<Vec<u8>> {
    let (kind, rest) = line.split_at_checked(2)?;
    let rest = rest.strip_prefix(' ').unwrap_or(rest);
    match kind {
        "C:" => Some(format!("{rest}\r\n").into_bytes()),
        "C>" => {
            let octets = [("\\r", "\r"), ("\\n", "\n"), ("\\0", "\0"), ("\\t", "\t")];
            let text = octets.iter().fold(rest.to_owned(), |text, (name, octet)| text.replace(name, octet));
            Some(text.into_bytes())
        }
        "C*" => {
            let (times, text) = rest.split_once(' ')?;
            Some(format!("{text}\r\n").repeat(times.parse::<usize>().ok()?.min(40)).into_bytes())
        }
        _ => None,
    }
}
