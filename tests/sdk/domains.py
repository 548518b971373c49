"""Domains and pods by AgentMail's published SDK, unchanged: domains.py PHASE HTTP KEY

`add` makes two pods and claims a domain in the first; it prints `zone-file:` and the zone file. `verify` runs once
its records are in the DNS. Run by tests/all/domains.rs; each prints `all good` at the end.
"""
import sys

from agentmail import AgentMail, CreateBearerApiKeyRequest
from agentmail.core.api_error import ApiError
from agentmail.environment import AgentMailEnvironment
from agentmail.inboxes import CreateInboxRequest

phase, http, key = sys.argv[1:4]
NAME = "tenant.example"


def as_key(key):
    return AgentMail(api_key=key, environment=AgentMailEnvironment(http=http, websockets=http.replace("http", "ws")))


def refused(status, code, ask):
    try:
        answer = ask()
    except ApiError as error:
        said = error.body["code"] if isinstance(error.body, dict) else error.body.code
        assert (error.status_code, said) == (status, code), (status, error.status_code, error.body)
        return error.body
    raise SystemExit(f"should have been refused with {status}: {answer}")


admin = as_key(key)
ours = admin.pods.create(name="Ours", client_id="pod-ours")
theirs = admin.pods.create(name="Theirs", client_id="pod-theirs")
assert admin.pods.create(name="Ours", client_id="pod-ours").pod_id == ours.pod_id != theirs.pod_id
assert admin.pods.get(ours.pod_id).name == "Ours"
assert {"pod_default", ours.pod_id, theirs.pod_id} <= {pod.pod_id for pod in admin.pods.list().pods}


def key_of(pod):
    made = admin.pods.api_keys.create(pod.pod_id, request=CreateBearerApiKeyRequest(name=f"{phase} {pod.name}"))
    client = as_key(made.api_key)
    assert client.auth.me().pod_id == pod.pod_id and client.auth.me().scope_type == "pod"
    return client


mine, other = key_of(ours), key_of(theirs)
ask = CreateInboxRequest(username="ada", domain=NAME)

if phase == "add":
    domain = mine.domains.create(domain=NAME)
    assert domain.pod_id == ours.pod_id and domain.domain_id == NAME and domain.status == "NOT_STARTED", domain
    assert {(r.type, r.status) for r in domain.records} == {("TXT", "MISSING"), ("MX", "MISSING")}, domain.records
    mx = [r for r in domain.records if r.type == "MX"]
    assert [(r.name, r.value, r.priority) for r in mx] == [(NAME, "mx.agents.example", 10)], mx
    # Somebody else's, as far as the other pod can tell.
    refused(404, "not_found", lambda: other.domains.get(NAME))
    refused(404, "not_found", lambda: other.domains.verify(NAME))
    refused(403, "resource_taken", lambda: other.domains.create(domain=NAME))
    assert other.domains.list().domains == []
    assert [d.domain for d in mine.domains.list().domains] == [NAME]
    refused(403, "already_exists", lambda: mine.domains.create(domain=NAME))
    # The DNS says something else: feedback, record by record.
    assert mine.domains.verify(NAME) is None
    domain = mine.domains.get(NAME)
    assert domain.status == "INVALID", domain
    wrong = [r for r in domain.records if r.status == "INVALID"]
    assert [r.type for r in wrong] == ["MX"] and "elsewhere.example" in wrong[0].reason, wrong
    refused(403, "domain_not_verified", lambda: mine.inboxes.create(request=ask))
    refused(403, "cannot_delete", lambda: admin.pods.delete(ours.pod_id))
    print("zone-file:")
    print(b"".join(mine.domains.get_zone_file(NAME)).decode())
else:
    assert mine.domains.verify(NAME) is None
    domain = mine.domains.get(NAME)
    assert domain.status == "VERIFIED" and all(r.status == "VALID" for r in domain.records), domain
    refused(403, "domain_not_verified", lambda: other.inboxes.create(request=ask))
    inbox = mine.inboxes.create(request=ask)
    assert inbox.inbox_id == "ada@tenant.example" and inbox.pod_id == ours.pod_id, inbox
    assert [i.inbox_id for i in mine.inboxes.list().inboxes] == [inbox.inbox_id]
    assert [i.inbox_id for i in admin.pods.inboxes.list(ours.pod_id).inboxes] == [inbox.inbox_id]
    assert other.inboxes.list().inboxes == [] and admin.pods.inboxes.list(theirs.pod_id).inboxes == []
    refused(404, "not_found", lambda: other.inboxes.get(inbox.inbox_id))
    refused(404, "not_found", lambda: admin.pods.inboxes.get(theirs.pod_id, inbox.inbox_id))
    refused(404, "not_found", lambda: other.pods.get(ours.pod_id))
    refused(403, "cannot_delete", lambda: mine.domains.delete(NAME))
    assert mine.domains.update(NAME, feedback_enabled=True).feedback_enabled is True
    # A pod that is empty goes, and its keys with it.
    admin.pods.delete(theirs.pod_id)
    refused(401, "unknown_api_key", lambda: other.inboxes.list())
print("all good")
