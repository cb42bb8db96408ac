"""Stands in for Immich's machine learning in the drills: gunicorn's master and its one worker, without the models.

The worker answers `/ping`, and reads the model's file from the cache for `/predict` as the real one does, with its log
lines where the file is not what it should be. The master says how a worker ended, and starts another.
"""

import http.server
import os
import signal
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

MODEL = Path("/cache/clip/ViT-B-32__openai/visual/model.onnx")
MODEL_BYTES = 4 << 20
TTL = float(os.environ.get("MACHINE_LEARNING_MODEL_TTL", "300"))
COPIES = int(os.environ.get("STAND_IN_MODEL_COPIES", "1"))


def say(level: str, text: str) -> None:
    """As rich writes it: wrapped at 80 columns."""
    head, words, lines = f"[{datetime.now():%m/%d/%y %H:%M:%S}] {level:<9}", text.split(" "), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 50 and lines[-1]:
            lines.append("")
        lines[-1] += f"{word} "
    print(f"{head}{lines[0]:<51}", *(f"{' ' * 29}{line:<51}" for line in lines[1:]), sep="\n", flush=True)


class Handler(http.server.BaseHTTPRequestHandler):
    last = time.monotonic()
    loaded: list[bytes] = []  # noqa: RUF012  # the one model in memory

    def do_GET(self) -> None:
        if self.path == "/ping":
            self.answer(200, b"pong", "text/plain; charset=utf-8")
        else:
            self.answer(200, b'{"message":"Immich ML"}', "application/json")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        type(self).last = time.monotonic()
        try:
            self.load()
        except OSError as error:
            say("WARNING", "Failed to load visual model 'ViT-B-32__openai'. Clearing cache.")
            say("ERROR", "Exception in ASGI application")
            print(f"{type(error).__name__}: {error}", flush=True)
            self.answer(500, b"Internal Server Error", "text/plain")
            return
        self.answer(200, b'{"clip":"[]"}', "application/json")

    def load(self) -> None:
        if self.loaded:
            return
        say("INFO", "Loading visual model 'ViT-B-32__openai' to memory")
        content = MODEL.read_bytes()
        if len(content) < MODEL_BYTES:
            raise InvalidProtobuf(
                f"[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model from {MODEL} failed:Protobuf parsing failed."
            )
        self.loaded.extend(bytes(content) + bytes(MODEL_BYTES) for _ in range(COPIES))

    def answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class InvalidProtobuf(OSError):
    """What onnxruntime says of a file that is cut off."""


def work(listener: http.server.ThreadingHTTPServer) -> None:
    """The worker: serves until it is killed, and leaves by itself when nobody asked for long."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    say("INFO", f"Booting worker with pid: {os.getpid()}")
    say("INFO", "Application startup complete.")
    Handler.last = time.monotonic()
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    while True:
        time.sleep(0.5)
        if Handler.loaded and time.monotonic() - Handler.last > TTL:
            say("INFO", "Shutting down due to inactivity.")
            os.kill(os.getpid(), signal.SIGINT)


def main() -> None:
    MODEL.parent.mkdir(parents=True, exist_ok=True)
    if not MODEL.exists():
        say("INFO", f"Downloading visual model 'ViT-B-32__openai' to {MODEL}. This may take a while.")
        MODEL.write_bytes(os.urandom(MODEL_BYTES))
    say("INFO", "Starting gunicorn 25.1.0")
    http.server.ThreadingHTTPServer.request_queue_size = 128
    listener = http.server.ThreadingHTTPServer(("", 3003), Handler)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    while True:
        worker = os.fork()
        if worker == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            work(listener)
        _, status = os.waitpid(worker, 0)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            name = signal.Signals(number).name
            why = " Perhaps out of memory?" if number == signal.SIGKILL else ""
            level = "ERROR" if number in (signal.SIGKILL, signal.SIGINT) else "WARNING"
            say(level, f"Worker (pid:{worker}) was sent {name}!{why}")
        else:
            say("ERROR", f"Worker (pid:{worker}) exited with code {os.WEXITSTATUS(status)}")


if __name__ == "__main__":
    sys.exit(main())
