"""An agent that only knows AgentMail's published SDK, unchanged: agent.py HTTP SMTP_HOST SMTP_PORT KEY

Prints `all good` at the end; anything else is a failure. Run by tests/all/sdk.rs.
"""
import base64, smtplib, sys, time, urllib.request
from email.message import EmailMessage

from agentmail import AgentMail, CreateBearerApiKeyRequest, SendAttachment
from agentmail.core.api_error import ApiError
from agentmail.environment import AgentMailEnvironment
from agentmail.inboxes import CreateInboxRequest

http, smtp_host, smtp_port, key = sys.argv[1:5]
client = AgentMail(api_key=key, environment=AgentMailEnvironment(http=http, websockets=http.replace("http", "ws")))


def until(what, ask):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if answer := ask():
            return answer
        time.sleep(0.05)
    raise SystemExit(f"never happened: {what}")


def refused(status, ask):
    try:
        answer = ask()
    except ApiError as error:
        assert error.status_code == status, (status, error.status_code, error.body)
        return error.body
    raise SystemExit(f"should have been refused with {status}: {answer}")


def write(subject, message_id, text, html=None, attach=None):
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "Bob <bob@remote.example>", inbox.inbox_id, subject
    mail["Message-ID"] = message_id
    mail.set_content(text)
    if html:
        mail.add_alternative(html, subtype="html")
    if attach:
        mail.add_attachment(attach, maintype="application", subtype="octet-stream", filename="données.bin")
    with smtplib.SMTP(smtp_host, int(smtp_port), "client.example", timeout=60) as smtp:
        smtp.send_message(mail)


# Who am I, and an inbox of my own; the same client_id gives the same inbox.
assert client.auth.me() is not None
assert client.inboxes.create().inbox_id.endswith("@agents.example")
ask = CreateInboxRequest(username="sdk", display_name="SDK agent", client_id="sdk-1", metadata={"team": "billing", "level": 3})
inbox = client.inboxes.create(request=ask)
assert inbox.inbox_id == inbox.email == "sdk@agents.example", inbox
assert client.inboxes.create(request=ask).inbox_id == inbox.inbox_id
assert client.inboxes.get(inbox.inbox_id).display_name == "SDK agent"
assert client.inboxes.update(inbox.inbox_id, display_name="Renamed").display_name == "Renamed"
assert inbox.inbox_id in [i.inbox_id for i in client.inboxes.list(limit=100).inboxes]
refused(404, lambda: client.inboxes.get("nobody@agents.example"))

# Mail comes in: listed, read, with its text, its HTML and its attachment.
messages = client.inboxes.messages
write("First", "<first@remote.example>", "Plain words.\n", "<p>Fine <b>words</b>.</p>", bytes(range(256)))
item = until("the first message", lambda: messages.list(inbox.inbox_id).messages)[0]
assert (item.subject, item.message_id) == ("First", "<first@remote.example>"), item
message = messages.get(inbox.inbox_id, item.message_id)
assert message.from_ == "Bob <bob@remote.example>" and message.to == [inbox.inbox_id], message
assert message.text.strip() == "Plain words." and "<b>words</b>" in message.html, message
assert "received" in message.labels and "unread" in message.labels, message.labels
part = message.attachments[0]
assert (part.filename, part.size) == ("données.bin", 256), part
link = messages.get_attachment(inbox.inbox_id, item.message_id, part.attachment_id).download_url
assert urllib.request.urlopen(link).read() == bytes(range(256))
raw = messages.get_raw(inbox.inbox_id, item.message_id)
assert b"Subject: First" in urllib.request.urlopen(raw.download_url).read()
assert "unread" not in messages.update(inbox.inbox_id, item.message_id, remove_labels=["unread"]).labels
assert messages.list(inbox.inbox_id, labels=["unread"]).count == 0
assert messages.list(inbox.inbox_id, labels=["received"]).count == 1

# The SDK does not escape path parameters: a Message-ID of GitHub's kind must still be reachable (§1.4).
write("Slashes", "<owner/repo/pull/1@github.example>", "A pull request.")
slashed = until("the second", lambda: [m for m in messages.list(inbox.inbox_id).messages if m.subject == "Slashes"])[0]
assert messages.get(inbox.inbox_id, slashed.message_id).text.strip() == "A pull request."
assert messages.get(inbox.inbox_id, "<owner/repo/pull/1@github.example>").subject == "Slashes"
assert messages.reply(inbox.inbox_id, slashed.message_id, text="Merged.").thread_id == slashed.thread_id

# A reply stays in the thread; the thread has both.
answer = messages.reply(inbox.inbox_id, item.message_id, text="Noted.", html="<p>Noted.</p>")
assert answer.thread_id == item.thread_id
thread = client.inboxes.threads.get(inbox.inbox_id, item.thread_id)
assert [m.message_id for m in thread.messages] == [item.message_id, answer.message_id], thread
assert thread.message_count == 2 and thread.last_message_id == answer.message_id
assert item.thread_id in [t.thread_id for t in client.inboxes.threads.list(inbox.inbox_id).threads]
sent = messages.get(inbox.inbox_id, answer.message_id)
assert "sent" in sent.labels and sent.in_reply_to == item.message_id, sent
everyone = messages.reply_all(inbox.inbox_id, item.message_id, text="All of you: noted.")
assert everyone.thread_id == item.thread_id

# A send repeated with its idempotency key sends once; with another body it is a conflict (409, which the SDK retries).
once = dict(to=["carol@remote.example"], subject="Once", text="Only once.", idempotency_key="order-17",
            attachments=[SendAttachment(filename="a.txt", content_type="text/plain", content=base64.b64encode(b"A").decode())])
first, second = messages.send(inbox.inbox_id, **once), messages.send(inbox.inbox_id, **once)
assert first.message_id == second.message_id and first.thread_id == second.thread_id
refused(409, lambda: messages.send(inbox.inbox_id, **{**once, "text": "Something else."}))
count = [m.subject for m in messages.list(inbox.inbox_id, labels=["sent"], limit=100).messages].count("Once")
assert count == 1, count

# Lists, at both scopes: a block wins, an allow list makes the rest forbidden, and a refusal is a named exception.
client.lists.create("send", "block", entry="enemy.example", reason="never")
assert "enemy.example" in [e.entry for e in client.lists.list("send", "block").entries]
assert client.lists.get("send", "block", "enemy.example").reason == "never"
body = refused(403, lambda: messages.send(inbox.inbox_id, to="x@enemy.example", subject="s", text="t"))
assert body.code == "message_rejected", body
mine = client.inboxes.lists
mine.create(inbox.inbox_id, "send", "allow", entry="friend@remote.example")
assert [e.entry for e in mine.list(inbox.inbox_id, "send", "allow").entries] == ["friend@remote.example"]
refused(403, lambda: messages.send(inbox.inbox_id, to="stranger@remote.example", subject="s", text="t"))
messages.send(inbox.inbox_id, to="friend@remote.example", subject="Friend", text="t")
mine.delete(inbox.inbox_id, "send", "allow", "friend@remote.example")
messages.send(inbox.inbox_id, to="stranger@remote.example", subject="Now", text="t")
client.lists.delete("send", "block", "enemy.example")
refused(404, lambda: client.lists.get("send", "block", "enemy.example"))

# Pages: every message once, whatever the page size.
whole = [m.message_id for m in messages.list(inbox.inbox_id, limit=100).messages]
pages, token = [], None
while True:
    page = messages.list(inbox.inbox_id, limit=2, page_token=token)
    pages += [m.message_id for m in page.messages]
    token = page.next_page_token
    if not token:
        break
assert pages == whole, (pages, whole)

# A key of the inbox sees the inbox and nothing else.
made = client.inboxes.api_keys.create(inbox.inbox_id, request=CreateBearerApiKeyRequest(name="agent"))
narrow = AgentMail(api_key=made.api_key, environment=AgentMailEnvironment(http=http, websockets=http))
assert narrow.inboxes.messages.get(inbox.inbox_id, item.message_id).subject == "First"
other = client.inboxes.create(request=CreateInboxRequest(username="other"))
refused(404, lambda: narrow.inboxes.get(other.inbox_id))
client.inboxes.delete(other.inbox_id)
until("the inbox is gone", lambda: other.inbox_id not in [i.inbox_id for i in client.inboxes.list(limit=100).inboxes])
wrong = AgentMail(api_key="gp_wrong", environment=AgentMailEnvironment(http=http, websockets=http))
refused(401, lambda: wrong.inboxes.list())
print("all good")
