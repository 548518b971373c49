"""How many messages lie in the mailboxes, as an HTTP answer that the shared harness can read.

counter.py PORT DATABASE: a path of a SQLite file, or a postgres:// URL (asked by psql). It reads what is committed and
nothing else: placements, by the next UID of each mailbox.
"""
import http.server, sqlite3, subprocess, sys

SQL = "SELECT coalesce(sum(uidnext - 1), 0) FROM mailbox"
port, database = int(sys.argv[1]), sys.argv[2]

def count():
    if database.startswith("postgres"):
        return subprocess.run(["psql", "-Atc", SQL, database], capture_output=True, text=True, check=True).stdout.strip()
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        return str(connection.execute(SQL).fetchone()[0])
    finally:
        connection.close()

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = count().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

http.server.HTTPServer(("127.0.0.1", port), Answer).serve_forever()
