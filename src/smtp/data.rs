//! Reads the message after DATA: takes off the dots, finds the end, keeps what may be kept.
//!
//! - Only CRLF `.` CRLF ends a message. A CR without LF, an LF without CR or a NUL anywhere is a fault, and
//!   nothing after a fault is ever read as a command: that is how messages are smuggled (CVE-2023-51764,
//!   CVE-2023-51765, CVE-2023-51766, CVE-2023-52354).
//! - The result does not depend on how the octets were cut into reads.
//! - A message over the limit is read to its end and dropped as it comes; memory never exceeds the limit,
//!   nor the budget that all sessions share.
//!
//! RFC 5321 §2.3.8 (lines), §4.1.1.4 (DATA), §4.5.2 (transparency); RFC 1870 (size).

use memchr::memchr3;

use crate::smtp::intake::Intake;

/// Where in a line the reader stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// After CRLF, or before anything: RFC 5321 §4.1.1.4, the CRLF of DATA itself counts.
    LineStart,
    /// After a dot at the start of a line.
    Dot,
    /// After dot and CR at the start of a line.
    DotCr,
    InLine,
    /// After a CR inside a line.
    Cr,
}

/// Why a message cannot be taken, nor anything that follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("CR without LF: lines end with CRLF")]
    BareCr,
    #[error("LF without CR: lines end with CRLF")]
    BareLf,
    /// RFC 5321 §2.3.1 and RFC 5322 §2.2 leave no place for NUL, §4.1 of RFC 5322 forbids generating it, and
    /// programs that end a string there see another message than those that do not. No honest sender has
    /// a use for it: binary travels encoded, or by BINARYMIME, which we do not offer.
    #[error("NUL octets are not mail: encode binary content")]
    Nul,
}

/// What became of the octets pushed so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    More,
    /// The final dot was seen; this many octets of the last push belong to the message.
    Done {
        used: usize,
    },
    Fault(Fault),
}

pub(crate) struct DataReader {
    state: State,
    intake: Intake,
}

impl DataReader {
    pub(crate) fn new(intake: Intake) -> DataReader {
        DataReader { state: State::LineStart, intake }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) -> Progress {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            if byte == 0 {
                return Progress::Fault(Fault::Nul);
            }
            at += 1;
            self.state = match (self.state, byte) {
                (State::LineStart, b'.') => State::Dot,
                (State::Dot, b'\r') => State::DotCr,
                (State::DotCr, b'\n') => return Progress::Done { used: at },
                (State::Cr, b'\n') => {
                    self.intake.keep(b"\r\n");
                    State::LineStart
                }
                (State::Cr | State::DotCr, _) => return Progress::Fault(Fault::BareCr),
                (_, b'\n') => return Progress::Fault(Fault::BareLf),
                (_, b'\r') => State::Cr,
                // RFC 5321 §4.5.2: the dot was the first octet of a longer line and goes.
                (State::LineStart | State::Dot | State::InLine, _) => {
                    let from = at - 1;
                    let rest = bytes.get(at..).unwrap_or_default();
                    at += memchr3(b'\r', b'\n', 0, rest).unwrap_or(rest.len());
                    self.intake.keep(bytes.get(from..at).unwrap_or_default());
                    State::InLine
                }
            };
        }
        Progress::More
    }

    /// Where the octets go, to be settled between pushes.
    pub(crate) fn intake(&mut self) -> &mut Intake {
        &mut self.intake
    }

    /// The message, once `push` said `Done`.
    pub(crate) fn finish(self) -> Intake {
        self.intake
    }
}

/// Reads the chunks of BDAT, whose ends are counted and not looked for (RFC 3030 §2): nothing in them can be
/// taken for a command, and the dots stay.
///
/// A bare CR or LF or a NUL in them is a fault all the same: only BINARYMIME (RFC 3030 §3) may carry such
/// octets, and we do not offer it. Stored, they would be smuggled mail for whoever reads or forwards the
/// message line by line. The fault is told after the last chunk, because the framing stands.
pub(crate) struct ChunkReader {
    after_cr: bool,
    fault: Option<Fault>,
    intake: Intake,
}

impl ChunkReader {
    pub(crate) fn new(intake: Intake) -> ChunkReader {
        ChunkReader { after_cr: false, fault: None, intake }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.fault.is_none() {
            self.fault = self.look(bytes);
        }
        self.intake.keep(bytes);
    }

    fn look(&mut self, bytes: &[u8]) -> Option<Fault> {
        let mut rest = bytes;
        while let Some((&first, _)) = rest.split_first() {
            if self.after_cr && first != b'\n' {
                return Some(Fault::BareCr);
            }
            let at = if self.after_cr { 0 } else { memchr3(b'\r', b'\n', 0, rest)? };
            match rest.get(at) {
                Some(b'\r') => self.after_cr = true,
                Some(b'\n') if self.after_cr => self.after_cr = false,
                Some(b'\n') => return Some(Fault::BareLf),
                _ => return Some(Fault::Nul),
            }
            rest = rest.get(at + 1..).unwrap_or_default();
        }
        None
    }

    pub(crate) fn intake(&mut self) -> &mut Intake {
        &mut self.intake
    }

    /// The message, once the last chunk was pushed.
    pub(crate) fn finish(self) -> Result<Intake, Fault> {
        match self.fault {
            Some(fault) => Err(fault),
            None if self.after_cr => Err(Fault::BareCr),
            None => Ok(self.intake),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use futures_util::FutureExt;

    use super::*;
    use crate::smtp::intake::Lost;
    use crate::smtp::intake::tests::room;
    use crate::smtp::transcript::corpus;

    const LIMIT: usize = 1000;

    /// What came of the octets: the message and the octets left over, or why not.
    #[derive(Debug, PartialEq)]
    enum Outcome {
        Message(Vec<u8>, usize),
        TooLarge(usize),
        Unfinished,
        Fault(Fault),
    }

    fn read_in<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, limit: usize) -> Outcome {
        let mut reader = DataReader::new(Intake::new(limit as u64, &room(1 << 20, 0)));
        let mut before = 0;
        for piece in pieces {
            match reader.push(piece) {
                Progress::More => before += piece.len(),
                Progress::Fault(fault) => return Outcome::Fault(fault),
                Progress::Done { used } => {
                    return match reader.finish().finish().now_or_never().unwrap() {
                        Ok(taken) => Outcome::Message(taken.octets.to_vec(), before + used),
                        Err(Lost::TooLarge(_)) => Outcome::TooLarge(before + used),
                        Err(lost) => panic!("{lost}"),
                    };
                }
            }
        }
        Outcome::Unfinished
    }

    fn read(bytes: &[u8]) -> Outcome {
        read_in([bytes], LIMIT)
    }

    #[test]
    fn the_end_and_the_dots() {
        let table: &[(&[u8], &[u8])] = &[
            (b".\r\n", b""),
            (b"a\r\n.\r\n", b"a\r\n"),
            (b"..\r\n.\r\n", b".\r\n"),
            (b"...\r\n.\r\n", b"..\r\n"),
            (b".a\r\n.\r\n", b"a\r\n"),
            (b"a.\r\n.\r\n", b"a.\r\n"),
            (b"a\r\n..x\r\n\r\n.\r\n", b"a\r\n.x\r\n\r\n"),
            (b"\xff\x80\r\n.\r\n", b"\xff\x80\r\n"),
        ];
        for (wire, message) in table {
            let shown = String::from_utf8_lossy(wire);
            assert_eq!(read(wire), Outcome::Message(message.to_vec(), wire.len()), "{shown:?}");
        }
        assert_eq!(read(b"a\r\n.\r\nQUIT\r\n"), Outcome::Message(b"a\r\n".to_vec(), 6));
        assert_eq!(read(b"a\r\n."), Outcome::Unfinished);
        assert_eq!(read(b"a\r\n.\r"), Outcome::Unfinished);
    }

    /// Every way that a server was ever told to see an end which another one did not.
    #[test]
    fn smuggling() {
        let forms: &[&[u8]] = &[
            b"\n.\n",
            b"\n.\r\n",
            b"\r\n.\n",
            b"\r\n.\r",
            b"\r.\r",
            b"\r.\n",
            b"\r.\r\n",
            b"\n.\r",
            b"\r\r\n.\r\r\n",
            b"\r\n.\r\r\n",
            b"\n\n.\r\n",
            b"\r\n\0.\r\n",
            b"\r\n.\0\r\n",
            b"\n.\n\n",
            b"\r\n\n.\r\n",
            b"\r\n.\r\0\n",
        ];
        for form in forms {
            let wire =
                [b"Subject: one\r\n\r\nbody", *form, b"MAIL FROM:<evil@friend.example>\r\nDATA\r\n.\r\n"]
                    .concat();
            let outcome = read(&wire);
            assert!(matches!(outcome, Outcome::Fault(_)), "{form:?}: {outcome:?}");
            for cut in 0..wire.len() {
                let (head, tail) = wire.split_at(cut);
                assert_eq!(read_in([head, tail], LIMIT), outcome, "{form:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn smuggling_forms_of_the_corpus() {
        let Some(folder) = corpus("smtp") else { return };
        let manifest = std::fs::read(folder.join("manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let mut seen = 0;
        for case in manifest["cases"].as_array().unwrap() {
            let Some(hex) = case["bytes_hex"].as_str() else { continue };
            let octet = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            let form: Vec<u8> = (0..hex.len()).step_by(2).map(octet).collect();
            let wire = [b"one".as_slice(), &form, b"MAIL FROM:<a@b.example>\r\n.\r\n"].concat();
            assert!(matches!(read(&wire), Outcome::Fault(_)), "{}", case["id"]);
            seen += 1;
        }
        assert!(seen >= 5, "the corpus has lost its cases");
    }

    #[test]
    fn too_large_is_read_to_its_end() {
        let line = [b"x".repeat(98), b"\r\n".to_vec()].concat();
        let fits = [line.repeat(10), b".\r\n".to_vec()].concat();
        assert_eq!(read(&fits), Outcome::Message(line.repeat(10), fits.len()));
        let over = [line.repeat(10), b"y\r\n.\r\nNOOP\r\n".to_vec()].concat();
        assert_eq!(read(&over), Outcome::TooLarge(line.len() * 10 + 6));
        // chasquid's bad_data_dot_on_message_too_big: the drained part is no place to hide an end either.
        let hidden = [line.repeat(11), b"y\n.\nHELP\r\n.\r\n".to_vec()].concat();
        assert_eq!(read(&hidden), Outcome::Fault(Fault::BareLf));
    }

    /// In chunks nothing ends a message and no dot goes; what is no line end is found wherever it is cut.
    #[test]
    fn chunks_carry_lines_and_nothing_else() {
        let table: &[(&[u8], Result<(), Fault>)] = &[
            (b"", Ok(())),
            (b"Subject: x\r\n\r\n.\r\n..\r\nno end", Ok(())),
            (b"a\r\n\r\n\r\n", Ok(())),
            (b"a\nb\r\n", Err(Fault::BareLf)),
            (b"a\rb\r\n", Err(Fault::BareCr)),
            (b"a\r\r\n", Err(Fault::BareCr)),
            (b"a\r", Err(Fault::BareCr)),
            (b"a\r\0\n", Err(Fault::BareCr)),
            (b"a\0b\r\n", Err(Fault::Nul)),
            (b"\n", Err(Fault::BareLf)),
        ];
        for (octets, expected) in table {
            for cut in 0..=octets.len() {
                let mut reader = ChunkReader::new(Intake::new(1000, &room(1 << 20, 0)));
                reader.push(&octets[..cut]);
                reader.push(&octets[cut..]);
                let shown = String::from_utf8_lossy(octets);
                match reader.finish() {
                    Err(fault) => assert_eq!(Err(fault), *expected, "{shown:?} cut at {cut}"),
                    Ok(intake) => {
                        assert_eq!(*expected, Ok(()), "{shown:?} cut at {cut}");
                        let taken = intake.finish().now_or_never().unwrap().unwrap();
                        assert_eq!(&taken.octets[..], *octets);
                    }
                }
            }
        }
    }

    /// Octets that are likely to matter, in any order.
    fn octets() -> impl Strategy<Value = Vec<u8>> {
        let octet = prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'.'), Just(b'a'), Just(0u8), any::<u8>()];
        let chunk = prop_oneof![
            3 => Just(b"\r\n".to_vec()),
            1 => Just(b"\r\n.\r\n".to_vec()),
            1 => Just(b"\r\n..".to_vec()),
            3 => octet.prop_map(|b| vec![b]),
            3 => "[a-z.]{0,9}".prop_map(String::into_bytes),
        ];
        proptest::collection::vec(chunk, 0..60).prop_map(|chunks| chunks.concat())
    }

    proptest! {
        #[test]
        fn the_result_does_not_depend_on_how_it_is_cut(
            wire in octets(), cuts in proptest::collection::vec(0usize..200, 0..8), limit in 0usize..60,
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(wire.len())).collect();
            cuts.extend([0, wire.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|pair| &wire[pair[0]..pair[1]]);
            prop_assert_eq!(read_in([wire.as_slice()], limit), read_in(pieces, limit));
            prop_assert_eq!(read_in([wire.as_slice()], limit), read_in(wire.chunks(1), limit));
        }

        /// What a correct client stuffs comes out as it was, and only the client's own end is the end.
        #[test]
        fn stuffed_and_back(lines in proptest::collection::vec("[a-z.]{0,6}", 0..20)) {
            let message: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
            let stuff = |line: &String| if line.starts_with('.') { format!(".{line}\r\n") } else { format!("{line}\r\n") };
            let wire: String = lines.iter().map(stuff).chain([".\r\n".to_owned()]).collect();
            let outcome = read(wire.as_bytes());
            prop_assert_eq!(outcome, Outcome::Message(message.into_bytes(), wire.len()));
        }

        /// An end is an end for everybody: before it, in the octets as sent, stands CRLF and nothing else.
        #[test]
        fn only_crlf_dot_crlf_ends(wire in octets()) {
            if let Outcome::Message(raw, used) = read(&wire) {
                prop_assert!(used == 3 || wire[..used].ends_with(b"\r\n.\r\n"));
                prop_assert!(raw.is_empty() || raw.ends_with(b"\r\n"));
                prop_assert!(!wire[..used - 3].windows(5).any(|end| end == b"\r\n.\r\n"));
            }
        }
    }
}
