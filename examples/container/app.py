"""A small web application without any code for OpenBao. For every request it reads its credential from plain files and asks
the database for the name of the user. After TERM the application completes the open requests and exits with 0."""

import os
import select
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psycopg2

SECRETS = Path(os.environ.get("BAOFS_MOUNT", "/app/secrets"))


def credential():
    """User and password of one lease. Both files change in one step, but reading both takes two steps."""
    while True:
        user, password = (SECRETS / "db_user").read_text(), (SECRETS / "db_password").read_text()
        if user == (SECRETS / "db_user").read_text():
            return user, password


def who_am_i():
    user, password = credential()
    host, port, name = (os.environ.get(f"DB_{key}", default) for key, default in
                        [("HOST", "127.0.0.1"), ("PORT", "5432"), ("NAME", "postgres")])
    connection = psycopg2.connect(host=host, port=port, dbname=name, user=user, password=password, connect_timeout=5)
    try:
        with connection.cursor() as cursor:
            cursor.execute("select current_user")
            return cursor.fetchone()[0]
    finally:
        connection.close()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            status, text = 200, who_am_i()
        except (OSError, psycopg2.Error) as error:
            # The messages of these errors have names of files, hosts and users, never a password.
            status, text = 500, str(error).strip()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(f"{text}\n".encode())

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = False  # closing the server waits for open requests
    request_queue_size = 128


if __name__ == "__main__":
    server = Server(("", 8080), Handler)
    # In another thread: the signal handler runs in the serving thread, for which shutdown() waits.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print("serving", flush=True)
    server.serve_forever(poll_interval=0.1)
    while select.select([server], [], [], 0)[0]:
        server.handle_request()  # connections from before the signal
    server.server_close()
