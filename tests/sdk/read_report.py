"""Reads a DMARC aggregate report as any receiver would, knowing RFC 9990 and nothing of Gatepost: mail on stdin, what
it says as JSON on stdout. Only Python's own library."""
import email, email.policy, gzip, json, sys
import xml.etree.ElementTree as ET

NS = "{urn:ietf:params:xml:ns:dmarc-2.0}"
# Where the RFC fixes an order: the first level, record, policy_evaluated, auth_results.
TOP = ["version", "report_metadata", "policy_published", "extension", "record"]
RECORD = ["row", "identifiers", "auth_results"]
EVALUATED = ["disposition", "dkim", "spf", "reason"]
RESULTS = ["dkim", "spf"]


def children(element, known):
    names = [child.tag.removeprefix(NS) for child in element]
    assert set(names) <= set(known), names
    assert names == sorted(names, key=known.index), names
    return names


message = email.message_from_binary_file(sys.stdin.buffer, policy=email.policy.default)
[part] = [part for part in message.walk() if part.get_content_type() == "application/gzip"]
root = ET.fromstring(gzip.decompress(part.get_payload(decode=True)))
assert root.tag == NS + "feedback", root.tag
children(root, TOP)
text = lambda element, path: element.findtext(NS + path.replace("/", "/" + NS))
rows = []
for record in root.findall(NS + "record"):
    children(record, RECORD)
    evaluated = record.find(f"{NS}row/{NS}policy_evaluated")
    children(evaluated, EVALUATED)
    children(record.find(NS + "auth_results"), RESULTS)
    assert text(record, "row/source_ip") and text(record, "auth_results/spf/scope") == "mfrom"
    rows.append([
        text(record, "identifiers/header_from"), text(record, "identifiers/envelope_from"),
        text(evaluated, "disposition"), text(evaluated, "dkim"), text(evaluated, "spf"),
        int(text(record, "row/count")),
    ])
print(json.dumps({
    "subject": message["Subject"], "auto": message["Auto-Submitted"], "file": part.get_filename(),
    "version": text(root, "version"), "org": text(root, "report_metadata/org_name"),
    "email": text(root, "report_metadata/email"), "id": text(root, "report_metadata/report_id"),
    "seconds": int(text(root, "report_metadata/date_range/end")) - int(text(root, "report_metadata/date_range/begin")),
    "domain": text(root, "policy_published/domain"), "p": text(root, "policy_published/p"),
    "rows": sorted(rows),
}))
