"""A back end of OpenAI's chat API, for tests: python backend.py PORT LOG NAME.

Appends the body of every request to LOG. A query that holds REFUSE, STALL or CUT is refused with
503, never answered, or cut in the middle of its stream.
"""

from __future__ import annotations

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PORT = int(sys.argv[1])
LOG = sys.argv[2]
NAME = sys.argv[3]
STALL_S = 30


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        asked = json.loads(body)
        with open(LOG, "a") as log:
            log.write(json.dumps(asked) + "\n")
        query = json.dumps(asked.get("messages"))
        if "REFUSE" in query:
            self._whole(503, {"error": {"message": "out of order", "type": "server_error"}})
        elif "STALL" in query:
            time.sleep(STALL_S)
        elif asked.get("stream"):
            self._stream(cut="CUT" in query)
        elif "CUT" in query:
            self.close_connection = True
            self.connection.close()
        else:
            message = {"role": "assistant", "content": f"from {NAME}"}
            self._whole(200, _chunk("chat.completion", message=message, finish_reason="stop"))

    def _whole(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, cut: bool) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for word in ("from", " ", NAME):
            delta = {"role": "assistant", "content": word}
            self._event(json.dumps(_chunk("chat.completion.chunk", delta=delta)))
            if cut:
                self.close_connection = True
                self.connection.close()
                return
        self._event(json.dumps(_chunk("chat.completion.chunk", delta={}, finish_reason="stop")))
        self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, text: str) -> None:
        data = f"data: {text}\n\n".encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        pass


def _chunk(kind: str, finish_reason: str | None = None, **said: Any) -> dict[str, Any]:
    return {
        "id": "x",
        "object": kind,
        "created": 1,
        "model": NAME,
        "choices": [{"index": 0, "finish_reason": finish_reason, **said}],
        **(
            {"usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}
            if "message" in said
            else {}
        ),
    }


ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
