"""An independent look at difficult messages: verify_letters.py FOLDER.

Each NN.eml is verified by dkimpy under every signature that it has, with the keys in records.txt, and read by Python's
email package; what it says must be what NN.json says. Prints one line a message, and `all good` at the end.
"""
import email, email.policy, email.utils, json, pathlib, re, sys
import dkim

folder = pathlib.Path(sys.argv[1])
zone = {}
for line in (folder / "records.txt").read_text().splitlines():
    name, value = line.split(" ", 1)
    zone[name] = "".join(re.findall(r'"([^"]*)"', value)).encode()


def txt(name, timeout=5):
    return zone.get(name.decode().rstrip(".").lower())


def signatures(raw):
    verifier = dkim.DKIM(raw, minkey=1024)
    count = sum(1 for name, _ in verifier.headers if name.lower() == b"dkim-signature")
    said = []
    for index in range(count):
        verifier = dkim.DKIM(raw, minkey=1024)
        good = verifier.verify(idx=index, dnsfunc=txt)
        fields = verifier.signature_fields
        assert b"l" not in fields, "l= covers a part only"
        names = [n.strip().lower() for n in re.sub(rb"\s", b"", fields[b"h"]).split(b":")]
        present = [n.lower() for n, _ in verifier.headers]
        for name in (b"from", b"to", b"subject", b"date", b"reply-to", b"content-type"):
            assert names.count(name) > present.count(name), (name, names)
        said.append((fields[b"a"].decode(), good))
    return said


def lines(text):
    return text.replace("\r\n", "\n").rstrip("\n")


failures = 0
for path in sorted(folder.glob("*.eml")):
    raw, want = path.read_bytes(), json.loads(path.with_suffix(".json").read_text())
    wrong = []
    try:
        said = signatures(raw)
        if sorted(said) != [("ed25519-sha256", True), ("rsa-sha256", True)]:
            wrong.append(f"signatures {said}")
    except Exception as error:
        wrong.append(f"signatures {error!r}")
    if re.search(rb"[^\r]\n|\r[^\n]|\0", raw) or any(len(l) > 998 for l in raw.split(b"\r\n")):
        wrong.append("not lines of at most 998 octets that end in CRLF")
    message = email.message_from_bytes(raw, policy=email.policy.default)
    if message["subject"] != want["subject"]:
        wrong.append(f"subject {message['subject']!r}, not {want['subject']!r}")
    for field in ("from", "to", "cc"):
        got = [[a.display_name, a.addr_spec] for a in message[field].addresses] if message[field] else []
        if got != want[field]:
            wrong.append(f"{field} {got!r}, not {want[field]!r}")
    for kind in ("plain", "html"):
        part = message.get_body((kind,))
        got = None if part is None else lines(part.get_content())
        if want[kind] is not None and got != lines(want[kind]):
            wrong.append(f"{kind} {got!r}, not {want[kind]!r}")
    files = [(p.get_filename(), p.get_payload(decode=True).hex()) for p in message.walk()
             if p.get_content_disposition() in ("attachment", "inline")]
    if files != [tuple(f) for f in want["files"]]:
        wrong.append(f"files {files!r}, not {want['files']!r}")
    if message["references"] is not None or want["references"]:
        got = (message["references"] or "").split()
        if got != want["references"]:
            wrong.append(f"references {got!r}")
    print(path.stem, want["name"], "; ".join(wrong) or "pass")
    failures += bool(wrong)
print("all good" if not failures else f"{failures} failed")
