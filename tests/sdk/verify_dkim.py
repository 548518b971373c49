"""An independent look at our signatures: verify_dkim.py FOLDER, with mail.eml and records.txt in it.

Prints one line for each DKIM-Signature: algorithm, domain, pass or fail.
"""
import pathlib, re, sys
import dkim

folder = pathlib.Path(sys.argv[1])
# A mailbox stores what came in its own line ends; what was signed had CRLF.
message = (folder / "mail.eml").read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
zone = {}


for line in (folder / "records.txt").read_text().splitlines():
    # As `gatepost dns` prints them, in the form of a zone file: NAME. … TXT "string" "string"
    if match := re.match(r'(\S+?)\.?\s.*?\bTXT\s+(".*")', line):
        zone[match[1].lower()] = "".join(re.findall(r'"([^"]*)"', match[2])).encode()


def txt(name, timeout=5):
    return zone.get(name.decode().rstrip(".").lower())


verifier = dkim.DKIM(message)
count = sum(1 for name, _ in verifier.headers if name.lower() == b"dkim-signature")
for index in range(count):
    verifier = dkim.DKIM(message, minkey=1024)
    try:
        good = verifier.verify(idx=index, dnsfunc=txt)
    except dkim.DKIMException as error:
        good, reason = False, error
    fields = verifier.signature_fields
    print(fields[b"a"].decode(), fields[b"d"].decode(), "pass" if good else "fail")
