"""Makes the messages of tests/all/verdicts.rs and their zone, signed by dkimpy with keys that are then thrown away.

    target/ci-venv/bin/pip install pynacl cryptography; target/ci-venv/bin/python tests/data/verdicts/make.py
"""
import base64, pathlib
import dkim
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import rsa

here = pathlib.Path(__file__).parent
zone = []


def key(domain):
    made = rsa.generate_private_key(65537, 2048)
    public = base64.b64encode(made.public_key().public_bytes(s.Encoding.DER, s.PublicFormat.SubjectPublicKeyInfo))
    zone.append(f"k1._domainkey.{domain} TXT v=DKIM1; k=rsa; p={public.decode()}")
    return made.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())


def signed(name, domain, private, headers, body="The parcel left today.\n", cover=(b"from", b"to", b"subject", b"date", b"message-id")):
    text = headers + f"To: ada@agents.example\nSubject: {name}\nDate: Sat, 21 Nov 2026 03:04:05 +0000\nMessage-ID: <{name}@{domain}>\n\n{body}"
    message = text.replace("\n", "\r\n").encode()
    signature = dkim.sign(message, b"k1", domain.encode(), private, canonicalize=(b"relaxed", b"relaxed"), include_headers=list(cover))
    return signature + message


def write(name, message):
    (here / f"{name}.eml").write_bytes(message)


shop, other = key("shop.example"), key("other.example")
dead = key("dead.example")
zone.pop()  # nobody will ever answer for dead.example
zone += ["shop.example MX 10 mx.shop.example", "_dmarc.shop.example TXT v=DMARC1; p=none", "dead.example DEAD"]
mine = "From: Shop <news@shop.example>\n"
good = signed("signed", "shop.example", shop, mine)
write("signed", good)
write("altered", signed("altered", "shop.example", shop, mine).replace(b"today", b"never"))
write("misaligned", signed("misaligned", "other.example", other, mine))
write("two-from", signed("two-from", "shop.example", shop, mine + "From: Bank <ceo@bank.example>\n", cover=(b"from", b"from", b"to", b"subject")))
write("dns-dead", signed("dns-dead", "dead.example", dead, "From: Ghost <ghost@dead.example>\n"))

# A list puts a footer under mail of a domain that asks for p=reject, and seals what it saw before (ARC).
strict, lists = key("strict.example"), key("lists.example")
zone += ["_dmarc.strict.example TXT v=DMARC1; p=reject"]
posted = signed("list", "strict.example", strict, "From: Eve <eve@strict.example>\n") + b"-- \r\nto unsubscribe\r\n"
saw = b"Authentication-Results: lists.example; dmarc=pass header.from=strict.example\r\n"
seal = dkim.arc_sign(saw + posted, b"k1", b"lists.example", lists, b"lists.example", include_headers=[b"from", b"subject", b"date"], timestamp="1795230000")
write("list", b"".join(seal) + posted)
(here / "zone.txt").write_text("\n".join(zone) + "\n")
